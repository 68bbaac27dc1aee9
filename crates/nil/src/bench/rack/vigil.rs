//! What the agents cost and hold while guests move, over all their lives.

use crate::lab::fleet::Fleet;
use crate::lab::lock::lock;
use crate::lab::vitals::{Footprint, Vitals};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// Files that an agent may have open for each guest of its own, beyond those of an agent without guests: its worker's
/// process, the connection on which it watches the worker, and one for an order.
const FILES_PER_GUEST: usize = 4;
/// Threads for each guest: one that watches the worker, and one for an order.
const THREADS_PER_GUEST: u64 = 2;
/// Files and threads that come and go: calls that are being answered.
const SLACK: usize = 16;

/// What agents have cost and held.
#[derive(Debug, Default)]
pub(in crate::bench) struct Vigil(Mutex<Watch>);

#[derive(Debug, Default)]
struct Watch {
    /// Processor time of each agent process by its pid, as last seen.
    cpu: BTreeMap<i32, Duration>,
    /// What each host's agent held before there was any guest.
    idle: BTreeMap<usize, Vitals>,
    most: Most,
}

/// The most that any agent held at a quiet point.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(in crate::bench) struct Most {
    pub(in crate::bench) open_files: usize,
    pub(in crate::bench) threads: u64,
    pub(in crate::bench) private_bytes: u64,
}

impl Vigil {
    fn lock(&self) -> MutexGuard<'_, Watch> {
        lock(&self.0)
    }

    /// Notes what the agents hold that have no guests yet.
    pub(in crate::bench) fn begin(&self, fleet: &Fleet) -> anyhow::Result<()> {
        for host in 0..fleet.hosts().len() {
            let idle = Vitals::of(pid_of(fleet, host)?)?;
            self.lock().idle.insert(host, idle);
        }
        Ok(())
    }

    /// Notes the processor time of an agent that is about to be killed.
    pub(in crate::bench) fn see(&self, pid: i32) {
        if let Some(vitals) = u32::try_from(pid).ok().and_then(|pid| Vitals::of(pid).ok()) {
            self.lock().cpu.insert(pid, vitals.cpu);
        }
    }

    /// What an agent with so many guests holds and should not, if anything.
    pub(in crate::bench) fn excess(&self, fleet: &Fleet, host: usize, guests: usize) -> anyhow::Result<Option<String>> {
        let pid = pid_of(fleet, host)?;
        let (now, private) = (Vitals::of(pid)?, Footprint::of(pid)?.private);
        let mut watch = self.lock();
        watch.cpu.insert(i32::try_from(pid)?, now.cpu);
        let most = &mut watch.most;
        most.open_files = most.open_files.max(now.open_files);
        most.threads = most.threads.max(now.threads);
        most.private_bytes = most.private_bytes.max(private);
        let Some(idle) = watch.idle.get(&host) else { return Ok(None) };
        let files = idle.open_files + FILES_PER_GUEST * guests + SLACK;
        let threads = idle.threads + THREADS_PER_GUEST * guests as u64 + SLACK as u64;
        let name = fleet.hosts()[host].name();
        Ok(if now.open_files > files {
            Some(format!("agent {name} has {} files open; with {guests} guests {files} would do", now.open_files))
        } else if now.threads > threads {
            Some(format!("agent {name} has {} threads; with {guests} guests {threads} would do", now.threads))
        } else {
            None
        })
    }

    /// Processor time of all agents that were seen.
    pub(in crate::bench) fn cpu(&self) -> Duration {
        self.lock().cpu.values().sum()
    }

    pub(in crate::bench) fn most(&self) -> Most {
        self.lock().most
    }
}

fn pid_of(fleet: &Fleet, host: usize) -> anyhow::Result<u32> {
    let pid = fleet.call(host)?.describe()?.agent_pid;
    pid.ok_or_else(|| anyhow::anyhow!("the agent does not tell its pid"))
}
