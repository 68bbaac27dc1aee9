//! A guest's home moves from one pool of its host to another, while it runs.
//!
//! ```text
//!  1 twin      a second record in the new pool, with room for all of the memory; the guest's home is the old pool
//!  2 recouple  memory that is in the old pool comes into this host's DRAM
//!  3 switch    the worker publishes the twin and refers to nothing else from then on         ◀ the commit point
//!  4 clear     the record in the old pool is destroyed, and what it had of capacity with it
//!  5 decouple  what was in the old pool goes into the new one
//! ```
//!
//! Whatever fails or is called off before 3 leaves the guest as it was: its memory goes back, the twin is destroyed. What
//! fails afterwards leaves it with its new home, and perhaps with memory in DRAM. Who dies when, and what is done then,
//! stands in `nil_migrate::rehoming`; [`super::twins`] does it.

use super::Host;
use super::former::Former;
use super::jobs::{End, Errand, Job, Stage};
use super::ledger::Record;
use super::pools::slot_number;
use super::protecting::require_unprotected;
use super::relocating::{Hearer, Relocated, Relocation};
use super::table::Occupation;
use crate::capabilities::free_dram;
use crate::error::{Error, Result, story};
use crate::message::{HomeOrder, Lane, WorkerReply, WorkerRequest};
use crate::micros::micros;
use crate::name::GuestName;
use crate::order::{Rehome, check_costs};
use crate::report::{Progress, RehomingOutcome, RehomingReport};
use nil_mover::{Direction, MoveOutcome, MoveReport};
use nil_pool::{Bytes, GuestControl, Membership, Ownership};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a worker may take to switch: it waits for a handoff to end that was ordered before.
const PATIENCE_WITH_SWITCH: Duration = Duration::from_secs(90);
/// How much of the DRAM that is free when a rehoming begins must still be free when all of the memory is there.
const RESERVE_PCT: u64 = 10;

/// A rehoming in progress, up to the switch.
struct Removal<'a> {
    host: &'a Host,
    order: &'a Rehome,
    occupation: Occupation<'a>,
    /// Nothing is pulled back meanwhile.
    pull_back: Occupation<'a>,
    from: Arc<Membership>,
    to: Arc<Membership>,
    former: Former,
    report: RehomingReport,
}

/// How the way to the switch ended, if nothing went wrong.
enum Switch {
    Done,
    Kept(RehomingOutcome),
}

impl Host {
    /// Moves a guest's home to another pool.
    pub(super) fn rehome(self: &Arc<Self>, order: &Rehome, record: &Arc<Record>) -> Result<RehomingReport> {
        let begun = Instant::now();
        let removal = self.removal(order)?;
        self.begun(record, &removal.occupation)?;
        let mut report = removal.carry_out(&mut |progress| self.hear(record, progress))?;
        report.total_us = micros(begun.elapsed());
        Ok(report)
    }

    /// Checks whether it can be done, before anything is, and keeps everybody else from the guest meanwhile.
    fn removal<'a>(&'a self, order: &'a Rehome) -> Result<Removal<'a>> {
        let Rehome { guest, pool, budget, stall_timeout_us, .. } = order;
        check_costs(*budget, *stall_timeout_us)?;
        let to = self.pools.get(*pool)?;
        let entry = self.movable(guest)?;
        require_unprotected(guest, &entry.control, "its home cannot move to another pool")?;
        let path = to.pool().path().to_path_buf();
        if entry.control.pool().id() == *pool {
            return Err(Error::refused(format!("guest {guest} has its home in pool {} already", path.display())));
        }
        let take = |lane| self.table.occupy(guest, lane, Errand::Rehoming { to: path.clone() });
        let occupied = |job: Option<Arc<Job>>| match job {
            Some(job) => Error::Busy(format!("guest {guest}: {}; try again when that is over", job.errand)),
            None => self.unknown_guest(guest),
        };
        let occupation = take(Lane::Main).map_err(occupied)?;
        let pull_back = take(Lane::PullBack).map_err(occupied)?;
        let control = &occupation.control;
        self.check_single(guest, control.id())?;
        check_unpinned(guest, control)?;
        check_dram(guest, control)?;
        let from = self.pools.get(control.pool().id())?;
        let report = RehomingReport {
            guest: guest.clone(),
            id: control.id(),
            host: self.dir.name().clone(),
            from: from.pool().path().to_path_buf(),
            to: path,
            outcome: RehomingOutcome::Rehomed,
            recouple: None,
            switched_ns: None,
            epoch: None,
            decouple: None,
            total_us: 0,
            remarks: Vec::new(),
        };
        let former = Former::of(control)?;
        Ok(Removal { host: self, order, occupation, pull_back, from, to, former, report })
    }
}

impl Removal<'_> {
    fn carry_out(mut self, hear: Hearer<'_>) -> Result<RehomingReport> {
        let guest = &self.order.guest;
        hear(Progress::step(format!("guest {guest}: room for it in pool {}", self.report.to.display())));
        let twin = self.to.create_twin(&self.occupation.control).map_err(|error| {
            let error = Error::refused(format!(
                "guest {guest} cannot have its home in pool {}: {}",
                self.report.to.display(),
                story(&error)
            ));
            self.failed(error)
        })?;
        let switch = self.recouple(hear).and_then(|kept| match kept {
            Some(kept) => Ok(Switch::Kept(kept)),
            None => self.switch(&twin),
        });
        match switch {
            Ok(Switch::Done) => {
                self.clear(&twin);
                self.decouple(hear);
                let remarks =
                    if self.report.remarks.is_empty() { String::new() } else { "; not everything went well".into() };
                let late = format!(
                    "it came too late: the home of guest {} is pool {}{remarks}",
                    self.order.guest,
                    self.report.to.display()
                );
                self.occupation.job.end(End::Otherwise(late));
                Ok(self.report)
            }
            Ok(Switch::Kept(outcome)) => {
                let remark = self.give_up(&twin, hear);
                let home = format!("guest {} has its home in pool {}", self.order.guest, self.report.from.display());
                self.occupation.job.end(match &remark {
                    None => End::AsBefore(home),
                    Some(remark) => End::Otherwise(format!("{home}; {remark}")),
                });
                self.report.outcome = outcome;
                self.report.remarks.extend(remark);
                Ok(self.report)
            }
            Err(error) => {
                let remark = self.give_up(&twin, hear);
                Err(self.failed(match remark {
                    None => error,
                    Some(remark) => Error::refused(format!("{}; {remark}", error.story())),
                }))
            }
        }
    }

    /// Brings what is in the old pool into this host's DRAM. Returns how the rehoming ended, if it did.
    fn recouple(&mut self, hear: Hearer<'_>) -> Result<Option<RehomingOutcome>> {
        let relocation = self.relocation(Direction::Recouple);
        if relocation.ranges.as_ref().is_some_and(Vec::is_empty) {
            return Ok(None);
        }
        let Relocated { moved, outcome } = self.host.relocate(&self.occupation, &relocation, hear)?;
        self.report.recouple = moved;
        Ok(match outcome {
            MoveOutcome::Done => None,
            MoveOutcome::Cancelled => Some(cancelled()),
            MoveOutcome::Stalled(stall) => Some(RehomingOutcome::Stalled { why: stall.to_string() }),
        })
    }

    /// Has the worker make the twin the guest's home.
    fn switch(&mut self, twin: &GuestControl) -> Result<Switch> {
        let guest = &self.order.guest;
        match self.occupation.job.enter(Stage::Switching) {
            Ok(()) => {}
            Err(Error::CalledOff) => return Ok(Switch::Kept(cancelled())),
            Err(error) => return Err(error),
        }
        let order = HomeOrder {
            pool: self.to.pool().id(),
            path: self.report.to.clone(),
            host: slot_number(self.to.slot()),
            slot: twin.slot(),
        };
        match self.host.order(guest, &WorkerRequest::Rehome(order), PATIENCE_WITH_SWITCH)? {
            WorkerReply::Rehomed { epoch, switched_ns } => {
                self.report.epoch = Some(epoch);
                self.report.switched_ns = Some(switched_ns);
                Ok(Switch::Done)
            }
            other => Err(Error::refused(format!("the worker of guest {guest} said {other:?} to the order to switch"))),
        }
    }

    /// The twin is the guest's home: the other record goes, and what it had.
    fn clear(&mut self, twin: &GuestControl) {
        let guest = &self.order.guest;
        let former = self.occupation.rehouse(twin);
        // The worker has left that record at the word that it has now; should anybody go on from there, it stays.
        let word = former.ownership().load().unwrap_or(Ownership::Vacant);
        match self.from.destroy_guest_while(&former, word) {
            Ok(()) | Err(nil_pool::Error::GuestGone { .. }) => {
                tracing::info!("guest {guest}: its home is pool {} now", self.report.to.display());
            }
            Err(error) => self.report.remarks.push(format!(
                "its record in pool {} is still there, and its agent tries again every second: {}",
                self.report.from.display(),
                story(&error)
            )),
        }
        self.host.reap_orphan_stripes();
    }

    /// Takes what was in the old pool into the new one. The guest's home has moved, whatever becomes of that.
    fn decouple(&mut self, hear: Hearer<'_>) {
        let relocation = self.relocation(Direction::Decouple);
        let outcome = if relocation.ranges.as_ref().is_some_and(Vec::is_empty) {
            Ok(MoveOutcome::Done)
        } else {
            self.host.relocate(&self.occupation, &relocation, hear).map(|Relocated { moved, outcome }| {
                self.report.decouple = moved;
                outcome
            })
        };
        self.tidy();
        let why = match outcome {
            Ok(MoveOutcome::Done) => return,
            Ok(MoveOutcome::Cancelled) => "it was called off".to_owned(),
            Ok(MoveOutcome::Stalled(stall)) => stall.to_string(),
            Err(error) => error.story(),
        };
        self.report.remarks.push(format!(
            "part of its memory is in the DRAM of this host still: {why}; `nil decouple {}` takes it into the pool",
            self.order.guest
        ));
    }

    /// Before the switch, or when it is not known whether that has happened: everything becomes as it was, unless it has.
    /// Returns what did not succeed.
    fn give_up(&mut self, twin: &GuestControl, hear: Hearer<'_>) -> Option<String> {
        if twin.ownership().load() != Ok(Ownership::Vacant) {
            // The worker has switched, or died while it did: whoever watches it sees to that.
            return Some(format!("its home may be pool {} all the same; `nil ps` shows it", self.report.to.display()));
        }
        let discarded = self.to.discard_twin(twin);
        let undone = self.host.undo(&self.occupation, &self.relocation(Direction::Recouple), &self.former, hear);
        self.tidy();
        let discarded = match discarded {
            Ok(()) | Err(nil_pool::Error::GuestGone { .. }) => None,
            Err(error) => Some(format!("its second record could not be destroyed: {}", story(&error))),
        };
        let undone = match undone {
            Ok(None) => None,
            Ok(Some(MoveReport { outcome: MoveOutcome::Done, .. })) => None,
            Ok(Some(_)) => Some("part of its memory stays in this host's DRAM".to_owned()),
            Err(error) => Some(format!("its memory could not be brought back into the pool: {}", error.story())),
        };
        let left: Vec<String> = [discarded, undone].into_iter().flatten().collect();
        (!left.is_empty()).then(|| left.join("; "))
    }

    /// Gives the guest up, and with it what it needs of capacity no more.
    fn tidy(&self) {
        self.pull_back.leave();
        self.host.tidy(&self.occupation);
    }

    /// All that was in the old pool, that way.
    fn relocation(&self, direction: Direction) -> Relocation {
        let Rehome { budget, stall_timeout_us, .. } = *self.order;
        let ranges = Some(self.former.in_pool());
        Relocation { direction, ranges, budget, node: None, stall_timeout_us, striping: None }
    }

    /// Tells whoever has called it off, too, what has gone wrong.
    fn failed(&self, error: Error) -> Error {
        self.occupation.job.end(End::Otherwise(format!("guest {}: {}", self.order.guest, error.story())));
        error
    }
}

fn cancelled() -> RehomingOutcome {
    RehomingOutcome::Cancelled { why: "it was called off".to_owned() }
}

/// Pins are on memory that must stay where it is, and this moves all of it.
fn check_unpinned(guest: &GuestName, control: &GuestControl) -> Result<()> {
    let pins = control.map_state()?.pins().list();
    if pins.is_empty() {
        return Ok(());
    }
    let said: Vec<String> = pins.iter().map(|pin| format!("{} ({})", pin.owner, pin.reason)).collect();
    Err(Error::refused(format!(
        "guest {guest} cannot move to another pool while its memory is pinned, by {}; `nil pin release` or `nil decouple \
         --range` ends that",
        said.join(", ")
    )))
}

/// On its way from pool to pool all of the memory is in this host's DRAM for a while.
fn check_dram(guest: &GuestName, control: &GuestControl) -> Result<()> {
    let needed = Former::of(control)?.in_pool().iter().map(|range| range.bytes).sum();
    check_room(guest, needed, free_dram())
}

fn check_room(guest: &GuestName, needed: u64, free: u64) -> Result<()> {
    let usable = free - free.saturating_mul(RESERVE_PCT).div_ceil(100).min(free);
    if needed <= usable {
        return Ok(());
    }
    Err(Error::refused(format!(
        "guest {guest} cannot move to another pool: on the way its memory, {} of it, comes into this host's DRAM, of which \
         {} are free, and {RESERVE_PCT} % of that are kept for others; free some, or take another host",
        Bytes(needed),
        Bytes(free)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_would_take_nearly_all_of_the_hosts_dram_does_not_come_into_it() {
        let guest = "g".parse().expect("a good name");
        check_room(&guest, 9 << 30, 10 << 30).expect("a tenth is left");
        let refused = check_room(&guest, (9 << 30) + 1, 10 << 30).expect_err("less than a tenth would be left");
        let said = refused.to_string();
        assert!(said.contains("9.0 GiB") && said.contains("10 GiB"), "{said}");
    }
}
