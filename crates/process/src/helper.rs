//! A thread of nil's in the process, which makes system calls for it.
//!
//! ```text
//! first thread:  stop ─▶ frame on its stack ─▶ mmap (a page of instructions) ─▶ clone ─▶ as it was
//! helper:                                                                     └─▶ close all its descriptors ─▶ calls … ─▶ exit
//! ```
//!
//! The program's threads make no call but those two, and one when nil leaves (`munmap`). The helper shares memory with
//! them, but has a descriptor table of its own: what it opens the program does not see, and it is gone with the helper.
//! It blocks all signals. Behind the `syscall` instruction from which it makes its calls stands `exit`, so that when nil
//! dies the helper ends by itself. What is left then is a page of memory.

use crate::error::{Error, Result};
use crate::frame::Frame;
use crate::maps::{Maps, PAGE, find_instructions};
use crate::tracee::{self, Block, Registers, Stop, Tid};
use std::io;

/// `syscall`; then `exit(0)`.
const INSTRUCTIONS: [u8; 11] = [0x0f, 0x05, 0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];
/// Where `exit(0)` begins.
const EXIT: u64 = 2;
/// Where the helper's stack begins, with the address to which a clone that nobody has seen returns.
const STACK: u64 = PAGE as u64 - 16;

const SYSCALL_RETURN: [&[u8]; 1] = [&[0x0f, 0x05, 0xc3]];
/// `mov $15, %rax; syscall`, or the shorter form.
const SIGRETURN: [&[u8]; 2] = [&[0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05], &[0xb8, 15, 0, 0, 0, 0x0f, 0x05]];
/// 64-bit code (`__USER_CS`).
const CODE_64: u64 = 0x33;

/// What the program has that can make a call and restore a thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gadgets {
    syscall: u64,
    sigreturn: u64,
}

impl Gadgets {
    pub(crate) fn find(pid: i32, maps: &Maps) -> Result<Self> {
        let find = |sequences: &[&[u8]], name| {
            find_instructions(pid, &maps.text, sequences).ok_or_else(|| Error::Refused {
                pid,
                why: format!("its program has no instructions for {name}, with which a thread of it could be borrowed"),
            })
        };
        Ok(Self { syscall: find(&SYSCALL_RETURN, "a system call")?, sigreturn: find(&SIGRETURN, "sigreturn")? })
    }
}

/// A thread of the program that is borrowed, stopped as by a signal; given back as it was by [`Borrowed::give_back`],
/// or by its own frame.
#[derive(Debug)]
pub(crate) struct Borrowed {
    pid: i32,
    tid: Tid,
    gadgets: Gadgets,
    registers: Registers,
    blocked: u64,
    frame: Frame,
}

impl Borrowed {
    /// Borrows the first thread, if it is on its own stack; `None` when it is elsewhere just now.
    pub(crate) fn take(pid: i32, gadgets: Gadgets, maps: &Maps) -> Result<Option<Self>> {
        let call = |what| move |source| Error::Call { pid, what, source };
        let registers = tracee::registers(pid).map_err(call("read registers of"))?;
        if registers.cs != CODE_64 {
            return Err(Error::Refused { pid, why: "it is a 32-bit program".to_owned() });
        }
        let xstate = tracee::xstate(pid).map_err(call("read registers of"))?;
        let blocked = tracee::blocked(pid).map_err(call("read the signal mask of"))?;
        let frame = Frame::build(&registers, &xstate, blocked, gadgets.sigreturn);
        let on_stack = |frame: &Frame| {
            let stack = maps.stack.clone().unwrap_or_default();
            [frame.address, registers.rsp].iter().all(|at| usize::try_from(*at).is_ok_and(|at| stack.contains(&at)))
        };
        let Some(frame) = frame.filter(on_stack) else { return Ok(None) };
        let at = usize::try_from(frame.address).unwrap_or(usize::MAX);
        tracee::write(pid, at, &frame.bytes).map_err(call("write to the stack of"))?;
        Ok(Some(Self { pid, tid: pid, gadgets, registers, blocked, frame }))
    }

    /// Has it make a call; gives what comes back, and the thread that a clone made.
    pub(crate) fn call(&self, number: libc::c_long, arguments: [u64; 6]) -> Result<(u64, Option<Tid>)> {
        let error = |source| Error::Call { pid: self.pid, what: "borrow a thread of", source };
        let mut registers = self.registers;
        registers.rsp = self.frame.address;
        registers.rip = self.gadgets.syscall;
        tracee::set_registers(self.tid, &with_call(registers, number, arguments)).map_err(error)?;
        tracee::set_blocked(self.tid, u64::MAX).map_err(error)?;
        make_call(self.pid, self.tid)
    }

    /// Gives it back. The thread is stopped in a call's end, and goes on from where it was.
    pub(crate) fn give_back(self) -> Result<()> {
        let error = |source| Error::Call { pid: self.pid, what: "give back a thread of", source };
        tracee::interrupt(self.tid).map_err(error)?;
        tracee::go_on(self.tid, 0).map_err(error)?;
        loop {
            match tracee::wait(Some(self.tid), Block::Yes).map_err(error)? {
                Some((_, Stop::Event { event: libc::PTRACE_EVENT_STOP, .. })) => break,
                Some((_, Stop::Exited)) => return Err(Error::Gone { pid: self.pid }),
                _ => tracee::go_on(self.tid, 0).map_err(error)?,
            }
        }
        // In this order: until the registers are back, the frame restores both.
        tracee::set_blocked(self.tid, self.blocked).map_err(error)?;
        tracee::set_registers(self.tid, &self.registers).map_err(error)
    }
}

fn with_call(mut registers: Registers, number: libc::c_long, arguments: [u64; 6]) -> Registers {
    registers.rax = number.cast_unsigned();
    // No call that the kernel would start again.
    registers.orig_rax = u64::MAX;
    [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] = arguments;
    registers
}

/// Lets a thread run through the call that its registers say; gives what comes back, and the thread that it made.
fn make_call(pid: i32, tid: Tid) -> Result<(u64, Option<Tid>)> {
    let error = |source| Error::Call { pid, what: "make a system call in", source };
    let (mut left, mut child) = (2, None);
    while left > 0 {
        tracee::go_on(tid, 0).map_err(error)?;
        match tracee::wait(Some(tid), Block::Yes).map_err(error)? {
            Some((_, Stop::Syscall)) => left -= 1,
            Some((_, Stop::Event { event: libc::PTRACE_EVENT_CLONE, .. })) => {
                child = Some(tracee::event_message(tid).map_err(error)?);
            }
            Some((_, Stop::Exited)) | None => return Err(Error::Gone { pid }),
            Some(_) => {}
        }
    }
    let result = tracee::registers(tid).map_err(error)?.rax;
    let failed = i32::try_from(-result.cast_signed()).ok().filter(|error| (1..4096).contains(error));
    match failed {
        Some(number) => Err(error(io::Error::from_raw_os_error(number))),
        None => Ok((result, child)),
    }
}

/// The helper, stopped.
#[derive(Debug)]
pub(crate) struct Helper {
    pid: i32,
    tid: Tid,
    page: u64,
    registers: Registers,
}

impl Helper {
    /// Makes one with a thread of the program.
    pub(crate) fn make(borrowed: &Borrowed) -> Result<Self> {
        let pid = borrowed.pid;
        let error = |what| move |source| Error::Call { pid, what, source };
        let page = [0, PAGE as u64, ANONYMOUS.0, ANONYMOUS.1, u64::MAX, 0];
        let (page, _) = borrowed.call(libc::SYS_mmap, page)?;
        let at = usize::try_from(page).unwrap_or(usize::MAX);
        let mut contents = [0; PAGE];
        contents[..INSTRUCTIONS.len()].copy_from_slice(&INSTRUCTIONS);
        let stack = usize::try_from(STACK).unwrap_or(0);
        contents[stack..stack + 8].copy_from_slice(&(page + EXIT).to_le_bytes());
        tracee::write(pid, at, &contents).map_err(error("write to"))?;
        borrowed.call(libc::SYS_mprotect, [page, PAGE as u64, READ_EXECUTE, 0, 0, 0])?;
        let (_, child) = borrowed.call(libc::SYS_clone, [CLONE, page + STACK, 0, 0, 0, 0])?;
        let tid = child.ok_or(Error::Gone { pid })?;
        match tracee::wait(Some(tid), Block::Yes).map_err(error("wait for a thread in"))? {
            Some((_, Stop::Event { .. })) => {}
            _ => return Err(Error::Gone { pid }),
        }
        let mut registers = tracee::registers(tid).map_err(error("read registers of"))?;
        registers.rip = page;
        registers.rsp = page + STACK;
        let helper = Self { pid, tid, page, registers };
        helper.call(libc::SYS_close_range, [0, u64::from(u32::MAX), 0, 0, 0, 0])?;
        Ok(helper)
    }

    pub(crate) fn tid(&self) -> Tid {
        self.tid
    }

    /// The page that it runs in.
    pub(crate) fn page(&self) -> usize {
        usize::try_from(self.page).unwrap_or(usize::MAX)
    }

    /// Makes a call in the process.
    ///
    /// # Errors
    /// [`Error::Call`] with what the kernel says; [`Error::Gone`].
    pub(crate) fn call(&self, number: libc::c_long, arguments: [u64; 6]) -> Result<u64> {
        let error = |source| Error::Call { pid: self.pid, what: "make a system call in", source };
        tracee::set_registers(self.tid, &with_call(self.registers, number, arguments)).map_err(error)?;
        make_call(self.pid, self.tid).map(|(result, _)| result)
    }

    /// Opens a file with its descriptor table. The path goes through memory that is mapped for that long.
    pub(crate) fn open(&self, path: &std::path::Path) -> Result<u64> {
        let mut bytes = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()).to_vec();
        bytes.push(0);
        let length = bytes.len().next_multiple_of(PAGE) as u64;
        let place = self.call(libc::SYS_mmap, [0, length, ANONYMOUS.0, ANONYMOUS.1, u64::MAX, 0])?;
        let at = usize::try_from(place).unwrap_or(usize::MAX);
        let error = |source| Error::Call { pid: self.pid, what: "write to", source };
        let opened = tracee::write(self.pid, at, &bytes).map_err(error);
        let opened = opened.and_then(|()| self.call(libc::SYS_open, [place, OPEN, 0, 0, 0, 0]));
        self.call(libc::SYS_munmap, [place, length, 0, 0, 0, 0])?;
        opened
    }

    /// Ends it; its page is left to [`Borrowed::call`] to unmap.
    pub(crate) fn end(self) -> Result<u64> {
        let error = |source| Error::Call { pid: self.pid, what: "end a thread in", source };
        let exit = with_call(self.registers, libc::SYS_exit, [0; 6]);
        tracee::set_registers(self.tid, &exit).map_err(error)?;
        loop {
            tracee::go_on(self.tid, 0).map_err(error)?;
            if let Some((_, Stop::Exited)) | None = tracee::wait(Some(self.tid), Block::Yes).map_err(error)? {
                return Ok(self.page);
            }
        }
    }
}

/// Rights and flags of private anonymous memory.
pub(crate) const ANONYMOUS: (u64, u64) = (3, 0x22);
const READ_EXECUTE: u64 = 5;
/// `O_RDWR | O_CLOEXEC`.
const OPEN: u64 = 0o2_000_002;
/// A thread that shares memory and signal handlers, but no descriptors.
const CLONE: u64 =
    (libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_SIGHAND | libc::CLONE_THREAD | libc::CLONE_SYSVSEM) as u64;
