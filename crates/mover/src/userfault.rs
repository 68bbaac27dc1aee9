//! userfaultfd, as far as the mover needs it: write protection that makes stores wait.
//!
//! Numbers and structures are those of `include/uapi/linux/userfaultfd.h`; what the calls do is in
//! `Documentation/admin-guide/mm/userfaultfd.rst`. Faults of the kernel must wait too (KVM and io_uring store into the
//! guest's memory from there), so the descriptor is never one for user-mode faults only.
#![allow(unsafe_code)]

use crate::error::{Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// `_IOC_READ` and `_IOC_WRITE` (asm-generic/ioctl.h): which way the kernel copies the argument.
const OUT: u32 = 2;
const IN: u32 = 1;

const fn number<T>(ways: u32, command: u32) -> libc::c_ulong {
    assert!(size_of::<T>() < 1 << 14);
    ((ways << 30) as u64 | (size_of::<T>() as u64) << 16 | 0xAA << 8 | command as u64) as libc::c_ulong
}

const NEW: libc::c_ulong = number::<()>(0, 0x00);
const API: libc::c_ulong = number::<Api>(IN | OUT, 0x3F);
const REGISTER: libc::c_ulong = number::<Register>(IN | OUT, 0x00);
const UNREGISTER: libc::c_ulong = number::<Span>(OUT, 0x01);
const WAKE: libc::c_ulong = number::<Span>(OUT, 0x02);
const COPY: libc::c_ulong = number::<Copy>(IN | OUT, 0x03);
const WRITEPROTECT: libc::c_ulong = number::<WriteProtect>(IN | OUT, 0x06);
#[cfg(test)]
const POISON: libc::c_ulong = number::<Poison>(IN | OUT, 0x08);

const _: () = {
    assert!(NEW == 0xAA00 && API == 0xC018_AA3F && REGISTER == 0xC020_AA00);
    assert!(UNREGISTER == 0x8010_AA01 && WAKE == 0x8010_AA02);
    assert!(COPY == 0xC028_AA03 && WRITEPROTECT == 0xC018_AA06);
    assert!(size_of::<Message>() == 32);
};
#[cfg(test)]
const _: () = assert!(POISON == 0xC020_AA08);

const UFFD_API: u64 = 0xAA;
const MODE_WP: u64 = 1 << 1;
const WRITEPROTECT_ON: u64 = 1 << 0;
const COPY_DONTWAKE: u64 = 1 << 0;
const EVENT_PAGEFAULT: u8 = 0x12;

/// What the kernel must be able to do, and how the header calls it.
const FEATURES: [(u64, &str); 3] = [
    (1 << 0, "UFFD_FEATURE_PAGEFAULT_FLAG_WP"),
    (1 << 12, "UFFD_FEATURE_WP_HUGETLBFS_SHMEM"),
    (1 << 13, "UFFD_FEATURE_WP_UNPOPULATED"),
];

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Span {
    start: u64,
    len: u64,
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

#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[cfg(test)]
#[repr(C)]
struct Poison {
    range: Span,
    mode: u64,
    updated: i64,
}

/// `struct uffd_msg` of a page fault.
#[repr(C)]
#[derive(Clone, Copy)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u64,
}

impl Span {
    fn of(range: &Range<usize>) -> Self {
        Self { start: range.start as u64, len: range.len() as u64 }
    }
}

/// A userfaultfd. What is registered with it is released when it is dropped, and whoever waits goes on.
#[derive(Debug)]
pub struct Userfault {
    fd: OwnedFd,
}

impl Userfault {
    /// Opens one that write-protects anonymous and shared memory, and memory that has no pages yet: what [`crate::Move`] needs.
    ///
    /// # Errors
    /// [`Error::NoUserfault`] when the kernel has or permits none; [`Error::OldUserfault`] with what it lacks;
    /// [`Error::Userfault`].
    pub fn open() -> Result<Self> {
        let wanted = FEATURES.iter().fold(0, |all, (bit, _)| all | bit);
        // The features that a descriptor is to have are asked for once, and a kernel that lacks one names none: so one
        // descriptor is opened to ask, another to use.
        let offered = Self::new()?.agree(0)?;
        if offered & wanted != wanted {
            let missing: Vec<_> =
                FEATURES.iter().filter(|(bit, _)| offered & bit == 0).map(|(_, name)| *name).collect();
            return Err(Error::OldUserfault { missing: missing.join(", ") });
        }
        let userfault = Self::new()?;
        userfault.agree(wanted)?;
        Ok(userfault)
    }

    /// Takes one that another process has opened, for its own memory, and agreed on nothing with yet.
    ///
    /// # Errors
    /// [`Error::Userfault`] when the kernel lacks what [`Userfault`] needs.
    pub fn adopt(fd: OwnedFd) -> Result<Self> {
        let userfault = Self { fd };
        userfault.agree(FEATURES.iter().fold(0, |all, (bit, _)| all | bit))?;
        Ok(userfault)
    }

    /// By the system call, or by the device where only that is permitted (Documentation/admin-guide/mm/userfaultfd.rst).
    fn new() -> Result<Self> {
        let by_call = match by_system_call() {
            Ok(fd) => return Ok(Self { fd }),
            Err(error) => error,
        };
        match by_device() {
            Ok(fd) => Ok(Self { fd }),
            Err(by_device) => Err(Error::NoUserfault { by_call, by_device }),
        }
    }

    /// Agrees on the API with these features; gives those that there are.
    fn agree(&self, features: u64) -> Result<u64> {
        let mut api = Api { api: UFFD_API, features, ioctls: 0 };
        self.call(API, &mut api).map_err(|source| Error::Userfault { what: "agree on an API with", source })?;
        Ok(api.features)
    }

    /// Makes it possible to protect this range: whole pages of mappings of one kind or several.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn register(&self, range: &Range<usize>) -> io::Result<()> {
        self.call(REGISTER, &mut Register { range: Span::of(range), mode: MODE_WP, ioctls: 0 })
    }

    /// Takes that back; nothing of the range is protected any more.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn unregister(&self, range: &Range<usize>) -> io::Result<()> {
        self.call(UNREGISTER, &mut Span::of(range))
    }

    /// Makes new pages with a copy of what is at `from`, in a registered range that has none yet; how many bytes that came
    /// to. It ends early where there are pages already, or where the source cannot be read.
    pub(crate) fn copy(&self, to: &Range<usize>, from: usize) -> usize {
        let mut done = 0;
        while done < to.len() {
            let (dst, src) = ((to.start + done) as u64, (from + done) as u64);
            let mut copy = Copy { dst, src, len: (to.len() - done) as u64, mode: COPY_DONTWAKE, copy: 0 };
            let result = self.call(COPY, &mut copy);
            done += usize::try_from(copy.copy).unwrap_or(0).min(to.len() - done);
            match result {
                // The address space is changing, or the copy is not through: the rest comes next.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => std::thread::yield_now(),
                Err(_) => break,
                Ok(()) => {}
            }
        }
        done
    }

    /// From now on stores into the range wait.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn protect(&self, range: &Range<usize>) -> io::Result<()> {
        self.write_protect(range, WRITEPROTECT_ON)
    }

    /// Lets stores into the range through, those that wait among them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn unprotect(&self, range: &Range<usize>) -> io::Result<()> {
        self.write_protect(range, 0)
    }

    fn write_protect(&self, range: &Range<usize>, mode: u64) -> io::Result<()> {
        loop {
            match self.call(WRITEPROTECT, &mut WriteProtect { range: Span::of(range), mode }) {
                // The address space is changing: an mmap of another thread is under way.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => std::thread::yield_now(),
                result => return result,
            }
        }
    }

    /// Has whoever waits for the range try again.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wake(&self, range: &Range<usize>) -> io::Result<()> {
        self.call(WAKE, &mut Span::of(range))
    }

    /// Takes all messages that are there; how many stores they say have begun to wait for the range.
    pub(crate) fn drain(&self, range: &Range<usize>) -> io::Result<usize> {
        let mut waiting = 0;
        let mut count = |address| {
            waiting += usize::from(range.contains(&address));
            Ok(())
        };
        while self.read(&mut count)? == Left::Some {}
        Ok(waiting)
    }

    /// Waits until somebody waits to store, for so long at most; and tells the addresses.
    pub(crate) fn stores(&self, timeout: Duration, mut tell: impl FnMut(usize) -> io::Result<()>) -> io::Result<()> {
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => Ok(()),
            Ok(_) => self.read(&mut tell).map(drop),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Reads as many messages as it can at once, without waiting for any, and tells the addresses of stores that wait.
    fn read(&self, tell: &mut impl FnMut(usize) -> io::Result<()>) -> io::Result<Left> {
        const AT_ONCE: usize = 64;
        let nothing = Message { event: 0, reserved: [0; 7], flags: 0, address: 0, thread: 0 };
        let mut messages = [nothing; AT_ONCE];
        // SAFETY: the buffer is alive and as long as it is said to be; any bytes are a valid `Message`.
        let read = unsafe { libc::read(self.fd.as_raw_fd(), messages.as_mut_ptr().cast(), size_of_val(&messages)) };
        let Ok(read) = usize::try_from(read) else {
            return match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(Left::None),
                error if error.kind() == io::ErrorKind::Interrupted => Ok(Left::Some),
                error => Err(error),
            };
        };
        let messages = &messages[..read / size_of::<Message>()];
        let faults = messages.iter().filter(|message| message.event == EVENT_PAGEFAULT);
        faults.map(|fault| usize::try_from(fault.address).unwrap_or(usize::MAX)).try_for_each(tell)?;
        Ok(if messages.len() < AT_ONCE { Left::None } else { Left::Some })
    }

    /// Has every access to the range (missing pages only) fail as memory does that has failed.
    #[cfg(test)]
    pub(crate) fn poison(&self, range: &Range<usize>) -> io::Result<()> {
        self.call(POISON, &mut Poison { range: Span::of(range), mode: 0, updated: 0 })
    }

    fn call<T>(&self, number: libc::c_ulong, argument: &mut T) -> io::Result<()> {
        // SAFETY: the fd is a userfaultfd, and `argument` is the structure that the number is computed from.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), number, std::ptr::from_mut(argument)) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Whether there may be more messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Left {
    None,
    Some,
}

fn flags() -> OFlags {
    OFlags::CLOEXEC | OFlags::NONBLOCK
}

fn by_system_call() -> io::Result<OwnedFd> {
    // SAFETY: the call takes flags only.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags().bits()) };
    owned(fd)
}

fn by_device() -> io::Result<OwnedFd> {
    let device = rustix::fs::open("/dev/userfaultfd", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: the fd is that device's, whose only ioctl takes flags.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), NEW, flags().bits()) };
    owned(fd.into())
}

/// Takes what a call gave that makes a descriptor.
fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(fd) {
        // SAFETY: the kernel has just given this descriptor to us and to nobody else.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Ok(_) => Err(io::Error::last_os_error()),
        Err(_) => Err(Errno::BADF.into()),
    }
}
