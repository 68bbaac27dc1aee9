//! Decoupling and recoupling: the agent makes room in the pool, the worker moves, the agent gives the room back.
//!
//! ```text
//! decouple   lift the holds on that part · place the memory capacity · worker moves
//! recouple   (a part: hold it ·) worker moves · unplace the memory capacity, if all is in DRAM
//! called off, or stalled for too long: what has moved is moved back, and so is the capacity
//! ```
//!
//! Two things may be done with a guest's memory at once: one in the main lane (a move, a migration), and a part may be
//! pulled back meanwhile. The worker lets them take turns. Whoever ends last gives the capacity back.

use super::Host;
use super::former::Former;
use super::jobs::{End, Errand};
use super::ledger::Record;
use super::pinning::layout;
use super::protecting::require_unprotected;
use super::relocating::{Hearer, Relocated, Relocation};
use super::table::{Entry, Occupation};
use crate::error::{Error, Result};
use crate::message::{Lane, Phase};
use crate::name::GuestName;
use crate::order::{GuestRange, MoveMemory, SettleOrder, check_costs};
use crate::report::{MemoryMoved, Progress, known};
use nil_mover::{Direction, MoveOutcome, MoveRange, MoveReport};
use std::sync::Arc;

impl Host {
    /// Decouples or recouples, all or a part.
    pub(super) fn move_memory(self: &Arc<Self>, order: &MoveMemory, record: &Arc<Record>) -> Result<MemoryMoved> {
        check_costs(order.budget, order.stall_timeout_us)?;
        let entry = self.movable(&order.guest)?;
        let layout = layout(&entry.control)?;
        let range = order.range.map(|range| layout.granules_of(range)).transpose()?;
        match (order.direction, order.range.zip(range)) {
            (Direction::Recouple, Some(part)) => self.pull_back(order, part, record),
            (Direction::Recouple, None) => self.move_in_main_lane(order, None, Vec::new(), record),
            (Direction::Decouple, _) => {
                let lifted = self.lift_holds(&order.guest, &entry.control, range)?;
                self.move_in_main_lane(order, range, lifted, record)
            }
        }
    }

    fn move_in_main_lane(
        self: &Arc<Self>,
        order: &MoveMemory,
        range: Option<MoveRange>,
        lifted: Vec<String>,
        record: &Arc<Record>,
    ) -> Result<MemoryMoved> {
        let MoveMemory { guest, direction, .. } = order;
        if *direction == Direction::Decouple {
            let control = self.movable(guest)?.control;
            require_unprotected(guest, &control, "its memory stays in its host's DRAM, and its image in the pool")?;
        }
        let occupation = match self.table.occupy(guest, Lane::Main, Errand::Move(*direction)) {
            Ok(occupation) => occupation,
            // What was held goes along with what is on its way already.
            Err(Some(job)) if !lifted.is_empty() && takes_along(&job.errand) => {
                let mut remarks = lifted;
                remarks.push(format!("{}, and takes that part along", job.errand));
                return self.moved(guest, (None, None), remarks);
            }
            Err(Some(job)) => return Err(Error::Busy(format!("guest {guest}: {} already", job.errand))),
            Err(None) => return Err(self.unknown_guest(guest)),
        };
        self.begun(record, &occupation)?;
        let hear: Hearer<'_> = &mut |progress| self.hear(record, progress);
        let relocation = Relocation { ranges: range.map(|range| vec![range]), ..relocation(order) };
        let former = Former::of(&occupation.control)?;
        let relocated = self.relocate(&occupation, &relocation, hear);
        self.conclude(&occupation, (&relocation, &former), relocated, lifted, hear)
    }

    /// Pulls a part back from the pool and holds it: whoever wants all of the memory in the pool waits.
    fn pull_back(
        self: &Arc<Self>,
        order: &MoveMemory,
        part: (GuestRange, MoveRange),
        record: &Arc<Record>,
    ) -> Result<MemoryMoved> {
        let guest = &order.guest;
        let occupation = match self.table.occupy(guest, Lane::PullBack, Errand::PullBack) {
            Ok(occupation) => occupation,
            Err(Some(job)) => return Err(Error::Busy(format!("guest {guest}: {} already", job.errand))),
            Err(None) => return Err(self.unknown_guest(guest)),
        };
        self.begun(record, &occupation)?;
        let hear: Hearer<'_> = &mut |progress| self.hear(record, progress);
        let former = Former::of(&occupation.control)?;
        self.hold(guest, &occupation.control, part.1, order.reason.as_deref())?;
        hear(Progress::step(format!("{} of guest {guest} is held; it comes back", part.0)));
        let relocation = Relocation { ranges: Some(vec![part.1]), ..relocation(order) };
        let relocated = self.relocate(&occupation, &relocation, hear);
        let remarks = match &relocated {
            Ok(Relocated { outcome: MoveOutcome::Done, .. }) => vec![format!(
                "it is held in DRAM until `nil decouple {guest} --range {}` lets it go back to the pool",
                part.0
            )],
            // Whatever becomes of the hold, what has moved must go back.
            Ok(_) | Err(_) => self.lift_holds(guest, &occupation.control, Some(part.1)).unwrap_or_else(|error| {
                vec![format!(
                    "it is still held; `nil decouple {guest} --range {}` lifts that: {}",
                    part.0,
                    error.story()
                )]
            }),
        };
        self.conclude(&occupation, (&relocation, &former), relocated, remarks, hear)
    }

    /// What follows a relocation: unless it is done, what has moved goes back; the capacity goes if it is of no use.
    fn conclude(
        &self,
        occupation: &Occupation<'_>,
        (relocation, former): (&Relocation, &Former),
        relocated: Result<Relocated>,
        mut remarks: Vec<String>,
        hear: Hearer<'_>,
    ) -> Result<MemoryMoved> {
        let guest = occupation.name();
        let (moved_back, is_as_before) = match &relocated {
            Ok(Relocated { outcome: MoveOutcome::Done, .. }) => (None, false),
            Ok(_) | Err(_) => match self.undo(occupation, relocation, former, hear) {
                Ok(back) => {
                    let whole = back.as_ref().is_none_or(|report| report.outcome == MoveOutcome::Done);
                    (back, whole)
                }
                Err(error) => {
                    remarks.push(format!("what had moved could not be moved back: {}", error.story()));
                    (None, false)
                }
            },
        };
        self.tidy(occupation);
        let relocated = relocated.inspect_err(|error| {
            occupation.job.end(End::Otherwise(format!("guest {guest}: {}", error.story())));
        })?;
        let is_done = relocated.outcome == MoveOutcome::Done;
        let moved = self.moved(guest, (relocated.moved, moved_back), remarks)?;
        let memory = format!("guest {guest} runs on; its memory is in: {}", moved.memory);
        occupation.job.end(match (is_done, is_as_before) {
            (true, _) => End::Otherwise(format!("it came too late: it is done; {memory}")),
            (false, true) => End::AsBefore(memory),
            (false, false) => End::Otherwise(format!("not everything is as it was: {memory}")),
        });
        Ok(moved)
    }

    /// Recouples what was in DRAM on the host that the guest has come from. What cannot move stays in the pool.
    pub(super) fn settle(self: &Arc<Self>, order: &SettleOrder, record: &Arc<Record>) -> Result<MoveReport> {
        let SettleOrder { guest, ranges, budget, stall_timeout_us } = order.clone();
        let occupation = match self.table.occupy(&guest, Lane::Main, Errand::Settling) {
            Ok(occupation) => occupation,
            Err(Some(job)) => return Err(Error::Busy(format!("guest {guest}: {}", job.errand))),
            Err(None) => return Err(self.unknown_guest(&guest)),
        };
        self.begun(record, &occupation)?;
        let hear: Hearer<'_> = &mut |progress| self.hear(record, progress);
        let direction = Direction::Recouple;
        let relocation =
            Relocation { direction, ranges: Some(ranges), budget, node: None, stall_timeout_us, striping: None };
        let former = Former::of(&occupation.control)?;
        let relocated = self.relocate(&occupation, &relocation, hear);
        let undone = match &relocated {
            Ok(Relocated { outcome: MoveOutcome::Cancelled, .. }) => {
                self.undo(&occupation, &relocation, &former, hear).map(Some)
            }
            Ok(_) | Err(_) => Ok(None),
        };
        self.tidy(&occupation);
        if let Some(back) = undone? {
            let whole = back.is_none_or(|report| report.outcome == MoveOutcome::Done);
            let (memory, part) = ("its memory is in the pool", "part of its memory could not go back to the pool");
            occupation.job.end(if whole {
                End::AsBefore(format!("guest {guest} runs on; {memory}"))
            } else {
                End::Otherwise(format!("guest {guest} runs on; {part}"))
            });
        }
        relocated?.moved.ok_or_else(|| Error::refused(format!("guest {guest}: recoupling was called off")))
    }

    /// A guest of ours whose memory can be moved now.
    pub(super) fn movable(&self, guest: &GuestName) -> Result<Entry> {
        let Some(entry) = self.table.find(guest) else { return Err(self.unknown_guest(guest)) };
        let not_now = |what: &str| Err(Error::refused(format!("guest {guest} {what}")));
        match entry.phase {
            Phase::Running => Ok(entry),
            Phase::Empty | Phase::Starting => not_now("has not started yet; try again in a moment"),
            Phase::Armed => not_now("has not arrived here yet; try again in a moment"),
            Phase::Leaving | Phase::Released => not_now("is on its way to another host already"),
            Phase::Halted => not_now("has stopped by itself; there is nothing left to move"),
            Phase::TornDown | Phase::Ended => not_now("is being stopped"),
        }
    }

    pub(super) fn unknown_guest(&self, guest: &GuestName) -> Error {
        let names = self.table.entries().into_iter().map(|(name, _)| name);
        Error::UnknownGuest { name: guest.to_string(), known: known("guest here", names) }
    }

    fn moved(
        &self,
        guest: &GuestName,
        (moved, moved_back): (Option<MoveReport>, Option<MoveReport>),
        remarks: Vec<String>,
    ) -> Result<MemoryMoved> {
        let entry = self.table.find(guest).ok_or_else(|| self.unknown_guest(guest))?;
        let memory = super::listing::memory_report(&entry.control)?;
        Ok(MemoryMoved { guest: guest.clone(), host: self.dir.name().clone(), moved, moved_back, memory, remarks })
    }
}

/// Whether something that is on takes along what is no longer held.
fn takes_along(errand: &Errand) -> bool {
    match errand {
        Errand::Move(direction) | Errand::Orphan(direction) => *direction == Direction::Decouple,
        Errand::Migration { .. } => true,
        Errand::PullBack
        | Errand::Rehoming { .. }
        | Errand::Settling
        | Errand::Drain
        | Errand::Rebalance
        | Errand::Takeover => false,
    }
}

fn relocation(order: &MoveMemory) -> Relocation {
    let MoveMemory { direction, budget, node, stall_timeout_us, .. } = *order;
    Relocation { direction, ranges: None, budget, node, stall_timeout_us, striping: order.striping.clone() }
}
