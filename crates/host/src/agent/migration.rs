//! The source's side of a migration.
//!
//! ```text
//! client        agent S                agent T              worker S      worker T
//!   │ migrate ───▶│                       │                     │
//!   │             │ arm ─────────────────▶│ starts ───────────────────────────▶│
//!   │             │                       │ arm ──────────────────────────────▶│ builds the machine, warms it up
//!   │◀─ progress ─│◀──────────────  armed │◀─────────────────────────── armed  │
//!   │             │ handoff ─────────────────────────────────▶│ ═════ pool ═══▶│ runs the guest
//!   │             │◀──────────────────────────────── released │                │
//!   │             │◀───────────── landed  │◀─────────────────────────── running│
//!   │◀── report ──│                                           ╳ ends
//! ```

use super::Host;
use super::table::Departure;
use crate::error::{Error, Result};
use crate::message::{AgentReply, AgentRequest, ArmOrder, Migrate, Phase, WorkerReply, WorkerRequest};
use crate::name::HostName;
use crate::report::{MigrationOutcome, MigrationReport, known};
use crate::wire::Connection;
use nil_pool::{Arm, GuestControl, Region};
use std::time::{Duration, Instant};

/// The shortest and the longest that a guest may be ordered to wait for its target.
const DEADLINES: std::ops::RangeInclusive<u64> = 1_000..=60_000_000;
/// How much longer than its deadline a handoff may take before its worker is given up as stuck.
const GRACE: Duration = Duration::from_secs(10);

impl Host {
    /// Moves a guest of ours to another host. `progress` hears of every step.
    pub(super) fn migrate(&self, order: &Migrate, mut progress: impl FnMut(String)) -> Result<MigrationReport> {
        let begun = Instant::now();
        let Migrate { guest, to, deadline_us } = order;
        let departure = self.departing(order)?;
        let placement = departure.control.placement()?;
        // Whatever an earlier plan has left in the arm word: we are the owner, and nobody else is being asked.
        departure.control.arm().store(Arm::Idle);
        let mut target = self.call_target(to)?;
        progress(format!("{to} gets ready"));
        let slot = arm(&mut target, self.arm_order(order, &departure.control))?;
        let prepare_us = micros(begun.elapsed());
        progress(format!("{to} is ready after {:.1} ms; handing {guest} over", begun.elapsed().as_secs_f64() * 1e3));
        let patience = Duration::from_micros(*deadline_us) + GRACE;
        let reply = self.order(guest, &WorkerRequest::Handoff { to: slot, deadline_us: *deadline_us }, patience)?;
        let (outcome, handoff) = match reply {
            WorkerReply::Released(report) => {
                tracing::debug!("guest {guest}: released after {:?}", begun.elapsed());
                await_landing(&mut target);
                tracing::debug!("guest {guest}: known to have landed after {:?}", begun.elapsed());
                (MigrationOutcome::Moved, report)
            }
            WorkerReply::TakenBack(why) => (MigrationOutcome::TakenBack { why }, None),
            WorkerReply::Done | WorkerReply::Status(_) | WorkerReply::Refused(_) => {
                return Err(Error::refused(format!("the worker of guest {guest} gave no report of the handoff")));
            }
        };
        Ok(MigrationReport {
            guest: guest.clone(),
            id: departure.control.id(),
            from: self.dir.name().clone(),
            to: to.clone(),
            outcome,
            prepare_us,
            total_us: micros(begun.elapsed()),
            copied_bytes: displaced_bytes(&placement, &departure.control.placement()?),
            handoff,
        })
    }

    /// Checks whether the guest can leave now, and keeps it from being sent elsewhere meanwhile.
    fn departing(&self, order: &Migrate) -> Result<Departure<'_>> {
        let Migrate { guest, to, deadline_us } = order;
        if to == self.dir.name() {
            return Err(Error::refused(format!("guest {guest} is on host {to} already")));
        }
        if !DEADLINES.contains(deadline_us) {
            return Err(Error::refused("a handoff's deadline is between 1 ms and 60 s; the default is 1s"));
        }
        let Some(entry) = self.table.find(guest) else {
            let names = self.table.entries().into_iter().map(|(name, _)| name);
            return Err(Error::UnknownGuest { name: guest.to_string(), known: known("guest here", names) });
        };
        let not_now = |what: &str| Err(Error::refused(format!("guest {guest} {what}")));
        match entry.phase {
            Phase::Running => {}
            Phase::Empty | Phase::Starting => return not_now("has not started yet; try again in a moment"),
            Phase::Armed => return not_now("has not arrived here yet; try again in a moment"),
            Phase::Leaving | Phase::Released => return not_now("is on its way to another host already"),
            Phase::Halted => return not_now("has stopped by itself; there is nothing left to move"),
            Phase::TornDown | Phase::Ended => return not_now("is being stopped"),
        }
        match self.table.depart(guest) {
            Some(departure) => Ok(departure),
            None => not_now("is being moved already; `nil ps` shows where it is"),
        }
    }

    fn call_target(&self, to: &HostName) -> Result<Connection> {
        let run_dir = self.dir.run_dir();
        let target = run_dir.host(to);
        if !target.path().is_dir() {
            let names: Vec<_> = run_dir.hosts()?.into_iter().map(|host| host.name().clone()).collect();
            return Err(Error::UnknownHost { name: to.to_string(), known: known("host", names) });
        }
        match Connection::call(&target.agent_socket(), format!("host {to}")) {
            Err(Error::NobodyThere { .. }) => Err(Error::HostGone { name: to.clone() }),
            other => other,
        }
    }

    fn arm_order(&self, order: &Migrate, control: &GuestControl) -> ArmOrder {
        ArmOrder {
            pool: control.pool().id(),
            slot: control.slot(),
            id: control.id(),
            name: order.guest.clone(),
            from: self.dir.name().clone(),
        }
    }
}

/// Asks the target's agent to get ready; returns the target's slot in the pool.
fn arm(target: &mut Connection, order: ArmOrder) -> Result<u16> {
    target.send(&AgentRequest::Arm(order))?;
    match target.expect()? {
        AgentReply::Armed(slot) => Ok(slot),
        AgentReply::Refused(why) => Err(Error::refused(format!("{} cannot take the guest: {why}", target.peer()))),
        other => Err(Error::refused(format!("{} answered {other:?} when it was to get ready", target.peer()))),
    }
}

/// Waits until the target's agent knows that it has the guest. If it never says so, the guest is there all the same.
fn await_landing(target: &mut Connection) {
    let heard = target.set_patience(Some(GRACE)).and_then(|()| target.expect::<AgentReply>());
    match heard {
        Ok(AgentReply::Landed) => {}
        Ok(other) => tracing::warn!("{} has the guest, and says {other:?}", target.peer()),
        Err(error) => tracing::warn!("{} has the guest, and does not say so: {}", target.peer(), error.story()),
    }
}

/// Bytes of guest memory that do not lie where they did.
fn displaced_bytes(before: &[Region], after: &[Region]) -> u64 {
    after.iter().filter(|region| !before.contains(region)).map(|region| region.bytes).sum()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
