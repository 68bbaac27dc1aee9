//! The source's half of a handoff.
//!
//! ```text
//!   coordinator                              vCPU threads
//!   offer ── waits for Poised                (run the guest)
//!   kick  ── stamps, then kicks              leave the guest
//!   settle ─ watches the word                freeze: save own part; the last: machine part, publish Frozen
//!      │                                     outcome: sleep
//!      └── claimed / withdrawn / cancelled ─▶ Released: end      TakenBack: run the guest on
//! ```
//!
//! Invariants: only the coordinator takes the guest back, and only by a compare-and-swap that it won; a vCPU thread that
//! has frozen does nothing to the guest before it knows the outcome; a round (one epoch) is published only after every
//! vCPU thread has arrived in that very round, so a thread that comes late for a round that was withdrawn writes into a
//! slot that nobody can publish without it; and no round begins while such a thread still writes.

use crate::countdown::{Countdown, Occupancy};
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::part::Part;
use crate::protocol::{Arrival, Handoff, SourceTurn, Tally, source_turn};
use crate::tsc;
use nil_pool::sync::{AtomicU64, Ordering};
use nil_pool::{Area, Arm, Epoch, GuestControl, HostSlot, Ownership, Side, Stamp, StateArea, Tether};
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the coordinator sleeps at most before it looks at the words again.
const POLL: Duration = Duration::from_millis(1);
/// The same once the vCPUs are kicked. A target that refuses and a part that cannot be saved ring; a claim does not, and
/// need not be known at once: where CPUs are scarce, looking for it would take one from the guest that has just landed.
const POLL_KICKED: Duration = Duration::from_millis(3);

/// Why a source kept its guest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    /// The target did not write `Poised` in time.
    NotPoised,
    /// The target wrote `Refused`.
    Refused,
    /// A part could not be saved.
    SaveFailed,
    /// The handoff was not over in time.
    Expired,
    /// Somebody called it off ([`Source::request_cancel`]).
    Cancelled,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotPoised => "the target did not get ready in time",
            Self::Refused => "the target refused it",
            Self::SaveFailed => "a part of the guest could not be saved",
            Self::Expired => "the target did not claim it in time",
            Self::Cancelled => "it was called off",
        })
    }
}

/// How a handoff ended for its source.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// The target owns the guest. Never run it again.
    Released {
        /// The epoch of the target's ownership.
        epoch: Epoch,
    },
    /// The guest goes on here.
    TakenBack {
        /// The epoch of this host's ownership from now on.
        epoch: Epoch,
        /// Why.
        reason: Reason,
    },
    /// The guest is neither the target's by a claim nor this worker's any more. Never run it again.
    Displaced,
}

/// Proof that a vCPU thread has frozen its part; to be exchanged for the outcome.
#[derive(Debug)]
#[must_use = "a frozen vCPU may run again only after `Source::outcome` said so"]
pub struct Ticket {
    round: Epoch,
}

/// What became of a vCPU thread's wish to freeze.
#[derive(Debug)]
#[must_use]
pub enum Freeze<E> {
    /// The part is saved.
    Saved(Ticket),
    /// The part (or the machine, for the last thread) could not be saved. The handoff is being withdrawn.
    Failed(Ticket, E),
    /// Nobody wants it: the offer was taken back before this thread came, or was never made. Run the guest on.
    NoOffer,
}

/// The source's half of the handoffs of one guest, from when its worker owns it to when it is released.
///
/// Shared by the vCPU threads and one coordinator thread.
#[derive(Debug)]
pub struct Source {
    control: GuestControl,
    state: Arc<StateArea>,
    me: HostSlot,
    tether: Tether,
    vcpus: u16,
    /// The epoch of this worker's ownership.
    epoch: AtomicU64,
    /// The `Offered` word of the round that the vCPU threads freeze for.
    offered: AtomicU64,
    countdown: Countdown,
    /// vCPU threads that are saving, perhaps for a round that is over already.
    saving: Occupancy,
    /// The last round that is over, and how it ended ([`Settled`]).
    settled: AtomicU64,
    gate: Gate,
    /// Whether the coordinator is to take the guest back at the next opportunity.
    cancelled: AtomicBool,
}

impl Source {
    /// The source's half for a guest that `me` owns at `epoch` and runs with `vcpus` vCPU threads.
    ///
    /// # Errors
    /// [`Error::VcpuCount`] when there is no vCPU, or more than the protocol counts; [`Error::Pool`] when `me` has been
    /// fenced.
    pub fn new(control: GuestControl, state: Arc<StateArea>, me: HostSlot, epoch: Epoch, vcpus: usize) -> Result<Self> {
        let counted = u16::try_from(vcpus).ok().filter(|&n| n > 0).ok_or(Error::VcpuCount(vcpus))?;
        let tether = Tether::new(control.pool(), me)?;
        Ok(Self {
            control,
            state,
            me,
            tether,
            vcpus: counted,
            epoch: AtomicU64::new(epoch.0.into()),
            offered: AtomicU64::new(Ownership::Vacant.encode()),
            countdown: Countdown::new(Tally::closed(epoch)),
            saving: Occupancy::new(),
            settled: AtomicU64::new(Settled::NEVER),
            gate: Gate::new(),
            cancelled: AtomicBool::new(false),
        })
    }

    /// The guest's record.
    #[must_use]
    pub fn control(&self) -> &GuestControl {
        &self.control
    }

    /// The guest's state area.
    #[must_use]
    pub fn state(&self) -> &Arc<StateArea> {
        &self.state
    }

    /// The slot of this worker's host in the guest's pool.
    #[must_use]
    pub fn host(&self) -> HostSlot {
        self.me
    }

    /// The epoch of this worker's ownership.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        Epoch(u32::try_from(self.epoch.load(Ordering::Acquire)).unwrap_or(u32::MAX))
    }

    /// Whether the guest is still this worker's. A worker that reads `false` outside a handoff has been judged dead:
    /// it stops its vCPUs and never writes to the guest again.
    #[must_use]
    pub fn owns(&self) -> bool {
        match self.control.ownership().load() {
            Ok(Ownership::Owned { host, epoch } | Ownership::Offered { source: host, epoch, .. }) => {
                host == self.me && epoch == self.epoch()
            }
            Ok(Ownership::Vacant | Ownership::Frozen { .. } | Ownership::Lost { .. } | Ownership::Taken { .. })
            | Err(_) => false,
        }
    }

    /// Whether a vCPU of this worker may enter the guest: the guest is its own, and its host has not been fenced. To be
    /// asked before every entry.
    ///
    /// The word may be one epoch ahead: the coordinator that takes an offer back changes the word before it notes that. No
    /// other worker of this host could have, while this one lives.
    #[inline]
    #[must_use]
    pub fn may_run(&self) -> bool {
        let mine = match self.control.ownership().load() {
            Ok(Ownership::Owned { host, epoch } | Ownership::Offered { source: host, epoch, .. }) => {
                host == self.me && (epoch == self.epoch() || self.epoch().next() == Some(epoch))
            }
            Ok(Ownership::Vacant | Ownership::Frozen { .. } | Ownership::Lost { .. } | Ownership::Taken { .. })
            | Err(_) => false,
        };
        mine && self.tether.holds()
    }

    /// Says that the host lives, and then looks whether the guest may run: at least once in every interval of the lease,
    /// and first of all after any pause that was longer.
    #[must_use]
    pub fn beat(&self) -> bool {
        self.tether.beat() && self.may_run()
    }

    /// The tie to this worker's host.
    #[must_use]
    pub fn tether(&self) -> &Tether {
        &self.tether
    }

    /// Makes place in the arm word for a new plan, before a target is asked to arm.
    pub fn clear_arm(&self) {
        self.control.arm().store(Arm::Idle);
    }

    /// Calls the handoff off that is on, or is about to begin: the coordinator takes the guest back as soon as it looks,
    /// unless the target has claimed it by then. From any thread; what becomes of it is the coordinator's outcome.
    pub fn request_cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.control.bell(Side::Source).ring();
    }

    /// Forgets a call-off of an earlier handoff; to be called by whoever orders the next, before it can be called off.
    pub fn forget_cancel(&self) {
        self.cancelled.store(false, Ordering::Release);
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Waits until `target` is armed for this worker's epoch, at most for `patience`.
    ///
    /// # Errors
    /// [`Error::NotArmed`] with what the arm word says instead; [`Error::CalledOff`].
    pub fn await_armed(&self, target: HostSlot, patience: Duration) -> Result<()> {
        let handoff = Handoff::new(self.me, target, self.epoch())?;
        let arm = self.await_arm(&handoff, patience, &[handoff.armed(), handoff.refused()]);
        if self.is_cancelled() {
            Err(Error::CalledOff)
        } else if arm == handoff.armed() {
            Ok(())
        } else {
            Err(Error::NotArmed { target, epoch: handoff.epoch(), found: arm })
        }
    }

    /// Offers the guest to `target`, which has armed, and waits until it is poised, at most for `patience`. The guest
    /// runs all the while. Afterwards: [`Source::kick`], then [`Source::settle`].
    ///
    /// # Errors
    /// [`Error::NotArmed`], [`Error::NotOwner`], [`Error::StillSaving`], [`Error::CalledOff`]: nothing has been changed.
    /// [`Error::Withdrawn`]: the target did not get poised, or it was called off; the guest runs on here at a new epoch.
    /// [`Error::Displaced`]: the guest must not run here any more.
    pub fn offer(&self, target: HostSlot, patience: Duration) -> Result<Handoff> {
        let handoff = Handoff::new(self.me, target, self.epoch())?;
        if self.is_cancelled() {
            return Err(Error::CalledOff);
        }
        let found = self.control.arm().load()?;
        if found != handoff.armed() {
            return Err(Error::NotArmed { target, epoch: handoff.epoch(), found });
        }
        let word = self.control.ownership();
        let not_owner = |found| Error::NotOwner { me: self.me, epoch: handoff.epoch(), found };
        let found = word.load()?;
        if found != handoff.owned() {
            return Err(not_owner(found));
        }
        if !self.saving.is_empty() {
            return Err(Error::StillSaving);
        }
        self.forget_old_state(&handoff);
        self.restart_timeline();
        if !word.transition(handoff.owned(), handoff.offered()) {
            return Err(not_owner(word.load()?));
        }
        self.stamp(Stamp::Offered);
        self.control.bell(Side::Target).ring();
        let arm = self.await_arm(&handoff, patience, &[handoff.poised(), handoff.refused()]);
        if arm != handoff.poised() || self.is_cancelled() {
            let reason = match (arm == handoff.refused(), self.is_cancelled()) {
                (true, _) => Reason::Refused,
                (false, true) => Reason::Cancelled,
                (false, false) => Reason::NotPoised,
            };
            return Err(self.withdraw_unstarted(&handoff, reason));
        }
        self.offered.store(handoff.offered().encode(), Ordering::Relaxed);
        self.countdown.set(Tally::open(handoff.epoch(), self.vcpus));
        Ok(handoff)
    }

    /// Stamps the beginning of the blackout and kicks the vCPUs out of the guest by `kick`. Each of their threads is to
    /// call [`Source::freeze`].
    pub fn kick(&self, kick: impl FnOnce()) {
        self.stamp(Stamp::Kick);
        kick();
    }

    /// Saves vCPU `index` for the handoff that is on; the last thread to come also saves the machine and publishes.
    ///
    /// `machine` is locked by the last thread only, so nobody ever waits for it here.
    pub fn freeze<P, M>(&self, index: usize, part: &mut P, machine: &Mutex<M>) -> Freeze<P::Error>
    where
        P: Part,
        M: Part<Error = P::Error>,
    {
        let _saving = self.saving.enter();
        let Some(handoff) = self.round() else { return Freeze::NoOffer };
        self.stamp(Stamp::Exited);
        let round = handoff.epoch();
        let saved = save(part, &self.state.vcpu(round.slot(), index), round);
        let published = match self.countdown.arrive(round, saved.is_ok()) {
            Arrival::LastOfAll => self.publish(&handoff, machine),
            Arrival::Early | Arrival::LastWithFailure | Arrival::TooLate => Ok(()),
        };
        let ticket = Ticket { round };
        match saved.and(published) {
            Ok(()) => Freeze::Saved(ticket),
            Err(error) => {
                self.countdown.fail(round);
                self.control.bell(Side::Source).ring();
                Freeze::Failed(ticket, error)
            }
        }
    }

    /// Sleeps until the handoff for which the ticket was given is over.
    #[must_use]
    pub fn outcome(&self, ticket: &Ticket) -> Outcome {
        self.gate.wait(|| Settled::decode(self.settled.load(Ordering::Acquire), ticket.round))
    }

    /// Watches the handoff until it is over, for the coordinator; takes the guest back when the target refuses it, when
    /// a part cannot be saved, when it is called off, or after `patience`.
    #[must_use]
    pub fn settle(&self, handoff: &Handoff, patience: Duration) -> Outcome {
        let deadline = Instant::now() + patience;
        let bell = self.control.bell(Side::Source);
        loop {
            let seen = bell.read();
            let left = deadline.saturating_duration_since(Instant::now());
            let tally = self.countdown.read();
            let failed = tally.round == handoff.epoch() && tally.failed;
            let arm = self.arm();
            let Ok(word) = self.control.ownership().load() else {
                return self.end(handoff, Settled::Displaced);
            };
            let cancelled = self.is_cancelled();
            let reason = match (failed, arm == handoff.refused(), cancelled) {
                (true, _, _) => Reason::SaveFailed,
                (false, true, _) => Reason::Refused,
                (false, false, true) => Reason::Cancelled,
                (false, false, false) => Reason::Expired,
            };
            match source_turn(handoff, word, arm, failed || cancelled || left.is_zero()) {
                SourceTurn::Wait => bell.wait(seen, left.min(POLL_KICKED)),
                SourceTurn::Withdraw => {
                    if self.control.ownership().transition(handoff.offered(), handoff.kept()) {
                        return self.end(handoff, Settled::TakenBack(reason));
                    }
                }
                SourceTurn::Cancel => {
                    if self.control.ownership().transition(handoff.frozen(), handoff.kept()) {
                        return self.end(handoff, Settled::TakenBack(reason));
                    }
                }
                SourceTurn::Released => return self.end(handoff, Settled::Released),
                SourceTurn::Displaced => return self.end(handoff, Settled::Displaced),
            }
        }
    }

    /// Makes whatever lies in the slot of this handoff unreadable, before it is offered: what recovery finds whole there
    /// afterwards was saved for this handoff, and is not left from an earlier guest in the same memory.
    fn forget_old_state(&self, handoff: &Handoff) {
        let round = handoff.epoch();
        drop(self.state.machine(round.slot()).writer(round));
        for index in 0..usize::from(self.vcpus) {
            drop(self.state.vcpu(round.slot(), index).writer(round));
        }
    }

    /// Forgets the stamps of the last handoff. The target has armed for this one already.
    fn restart_timeline(&self) {
        let timeline = self.control.timeline();
        let armed = timeline.get(Stamp::Armed);
        timeline.clear();
        timeline.set(Stamp::Armed, armed);
    }

    /// The handoff for which vCPU threads are to freeze now.
    fn round(&self) -> Option<Handoff> {
        let tally = self.countdown.read();
        let offered = Ownership::decode(self.offered.load(Ordering::Relaxed)).ok()?;
        Handoff::of(offered).filter(|handoff| tally.is_open() && handoff.epoch() == tally.round)
    }

    /// Saves the machine and moves the word to `Frozen`; for the last vCPU thread. That the word has moved on meanwhile
    /// is no failure: the coordinator withdrew, and says so.
    fn publish<M: Part>(&self, handoff: &Handoff, machine: &Mutex<M>) -> Result<(), M::Error> {
        let round = handoff.epoch();
        let mut machine = machine.lock().unwrap_or_else(PoisonError::into_inner);
        save(&mut *machine, &self.state.machine(round.slot()), round)?;
        self.stamp(Stamp::Saved);
        // If it cannot be written back nobody may go on with it: the coordinator takes the guest back when its time is over.
        let is_there = self.control.hand_memory_over().is_ok();
        if is_there && self.control.ownership().transition(handoff.offered(), handoff.frozen()) {
            self.stamp(Stamp::Published);
            self.control.bell(Side::Target).ring();
        }
        Ok(())
    }

    /// The first of the awaited arm words to come, or whatever stands there when the patience is over.
    fn await_arm(&self, handoff: &Handoff, patience: Duration, awaited: &[Arm]) -> Arm {
        let deadline = Instant::now() + patience;
        let bell = self.control.bell(Side::Source);
        loop {
            let seen = bell.read();
            let arm = self.arm();
            let left = deadline.saturating_duration_since(Instant::now());
            let given_up = left.is_zero() || self.is_cancelled();
            if awaited.contains(&arm) || given_up || arm.host().is_some_and(|host| host != handoff.target()) {
                return arm;
            }
            bell.wait(seen, left.min(POLL));
        }
    }

    /// Takes back an offer for which no vCPU was kicked.
    fn withdraw_unstarted(&self, handoff: &Handoff, reason: Reason) -> Error {
        let word = self.control.ownership();
        if word.transition(handoff.offered(), handoff.kept()) {
            self.end(handoff, Settled::TakenBack(reason));
            return Error::Withdrawn { epoch: handoff.next_epoch(), reason };
        }
        self.end(handoff, Settled::Displaced);
        word.load().map_or_else(Error::from, |found| Error::Displaced { found })
    }

    /// Ends the round and tells the vCPU threads.
    fn end(&self, handoff: &Handoff, how: Settled) -> Outcome {
        self.countdown.set(Tally::closed(handoff.epoch()));
        if let Settled::TakenBack(_) = how {
            self.stamp(Stamp::TakenBack);
            self.epoch.store(handoff.next_epoch().0.into(), Ordering::Release);
        }
        self.settled.store(how.encode(handoff.epoch()), Ordering::Release);
        self.gate.open();
        how.outcome(handoff.next_epoch())
    }

    /// The arm word. A damaged one says nothing, and nothing depends on it but time.
    fn arm(&self) -> Arm {
        self.control.arm().load().unwrap_or(Arm::Idle)
    }

    fn stamp(&self, stamp: Stamp) {
        self.control.timeline().set(stamp, tsc::now());
    }
}

/// Writes one part into its area of the round's slot.
fn save<P: Part>(part: &mut P, area: &Area, round: Epoch) -> Result<(), P::Error> {
    let mut writer = area.writer(round);
    part.save(&mut writer)?;
    writer.finish();
    Ok(())
}

/// How a round ended, as it fits into a word beside the round's epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Settled {
    Released,
    Displaced,
    TakenBack(Reason),
}

impl Settled {
    /// No round is over yet.
    const NEVER: u64 = 0;
    const ALL: [Self; 7] = [
        Self::Released,
        Self::Displaced,
        Self::TakenBack(Reason::NotPoised),
        Self::TakenBack(Reason::Refused),
        Self::TakenBack(Reason::SaveFailed),
        Self::TakenBack(Reason::Expired),
        Self::TakenBack(Reason::Cancelled),
    ];

    fn encode(self, round: Epoch) -> u64 {
        let code = match self {
            Self::Released => 1,
            Self::Displaced => 2,
            Self::TakenBack(Reason::NotPoised) => 3,
            Self::TakenBack(Reason::Refused) => 4,
            Self::TakenBack(Reason::SaveFailed) => 5,
            Self::TakenBack(Reason::Expired) => 6,
            Self::TakenBack(Reason::Cancelled) => 7,
        };
        code << 32 | u64::from(round.0)
    }

    /// The outcome of the last round that is over, if that is `round` or a later one: a thread that was not counted in
    /// `round` any more may look only after the next has been withdrawn too.
    fn decode(word: u64, round: Epoch) -> Option<Outcome> {
        let settled = Epoch(u32::try_from(word & 0xFFFF_FFFF).ok()?);
        let how = Self::ALL.into_iter().find(|how| how.encode(settled) == word)?;
        (settled >= round).then(|| how.outcome(settled.next().unwrap_or(settled)))
    }

    fn outcome(self, epoch: Epoch) -> Outcome {
        match self {
            Self::Released => Outcome::Released { epoch },
            Self::Displaced => Outcome::Displaced,
            Self::TakenBack(reason) => Outcome::TakenBack { epoch, reason },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ending_survives_its_encoding() {
        for how in Settled::ALL {
            assert_eq!(Settled::decode(how.encode(Epoch(8)), Epoch(8)), Some(how.outcome(Epoch(9))));
        }
    }

    #[test]
    fn the_ending_of_an_earlier_round_is_no_answer() {
        assert_eq!(Settled::decode(Settled::Released.encode(Epoch(7)), Epoch(8)), None);
        assert_eq!(Settled::decode(Settled::NEVER, Epoch(0)), None);
    }
}
