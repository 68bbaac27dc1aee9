//! The steps of a move, whoever wants it: room in the pool, the worker's moves range by range, the way back.

use super::Host;
use super::former::{Former, opposite};
use super::jobs::Stage;
use super::striping::check_striping;
use super::table::Occupation;
use crate::error::{Error, Result};
use crate::joined::{Relation, join};
use crate::message::{Lane, Phase, WorkerReply, WorkerRequest};
use crate::name::GuestName;
use crate::order::Striping;
use crate::report::Progress;
use crate::wire::Connection;
use nil_mover::{Budget, Direction, MoveOutcome, MovePlan, MoveProgress, MoveRange, MoveReport};
use nil_pool::{GuestControl, StateArea};
use std::sync::{MutexGuard, PoisonError};

/// Hears of every step.
pub(super) type Hearer<'a> = &'a mut dyn FnMut(Progress);

/// A move in one or several ranges.
#[derive(Clone, Debug)]
pub(super) struct Relocation {
    pub(super) direction: Direction,
    /// `None` is all memory.
    pub(super) ranges: Option<Vec<MoveRange>>,
    pub(super) budget: Budget,
    pub(super) node: Option<u32>,
    pub(super) stall_timeout_us: u64,
    /// Over which pools memory that is decoupled is spread.
    pub(super) striping: Option<Striping>,
}

/// What became of a relocation.
#[derive(Debug)]
pub(super) struct Relocated {
    /// What was moved; `None` when nothing was.
    pub(super) moved: Option<MoveReport>,
    /// How it ended.
    pub(super) outcome: MoveOutcome,
}

impl Host {
    /// Moves, range by range, until all is done, or it is called off, or has stalled for too long.
    pub(super) fn relocate(
        &self,
        occupation: &Occupation<'_>,
        relocation: &Relocation,
        hear: Hearer<'_>,
    ) -> Result<Relocated> {
        let name = occupation.name();
        if relocation.direction == Direction::Decouple {
            self.place(name, &occupation.control, relocation.striping.as_ref())?;
        }
        match occupation.job.enter(Stage::Moving) {
            Ok(()) => {}
            Err(Error::CalledOff) => return Ok(Relocated { moved: None, outcome: MoveOutcome::Cancelled }),
            Err(error) => return Err(error),
        }
        let moved = self.move_ranges(name, occupation.lane(), relocation, hear)?;
        let outcome = moved.as_ref().map_or(MoveOutcome::Done, |report| report.outcome.clone());
        Ok(Relocated { moved, outcome })
    }

    /// Moves back what a relocation has moved, however far it came.
    pub(super) fn undo(
        &self,
        occupation: &Occupation<'_>,
        relocation: &Relocation,
        former: &Former,
        hear: Hearer<'_>,
    ) -> Result<Option<MoveReport>> {
        occupation.job.enter(Stage::Undoing)?;
        let ranges = former.to_undo(relocation.direction, &occupation.control.map_state()?.placement());
        if ranges.is_empty() {
            return Ok(None);
        }
        hear(Progress::step(format!("guest {}: what has moved goes back", occupation.name())));
        let back = Relocation {
            direction: opposite(relocation.direction),
            ranges: Some(ranges),
            // However long somebody was ready to wait for what they wanted: this keeps the guest for nothing.
            stall_timeout_us: relocation.stall_timeout_us.min(MovePlan::STALL_TIMEOUT_US),
            ..relocation.clone()
        };
        self.move_ranges(occupation.name(), occupation.lane(), &back, hear)
    }

    fn move_ranges(
        &self,
        name: &GuestName,
        lane: Lane,
        relocation: &Relocation,
        hear: Hearer<'_>,
    ) -> Result<Option<MoveReport>> {
        let Relocation { direction, budget, node, stall_timeout_us, .. } = *relocation;
        let ranges = match &relocation.ranges {
            None => vec![None],
            Some(ranges) => ranges.iter().copied().map(Some).collect(),
        };
        let mut sum: Option<MoveReport> = None;
        for range in ranges {
            let plan = MovePlan { direction, range, budget, node, stall_timeout_us };
            let report = self.run_move(name, lane, plan, &mut |moving| hear(Progress::of_move(name, moving)))?;
            let goes_on = report.outcome == MoveOutcome::Done;
            sum = Some(match sum {
                None => report,
                Some(sum) => join(sum, report, Relation::AnotherRange),
            });
            if !goes_on {
                break;
            }
        }
        Ok(sum)
    }

    /// Has the worker move memory, with its share of the host's bandwidth, and waits until that is over.
    fn run_move(
        &self,
        name: &GuestName,
        lane: Lane,
        plan: MovePlan,
        hear: &mut dyn FnMut(MoveProgress),
    ) -> Result<MoveReport> {
        let budget = plan.budget;
        let share = self.share_bandwidth(name, lane, budget.bandwidth);
        let mut worker = Connection::call(&self.dir.worker_socket(name), format!("the worker of guest {name}"))?;
        worker.send(&WorkerRequest::Move { lane, plan, bandwidth: share.bytes_per_s() })?;
        loop {
            match worker.expect()? {
                WorkerReply::Moving(progress) => hear(progress),
                WorkerReply::Moved(report) => {
                    self.measured.note(budget, &report);
                    return Ok(*report);
                }
                WorkerReply::Refused(why) => return Err(Error::refused(why)),
                other => {
                    return Err(Error::refused(format!("the worker of guest {name} said {other:?} while it moved")));
                }
            }
        }
    }

    /// Makes the capacity that is to take the guest's memory.
    fn place(&self, name: &GuestName, control: &GuestControl, striping: Option<&Striping>) -> Result<()> {
        let membership = self.pools.get(control.pool().id())?;
        let _placing = self.placing.lock().unwrap_or_else(PoisonError::into_inner);
        match striping {
            Some(striping) if control.is_placed() => return check_striping(name, control, striping),
            None if control.is_placed() => return Ok(()),
            Some(striping) => self.place_striped(&membership, control, striping)?,
            None => membership.place_memory(control)?,
        }
        tracing::info!("guest {name}: it has room in the pool for its memory now");
        Ok(())
    }

    /// Gives up the lane of something that ends, and the capacity with it if nothing needs that any more. Of two lanes
    /// that end together the later one sees that the other is free.
    pub(super) fn tidy(&self, occupation: &Occupation<'_>) {
        let placing = self.placing.lock().unwrap_or_else(PoisonError::into_inner);
        occupation.leave();
        self.unplace_idle(&placing, occupation.name(), &occupation.control);
    }

    /// Gives the capacity of a guest back with which nothing is being done, if nothing needs it.
    pub(super) fn tidy_idle(&self, name: &GuestName, control: &GuestControl) {
        let placing = self.placing.lock().unwrap_or_else(PoisonError::into_inner);
        self.unplace_idle(&placing, name, control);
    }

    /// Gives the capacity back if nothing of the guest's memory is in it, and nothing is on its way. Whoever wants room
    /// in it occupies a lane first, and waits for `_placing`.
    fn unplace_idle(&self, _placing: &MutexGuard<'_, ()>, name: &GuestName, control: &GuestControl) {
        let entry = self.table.find(name).filter(|entry| entry.is_home(control.pool().id(), control.slot()));
        let Some(entry) = entry else { return };
        let busy = [Lane::Main, Lane::PullBack].into_iter().any(|lane| entry.job(lane).is_some());
        if entry.phase != Phase::Running || busy || !control.is_placed() {
            return;
        }
        // A move that an earlier agent has ordered may go on although nobody has heard of it yet.
        match self.ask_worker(name) {
            Ok(status) if status.moving.is_none() => {}
            Ok(_) => return,
            Err(error) => {
                return tracing::warn!("guest {name}: it keeps its room in the pool for now: {}", error.story());
            }
        }
        let unplaced = self.pools.get(control.pool().id()).and_then(|membership| {
            if is_all_local(control)? { Ok(membership.unplace_memory(control).map(|()| true)?) } else { Ok(false) }
        });
        match unplaced {
            Ok(true) => {
                self.reap_orphan_stripes();
                tracing::info!("guest {name}: its memory is in DRAM; its room in the pool is free again");
            }
            Ok(false) => {}
            Err(error) => tracing::error!("guest {name}: its room in the pool cannot be freed: {}", error.story()),
        }
    }
}

/// Whether nothing of a guest's memory is in the pool.
pub(super) fn is_all_local(control: &GuestControl) -> Result<bool> {
    Ok(has_nothing_pooled(&control.map_state()?))
}

/// The same, by the guest's state area.
pub(super) fn has_nothing_pooled(state: &StateArea) -> bool {
    let summary = state.placement().summary();
    summary.pooled + summary.mixed + summary.damaged == 0
}
