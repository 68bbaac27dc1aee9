//! Heat, sampled by the real kernel: storing threads over anonymous and shared memory, small pages and huge ones.

use nil_mover::{Heat, Sampling};
use nil_pool::{CreateOptions, GuestKind, GuestRequest, HostId, HostIdentity, HostKind, MemoryHome, Pool};
use rustix::fs::MemfdFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const GRANULE: usize = 2 << 20;
const GRANULES: usize = 16;
const BYTES: usize = GRANULES * GRANULE;
const PAGE: usize = 4096;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Anonymous,
    AnonymousHuge,
    Shared,
}

/// Memory of a guest that consists of whole granules.
struct Memory {
    mapping: *mut u8,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the memory is only ever accessed by atomics.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(kind: Kind, granules: usize) -> Self {
        let bytes = granules * GRANULE;
        let (access, length) = (ProtFlags::READ | ProtFlags::WRITE, bytes + GRANULE);
        // SAFETY: new mappings at addresses of the kernel's choice.
        let mapping = unsafe {
            match kind {
                Kind::Anonymous | Kind::AnonymousHuge => {
                    mmap_anonymous(std::ptr::null_mut(), length, access, MapFlags::PRIVATE)
                }
                Kind::Shared => {
                    let file = rustix::fs::memfd_create("heat", MemfdFlags::CLOEXEC).unwrap();
                    rustix::fs::ftruncate(&file, length as u64).unwrap();
                    mmap(std::ptr::null_mut(), length, access, MapFlags::SHARED, file, 0)
                }
            }
        };
        let mapping: *mut u8 = mapping.unwrap().cast();
        let start = mapping.wrapping_add(mapping.addr().next_multiple_of(GRANULE) - mapping.addr());
        let advice = if kind == Kind::AnonymousHuge { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage };
        // SAFETY: advice about huge pages does not change what is in memory.
        unsafe { madvise(start.cast(), bytes, advice) }.unwrap();
        Self { mapping, start, bytes }
    }

    fn populated(kind: Kind, granules: usize) -> Self {
        let memory = Self::new(kind, granules);
        memory.store_everywhere(0..granules, 1);
        memory
    }

    fn range(&self) -> Range<usize> {
        self.start as usize..self.start as usize + self.bytes
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset < self.bytes && offset.is_multiple_of(8));
        // SAFETY: within the mapping, aligned, and accessed by atomics only.
        unsafe { AtomicU64::from_ptr(self.start.wrapping_add(offset).cast()) }
    }

    fn store_everywhere(&self, granules: Range<usize>, value: u64) {
        for offset in (granules.start * GRANULE..granules.end * GRANULE).step_by(PAGE) {
            self.word(offset).store(value, Ordering::Relaxed);
        }
    }

    /// Samples while a thread stores into every page of these granules as fast as it can.
    fn sampled_while_storing(&self, hot: &[usize], sampling: Sampling) -> Heat {
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut value = 2;
                while !ended.load(Ordering::Relaxed) {
                    hot.iter().for_each(|&granule| self.store_everywhere(granule..granule + 1, value));
                    value += 1;
                }
            });
            let heat = Heat::sample(&self.range(), sampling);
            ended.store(true, Ordering::Relaxed);
            heat
        })
    }

    /// How many pages of it are there, and whether the mapping has huge ones, in KiB.
    fn pages(&self) -> (usize, u64) {
        let mut entries = vec![0; self.bytes / PAGE * 8];
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        pagemap.read_exact_at(&mut entries, (self.start.addr() / PAGE * 8) as u64).unwrap();
        // The highest bit of an entry says that the page is there (Documentation/admin-guide/mm/pagemap.rst).
        let there = entries.chunks_exact(8).filter(|entry| entry[7] & 0x80 != 0).count();

        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut within, mut huge) = (false, 0);
        for line in smaps.lines() {
            let (name, rest) = line.split_once([' ', ':']).unwrap();
            match name.split_once('-').map(|(start, end)| [start, end].map(|hex| usize::from_str_radix(hex, 16))) {
                Some([Ok(start), Ok(end)]) => within = start < self.range().end && self.range().start < end,
                _ if within && name == "AnonHugePages" => {
                    huge += rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
                }
                _ => {}
            }
        }
        (there, huge)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and references into it do not outlive it.
        unsafe { munmap(self.mapping.cast(), self.bytes + GRANULE) }.unwrap();
    }
}

fn heats(heat: &Heat) -> &[u8] {
    match heat {
        Heat::Known(heats) => heats,
        Heat::Unknown(why) => panic!("not sampled: {why}"),
    }
}

/// Long passes, so that the storing thread gets its turn in each of them on a busy machine too.
const LONG: Sampling = Sampling { passes: 3, each: Duration::from_millis(60) };

fn hot_is_told_from_cold(kind: Kind) {
    let memory = Memory::populated(kind, GRANULES);
    let hot = [2, 3, 9];
    let heat = memory.sampled_while_storing(&hot, LONG);
    for (granule, &heat) in heats(&heat).iter().enumerate() {
        match hot.contains(&granule) {
            true => assert!(heat >= 128, "granule {granule} is stored to all the time, and its heat is {heat}"),
            false => assert_eq!(heat, 0, "nobody stores to granule {granule}"),
        }
    }
    assert_eq!(heats(&memory.sampled_while_storing(&[], LONG)), [0; GRANULES], "nothing is left of the last sampling");
}

#[test]
fn hot_anonymous_memory_is_told_from_cold() {
    hot_is_told_from_cold(Kind::Anonymous);
}

#[test]
fn hot_shared_memory_is_told_from_cold() {
    hot_is_told_from_cold(Kind::Shared);
}

#[test]
fn hot_huge_pages_are_told_from_cold_and_stay_huge() {
    let memory = Memory::populated(Kind::AnonymousHuge, GRANULES);
    let before = memory.pages();
    if before.1 < GRANULES as u64 * 2048 {
        return eprintln!("skipped: this machine has no huge pages to give ({} KiB)", before.1);
    }
    memory.sampled_while_storing(&[0, 7], Sampling::default());
    assert_eq!(memory.pages(), before);
    hot_is_told_from_cold(Kind::AnonymousHuge);
}

#[test]
fn untouched_memory_is_cold_and_left_alone() {
    for kind in [Kind::Anonymous, Kind::AnonymousHuge, Kind::Shared] {
        let memory = Memory::new(kind, GRANULES);
        memory.store_everywhere(5..6, 1);
        let touched = memory.pages();
        assert_eq!(heats(&memory.sampled_while_storing(&[], LONG)), [0; GRANULES]);
        assert_eq!(memory.pages(), touched);
        memory.store_everywhere(8..9, 1);
        let (there, huge) = memory.pages();
        assert_eq!((there, huge), (2 * touched.0, 2 * touched.1), "{kind:?} memory becomes what it would have become");
    }
}

#[test]
fn no_store_is_lost_to_sampling() {
    let memory = Memory::populated(Kind::Anonymous, GRANULES);
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for offset in (0..BYTES).step_by(PAGE) {
                    memory.word(offset + 8).fetch_add(1, Ordering::Relaxed);
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        heats(&Heat::sample(&memory.range(), LONG));
        stop.store(true, Ordering::Relaxed);
    });
    let count = count.load(Ordering::Relaxed);
    assert!((0..BYTES).step_by(PAGE).all(|offset| memory.word(offset + 8).load(Ordering::Relaxed) == count));
}

#[test]
fn heat_that_is_written_down_is_found_in_the_placement_map_and_moves_nothing() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let size = Some(64 << 20);
    let options = CreateOptions { size, ..CreateOptions::default() };
    let pool = Pool::create(&directory.path().join("pool"), &options).unwrap();
    let agent = HostIdentity { id: HostId::random(), name: "a".to_owned(), kind: HostKind::Agent, address: None };
    let host = pool.join(&agent).unwrap();
    let request = GuestRequest {
        name: "g".to_owned(),
        kind: GuestKind::Vm,
        memory_bytes: 4 * GRANULE as u64,
        home: MemoryHome::Dram,
        vcpus: 1,
        features: 0,
    };
    let control = host.create_guest(&request).unwrap();
    control.publish(host.slot()).unwrap();
    let map = control.map_state().unwrap().placement();
    let placed = |index: usize| map.get(index).unwrap();
    let places: Vec<_> = (0..4).map(|index| placed(index).place).collect();

    Heat::Known(vec![9, 255]).write_down(&map, 1);
    Heat::Unknown("no reason".to_owned()).write_down(&map, 0);
    assert_eq!((0..4).map(|index| placed(index).heat).collect::<Vec<_>>(), [0, 9, 255, 0]);
    assert_eq!((0..4).map(|index| placed(index).place).collect::<Vec<_>>(), places);
}

/// What sampling costs a thread that stores into every page of 256 MiB as fast as it can. Prints; nothing to hold.
#[test]
#[ignore = "measures"]
fn the_cost_of_sampling() {
    for kind in [Kind::Anonymous, Kind::AnonymousHuge, Kind::Shared] {
        let memory = Memory::populated(kind, 128);
        let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for granule in 0..128 {
                        memory.store_everywhere(granule..granule + 1, 3);
                        rounds.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            let speed = |work: &mut dyn FnMut()| {
                let (began, before) = (Instant::now(), rounds.load(Ordering::Relaxed));
                work();
                let took = began.elapsed();
                ((rounds.load(Ordering::Relaxed) - before) as f64 / took.as_secs_f64(), took)
            };
            let sampling = Sampling::default();
            let mut figures: Vec<_> = (0..21)
                .map(|_| {
                    let (alone, _) = speed(&mut || std::thread::sleep(sampling.each * sampling.passes));
                    let (sampled, took) = speed(&mut || drop(Heat::sample(&memory.range(), sampling)));
                    (sampled / alone, took)
                })
                .collect();
            stop.store(true, Ordering::Relaxed);
            figures.sort_by(|one, other| one.0.total_cmp(&other.0));
            let (share, took) = figures[figures.len() / 2];
            let lost = took.mul_f64((1.0 - share).max(0.0));
            println!("{kind:?}: sampling took {took:?}, of which the thread lost {lost:?}");
        });
    }
}
