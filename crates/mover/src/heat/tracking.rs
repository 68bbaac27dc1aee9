//! Write protection that tells of the first store: a userfaultfd registered for it
//! (`include/uapi/linux/userfaultfd.h`, Documentation/admin-guide/mm/userfaultfd.rst), and which pages there are to protect
//! (`PAGEMAP_SCAN` of `include/uapi/linux/fs.h`, Documentation/admin-guide/mm/pagemap.rst).

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

const UFFDIO_API: libc::c_ulong = 0xC018_AA3F;
const UFFDIO_REGISTER: libc::c_ulong = 0xC020_AA00;
const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_AA01;
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xC018_AA06;
const UFFD_API: u64 = 0xAA;
/// `UFFD_FEATURE_PAGEFAULT_FLAG_WP`, `UFFD_FEATURE_WP_HUGETLBFS_SHMEM`
const FEATURES: u64 = 1 << 0 | 1 << 12;
/// `UFFDIO_REGISTER_MODE_WP`
const MODE_WP: u64 = 1 << 1;
/// `UFFDIO_WRITEPROTECT_MODE_WP`
const PROTECT: u64 = 1 << 0;
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;

const PAGEMAP_SCAN: libc::c_ulong = 0xC060_6610;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_HUGE: u64 = 1 << 6;

/// Runs of pages, or stores, that one call may find.
const AT_ONCE: usize = 64;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Span {
    start: u64,
    length: u64,
}

#[repr(C)]
struct Register {
    range: Span,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct WriteProtect {
    range: Span,
    mode: u64,
}

/// `struct uffd_msg` of a page fault.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Run {
    start: u64,
    end: u64,
    categories: u64,
}

const _: () = assert!(size_of::<Api>() == 0x18 && size_of::<Span>() == 0x10 && size_of::<Register>() == 0x20);
const _: () = assert!(size_of::<WriteProtect>() == 0x18 && size_of::<Message>() == 32);
const _: () = assert!(size_of::<Scan>() == 0x60 && size_of::<Run>() == 24);

/// What kind of page is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Page {
    Small,
    Huge,
}

/// The means to protect memory and to see who stores into it.
#[derive(Debug)]
pub(super) struct Tracking {
    userfault: OwnedFd,
    pagemap: OwnedFd,
}

/// Memory that is tracked. Dropped, it is no longer.
#[derive(Debug)]
pub(super) struct Registered<'a> {
    tracking: &'a Tracking,
    memory: Range<usize>,
    is_released: bool,
}

impl Tracking {
    /// Opens both interfaces.
    pub(super) fn new() -> io::Result<Self> {
        let userfault = open_userfault()?;
        let mut api = Api { api: UFFD_API, features: FEATURES, ioctls: 0 };
        call(&userfault, UFFDIO_API, &mut api)?;
        let pagemap = rustix::fs::open("/proc/self/pagemap", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { userfault, pagemap })
    }

    /// Begins to track this memory; protects nothing yet.
    pub(super) fn register(&self, memory: &Range<usize>) -> io::Result<Registered<'_>> {
        let mut register = Register { range: span(memory), mode: MODE_WP, ioctls: 0 };
        call(&self.userfault, UFFDIO_REGISTER, &mut register)?;
        Ok(Registered { tracking: self, memory: memory.clone(), is_released: false })
    }

    /// Tells each run of pages that are there, in order.
    pub(super) fn present(&self, range: &Range<usize>, mut tell: impl FnMut(Range<usize>, Page)) -> io::Result<()> {
        let scan = Scan {
            category_anyof_mask: PAGE_IS_PRESENT,
            return_mask: PAGE_IS_PRESENT | PAGE_IS_HUGE,
            ..Scan::default()
        };
        self.scan(range, scan, |run, categories| {
            tell(run, if categories & PAGE_IS_HUGE == 0 { Page::Small } else { Page::Huge });
        })
    }

    /// From now on, whoever stores into the range waits.
    pub(super) fn protect(&self, range: &Range<usize>) -> io::Result<()> {
        self.write_protect(range, PROTECT)
    }

    /// Lets stores into the range through, those that wait among them.
    pub(super) fn unprotect(&self, range: &Range<usize>) -> io::Result<()> {
        self.write_protect(range, 0)
    }

    fn write_protect(&self, range: &Range<usize>, mode: u64) -> io::Result<()> {
        loop {
            match call(&self.userfault, UFFDIO_WRITEPROTECT, &mut WriteProtect { range: span(range), mode }) {
                // The address space is changing: an mmap of another thread is under way.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => std::thread::yield_now(),
                result => return result.map(drop),
            }
        }
    }

    /// Waits until somebody waits to store, for so long at most; and tells the addresses.
    pub(super) fn stores(&self, timeout: Duration, mut tell: impl FnMut(usize) -> io::Result<()>) -> io::Result<()> {
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.userfault, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(()),
            other => other?,
        };
        let mut messages = [Message::default(); AT_ONCE];
        // SAFETY: the buffer is alive and as long as it is said to be; any bytes are a valid `Message`.
        let read =
            unsafe { libc::read(self.userfault.as_raw_fd(), messages.as_mut_ptr().cast(), size_of_val(&messages)) };
        let Ok(read) = usize::try_from(read) else {
            return match io::Error::last_os_error() {
                error if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(()),
                error => Err(error),
            };
        };
        let messages = &messages[..read / size_of::<Message>()];
        let faults = messages.iter().filter(|message| message.event == UFFD_EVENT_PAGEFAULT);
        faults.map(|message| address(message.address)).try_for_each(&mut tell)
    }

    /// Walks over the range, which may take several calls.
    fn scan(&self, range: &Range<usize>, scan: Scan, mut tell: impl FnMut(Range<usize>, u64)) -> io::Result<()> {
        let mut runs = [Run::default(); AT_ONCE];
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            start: range.start as u64,
            end: range.end as u64,
            vec: runs.as_mut_ptr().expose_provenance() as u64,
            vec_len: AT_ONCE as u64,
            ..scan
        };
        while scan.start < scan.end {
            let found = call(&self.pagemap, PAGEMAP_SCAN, &mut scan)?;
            for run in &runs[..found] {
                tell(address(run.start)..address(run.end), run.categories);
            }
            if scan.walk_end <= scan.start {
                return Err(io::Error::other("PAGEMAP_SCAN does not get on"));
            }
            scan.start = scan.walk_end;
        }
        Ok(())
    }
}

impl Registered<'_> {
    /// Lifts all protection, and lets go of the memory.
    pub(super) fn release(mut self) -> io::Result<()> {
        self.is_released = true;
        self.unregister()
    }

    fn unregister(&self) -> io::Result<()> {
        call(&self.tracking.userfault, UFFDIO_UNREGISTER, &mut span(&self.memory)).map(drop)
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        if !self.is_released {
            // A failure is of no consequence: the descriptor is closed next, which does the same.
            let _ = self.unregister();
        }
    }
}

fn open_userfault() -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the call takes flags only.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just given this descriptor to us and to nobody else.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn call<T>(fd: &OwnedFd, number: libc::c_ulong, argument: &mut T) -> io::Result<usize> {
    // SAFETY: `argument` is the structure that each of the numbers above has its size from; the memory to which a `Scan`
    // points is alive and as long as the scan says (`Tracking::scan`, the only one that makes one whole).
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), number, std::ptr::from_mut(argument)) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn span(range: &Range<usize>) -> Span {
    Span { start: range.start as u64, length: range.len() as u64 }
}

fn address(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
