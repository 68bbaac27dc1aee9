//! Finding the processes of a rack, and killing exactly one of them.
//!
//! A worker is known by its own command line, which names the rack's run directory; nobody else's does. It is held by a
//! pidfd from then on, so that the kill cannot hit whatever was given its pid since.

use crate::lab::{Rack, Side};
use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::HashSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

/// A process that is about to be killed.
#[derive(Debug)]
pub(super) struct Prey {
    pid: i32,
    pidfd: OwnedFd,
}

/// The pids that there were at some moment, which need not be looked at again.
#[derive(Debug, Default)]
pub(super) struct Known(HashSet<i32>);

impl Prey {
    /// Takes hold of a process; `None` when it has ended.
    fn hold(pid: i32) -> Option<Self> {
        let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        Some(Self { pid, pidfd })
    }

    /// The worker of a host of the rack that is not among the `known`; `None` while there is none.
    pub(super) fn worker(rack: &Rack, side: Side, known: &Known) -> Option<Self> {
        let is_it = |pid| is_worker(pid, rack, Some(side));
        let found = pids().find(|pid| !known.0.contains(pid) && is_it(*pid))?;
        // Looked at again now that it is held: if it is still the worker, the pidfd is the worker's.
        Self::hold(found).filter(|prey| is_it(prey.pid))
    }

    /// The agent of a host.
    pub(super) fn agent(rack: &Rack, side: Side) -> anyhow::Result<Self> {
        let host = rack.call(side)?.describe()?;
        let pid = host.agent_pid.and_then(|pid| i32::try_from(pid).ok()).context("the agent does not tell its pid")?;
        Self::hold(pid).filter(|prey| is_agent(prey.pid, side, rack)).context("the agent has ended")
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Kills it; whether it lived.
    pub(super) fn kill(&self) -> bool {
        !self.is_dead() && pidfd_send_signal(&self.pidfd, Signal::KILL).is_ok()
    }

    /// Makes it stand still. If it has ended, there is nothing to be done.
    pub(super) fn stop(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::STOP);
    }

    /// Lets it go on.
    pub(super) fn go_on(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::CONT);
    }

    /// Whether the last of its threads has ended.
    pub(super) fn is_dead(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }
}

impl Known {
    /// All processes of this moment.
    pub(super) fn now() -> Self {
        Self(pids().collect())
    }

    pub(super) fn nobody() -> Self {
        Self::default()
    }
}

/// The living workers of a rack.
pub(super) fn workers(rack: &Rack) -> Vec<i32> {
    pids().filter(|&pid| is_worker(pid, rack, None)).collect()
}

fn pids() -> impl Iterator<Item = i32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Whether this is a worker of the rack, and of that host. The dead have no command line.
fn is_worker(pid: i32, rack: &Rack, side: Option<Side>) -> bool {
    let arguments = command_line(pid);
    let (run_dir, host) = match (value(&arguments, b"--run-dir"), value(&arguments, b"--host")) {
        (Some(run_dir), Some(host)) => (run_dir, host),
        _ => return false,
    };
    arguments.get(1).is_some_and(|command| command == b"worker")
        && Path::new(&*String::from_utf8_lossy(run_dir)) == rack.host(Side::A).run_dir().path()
        && side.is_none_or(|side| host == rack.host(side).name().as_str().as_bytes())
}

fn is_agent(pid: i32, side: Side, rack: &Rack) -> bool {
    let arguments = command_line(pid);
    arguments.get(1).is_some_and(|command| command == b"host")
        && value(&arguments, b"--name") == Some(rack.host(side).name().as_str().as_bytes())
        && value(&arguments, b"--pool").is_some_and(|pool| pool == rack.pool_path().as_os_str().as_encoded_bytes())
}

fn command_line(pid: i32) -> Vec<Vec<u8>> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect()
}

fn value<'a>(arguments: &'a [Vec<u8>], option: &[u8]) -> Option<&'a [u8]> {
    let at = arguments.iter().position(|argument| argument == option)?;
    arguments.get(at + 1).map(Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_killed_process_is_dead_and_cannot_be_killed_again() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep starts");
        let prey = Prey::hold(i32::try_from(child.id()).expect("a pid")).expect("it lives");
        assert!(!prey.is_dead());
        assert!(prey.kill());
        child.wait().expect("it ends");
        assert!(prey.is_dead() && !prey.kill());
    }

    #[test]
    fn an_option_is_found_with_its_value() {
        let arguments: Vec<Vec<u8>> = ["nil", "worker", "--host", "A", "--pool"].map(Into::into).to_vec();
        assert_eq!(value(&arguments, b"--host"), Some(b"A".as_slice()));
        assert_eq!(value(&arguments, b"--pool"), None);
    }
}
