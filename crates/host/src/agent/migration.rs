//! The source's side of a migration.
//!
//! ```text
//! client        agent S                agent T              worker S      worker T
//!   │ migrate ───▶│                       │                     │
//!   │             │ move ────────────────────────────────────▶│ decouples, if the memory is in DRAM
//!   │◀─ progress ─│◀──────────────────────────────── moved    │
//!   │             │ arm ─────────────────▶│ starts ───────────────────────────▶│
//!   │             │                       │ arm ──────────────────────────────▶│ builds the machine, warms it up
//!   │◀─ progress ─│◀──────────────  armed │◀─────────────────────────── armed  │
//!   │             │ handoff ─────────────────────────────────▶│ ═════ pool ═══▶│ runs the guest
//!   │             │◀──────────────────────────────── released │                │
//!   │             │◀───────────── landed  │◀─────────────────────────── running│
//!   │             │ settle ──────────────▶│ move ─────────────────────────────▶│ recouples what was in DRAM
//!   │◀── report ──│◀──────────── settled  │◀─────────────────────────── moved  │
//! ```
//!
//! A handoff that is refused because part of the memory is not in the pool (pulled back, after it had been decoupled)
//! sends the migration back to decoupling, where it stalls until that part can move. Whatever else keeps the guest here,
//! its memory goes back to where it was before the order.

use super::Host;
use super::former::Former;
use super::jobs::{End, Errand, Stage};
use super::ledger::Record;
use super::relocating::{Hearer, Relocated, Relocation};
use super::table::Occupation;
use super::target::Target;
use crate::error::{Error, Result};
use crate::itinerary::Onward;
use crate::joined::{Relation, join, moved_bytes};
use crate::message::{Lane, WorkerReply, WorkerRequest};
use crate::micros::micros;
use crate::order::{ArmOrder, Migrate, SettleOrder, Settling, check_costs, check_deadline};
use crate::report::{MigrationOutcome, MigrationReport, Progress};
use nil_migrate::HandoffReport;
use nil_mover::{Direction, MoveOutcome, MoveReport};
use nil_pool::{Arm, Region};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How much longer than its deadline a handoff may take before its worker is given up as stuck.
const GRACE: Duration = Duration::from_secs(10);
/// How long to wait before memory that was pulled back under a handoff is tried again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A migration in progress.
struct Journey<'a> {
    host: &'a Host,
    order: &'a Migrate,
    leg: Leg<'a>,
    occupation: Occupation<'a>,
    begun: Instant,
    former: Former,
    decouple: Option<MoveReport>,
    prepare_us: u64,
    /// Since when handoffs are refused because of memory that is not in the pool.
    stalled_since: Option<Instant>,
}

/// Whether it is a step of a longer way.
#[derive(Clone, Copy, Debug)]
pub(super) enum Leg<'a> {
    /// It is not.
    Alone,
    /// It is; this is left of it then, and `None` that it is the last one, after which all of the memory goes where the
    /// order says.
    OfWay(Option<&'a Onward>),
}

/// How the guest's own way ended; its memory may have another before it.
enum Arrival {
    /// It runs on the target, to whose agent this leads.
    Landed { target: Box<Target>, handoff: Option<HandoffReport> },
    /// It runs here.
    Kept(MigrationOutcome),
}

/// What became of an attempt to hand the guest over.
enum Attempt {
    Over(Arrival),
    /// Part of its memory is not in the pool.
    Hole(String),
}

impl Host {
    /// Moves a guest of ours to another host.
    pub(super) fn migrate(
        self: &Arc<Self>,
        order: &Migrate,
        leg: Leg<'_>,
        record: &Arc<Record>,
    ) -> Result<MigrationReport> {
        let begun = Instant::now();
        let occupation = self.departing(order)?;
        self.begun(record, &occupation)?;
        let former = Former::of(&occupation.control)?;
        let (decouple, prepare_us, stalled_since) = (None, 0, None);
        Journey { host: self, order, leg, occupation, begun, former, decouple, prepare_us, stalled_since }
            .travel(&mut |progress| self.hear(record, progress))
    }

    /// Checks whether the guest can leave now, and keeps it from being sent elsewhere meanwhile.
    fn departing(&self, order: &Migrate) -> Result<Occupation<'_>> {
        let Migrate { guest, to, .. } = order;
        self.check_order(order)?;
        self.movable(guest)?;
        match self.table.occupy(guest, Lane::Main, Errand::Migration { to: to.clone() }) {
            Ok(occupation) => Ok(occupation),
            Err(Some(job)) if matches!(job.errand, Errand::Migration { .. }) => {
                Err(Error::Busy(format!("guest {guest} is being moved already; `nil ps` shows where it is")))
            }
            Err(Some(job)) => Err(Error::Busy(format!("guest {guest}: {}; try again when that is over", job.errand))),
            Err(None) => Err(self.unknown_guest(guest)),
        }
    }

    /// Refuses an order that makes no sense, wherever the guest is.
    pub(super) fn check_order(&self, order: &Migrate) -> Result<()> {
        let Migrate { guest, to, deadline_us, .. } = order;
        if to == self.dir.name() {
            return Err(Error::refused(format!("guest {guest} is on host {to} already")));
        }
        check_deadline(*deadline_us)?;
        check_costs(order.budget, order.stall_timeout_us)
    }
}

impl Journey<'_> {
    fn travel(mut self, hear: Hearer<'_>) -> Result<MigrationReport> {
        let Migrate { guest, to, .. } = self.order;
        // Before anything moves: a target that cannot be there costs the guest nothing.
        let placement = self.occupation.control.placement()?;
        let arrival = match self.host.check_target(self.order, &self.occupation.control, &self.occupation.job) {
            Ok(()) => self.arrive(hear),
            Err(Error::CalledOff) => Ok(Arrival::Kept(cancelled())),
            Err(error) => return Err(self.failed(error)),
        };
        let total_us = micros(self.begun.elapsed());
        let mut report = MigrationReport {
            guest: guest.clone(),
            id: self.occupation.control.id(),
            from: self.host.dir.name().clone(),
            to: to.clone(),
            outcome: MigrationOutcome::Moved,
            decouple: self.decouple.take(),
            prepare_us: self.prepare_us,
            total_us,
            copied_bytes: 0,
            handoff: None,
            recouple: None,
            remarks: Vec::new(),
        };
        match self.occupation.control.placement() {
            Ok(now) => report.copied_bytes = displaced_bytes(&placement, &now),
            // The guest is where it is, whether that can be read or not.
            Err(error) => report.remarks.push(format!(
                "whether guest memory was copied is not known, its place in the pool cannot be read: {}",
                Error::from(error).story()
            )),
        }
        match arrival {
            Ok(Arrival::Landed { target, handoff }) => {
                report.handoff = handoff;
                self.settle(*target, &mut report, hear);
                let late = format!("it came too late: guest {guest} runs on host {to}");
                self.occupation.job.end(End::Otherwise(late));
            }
            Ok(Arrival::Kept(outcome)) => {
                report.outcome = outcome;
                let runs_on = format!("guest {guest} runs on at {}", self.host.dir.name());
                let remark = self.return_home(hear);
                self.occupation.job.end(match &remark {
                    None => End::AsBefore(runs_on),
                    Some(remark) => End::Otherwise(format!("{runs_on}; {remark}")),
                });
                report.remarks.extend(remark);
            }
            Err(error) => {
                let remark = self.return_home(hear);
                return Err(self.failed(match remark {
                    None => error,
                    Some(remark) => Error::refused(format!("{}; {remark}", error.story())),
                }));
            }
        }
        Ok(report)
    }

    /// Tells whoever has called it off, too, what has gone wrong.
    fn failed(&self, error: Error) -> Error {
        self.occupation.job.end(End::Otherwise(format!("guest {}: {}", self.order.guest, error.story())));
        error
    }

    /// Gets the guest to the target, or not.
    fn arrive(&mut self, hear: Hearer<'_>) -> Result<Arrival> {
        loop {
            if let Some(kept) = self.decouple(hear)? {
                return Ok(Arrival::Kept(kept));
            }
            match self.attempt(hear) {
                Ok(Attempt::Over(arrival)) => return Ok(arrival),
                Ok(Attempt::Hole(why)) => {
                    let timeout = Duration::from_micros(self.order.stall_timeout_us);
                    if self.stalled_since.get_or_insert_with(Instant::now).elapsed() >= timeout {
                        return Ok(Arrival::Kept(MigrationOutcome::Stalled { why }));
                    }
                    hear(Progress::step(format!("stalled: {why}")));
                    std::thread::sleep(LOOK_AGAIN);
                }
                Err(Error::CalledOff) => return Ok(Arrival::Kept(cancelled())),
                Err(error) => return Err(error),
            }
        }
    }

    /// Brings what is not in the pool into it. Returns how the migration ended, if it did.
    fn decouple(&mut self, hear: Hearer<'_>) -> Result<Option<MigrationOutcome>> {
        if self.occupation.control.map_state()?.placement().away() == 0 {
            return Ok(None);
        }
        let Relocated { moved, outcome } = self.host.relocate(&self.occupation, &self.decoupling(), hear)?;
        if moved.as_ref().is_some_and(|report| moved_bytes(report) > 0) {
            self.stalled_since = None;
        }
        self.decouple = match (self.decouple.take(), moved) {
            (Some(earlier), Some(later)) => Some(join(earlier, later, Relation::Continued)),
            (earlier, later) => earlier.or(later),
        };
        Ok(match outcome {
            MoveOutcome::Done => None,
            MoveOutcome::Cancelled => Some(cancelled()),
            MoveOutcome::Stalled(stall) => Some(MigrationOutcome::Stalled { why: stall.to_string() }),
        })
    }

    /// Has the target get ready, and hands the guest over.
    fn attempt(&mut self, hear: Hearer<'_>) -> Result<Attempt> {
        let Migrate { guest, to, deadline_us, .. } = self.order;
        let begun = Instant::now();
        // Whatever an earlier plan has left in the arm word: we are the owner, and nobody else is being asked.
        self.occupation.control.arm().store(Arm::Idle);
        let mut target = self.host.call_target(to)?;
        self.occupation.job.enter(Stage::Arming(target.hang_up_handle()))?;
        hear(Progress::step(format!("{to} gets ready")));
        let armed = target.arm(&self.arm_order());
        let slot = armed.map_err(|error| self.occupation.job.or_called_off(error))?;
        self.prepare_us = micros(begun.elapsed());
        let ready = begun.elapsed().as_secs_f64() * 1e3;
        hear(Progress::step(format!("{to} is ready after {ready:.1} ms; handing {guest} over")));
        self.occupation.job.enter(Stage::HandingOver)?;
        let patience = Duration::from_micros(*deadline_us) + GRACE;
        let handoff = WorkerRequest::Handoff { to: slot, deadline_us: *deadline_us };
        match self.host.order(guest, &handoff, patience)? {
            WorkerReply::Released(handoff) => {
                self.occupation.job.enter(Stage::Landed)?;
                Ok(Attempt::Over(Arrival::Landed { target: Box::new(target), handoff }))
            }
            WorkerReply::TakenBack(_) if self.occupation.job.is_cancelled() => {
                Ok(Attempt::Over(Arrival::Kept(cancelled())))
            }
            WorkerReply::TakenBack(why) => Ok(Attempt::Over(Arrival::Kept(MigrationOutcome::TakenBack { why }))),
            WorkerReply::Hole(why) => Ok(Attempt::Hole(why)),
            other => {
                Err(Error::refused(format!("the worker of guest {guest} said {other:?} to the order to hand over")))
            }
        }
    }

    /// Has the target recouple what was in DRAM here. The guest has moved, whatever becomes of that.
    fn settle(&self, mut target: Target, report: &mut MigrationReport, hear: Hearer<'_>) {
        let Migrate { guest, to, settling, budget, stall_timeout_us, .. } = self.order;
        let heard = target.await_landing();
        tracing::debug!("guest {guest}: known to have landed after {:?}", self.begun.elapsed());
        let ranges = match self.leg {
            Leg::Alone => self.former.outside_pool(),
            // Where it set out all of it was in DRAM.
            Leg::OfWay(_) => self.former.all(),
        };
        if ranges.is_empty() || *settling == Settling::StayInPool {
            return;
        }
        let order = SettleOrder { guest: guest.clone(), ranges, budget: *budget, stall_timeout_us: *stall_timeout_us };
        let settled = heard.and_then(|()| target.settle(&order, hear));
        match settled {
            Ok(recouple) => report.recouple = Some(recouple),
            Err(error) => report.remarks.push(format!(
                "its memory is still in the pool, or part of it: {}; `nil recouple {guest}` brings it into the DRAM of {to}",
                error.story()
            )),
        }
    }

    /// Brings the memory of a guest that stays to where it was before the order. Returns what did not succeed.
    fn return_home(&self, hear: Hearer<'_>) -> Option<String> {
        let undone = self.host.undo(&self.occupation, &self.decoupling(), &self.former, hear);
        self.host.tidy(&self.occupation);
        match undone {
            Ok(None) => None,
            Ok(Some(report)) if report.outcome == MoveOutcome::Done => None,
            Ok(Some(report)) => match report.outcome {
                MoveOutcome::Stalled(stall) => Some(format!("part of its memory stays in the pool: {stall}")),
                MoveOutcome::Cancelled | MoveOutcome::Done => Some("part of its memory stays in the pool".to_owned()),
            },
            Err(error) => Some(format!("its memory could not be brought back: {}", error.story())),
        }
    }

    fn decoupling(&self) -> Relocation {
        let Migrate { budget, stall_timeout_us, .. } = *self.order;
        let (direction, striping) = (Direction::Decouple, self.order.striping.clone());
        Relocation { direction, ranges: None, budget, node: None, stall_timeout_us, striping }
    }

    fn arm_order(&self) -> ArmOrder {
        let control = &self.occupation.control;
        ArmOrder {
            pool: control.pool().id(),
            slot: control.slot(),
            id: control.id(),
            name: self.order.guest.clone(),
            from: self.host.dir.name().clone(),
            onward: match self.leg {
                Leg::Alone => None,
                Leg::OfWay(onward) => onward.cloned(),
            },
        }
    }
}

fn cancelled() -> MigrationOutcome {
    MigrationOutcome::Cancelled { why: "it was called off".to_owned() }
}

/// Bytes of guest memory that do not lie where they did.
fn displaced_bytes(before: &[Region], after: &[Region]) -> u64 {
    after.iter().filter(|region| !before.contains(region)).map(|region| region.bytes).sum()
}
