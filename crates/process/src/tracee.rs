//! Threads of another process, by ptrace(2): the only module that calls it, and that touches memory of another process.
//!
//! Threads are *seized*, never attached to, and without `PTRACE_O_EXITKILL`: when this process dies, the kernel lets
//! them go. Breakpoints and single steps are not used, because a thread whose tracer dies in the stop of one gets its
//! SIGTRAP; the stops of system calls and of events leave nothing behind (`PTRACE_O_TRACESYSGOOD`).
#![allow(unsafe_code)]

use rustix::io::Errno;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

/// A thread, by the kernel's number of it.
pub(crate) type Tid = i32;
/// General-purpose registers.
pub(crate) type Registers = libc::user_regs_struct;

/// Regset of all that XSAVE saves (`include/uapi/linux/elf.h`).
const NT_X86_XSTATE: usize = 0x202;
/// Room for the largest XSAVE area there is: AMX tiles take 8 KiB.
const XSTATE_ROOM: usize = 32 << 10;

/// Why a thread has stopped, or that it has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// It enters or leaves a system call.
    Syscall,
    /// `PTRACE_EVENT_*`, and the signal that came with it.
    Event { event: i32, signal: i32 },
    /// It is about to get a signal.
    Signal(i32),
    /// It is no more.
    Exited,
}

/// What a thread does in a stop for a system call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// It enters this call with these arguments.
    Enter(u64, [u64; 6]),
    /// It leaves one.
    Leave,
}

fn request(request: libc::c_uint, tid: Tid, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: the callers in this module pass requests with no pointers, or pointers to memory that is alive meanwhile.
    let result = unsafe { libc::ptrace(request, tid, address, data) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Seizes a thread: it runs on, and stops from now on at calls, clones and execs.
pub(crate) fn seize(tid: Tid) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEEXEC;
    request(libc::PTRACE_SEIZE, tid, 0, usize::try_from(options).unwrap_or(0))
}

/// Has it stop as soon as it can (`PTRACE_EVENT_STOP`).
pub(crate) fn interrupt(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0)
}

/// Lets it go on to its next system call's entry or exit, with a signal or 0.
pub(crate) fn go_on(tid: Tid, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, tid, 0, usize::try_from(signal).unwrap_or(0))
}

/// Leaves it stopped as its group is (SIGSTOP), but hears when that ends.
pub(crate) fn listen(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_LISTEN, tid, 0, 0)
}

/// Lets go of it.
pub(crate) fn detach(tid: Tid, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH, tid, 0, usize::try_from(signal).unwrap_or(0))
}

pub(crate) fn registers(tid: Tid) -> io::Result<Registers> {
    // SAFETY: all zeros are valid registers.
    let mut registers: Registers = unsafe { std::mem::zeroed() };
    request(libc::PTRACE_GETREGS, tid, 0, ptr::from_mut(&mut registers).addr())?;
    Ok(registers)
}

pub(crate) fn set_registers(tid: Tid, registers: &Registers) -> io::Result<()> {
    request(libc::PTRACE_SETREGS, tid, 0, ptr::from_ref(registers).addr())
}

/// The extended state, in the layout of XSAVE.
pub(crate) fn xstate(tid: Tid) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0_u8; XSTATE_ROOM];
    let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    request(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE, ptr::from_mut(&mut vector).addr())?;
    bytes.truncate(vector.iov_len);
    Ok(bytes)
}

/// The signals that it blocks.
pub(crate) fn blocked(tid: Tid) -> io::Result<u64> {
    let mut mask = 0_u64;
    request(libc::PTRACE_GETSIGMASK, tid, size_of::<u64>(), ptr::from_mut(&mut mask).addr())?;
    Ok(mask)
}

pub(crate) fn set_blocked(tid: Tid, mask: u64) -> io::Result<()> {
    request(libc::PTRACE_SETSIGMASK, tid, size_of::<u64>(), ptr::from_ref(&mask).addr())
}

/// What came with an event: the number of a new thread.
pub(crate) fn event_message(tid: Tid) -> io::Result<Tid> {
    let mut message: libc::c_ulong = 0;
    request(libc::PTRACE_GETEVENTMSG, tid, 0, ptr::from_mut(&mut message).addr())?;
    Ok(Tid::try_from(message).unwrap_or(0))
}

/// Which call a thread that has stopped for one enters, or that it leaves it.
pub(crate) fn phase(tid: Tid) -> io::Result<Phase> {
    // SAFETY: all zeros are a valid value: `op` none.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    request(libc::PTRACE_GET_SYSCALL_INFO, tid, size_of_val(&info), ptr::from_mut(&mut info).addr())?;
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return Ok(Phase::Leave);
    }
    // SAFETY: the operation says that it is this member which the kernel has filled.
    let entry = unsafe { info.u.entry };
    Ok(Phase::Enter(entry.nr, entry.args))
}

/// Waits for any thread that this thread traces, or for the one given; `None` when nothing has happened and `block` is
/// not asked for.
pub(crate) fn wait(tid: Option<Tid>, block: Block) -> io::Result<Option<(Tid, Stop)>> {
    let flags = libc::__WALL | libc::__WNOTHREAD | if block == Block::No { libc::WNOHANG } else { 0 };
    let mut status = 0;
    loop {
        // SAFETY: `status` is alive during the call.
        let found = unsafe { libc::waitpid(tid.unwrap_or(-1), &raw mut status, flags) };
        match found {
            0 => return Ok(None),
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return Err(io::Error::last_os_error()),
            found => return Ok(Some((found, decode(status)))),
        }
    }
}

/// Whether to wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Block {
    Yes,
    No,
}

fn decode(status: i32) -> Stop {
    if !libc::WIFSTOPPED(status) {
        return Stop::Exited;
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        0 if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        0 => Stop::Signal(signal),
        event => Stop::Event { event, signal },
    }
}

/// Reads memory of the process, up to the first page that cannot be read; how much that came to.
pub(crate) fn read(pid: i32, at: usize, into: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote = libc::iovec { iov_base: ptr::without_provenance_mut(at), iov_len: into.len() };
    // SAFETY: the local vector describes a buffer of ours; the remote one is the kernel's to check.
    let read = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Writes all of `bytes` to memory of the process that it could write itself.
pub(crate) fn write(pid: i32, at: usize, bytes: &[u8]) -> io::Result<()> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: ptr::without_provenance_mut(at), iov_len: bytes.len() };
    // SAFETY: the local vector describes a buffer that is only read; the remote one is the kernel's to check.
    let written = unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) };
    match usize::try_from(written) {
        Ok(written) if written == bytes.len() => Ok(()),
        Ok(_) => Err(Errno::FAULT.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// A descriptor of a thread, as one of this process. The thread may have a table of its own (Linux 6.9).
pub(crate) fn fetch_descriptor(tid: Tid, descriptor: i32) -> io::Result<OwnedFd> {
    /// `O_EXCL` (`include/uapi/linux/pidfd.h`).
    const PIDFD_THREAD: libc::c_int = libc::O_EXCL;
    // SAFETY: neither call takes a pointer, and the kernel gives each descriptor to us alone.
    unsafe {
        let pidfd = owned(libc::syscall(libc::SYS_pidfd_open, tid, PIDFD_THREAD))?;
        owned(libc::syscall(libc::SYS_pidfd_getfd, std::os::fd::AsRawFd::as_raw_fd(&pidfd), descriptor, 0))
    }
}

/// # Safety
/// The number, if it is one of a descriptor, has just been given to the caller.
unsafe fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(result) {
        // SAFETY: the caller's promise.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
