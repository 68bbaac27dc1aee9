//! Pool memory that is no more: a file that was cut short or removed with its device, a device that is gone.
//!
//! ```text
//! SIGBUS ─┬─ in a mapping of a pool ──▶ all of the mapping is zeros from here on, of this process alone; the access goes on
//!         └─ anywhere else ──▶ as if we were not here: whatever handled the signal before, or the end of the process
//! ```
//!
//! Nothing that a pool says is taken on trust, and zeros say nothing: no host, no guest, no owner. So whoever looks finds that it
//! has no rights there any more, and asks [`Pool::is_lost`](crate::Pool::is_lost) why. A guest's own memory is not concerned:
//! who maps it for a guest watches over it there (`nil_mover`).
//!
//! A handler may interrupt anything, so it takes no lock and allocates nothing: mappings are registered in a fixed array of
//! atomics. One that finds no room there is not watched.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// How many mappings a process may have that are watched.
const PLACES: usize = 2048;

/// A registered mapping.
struct Place {
    taken: AtomicBool,
    start: AtomicUsize,
    /// 0: nothing is registered here (or not yet, or no longer).
    length: AtomicUsize,
    lost: AtomicBool,
}

static PLACED: [Place; PLACES] = [const {
    Place {
        taken: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        length: AtomicUsize::new(0),
        lost: AtomicBool::new(false),
    }
}; PLACES];

/// What handled the signal before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// A mapping over which the handler watches. Forgotten on drop, which comes before it is unmapped.
#[derive(Debug)]
pub(crate) struct Watch(usize);

impl Watch {
    /// Watches over a mapping; not, if this process has too many or the handler cannot be installed.
    pub(crate) fn over(start: *mut u8, length: usize) -> Option<Self> {
        static HANDLER: OnceLock<bool> = OnceLock::new();
        if !HANDLER.get_or_init(install) {
            return None;
        }
        let free = |place: &Place| {
            !place.taken.load(Ordering::Relaxed)
                && place.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let watch = Self(PLACED.iter().position(free)?);
        let place = watch.place();
        place.lost.store(false, Ordering::Relaxed);
        place.start.store(start.expose_provenance(), Ordering::Release);
        place.length.store(length, Ordering::Release);
        Some(watch)
    }

    fn place(&self) -> &'static Place {
        &PLACED[self.0]
    }

    /// Whether its memory is no more, and there are zeros in its place.
    pub(crate) fn is_lost(&self) -> bool {
        self.place().lost.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let place = self.place();
        place.length.store(0, Ordering::Release);
        place.taken.store(false, Ordering::Release);
    }
}

fn install() -> bool {
    // SAFETY: all bytes zero are a `sigaction`: the default action, no flags, an empty mask.
    let (mut action, mut before): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle as extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: asks only; `before` is alive.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before) } != 0 {
        return false;
    }
    BEFORE.get_or_init(|| before);
    // SAFETY: `action` is alive; the handler has the signature that SA_SIGINFO asks for, and does only what a handler may.
    unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) == 0 }
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid `siginfo_t`; if it sent this signal itself (a positive code), the
    // field holds an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    // SAFETY: errno is the thread's own, and what it was doing must not notice.
    let errno = unsafe { *libc::__errno_location() };
    // An error that nobody has come upon yet (BUS_MCEERR_AO) can wait until somebody does.
    let is_ours = code > 0 && code != libc::BUS_MCEERR_AO && replace(address);
    if !is_ours {
        pass_on(signal, info, context);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Puts zeros in the place of the mapping that has this address; false when there is none.
fn replace(address: usize) -> bool {
    let here = |place: &&Place| {
        let (length, start) = (place.length.load(Ordering::Acquire), place.start.load(Ordering::Acquire));
        (start..start.saturating_add(length)).contains(&address)
    };
    let Some(place) = PLACED.iter().find(here) else { return false };
    let (start, length) = (place.start.load(Ordering::Acquire), place.length.load(Ordering::Acquire));
    place.lost.store(true, Ordering::Release);
    let (protection, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: the range is a mapping of this process as long as it is registered, and all that leads there are atomics and raw
    // pointers that expect any bytes. The call is a system call and no more.
    let mapped = unsafe {
        libc::mmap(std::ptr::with_exposed_provenance_mut(start), length, protection, flags | libc::MAP_NORESERVE, -1, 0)
    };
    mapped != libc::MAP_FAILED
}

/// Does what would have been done without us.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let before = BEFORE.get();
    let handler = before.map_or(libc::SIG_DFL, |action| action.sa_sigaction);
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        // SAFETY: all bytes zero are the default action, which is restored; nothing else of the process changes.
        let code = unsafe {
            let action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
            (*info).si_code
        };
        if code <= 0 {
            // SAFETY: sends the signal that came once more, to take effect on return.
            unsafe { libc::raise(signal) };
        }
        return; // the access fails once more, and this time for good
    }
    if before.is_some_and(|action| action.sa_flags & libc::SA_SIGINFO != 0) {
        // SAFETY: the address is that of a handler which was installed with SA_SIGINFO, so it takes these three.
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            unsafe { std::mem::transmute(handler) };
        handler(signal, info, context);
    } else {
        // SAFETY: the address is that of a handler which was installed without SA_SIGINFO, so it takes the number only.
        let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
        handler(signal);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use crate::{Access, CreateOptions, GRANULE, HostId, HostIdentity, HostKind, Pool};
    use std::fs::OpenOptions;

    #[test]
    fn a_pool_that_is_cut_short_is_known_to_be_lost_and_says_nothing_any_more() {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
        let path = directory.path().join("pool");
        let options = CreateOptions { size: Some(16 * GRANULE), ..CreateOptions::default() };
        let pool = Pool::create(&path, &options).expect("a pool");
        let other = Pool::open(&path, Access::ReadOnly).expect("the same");
        let identity =
            HostIdentity { id: HostId::random(), name: "a".to_owned(), kind: HostKind::Agent, address: None };
        let host = pool.join(&identity).expect("membership");
        let tether = host.tether().expect("it is alive");
        assert!(tether.beat() && !pool.is_lost() && !other.is_lost());
        OpenOptions::new().write(true).open(&path).expect("the file").set_len(0).expect("it is cut short");
        assert!(!tether.beat(), "nobody is a member of nothing");
        assert!(pool.is_lost());
        assert!(other.hosts().is_empty() && other.is_lost(), "each mapping finds out by itself");
        assert!(host.is_fenced() && pool.guests().is_empty());
    }
}
