//! Memory that fails: the signal handlers, and what they leave behind.
//!
//! ```text
//! SIGBUS, SIGSEGV
//!   ├─ in a routine of crate::copy ───────────────▶ the routine returns what it has done
//!   ├─ SIGSEGV, a store into a chunk that is protected by mprotect ──▶ wait for the chunk, try again
//!   ├─ SIGBUS in a guest's memory ────▶ remember the first address
//!   │     ├─ sent while a system call ran (KVM_RUN: a vCPU touched it) ──▶ return; the call says EINTR
//!   │     └─ an access of this program ──▶ as if we were not here
//!   └─ anything else ──▶ as if we were not here: whatever handled the signal before, or the end of the process
//! ```
//!
//! A handler may interrupt anything, so it takes no lock and allocates nothing: guests' memories are registered in a
//! fixed array of atomics.
#![allow(unsafe_code)]

use crate::copy;
use nil_pool::Source;
use std::cell::Cell;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

/// How many guests' memories a process may have at a time. A worker has one; tests and benchmarks have a few.
const PLACES: usize = 64;

/// Part of a guest's memory that is no more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LostMemory {
    /// Guest-physical address of the first byte that was found to be lost.
    pub guest_address: u64,
    /// Where it lay in the pool; `None` when it was this host's DRAM.
    pub source: Option<Source>,
}

impl fmt::Display for LostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory at guest address {:#x} is lost: ", self.guest_address)?;
        match &self.source {
            Some(source) => write!(f, "it was {source}"),
            None => f.write_str("it was this host's DRAM"),
        }
    }
}

/// What the handlers know of one guest's memory.
struct Place {
    taken: AtomicBool,
    start: AtomicUsize,
    /// 0: nothing is registered here (or not yet, or no longer).
    end: AtomicUsize,
    /// The address that failed first; 0 is none.
    lost: AtomicUsize,
    /// Counted up when a chunk is protected by mprotect (then it is odd) and when it is so no longer.
    barrier: AtomicU32,
    /// How many accesses have waited for it.
    waits: AtomicUsize,
}

static WATCHED: [Place; PLACES] = [const {
    Place {
        taken: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        lost: AtomicUsize::new(0),
        barrier: AtomicU32::new(0),
        waits: AtomicUsize::new(0),
    }
}; PLACES];

static BEFORE: OnceLock<[libc::sigaction; 2]> = OnceLock::new();
const SIGNALS: [libc::c_int; 2] = [libc::SIGBUS, libc::SIGSEGV];

/// What had become of a barrier when a thread last looked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waited {
    /// A chunk was being moved, and has been: what failed is to be tried again.
    Moved,
    /// No chunk has moved since this thread last asked: what failed did so for another reason.
    NothingMoves,
}

/// A guest's memory for which the handlers look out. It is forgotten on drop.
#[derive(Debug)]
pub(crate) struct Watch {
    place: usize,
    range: Range<usize>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let place = self.place();
        place.end.store(0, Ordering::Release);
        place.start.store(0, Ordering::Release);
        place.taken.store(false, Ordering::Release);
    }
}

impl Watch {
    /// Installs the handlers, if they are not there yet, and registers a range.
    ///
    /// # Errors
    /// What the kernel says, or that too many are registered.
    pub(crate) fn over(range: Range<usize>) -> io::Result<Self> {
        watch_for_faults()?;
        let free =
            |place: &Place| place.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let place = WATCHED.iter().position(free).ok_or_else(|| {
            io::Error::other(format!("this process has the memory of {PLACES} guests already, and cannot watch more"))
        })?;
        let watch = Self { place, range };
        let place = watch.place();
        place.lost.store(0, Ordering::Relaxed);
        place.start.store(watch.range.start, Ordering::Release);
        place.end.store(watch.range.end, Ordering::Release);
        Ok(watch)
    }

    fn place(&self) -> &'static Place {
        &WATCHED[self.place]
    }

    /// Offset of the byte that was found to be lost first.
    pub(crate) fn lost(&self) -> Option<usize> {
        match self.place().lost.load(Ordering::Acquire) {
            0 => None,
            address => Some(address - self.range.start),
        }
    }

    /// Remembers that the byte at this offset is lost.
    pub(crate) fn lose(&self, offset: usize) {
        self.place().lose(self.range.start + offset);
    }

    /// Has stores that fail from now on wait until [`Watch::lift`].
    pub(crate) fn raise(&self) {
        let before = self.place().barrier.fetch_add(1, Ordering::AcqRel);
        debug_assert!(before.is_multiple_of(2), "one barrier at a time");
    }

    /// Lets them go on.
    pub(crate) fn lift(&self) {
        let barrier = &self.place().barrier;
        barrier.fetch_add(1, Ordering::AcqRel);
        // SAFETY: the word is alive for ever; the call only wakes who waits for it.
        unsafe { libc::syscall(libc::SYS_futex, barrier.as_ptr(), FUTEX_WAKE, i32::MAX) };
    }

    /// How many accesses have had to wait since this was asked last.
    pub(crate) fn take_waits(&self) -> usize {
        self.place().waits.swap(0, Ordering::AcqRel)
    }

    /// Waits until no chunk is protected by mprotect.
    pub(crate) fn wait(&self) -> Waited {
        self.place().wait(Attempt::at(0))
    }
}

/// `FUTEX_WAIT | FUTEX_PRIVATE_FLAG` and `FUTEX_WAKE | FUTEX_PRIVATE_FLAG` (linux/futex.h).
const FUTEX_WAIT: libc::c_int = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
const FUTEX_WAKE: libc::c_int = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;

/// An access that failed: at which address, and how many barriers had come and gone.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Attempt {
    address: usize,
    barrier: u32,
}

impl Attempt {
    fn at(address: usize) -> Self {
        Self { address, barrier: 0 }
    }
}

thread_local! {
    /// This thread's last access that failed. Without a destructor and with a constant to begin with, so a handler may
    /// use it.
    static LAST: Cell<Attempt> = const { Cell::new(Attempt { address: 0, barrier: 0 }) };
}

impl Place {
    fn lose(&self, address: usize) {
        // Only the first counts.
        let _ = self.lost.compare_exchange(0, address, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Waits until the barrier has been lifted. An access that fails again at the same address without that any barrier
    /// came in between failed for another reason.
    fn wait(&self, attempt: Attempt) -> Waited {
        let mut barrier = self.barrier.load(Ordering::Acquire);
        if !barrier.is_multiple_of(2) {
            self.waits.fetch_add(1, Ordering::AcqRel);
        }
        while !barrier.is_multiple_of(2) {
            // SAFETY: the word is alive for ever; the call returns at once if it is no longer as it was.
            unsafe { libc::syscall(libc::SYS_futex, self.barrier.as_ptr(), FUTEX_WAIT, barrier, 0usize) };
            barrier = self.barrier.load(Ordering::Acquire);
        }
        let attempt = Attempt { barrier, ..attempt };
        if LAST.replace(attempt) == attempt { Waited::NothingMoves } else { Waited::Moved }
    }
}

/// Installs the handlers, once per process.
///
/// # Errors
/// What the kernel says.
pub(crate) fn watch_for_faults() -> io::Result<()> {
    static DONE: OnceLock<Result<(), i32>> = OnceLock::new();
    DONE.get_or_init(|| {
        let failed = |error: io::Error| error.raw_os_error().unwrap_or(libc::EINVAL);
        BEFORE.get_or_init(|| SIGNALS.map(|signal| current(signal).unwrap_or_else(|_| default())));
        SIGNALS.into_iter().try_for_each(|signal| install(signal).map_err(failed))
    })
    .map_err(io::Error::from_raw_os_error)
}

fn default() -> libc::sigaction {
    // SAFETY: all zeros are a valid sigaction: SIG_DFL, no flags, an empty mask.
    unsafe { std::mem::zeroed() }
}

fn current(signal: libc::c_int) -> io::Result<libc::sigaction> {
    let mut action = default();
    // SAFETY: asks only; `action` is alive.
    let result = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    if result == 0 { Ok(action) } else { Err(io::Error::last_os_error()) }
}

fn install(signal: libc::c_int) -> io::Result<()> {
    let mut action = default();
    action.sa_sigaction = handle as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `handle` has the signature that SA_SIGINFO asks for, and does only what a handler may.
    let result = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Handles both signals; see the top of this module.
extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo_t and a ucontext_t, which are ours until the handler returns.
    let (info, context) = unsafe { (&mut *info, &mut *context.cast::<libc::ucontext_t>()) };
    // What the thread was doing must not notice.
    // SAFETY: errno is the thread's own.
    let errno = unsafe { *libc::__errno_location() };
    if !is_ours(signal, info, context) {
        pass_on(signal, info, context);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

fn is_ours(signal: libc::c_int, info: &libc::siginfo_t, context: &mut libc::ucontext_t) -> bool {
    // SAFETY: for these signals, if the kernel sent them, the field holds an address; else it is not used for more than
    // comparisons.
    let address = unsafe { info.si_addr() }.addr();
    if info.si_code <= 0 {
        return false; // somebody's kill(2)
    }
    let registers = &mut context.uc_mcontext.gregs;
    let instruction = usize::try_from(registers[RIP]).unwrap_or(0);
    if let Some(end) = copy::recovery(instruction) {
        registers[RIP] = end.cast_signed() as i64;
        registers[RDX] = address.cast_signed() as i64;
        return true;
    }
    let here =
        |place: &&Place| (place.start.load(Ordering::Acquire)..place.end.load(Ordering::Acquire)).contains(&address);
    let Some(place) = WATCHED.iter().find(here) else { return false };
    if signal == libc::SIGSEGV {
        return info.si_code == SEGV_ACCERR && place.wait(Attempt::at(address)) == Waited::Moved;
    }
    place.lose(address);
    info.si_code == libc::BUS_MCEERR_AO || is_in_system_call(registers)
}

const RIP: usize = libc::REG_RIP as usize;
const RDX: usize = libc::REG_RDX as usize;
const RCX: usize = libc::REG_RCX as usize;
/// Invalid permissions for mapped object (asm-generic/siginfo.h).
const SEGV_ACCERR: libc::c_int = 2;

/// Whether the thread was in the kernel: a `syscall` instruction leaves the address of the next one in RCX, and that is
/// where the thread goes on.
fn is_in_system_call(registers: &[i64]) -> bool {
    const SYSCALL: [u8; 2] = [0x0F, 0x05];
    if registers[RIP] != registers[RCX] {
        return false;
    }
    let next = std::ptr::with_exposed_provenance::<u8>(usize::try_from(registers[RIP]).unwrap_or(0));
    // SAFETY: RIP follows an instruction of this thread if RCX says the same; where it does not, the bytes before it are
    // still those of a mapped text page, except at the very beginning of one, which RCX would have to have guessed.
    unsafe { next.sub(2).cast::<[u8; 2]>().read_unaligned() == SYSCALL }
}

/// Does what would have been done without us.
fn pass_on(signal: libc::c_int, info: &mut libc::siginfo_t, context: &mut libc::ucontext_t) {
    let before = BEFORE.get().and_then(|all| all.get(SIGNALS.iter().position(|known| *known == signal)?));
    let handler = before.map_or(libc::SIG_DFL, |action| action.sa_sigaction);
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        let action = default();
        // SAFETY: the signal's default is restored; nothing else of the process changes.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
        if info.si_code <= 0 {
            // SAFETY: sends the signal that came once more, to take effect on return.
            unsafe { libc::raise(signal) };
        }
        return; // the access fails once more, and this time for good
    }
    if before.is_some_and(|action| action.sa_flags & libc::SA_SIGINFO != 0) {
        // SAFETY: the address is that of a handler which was installed with SA_SIGINFO, so it takes these three.
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            unsafe { std::mem::transmute(handler) };
        handler(signal, info, std::ptr::from_mut(context).cast());
    } else {
        // SAFETY: the address is that of a handler which was installed without SA_SIGINFO, so it takes the number only.
        let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
        handler(signal);
    }
}

#[cfg(test)]
mod tests;
