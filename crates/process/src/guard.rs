//! Watches over a process, part of whose memory is in the pool.
//!
//! ```text
//! attach ─▶ every thread is seized, a helper is made ─▶ decouple ⇄ recouple ─▶ leave: running, or stopped for a dump
//!                              │ every system call of every thread
//!                              └─▶ those that pool memory would change run when that memory is private ([`crate::calls`])
//! ```
//!
//! A guard belongs to one thread of nil: only that one may trace, and it is told of events. That thread must have no
//! children that somebody else waits for.
//!
//! | nil dies | What the program is left with |
//! |---|---|
//! | while the first thread is borrowed | the thread makes the call and restores itself from its frame |
//! | between protect and remap of a chunk | the chunk as it was, or remapped; the protection is lifted when the helper has ended |
//! | after remap | the chunk in the pool, whole |
//! | at any time with memory in the pool | it runs on; a child that it forks lacks that memory and ends by SIGSEGV (`MADV_DONTFORK`), but `MADV_DONTNEED` and `mremap` are not watched: attach again, and recouple |

use crate::calls::{Need, need};
use crate::error::{Error, Result};
use crate::helper::{Borrowed, Gadgets, Helper};
use crate::home::Home;
use crate::maps::{Maps, PageTables, Stays};
use crate::suitable;
use crate::tracee::{self, Block, Phase, Stop, Tid};
use nil_mover::Userfault;
use std::collections::{HashMap, VecDeque};
use std::fs;
use std::time::{Duration, Instant};

/// How long threads may take to stop.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks for events when there are none.
const PAUSE: Duration = Duration::from_micros(50);
/// Tries to find the first thread on its own stack.
const TRIES: u32 = 200;

/// What a thread is doing, as far as it is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Thread {
    Running,
    /// In a call that changes mappings.
    Changing,
    /// Stopped at the entry of a call until memory is as it needs it.
    Parked,
    /// Stopped because it was told to.
    Stopped,
    /// Stopped as its whole group is, by a signal.
    Listening,
}

/// How a guard leaves its process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leave {
    /// As it is.
    Running,
    /// Stopped (SIGSTOP): it has made no step since it was watched, and makes none before SIGCONT.
    Stopped,
}

/// A process that is watched.
#[derive(Debug)]
pub struct Guard<'a> {
    pub(crate) pid: i32,
    pub(crate) home: &'a Home,
    threads: HashMap<Tid, Thread>,
    parked: VecDeque<(Tid, Need)>,
    halting: bool,
    gadgets: Gadgets,
    helper: Option<Helper>,
    pub(crate) tools: Option<Tools>,
    /// What is mapped; `None` when that may have changed.
    pub(crate) maps: Option<Maps>,
    pub(crate) stalled: Option<&'static str>,
}

/// What memory is moved with.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) userfault: Userfault,
    pub(crate) pages: PageTables,
    /// The pool's file, in the helper's table.
    pub(crate) pool: u64,
    pub(crate) buffer: Vec<u8>,
}

impl<'a> Guard<'a> {
    /// Begins to watch a process. Each of its threads stops once for some hundred microseconds, the first one twice.
    ///
    /// # Errors
    /// [`Error::Refused`] with what cannot be moved by reference, [`Error::Userfault`], [`Error::Call`]; the process runs
    /// on as it was.
    pub fn attach(pid: i32, home: &'a Home) -> Result<Self> {
        suitable::check(pid)?;
        let maps = Maps::read(pid, home)?;
        if maps.rings {
            return Err(suitable::refused(
                pid,
                "it does asynchronous I/O (io_uring or aio), which holds on to its pages",
            ));
        }
        let gadgets = Gadgets::find(pid, &maps)?;
        let mut guard = Self {
            pid,
            home,
            threads: HashMap::new(),
            parked: VecDeque::new(),
            halting: false,
            gadgets,
            helper: None,
            tools: None,
            maps: None,
            stalled: None,
        };
        guard.seize_all()?;
        guard.halt()?;
        for tid in guard.with(Thread::Stopped) {
            if tid != pid {
                guard.run(tid)?;
            }
        }
        guard.halting = false;
        let borrowed = guard.borrow_first(&maps)?;
        let helper = Helper::make(&borrowed);
        borrowed.give_back()?;
        guard.run(pid)?;
        guard.helper = Some(helper?);
        guard.tools = Some(guard.equip()?);
        Ok(guard)
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Memory that is not moved, and why.
    ///
    /// # Errors
    /// [`Error::Proc`], [`Error::Gone`].
    pub fn stays(&self) -> Result<Vec<Stays>> {
        let own = self.helper()?.page();
        let mut stays = Maps::read(self.pid, self.home)?.stays;
        stays.retain(|stays| stays.address != own);
        Ok(stays)
    }

    /// Bytes of its memory that are in the pool.
    ///
    /// # Errors
    /// [`Error::Proc`], [`Error::Gone`].
    pub fn pooled_bytes(&self) -> Result<u64> {
        Ok(Maps::read(self.pid, self.home)?.pooled.iter().map(|pooled| pooled.range.len() as u64).sum())
    }

    /// Watches until `done` says so, which is asked every 50 µs or so.
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::Execed`], and whatever keeps memory from becoming private.
    pub fn watch(&mut self, mut done: impl FnMut() -> bool) -> Result<()> {
        while !done() {
            if !self.attend()? {
                std::thread::sleep(PAUSE);
            }
        }
        Ok(())
    }

    /// Stops watching.
    ///
    /// # Errors
    /// [`Error::Gone`]; [`Error::Call`]; [`Error::Refused`] when a thread does not stop.
    pub fn leave(mut self, how: Leave) -> Result<()> {
        self.let_go(how)
    }

    fn let_go(&mut self, how: Leave) -> Result<()> {
        self.halt()?;
        self.tools = None;
        if let Some(helper) = self.helper.take() {
            let page = helper.end()?;
            let maps = Maps::read(self.pid, self.home)?;
            // One that is on no stack of its own keeps the page: it is the program's to lose.
            if let Some(borrowed) = Borrowed::take(self.pid, self.gadgets, &maps)? {
                let unmapped = borrowed.call(libc::SYS_munmap, [page, 4096, 0, 0, 0, 0]);
                borrowed.give_back()?;
                unmapped?;
            }
        }
        if how == Leave::Stopped && self.threads.get(&self.pid) == Some(&Thread::Stopped) {
            self.stop_group()?;
        }
        for (tid, _) in self.threads.drain() {
            // One that has ended meanwhile needs no letting go.
            let _ = tracee::detach(tid, 0);
        }
        Ok(())
    }

    /// Has the first thread take a SIGSTOP, with which all others are stopped before they make a step.
    fn stop_group(&mut self) -> Result<()> {
        let error = call(self.pid, "stop");
        let pid = rustix::process::Pid::from_raw(self.pid).ok_or(Error::Gone { pid: self.pid })?;
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).map_err(|errno| error(errno.into()))?;
        tracee::go_on(self.pid, 0).map_err(&error)?;
        loop {
            match tracee::wait(Some(self.pid), Block::Yes).map_err(&error)? {
                Some((_, Stop::Event { event: libc::PTRACE_EVENT_STOP, signal: libc::SIGSTOP })) => return Ok(()),
                Some((_, Stop::Signal(signal))) => tracee::go_on(self.pid, signal).map_err(&error)?,
                Some((_, Stop::Exited)) | None => return Err(Error::Gone { pid: self.pid }),
                Some(_) => tracee::go_on(self.pid, 0).map_err(&error)?,
            }
        }
    }

    fn equip(&mut self) -> Result<Tools> {
        const NONBLOCK_CLOEXEC: u64 = 0o2_004_000;
        let (pid, helper) = (self.pid, self.helper()?);
        let descriptor = helper.call(libc::SYS_userfaultfd, [NONBLOCK_CLOEXEC, 0, 0, 0, 0, 0])?;
        let fetched = tracee::fetch_descriptor(helper.tid(), i32::try_from(descriptor).unwrap_or(-1));
        // The helper keeps its own: should nil die, the helper makes the call that it is about to make, then ends, and only
        // then is the protection lifted. Were it lifted before, stores would come between a copy and its mapping.
        let fetched = fetched.map_err(call(pid, "fetch a descriptor (Linux 6.9) of"))?;
        let userfault = Userfault::adopt(fetched).map_err(|source| Error::Userfault { pid, source })?;
        let pages = PageTables::open(pid).map_err(call(pid, "read the page tables of"))?;
        let pool = helper.open(self.home.path())?;
        Ok(Tools { userfault, pages, pool, buffer: Vec::new() })
    }

    pub(crate) fn helper(&self) -> Result<&Helper> {
        self.helper.as_ref().ok_or(Error::Gone { pid: self.pid })
    }

    /// Borrows the first thread, which is stopped.
    fn borrow_first(&mut self, maps: &Maps) -> Result<Borrowed> {
        for _ in 0..TRIES {
            if let Some(borrowed) = Borrowed::take(self.pid, self.gadgets, maps)? {
                return Ok(borrowed);
            }
            self.run(self.pid)?;
            std::thread::sleep(PAUSE);
            tracee::interrupt(self.pid).map_err(call(self.pid, "stop"))?;
            self.halting = true;
            let stopped = self.until(|guard| guard.threads.get(&guard.pid) == Some(&Thread::Stopped));
            self.halting = false;
            stopped?;
        }
        Err(suitable::refused(self.pid, "its first thread runs on no stack of its own, or has no room there"))
    }

    /// Seizes all threads, those that are made meanwhile too.
    fn seize_all(&mut self) -> Result<()> {
        loop {
            let before = self.threads.len();
            for tid in tids(self.pid)? {
                if self.threads.contains_key(&tid) {
                    continue;
                }
                match tracee::seize(tid) {
                    Ok(()) => {
                        self.threads.insert(tid, Thread::Running);
                    }
                    // It has ended, or came to us as the clone of a seized one.
                    Err(_) if !is_thread(self.pid, tid) || self.is_ours(tid) => {}
                    Err(source) => return Err(Error::Call { pid: self.pid, what: "trace", source }),
                }
            }
            if self.threads.len() == before {
                return Ok(());
            }
        }
    }

    fn is_ours(&self, tid: Tid) -> bool {
        let own = rustix::thread::gettid().as_raw_nonzero().get();
        let status = fs::read_to_string(format!("/proc/{}/task/{tid}/status", self.pid)).unwrap_or_default();
        suitable::field(&status, "TracerPid:").is_some_and(|tracer| tracer == own.to_string())
    }

    fn with(&self, state: Thread) -> Vec<Tid> {
        self.threads.iter().filter(|(_, found)| **found == state).map(|(tid, _)| *tid).collect()
    }

    /// Stops all threads, at no system call's entry.
    fn halt(&mut self) -> Result<()> {
        self.until(|guard| guard.parked.is_empty())?;
        self.halting = true;
        for tid in self.threads.keys() {
            // One that has ended says so by an event.
            let _ = tracee::interrupt(*tid);
        }
        self.until(|guard| guard.threads.values().all(|state| *state == Thread::Stopped))
    }

    /// Stops and resumes all threads: those that wait for a word in memory wait for it where it is now. (A futex that
    /// is not private is found by what is mapped.)
    pub(crate) fn refresh(&mut self) -> Result<()> {
        self.halt()?;
        self.halting = false;
        self.with(Thread::Stopped).into_iter().try_for_each(|tid| self.run(tid))
    }

    fn run(&mut self, tid: Tid) -> Result<()> {
        self.threads.insert(tid, Thread::Running);
        self.resume(tid, 0)
    }

    fn resume(&self, tid: Tid, signal: i32) -> Result<()> {
        if self.halting {
            // Every stop takes a pending interruption away.
            let _ = tracee::interrupt(tid);
        }
        match tracee::go_on(tid, signal) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(call(self.pid, "resume")(error)),
            // Killed: an event says so.
            _ => Ok(()),
        }
    }

    fn until(&mut self, reached: impl Fn(&Self) -> bool) -> Result<()> {
        let begin = Instant::now();
        while !reached(self) {
            if !self.attend()? {
                if begin.elapsed() > PATIENCE {
                    return Err(suitable::refused(
                        self.pid,
                        "a thread of it does not stop (vfork, or a device that hangs)",
                    ));
                }
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// Whether nobody is changing mappings.
    pub(crate) fn is_quiet(&self) -> bool {
        !self.threads.values().any(|state| *state == Thread::Changing)
    }

    /// Handles what has happened; whether anything had.
    pub(crate) fn attend(&mut self) -> Result<bool> {
        let mut any = false;
        while let Some((tid, stop)) = self.next_event()? {
            any = true;
            self.handle(tid, stop)?;
        }
        while self.is_quiet()
            && let Some((tid, need)) = self.parked.pop_front()
        {
            any = true;
            let settled = self.settle(&need);
            self.threads.insert(tid, Thread::Changing);
            self.resume(tid, 0)?;
            settled?;
        }
        Ok(any)
    }

    fn next_event(&self) -> Result<Option<(Tid, Stop)>> {
        match tracee::wait(None, Block::No) {
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Err(Error::Gone { pid: self.pid }),
            result => result.map_err(call(self.pid, "wait for")),
        }
    }

    fn handle(&mut self, tid: Tid, stop: Stop) -> Result<()> {
        match stop {
            Stop::Exited => {
                if self.threads.get(&tid) == Some(&Thread::Changing) {
                    self.maps = None;
                }
                self.threads.remove(&tid);
                self.parked.retain(|(parked, _)| *parked != tid);
                let is_helper = self.helper.as_ref().is_some_and(|helper| helper.tid() == tid);
                if self.threads.is_empty() || is_helper { Err(Error::Gone { pid: self.pid }) } else { Ok(()) }
            }
            Stop::Syscall => self.at_call(tid),
            Stop::Event { event: libc::PTRACE_EVENT_EXEC, .. } => Err(Error::Execed { pid: self.pid }),
            Stop::Event { event: libc::PTRACE_EVENT_STOP, signal } => self.at_stop(tid, signal),
            Stop::Event { event: libc::PTRACE_EVENT_CLONE, .. } => {
                let child = tracee::event_message(tid).unwrap_or(0);
                if is_thread(self.pid, child) {
                    self.threads.entry(child).or_insert(Thread::Running);
                }
                self.resume(tid, 0)
            }
            Stop::Event { .. } => self.resume(tid, 0),
            Stop::Signal(signal) => self.resume(tid, signal),
        }
    }

    fn at_stop(&mut self, tid: Tid, signal: i32) -> Result<()> {
        if !self.threads.contains_key(&tid) && !is_thread(self.pid, tid) {
            // A process of its own that a clone made: with memory of its own, or only to call exec.
            let _ = tracee::detach(tid, 0);
            return Ok(());
        }
        if self.halting {
            self.threads.insert(tid, Thread::Stopped);
            return Ok(());
        }
        if matches!(signal, libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU) {
            self.threads.insert(tid, Thread::Listening);
            return tracee::listen(tid).map_err(call(self.pid, "leave stopped"));
        }
        self.run(tid)
    }

    fn at_call(&mut self, tid: Tid) -> Result<()> {
        let phase = match tracee::phase(tid) {
            Ok(phase) => phase,
            // Killed: an event says so.
            Err(_) => return Ok(()),
        };
        let Phase::Enter(number, arguments) = phase else {
            if self.threads.insert(tid, Thread::Running) == Some(Thread::Changing) {
                self.maps = None;
            }
            return self.resume(tid, 0);
        };
        let word = |address: u64| {
            let mut bytes = [0; 8];
            let read = tracee::read(self.pid, usize::try_from(address).ok()?, &mut bytes).ok()?;
            (read == 8).then(|| u64::from_le_bytes(bytes))
        };
        match need(number, arguments, word) {
            Need::Nothing => self.resume(tid, 0),
            need => {
                self.threads.insert(tid, Thread::Parked);
                self.parked.push_back((tid, need));
                Ok(())
            }
        }
    }

    fn settle(&mut self, need: &Need) -> Result<()> {
        match need {
            Need::Nothing | Need::Quiet => Ok(()),
            Need::Private(range) => self.make_private(range),
            Need::AllPrivate(why) => {
                self.stalled = Some(why);
                self.make_private(&(0..usize::MAX))
            }
        }
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            // Whatever fails here, the kernel lets the threads go when this one ends.
            let _ = self.let_go(Leave::Running);
            self.threads.drain().for_each(|(tid, _)| drop(tracee::detach(tid, 0)));
        }
    }
}

pub(crate) fn call(pid: i32, what: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Call { pid, what, source }
}

fn tids(pid: i32) -> Result<Vec<Tid>> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).map_err(|_| Error::Gone { pid })?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

fn is_thread(pid: i32, tid: Tid) -> bool {
    fs::exists(format!("/proc/{pid}/task/{tid}")).unwrap_or(false)
}
