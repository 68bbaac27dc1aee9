//! Finding the processes of a rack, and killing exactly one of them.
//!
//! A worker is known by its own command line, which names the rack's run directory, and an agent by its environment; nobody
//! else's does. It is held by a pidfd from then on, so that the kill cannot hit whatever was given its pid since.

use anyhow::Context;
use nil_host::{Client, HostDir, RunDir};
use nil_pool::GuestId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::HashSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

/// A process that is about to be killed.
#[derive(Debug)]
pub(crate) struct Prey {
    pid: i32,
    pidfd: OwnedFd,
}

/// The pids that there were at some moment, which need not be looked at again.
#[derive(Debug, Default)]
pub(crate) struct Known(HashSet<i32>);

impl Prey {
    /// Takes hold of a process; `None` when it has ended.
    fn hold(pid: i32) -> Option<Self> {
        let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        Some(Self { pid, pidfd })
    }

    /// The worker of a host that is not among the `known`; `None` while there is none.
    pub(crate) fn worker(host: &HostDir, known: &Known) -> Option<Self> {
        let run_dir = host.run_dir();
        let is_it = |pid| Worker::of(pid, &run_dir).is_some_and(|worker| worker.host == host.name().as_str());
        let found = pids().find(|pid| !known.0.contains(pid) && is_it(*pid))?;
        // Looked at again now that it is held: if it is still the worker, the pidfd is the worker's.
        Self::hold(found).filter(|prey| is_it(prey.pid))
    }

    /// The agent of a host.
    pub(crate) fn agent(host: &HostDir) -> anyhow::Result<Self> {
        let pid = Client::connect(host)?.describe()?.agent_pid;
        let pid = pid.and_then(|pid| i32::try_from(pid).ok()).context("the agent does not tell its pid")?;
        Self::hold(pid).filter(|prey| is_agent(prey.pid, host)).context("the agent has ended")
    }

    /// All living processes of a host: its agent first, if it has one, then its workers.
    pub(crate) fn household(host: &HostDir) -> Vec<Self> {
        let run_dir = host.run_dir();
        let is_worker = |pid| Worker::of(pid, &run_dir).is_some_and(|worker| worker.host == host.name().as_str());
        let (agents, others): (Vec<_>, Vec<_>) = pids().partition(|pid| is_agent(*pid, host));
        let workers = others.into_iter().filter(|pid| is_worker(*pid));
        let held = |pid| Self::hold(pid).filter(|prey| is_agent(prey.pid, host) || is_worker(prey.pid));
        agents.into_iter().chain(workers).filter_map(held).collect()
    }

    /// The process of a worker that was found.
    pub(crate) fn of(worker: &Worker, run_dir: &RunDir) -> Option<Self> {
        Self::hold(worker.pid).filter(|prey| Worker::of(prey.pid, run_dir).as_ref() == Some(worker))
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Kills it; whether it lived.
    pub(crate) fn kill(&self) -> bool {
        !self.is_dead() && pidfd_send_signal(&self.pidfd, Signal::KILL).is_ok()
    }

    /// Makes it stand still. If it has ended, there is nothing to be done.
    pub(crate) fn stop(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::CONT);
    }

    /// Whether the last of its threads has ended.
    pub(crate) fn is_dead(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }
}

impl Known {
    /// All processes of this moment.
    pub(crate) fn now() -> Self {
        Self(pids().collect())
    }

    pub(crate) fn nobody() -> Self {
        Self::default()
    }
}

/// A living worker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Worker {
    pub(crate) pid: i32,
    /// The host that it works for.
    pub(crate) host: String,
    /// The guest that it runs, or is to run.
    pub(crate) guest: GuestId,
}

impl Worker {
    /// The worker that a process is, if it is one of that run directory. The dead have no command line.
    fn of(pid: i32, run_dir: &RunDir) -> Option<Self> {
        let arguments = command_line(pid);
        let text = |option| value(&arguments, option).map(String::from_utf8_lossy);
        let is_ours = arguments.get(1).is_some_and(|command| command == b"worker")
            && Path::new(&*text(b"--run-dir")?) == run_dir.path();
        is_ours.then_some(())?;
        Some(Self { pid, host: text(b"--host")?.into_owned(), guest: text(b"--guest-id")?.parse().ok()? })
    }
}

/// The living workers of all hosts of a run directory.
pub(crate) fn workers(run_dir: &RunDir) -> Vec<Worker> {
    pids().filter_map(|pid| Worker::of(pid, run_dir)).collect()
}

fn pids() -> impl Iterator<Item = i32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Whether this is the agent of that host.
fn is_agent(pid: i32, host: &HostDir) -> bool {
    let arguments = command_line(pid);
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let run_dir = [b"NIL_RUN_DIR=", host.run_dir().path().as_os_str().as_encoded_bytes()].concat();
    arguments.get(1).is_some_and(|command| command == b"host")
        && value(&arguments, b"--name") == Some(host.name().as_str().as_bytes())
        && environment.split(|&byte| byte == 0).any(|variable| variable == run_dir)
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
