//! Tiny programs, one per thing that memory can be or undergo. Each checks itself.

use crate::stand::ORDERS;
use std::fs::File;
use std::io::{BufRead, Write};
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;

type Verdict = Result<(), String>;

/// Runs the program of this name.
pub(crate) fn run(name: &str) {
    match name {
        "stores" => stores(),
        "fork" => serve(fork(Region::filled(8 * MIB))),
        "dontneed" => serve(dontneed(Region::filled(8 * MIB))),
        "mremap" => serve(mremap()),
        "mprotect" => serve(mprotect()),
        "heap" => serve(heap()),
        "join" => serve(join),
        "sparse" => serve(sparse(Region::new(256 * MIB))),
        "sleep" => serve(sleep(Region::filled(4 * MIB))),
        "signals" => serve(signals()),
        other => panic!("no program {other}"),
    }
}

/// Answers each order with a check.
fn serve(mut check: impl FnMut() -> Verdict) {
    let mut verdict = move || check().map_or_else(|wrong| wrong, |()| "good".to_owned());
    if let Ok(directory) = std::env::var(ORDERS) {
        return serve_by_files(Path::new(&directory), verdict);
    }
    say("ready");
    std::io::stdin().lock().lines().for_each(|_| say(&verdict()));
}

/// Until it is killed.
fn serve_by_files(directory: &Path, mut verdict: impl FnMut() -> String) {
    rustix::process::setsid().expect("a session");
    let mut answers = File::create(directory.join("answers")).expect("a file");
    let mut answer = |line: &str| answers.write_all(format!("{line}\n").as_bytes()).expect("an answer");
    answer("ready");
    let mut done = 0;
    loop {
        let orders = std::fs::read_to_string(directory.join("orders")).unwrap_or_default().parse().unwrap_or(0);
        if orders > done {
            answer(&verdict());
            done = orders;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn say(line: &str) {
    println!("{line}");
    std::io::stdout().flush().expect("somebody who listens");
}

fn require(condition: bool, wrong: impl FnOnce() -> String) -> Verdict {
    if condition { Ok(()) } else { Err(wrong()) }
}

/// Private anonymous memory.
pub(crate) struct Region {
    at: *mut u64,
    bytes: usize,
}

// SAFETY: a mapping belongs to no thread.
unsafe impl Send for Region {}
// SAFETY: as above; threads of one program use words of their own.
unsafe impl Sync for Region {}

impl Region {
    pub(crate) fn new(bytes: usize) -> Self {
        let (rights, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
        // SAFETY: new memory, wherever there is room.
        let at = unsafe { libc::mmap(ptr::null_mut(), bytes, rights, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Self { at: at.cast(), bytes }
    }

    pub(crate) fn filled(bytes: usize) -> Self {
        let region = Self::new(bytes);
        region.fill(1);
        region
    }

    fn words(&self) -> usize {
        self.bytes / 8
    }

    fn read(&self, index: usize) -> u64 {
        assert!(index < self.words());
        // SAFETY: within the mapping.
        unsafe { self.at.add(index).read_volatile() }
    }

    fn write(&self, index: usize, word: u64) {
        assert!(index < self.words());
        // SAFETY: within the mapping.
        unsafe { self.at.add(index).write_volatile(word) }
    }

    fn fill(&self, seed: u64) {
        (0..self.words()).for_each(|index| self.write(index, pattern(seed, index)));
    }

    fn check(&self, seed: u64) -> Verdict {
        let wrong = (0..self.words()).find(|index| self.read(*index) != pattern(seed, *index));
        wrong.map_or(Ok(()), |index| Err(format!("word {index:#x} is {:#x}", self.read(index))))
    }
}

fn pattern(seed: u64, index: usize) -> u64 {
    (index as u64 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Two threads store into every page without pause; each store is looked at when its turn comes again.
fn stores() {
    static STOP: AtomicBool = AtomicBool::new(false);
    static ROUNDS: AtomicU64 = AtomicU64::new(0);
    static LOST: AtomicU64 = AtomicU64::new(0);
    let storm = |region: Region| {
        let mut round = 0;
        while !STOP.load(Ordering::Relaxed) {
            for index in (0..region.words()).step_by(PAGE / 16) {
                LOST.fetch_add(u64::from(region.read(index) != round), Ordering::Relaxed);
                region.write(index, round + 1);
            }
            round += 1;
            ROUNDS.fetch_add(1, Ordering::Relaxed);
        }
    };
    let threads = [0, 1].map(|_| std::thread::spawn(move || storm(Region::new(24 * MIB))));
    serve(|| {
        let before = ROUNDS.load(Ordering::Relaxed);
        while ROUNDS.load(Ordering::Relaxed) < before + 4 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let lost = LOST.load(Ordering::Relaxed);
        require(lost == 0, || format!("{lost} stores were lost"))
    });
    STOP.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().expect("a thread"));
}

/// A child sees memory as it was when it was forked, and its parent does not see what it stores.
fn fork(region: Region) -> impl FnMut() -> Verdict {
    let mut seed = 1;
    move || {
        let pipe = pipe();
        // SAFETY: the child calls nothing but system calls, volatile reads and writes.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let mut byte = 0_u8;
            // SAFETY: one byte into a live variable; then the child ends without cleaning up.
            unsafe {
                libc::read(pipe[0], (&raw mut byte).cast(), 1);
                let good = region.check(seed).is_ok();
                (0..region.words()).step_by(512).for_each(|index| region.write(index, 7));
                libc::_exit(i32::from(!good));
            }
        }
        region.fill(seed + 1);
        // SAFETY: one byte from a live array; the status is alive during the call.
        let status = unsafe {
            libc::write(pipe[1], [1_u8].as_ptr().cast(), 1);
            let mut status = 0;
            libc::waitpid(child, &raw mut status, 0);
            for end in pipe {
                libc::close(end);
            }
            status
        };
        seed += 1;
        require(status == 0, || format!("the child saw its parent's stores: status {status:#x}"))?;
        region.check(seed)
    }
}

fn pipe() -> [i32; 2] {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    ends
}

/// Memory that was given up comes back as zeros; its neighbours stay.
fn dontneed(region: Region) -> impl FnMut() -> Verdict {
    move || {
        let (from, pages) = (region.words() / 4, 3 * PAGE);
        // SAFETY: a part of the region, whose contents are not needed.
        unsafe { libc::madvise(region.at.add(from).cast(), pages, libc::MADV_DONTNEED) };
        for index in from..from + pages / 8 {
            require(region.read(index) == 0, || format!("word {index:#x} came back"))?;
            region.write(index, pattern(1, index));
        }
        region.check(1)
    }
}

/// Memory that grows by mremap is followed by zeros, keeps its contents, and harms nothing.
fn mremap() -> impl FnMut() -> Verdict {
    let (mut region, neighbour) = (Region::filled(2 * MIB), Region::filled(2 * MIB));
    move || {
        let longer = region.bytes + MIB;
        // SAFETY: the region is ours and is known at its new address only.
        let at = unsafe { libc::mremap(region.at.cast(), region.bytes, longer, libc::MREMAP_MAYMOVE) };
        require(at != libc::MAP_FAILED, || "mremap failed".to_owned())?;
        let old = region.words();
        region = Region { at: at.cast(), bytes: longer };
        for index in old..region.words() {
            require(region.read(index) == 0, || format!("new word {index:#x} is not zero"))?;
            region.write(index, pattern(1, index));
        }
        region.check(1)?;
        neighbour.check(1)
    }
}

/// Rights stay what they were: memory that may be read only, and a guard.
fn mprotect() -> impl FnMut() -> Verdict {
    let [sealed, guard] = [4 * MIB, MIB].map(Region::filled);
    let protect = |region: &Region, rights| {
        // SAFETY: a region of ours, which is not accessed otherwise than the rights say.
        assert_eq!(unsafe { libc::mprotect(region.at.cast(), region.bytes, rights) }, 0);
    };
    protect(&sealed, libc::PROT_READ);
    protect(&guard, libc::PROT_NONE);
    move || {
        let zero = std::fs::File::open("/dev/zero").expect("zeros");
        for region in [&sealed, &guard] {
            // SAFETY: the kernel checks the rights of the address that it is to store to.
            let stored = unsafe { libc::read(std::os::fd::AsRawFd::as_raw_fd(&zero), region.at.cast(), 8) };
            require(stored == -1, || "the kernel could store into protected memory".to_owned())?;
        }
        sealed.check(1)?;
        protect(&guard, libc::PROT_READ);
        guard.check(1)?;
        protect(&guard, libc::PROT_NONE);
        protect(&sealed, libc::PROT_READ | libc::PROT_WRITE);
        sealed.fill(1);
        protect(&sealed, libc::PROT_READ);
        Ok(())
    }
}

/// The heap grows and shrinks.
fn heap() -> impl FnMut() -> Verdict {
    let sbrk = |bytes: isize| {
        // SAFETY: nothing else uses this part of the heap.
        unsafe { libc::sbrk(bytes) }
    };
    let kept = Region { at: sbrk(4 * MIB as isize).cast(), bytes: 4 * MIB };
    kept.fill(1);
    move || {
        let grown = Region { at: sbrk(MIB as isize).cast(), bytes: MIB };
        let fresh = (0..grown.words()).all(|index| grown.read(index) == 0);
        grown.fill(3);
        let held = grown.check(3);
        sbrk(-(MIB as isize));
        require(fresh, || "the heap grew by memory that was not zero".to_owned())?;
        held?;
        kept.check(1)
    }
}

/// Threads come and go; the kernel wakes whoever waits for their end by a word on their stacks.
fn join() -> Verdict {
    let threads: Vec<_> = (0..8_u64)
        .map(|number| {
            std::thread::spawn(move || {
                let own = vec![number; 100_000];
                std::thread::sleep(Duration::from_millis(number));
                own.iter().sum::<u64>()
            })
        })
        .collect();
    for (number, thread) in threads.into_iter().enumerate() {
        let sum = thread.join().map_err(|_| "a thread panicked".to_owned())?;
        require(sum == number as u64 * 100_000, || format!("thread {number} has counted {sum}"))?;
    }
    Ok(())
}

/// Few pages in much address space, and more of them each time.
fn sparse(region: Region) -> impl FnMut() -> Verdict {
    let mut written = 0;
    move || {
        for index in (0..region.words()).step_by(region.words() / 64) {
            let (page, expected) = (index + written * 512, pattern(1, index));
            region.write(page, expected);
            for earlier in 0..written {
                require(region.read(index + earlier * 512) == expected, || format!("word {index:#x} is lost"))?;
            }
            require(region.read(page + 1) == 0, || format!("word {:#x} is not zero", page + 1))?;
        }
        written += 1;
        Ok(())
    }
}

/// A sleep lasts until its end, and is not said to have been interrupted.
fn sleep(region: Region) -> impl FnMut() -> Verdict {
    move || {
        for _ in 0..20 {
            let time = libc::timespec { tv_sec: 0, tv_nsec: 5_000_000 };
            // SAFETY: the time is alive during the call; the remainder is not asked for.
            let result = unsafe { libc::nanosleep(&raw const time, ptr::null_mut()) };
            require(result == 0, || format!("a sleep ended early: {}", std::io::Error::last_os_error()))?;
        }
        region.check(1)
    }
}

/// Signals arrive, each once, and their handler finds floating-point registers that are the program's when it returns.
fn signals() -> impl FnMut() -> Verdict {
    static SEEN: AtomicU64 = AtomicU64::new(0);
    extern "C" fn handler(_: i32) {
        SEEN.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: the handler only counts.
    unsafe { libc::signal(libc::SIGUSR1, handler as *const () as libc::sighandler_t) };
    let region = Region::filled(8 * MIB);
    move || {
        let before = SEEN.load(Ordering::Relaxed);
        let mut sum = 0.0_f64;
        for number in 0..1000_u32 {
            // SAFETY: to this very thread.
            unsafe { libc::raise(libc::SIGUSR1) };
            sum += f64::from(number).sqrt();
        }
        let seen = SEEN.load(Ordering::Relaxed) - before;
        require(seen == 1000, || format!("{seen} of 1000 signals arrived"))?;
        require((sum - 21_065.833_110_8).abs() < 1e-3, || format!("the sum is {sum}"))?;
        region.check(1)
    }
}
