//! Fencing a host: it loses the right to run and to write, and stops, before anybody takes anything from it.

use super::super::Host;
use super::super::pools::name_or_slot;
use super::lock;
use crate::error::{Error, Result, story};
use nil_pool::{Epoch, Fence, HostSlot, Life, Membership};
use rustix::process::{Pid, Signal, kill_process_group};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a fence command may take. It is killed then, and tried again.
const PATIENCE_WITH_COMMAND: Duration = Duration::from_secs(60);
/// How often to look whether it has ended, and how far another fencer has come.
const LOOK: Duration = Duration::from_millis(2);

/// A program that takes a host's access to memory away by other means: IPMI, CXL, a switch. It is run and awaited before
/// anything is taken from the host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FenceCommand(pub(crate) PathBuf);

/// Why a host is taken for dead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Evidence {
    /// For how long its lease had stood still.
    pub(super) still: Duration,
    /// Nothing of it is left, for sure.
    pub(super) sure: bool,
    /// When that was seen.
    pub(super) at: Instant,
}

impl Host {
    /// Sees to it that a host is fenced: by this host, or by another that was quicker. Returns when its guests may be taken.
    ///
    /// # Errors
    /// It lives, or has another life; the fence command has failed; this host has been fenced itself.
    pub(super) fn fence(&self, membership: &Membership, slot: HostSlot, life: Life, evidence: Evidence) -> Result<()> {
        let (pool, epoch) = (membership.pool(), life.epoch);
        let alive = || Error::Pool(nil_pool::Error::HostNotDead { host: slot });
        loop {
            let now = pool.life(slot).filter(|now| now.epoch == epoch).ok_or_else(alive)?;
            match now.fence {
                Fence::Fenced => return Ok(()),
                Fence::Standing if now.lease != life.lease && !evidence.sure => return Err(alive()),
                Fence::Standing => {
                    match membership.declare_dead(slot, epoch) {
                        Ok(()) => {}
                        // Somebody was quicker, or it has another life.
                        Err(nil_pool::Error::HostNotDead { .. }) => continue,
                        Err(error) => return Err(error.into()),
                    }
                    membership.begin_fencing(slot, epoch, None)?;
                    // The other half is in `Tether::beat`: either it sees that it is fenced, or we see that it has beaten.
                    let moved = pool.life(slot).is_none_or(|now| now.lease != life.lease);
                    return self.finish(membership, slot, now, moved && !evidence.sure);
                }
                Fence::Declared | Fence::Fencing => {
                    let by = now.fencer.filter(|by| *by != membership.slot());
                    let gone = by.is_none_or(|by| self.is_gone(membership, by));
                    if gone && membership.begin_fencing(slot, epoch, by).is_ok() {
                        // Whether it had beaten after it was declared dead, only that fencer could tell.
                        return self.finish(membership, slot, now, !evidence.sure);
                    }
                    std::thread::sleep(LOOK);
                }
            }
        }
    }

    /// Waits until the host has stopped for sure, and says that its guests may be taken.
    fn finish(&self, membership: &Membership, slot: HostSlot, life: Life, may_run: bool) -> Result<()> {
        let name = name_or_slot(membership.pool(), slot);
        tracing::warn!("host {name}: fencing it in pool {}", membership.pool().path().display());
        if let Some(command) = &self.fence_command {
            run_command(command, &name, membership, slot, life.epoch)?;
        }
        if may_run {
            // It was about to wake up. Its processes look once in every interval, and stop.
            std::thread::sleep(life.terms.unwrap_or_default().expiry());
        }
        let recovered = membership.finish_fencing(slot, life.epoch)?;
        self.counted.host_fenced();
        tracing::warn!("host {name}: fenced; its journal is settled ({recovered:?})");
        Ok(())
    }

    /// Whether a host that was to do something does nothing more.
    pub(super) fn is_gone(&self, membership: &Membership, slot: HostSlot) -> bool {
        let sight = lock(&self.vigil.seen).get(&(membership.pool().id(), slot)).copied();
        let life = membership.pool().life(slot);
        match (sight, life) {
            (_, None) => true,
            (Some(sight), Some(life)) => life.epoch != sight.life || sight.is_dead(),
            (None, Some(life)) => life.fence != Fence::Standing,
        }
    }
}

/// Runs the fence command and waits for it.
fn run_command(
    FenceCommand(program): &FenceCommand,
    name: &str,
    membership: &Membership,
    slot: HostSlot,
    life: Epoch,
) -> Result<()> {
    let pool = membership.pool();
    let id = pool.host(slot).map(|host| host.id.to_string()).unwrap_or_default();
    let mut command = Command::new(program);
    command
        .env("NIL_FENCE_HOST", name)
        .env("NIL_FENCE_HOST_ID", id)
        .env("NIL_FENCE_EPOCH", life.to_string())
        .env("NIL_FENCE_POOL", pool.id().to_string())
        .env("NIL_FENCE_POOL_PATH", pool.path())
        .env("NIL_FENCE_BY", &membership.identity().name)
        .stdin(Stdio::null())
        // What it starts is ended with it.
        .process_group(0);
    let failed = |why: String| {
        Error::refused(format!(
            "host {name} is not fenced: the fence command {} {why}; nothing is taken from the host until it succeeds",
            program.display()
        ))
    };
    let mut child = command.spawn().map_err(|error| failed(format!("cannot be run: {}", story(&error))))?;
    let deadline = Instant::now() + PATIENCE_WITH_COMMAND;
    let status: ExitStatus = loop {
        match child.try_wait().map_err(|error| failed(error.to_string()))? {
            Some(status) => break status,
            None if Instant::now() >= deadline => {
                if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                    // If it has ended meanwhile, all the better.
                    let _ = kill_process_group(group, Signal::KILL);
                }
                let _ = child.wait();
                return Err(failed(format!("did not end within {} s", PATIENCE_WITH_COMMAND.as_secs())));
            }
            None => std::thread::sleep(LOOK),
        }
    };
    if status.success() { Ok(()) } else { Err(failed(format!("ended with {status}"))) }
}
