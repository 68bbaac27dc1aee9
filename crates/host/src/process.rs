//! Processes that outlive whoever started them.
//!
//! A [`Process`] is known by its pid *and* its start time, because pids are reused, and is held by a pidfd, so that what
//! is signalled or waited for is that process and no other.

use crate::error::{Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

/// What tells one process from every other of the same boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    /// In clock ticks since boot: field 22 of `/proc/PID/stat`.
    pub(crate) started: u64,
}

/// A process, held by its pidfd.
#[derive(Debug)]
pub(crate) struct Process {
    id: ProcessId,
    pidfd: OwnedFd,
}

/// How a process ended, as far as we may know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    Exited(i32),
    Killed(i32),
    /// It was not our child, so the kernel does not say.
    Unknown,
}

impl ProcessId {
    /// The calling process.
    pub(crate) fn current() -> Result<Self> {
        Self::of(rustix::process::getpid().as_raw_nonzero().get())
    }

    fn of(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/stat");
        let stat = fs::read_to_string(&path).map_err(|error| Error::io("read", &path, error))?;
        match start_time(&stat) {
            Some(started) => Ok(Self { pid, started }),
            None => Err(Error::io("understand", &path, std::io::ErrorKind::InvalidData.into())),
        }
    }
}

/// Field 22 of a `/proc/PID/stat` line. Field 2, the name, may hold spaces and parentheses, so count from its end.
fn start_time(stat: &str) -> Option<u64> {
    let after_name = stat.rsplit_once(')')?.1;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

impl Process {
    /// Starts `command`.
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        let child = command.spawn().map_err(|error| Error::io("start", command.get_program(), error))?;
        let pid = i32::try_from(child.id()).map_err(|_| Error::ProcessGone)?;
        Self::open(ProcessId::of(pid)?)
    }

    /// Takes hold of a process that somebody else started.
    ///
    /// # Errors
    /// [`Error::ProcessGone`] when it has ended, even if its pid was given to another since.
    pub(crate) fn open(id: ProcessId) -> Result<Self> {
        let pid = Pid::from_raw(id.pid).filter(|pid| !pid.is_init()).ok_or(Error::ProcessGone)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| Error::ProcessGone)?;
        // The pidfd is held now, so that if the start time is still right, it is right for what the pidfd names.
        if ProcessId::of(id.pid).is_ok_and(|now| now == id) { Ok(Self { id, pidfd }) } else { Err(Error::ProcessGone) }
    }

    /// Its pid and start time.
    pub(crate) fn id(&self) -> ProcessId {
        self.id
    }

    /// Waits until it ends, and reaps it if it was our child. `None` when it lived on past `patience`.
    pub(crate) fn wait(&self, patience: Option<Duration>) -> Option<Ending> {
        let timeout = patience.map(|patience| Timespec::try_from(patience).unwrap_or_default());
        loop {
            let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) => return None,
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return Some(Ending::Unknown),
            }
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let ending = match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Ending::Exited(code),
                (None, Some(signal)) => Ending::Killed(signal),
                (None, None) => Ending::Unknown,
            },
            Ok(None) | Err(_) => Ending::Unknown,
        };
        Some(ending)
    }

    /// Kills it, if it still lives.
    pub(crate) fn kill(&self) {
        // It fails only when the process is gone, which is what was wanted.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

/// The signal with which the kernel ends a process whose sandbox forbids what it does.
const FORBIDDEN: i32 = Signal::SYS.as_raw();

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(0) => write!(f, "ended"),
            Self::Exited(code) => write!(f, "ended with status {code}"),
            Self::Killed(FORBIDDEN) => write!(
                f,
                "was killed by signal {FORBIDDEN} (SIGSYS), because it made a system call that its sandbox forbids"
            ),
            Self::Killed(signal) => write!(f, "was killed by signal {signal}"),
            Self::Unknown => write!(f, "is gone"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Process {
        Process::spawn(Command::new("sleep").arg("60")).expect("sleep starts")
    }

    #[test]
    fn a_start_time_is_found_behind_a_hostile_name() {
        let stat = "7 (a) R (b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 10";
        assert_eq!(start_time(stat), Some(4242));
        assert_eq!(start_time("7 (cut"), None);
    }

    #[test]
    fn a_killed_process_is_reaped_and_says_how_it_ended() {
        let process = sleeper();
        assert_eq!(process.wait(Some(Duration::ZERO)), None);
        process.kill();
        assert_eq!(process.wait(None), Some(Ending::Killed(9)));
        assert!(matches!(Process::open(process.id()), Err(Error::ProcessGone)));
    }

    #[test]
    fn a_reused_pid_is_not_taken_for_the_process_of_old() {
        let process = sleeper();
        let older = ProcessId { started: process.id().started - 1, ..process.id() };
        assert!(matches!(Process::open(older), Err(Error::ProcessGone)));
        assert!(Process::open(process.id()).is_ok());
        process.kill();
        process.wait(None);
    }
}
