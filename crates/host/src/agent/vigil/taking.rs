//! Taking the guests of a host that has been fenced.
//!
//! ```text
//!  Owned, Offered ─┬─ a checkpoint is whole ─ take ──▶ Taken ─ bring back ─ raise ──▶ Frozen for us ─ arm, claim ─▶ runs here
//!                  ├─ every part was saved ─ salvage ─▶ Frozen ─ … redirect, if its target is gone ─────▲
//!                  └─ neither ─ bury ──▶ Lost, with memory and last state kept
//! ```
//!
//! Who takes a guest is decided by one compare-and-swap. So that not everybody tries at once, and the load is spread, the agents
//! that could take it line up in an order that each of them computes from the pool alone: fewest vCPUs first. Whoever is
//! further back waits its turn, and finds that there is nothing left to do, unless those before it have failed.

use super::super::Host;
use super::super::compatibility::takeover_needs;
use super::super::jobs::{Errand, Job, Stage};
use super::super::ledger::{Ended, Purpose, Record};
use super::super::offers::access_of;
use super::super::pools::name_or_slot;
use super::fencing::Evidence;
use crate::compatibility::{Verdict, check};
use crate::error::{Error, Result, story};
use crate::message::{Phase, WorkerRequest};
use crate::micros::micros;
use crate::name::GuestName;
use crate::report::{JobKind, JobResult, TakeoverOutcome, TakeoverReport};
use nil_migrate::{Liveness, Resolution, recover, rescue};
use nil_pool::{
    Deadman, Fence, GuestControl, HostKind, HostSlot, JobId, LeaseState, Life, Membership, Ownership, Restored,
};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long each who stands before us in the line has.
const TURN: Duration = Duration::from_millis(250);
/// How often to look whether it has used its turn.
const LOOK: Duration = Duration::from_millis(5);
/// How long a worker may take to get ready for the guest.
const PATIENCE_WITH_ARMING: Duration = Duration::from_secs(120);
/// How long it may take to run it then.
const PATIENCE_WITH_LANDING: Duration = Duration::from_secs(10);

/// What a takeover has cost so far.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// The last sign of life.
    last_beat: Instant,
    detected: Duration,
    fenced: Duration,
    sure: bool,
}

/// What has become of a guest, with figures.
struct Ending {
    outcome: TakeoverOutcome,
    last_commit: Option<u64>,
    undone: Duration,
    pages: u64,
    resumed: Option<Duration>,
}

impl From<TakeoverOutcome> for Ending {
    fn from(outcome: TakeoverOutcome) -> Self {
        Self { outcome, last_commit: None, undone: Duration::ZERO, pages: 0, resumed: None }
    }
}

impl Host {
    /// Fences a host and takes what it had: `only` that guest, or all. Returns what has become of those that this host
    /// has seen to.
    pub(super) fn fence_and_take(
        self: &Arc<Self>,
        membership: &Arc<Membership>,
        slot: HostSlot,
        life: Life,
        evidence: Evidence,
        only: Option<&GuestName>,
    ) -> Vec<TakeoverReport> {
        let last_beat = evidence.at.checked_sub(evidence.still).unwrap_or(evidence.at);
        let detected = last_beat.elapsed();
        if let Err(error) = self.fence(membership, slot, life, evidence) {
            match &error {
                // It woke up, or somebody else fences it.
                Error::Pool(nil_pool::Error::HostNotDead { .. }) => {}
                _ => tracing::error!("nothing is taken from host slot {slot}: {}", error.story()),
            }
            return Vec::new();
        }
        let times =
            Times { last_beat, detected, fenced: last_beat.elapsed().saturating_sub(detected), sure: evidence.sure };
        let guests = membership.pool().guests().into_iter().filter(|guest| {
            let names = |word: Ownership| word.responsible() == Some(slot) || is_frozen_for(word, slot);
            guest.ownership.is_some_and(names) && only.is_none_or(|only| guest.name == only.as_str())
        });
        let takes = guests.map(|guest| {
            let (host, membership) = (Arc::clone(self), Arc::clone(membership));
            let ordered = only.is_some() || self.takeover != crate::report::Takeover::Auto;
            std::thread::Builder::new().name("take".to_owned()).spawn(move || {
                let name = guest.name.parse::<GuestName>().ok()?;
                let control = membership.pool().guest(guest.slot, guest.id).ok()?;
                host.take_guest(&membership, slot, &name, &control, times, ordered)
            })
        });
        let takes: Vec<_> = takes.collect();
        takes.into_iter().filter_map(|take| take.ok()?.join().ok()?).collect()
    }

    /// Sees to one guest, when it is this host's turn. Nothing is returned when it was another's.
    fn take_guest(
        self: &Arc<Self>,
        membership: &Membership,
        from: HostSlot,
        name: &GuestName,
        control: &GuestControl,
        times: Times,
        ordered: bool,
    ) -> Option<TakeoverReport> {
        if !self.await_turn(membership, name, control, ordered) {
            return None;
        }
        let host = name_or_slot(membership.pool(), from);
        let record = self.begin_takeover(name, control);
        let ending = match self.settle_dead(membership, name, control, times) {
            Ok(None) => {
                self.forget_takeover(&record);
                return None;
            }
            Ok(Some(ending)) => ending,
            Err(error) => Ending::from(TakeoverOutcome::Failed { why: error.story() }),
        };
        let report = TakeoverReport {
            guest: name.clone(),
            id: control.id(),
            from: host,
            by: self.dir.name().clone(),
            sure: times.sure,
            last_commit: ending.last_commit,
            detected_us: micros(times.detected),
            fenced_us: micros(times.fenced),
            undone_us: micros(ending.undone),
            pages: ending.pages,
            resumed_us: ending.resumed.map(micros),
            outcome: ending.outcome,
        };
        match &report.outcome {
            TakeoverOutcome::Resumed | TakeoverOutcome::Rescued => {
                tracing::warn!("guest {name}: taken from host {}, {}", report.from, report.outcome);
            }
            TakeoverOutcome::Lost | TakeoverOutcome::Failed { .. } => {
                tracing::error!("guest {name} of host {}: {}", report.from, report.outcome);
            }
        }
        self.end_takeover(&record, &report);
        Some(report)
    }

    /// Waits until it is this host's turn to take a guest; false when there is nothing left to take, or it is none of ours.
    fn await_turn(&self, membership: &Membership, name: &GuestName, control: &GuestControl, ordered: bool) -> bool {
        let Ok(seen) = control.ownership().load() else { return false };
        if is_frozen_for(seen, membership.slot()) {
            return true;
        }
        // Whoever was told to by a person is first.
        let place = if ordered { Some(0) } else { self.place_in_line(membership, name, control) };
        let Some(place) = place else { return false };
        let deadline = Instant::now() + TURN * u32::try_from(place).unwrap_or(u32::MAX);
        while Instant::now() < deadline {
            match control.ownership().load() {
                Ok(word) if word == seen => std::thread::sleep(LOOK),
                // Somebody has taken it; if that one dies, it is a new case.
                Ok(_) | Err(_) => return false,
            }
        }
        true
    }

    /// How many stand before this host in the line of those that could take a guest; `None` when it does not stand there.
    fn place_in_line(&self, membership: &Membership, name: &GuestName, control: &GuestControl) -> Option<usize> {
        let pool = membership.pool();
        let access = access_of(name, control);
        let guests = pool.guests();
        let load = |slot: HostSlot| -> u64 {
            let ours = guests.iter().filter(|guest| guest.ownership.and_then(Ownership::responsible) == Some(slot));
            ours.map(|guest| u64::from(guest.vcpus)).sum()
        };
        let beats = |slot: HostSlot, life: Option<Life>| {
            slot == membership.slot()
                || life.is_some_and(|life| {
                    let sight = self.vigil.sight(pool.id(), slot).filter(|sight| sight.life == life.epoch);
                    life.fence == Fence::Standing
                        && sight.is_some_and(|sight| sight.standing < LeaseState::Suspect && !sight.sure)
                })
        };
        let mut line: Vec<_> = pool
            .hosts()
            .into_iter()
            .filter(|host| host.kind == HostKind::Agent && host.damage.is_none() && !host.cordoned && host.takes_over)
            .filter(|host| (access.is_empty() || access.contains(&host.id)) && beats(host.slot, host.life))
            .map(|host| (load(host.slot), mix(host.id.to_bytes(), control.id().to_bytes()), host.slot))
            .collect();
        line.sort_unstable();
        line.iter().position(|(_, _, slot)| *slot == membership.slot())
    }

    /// Does what is to be done about a guest whose host is fenced. `None` when that was nothing.
    fn settle_dead(
        self: &Arc<Self>,
        membership: &Membership,
        name: &GuestName,
        control: &GuestControl,
        times: Times,
    ) -> Result<Option<Ending>> {
        let me = membership.slot();
        let mut ending = None;
        loop {
            let word = control.ownership().load().map_err(nil_migrate::Error::from)?;
            let liveness = |host: HostSlot| match host == me {
                true if self.table.find_id(control.id()).is_some() => Liveness::Working,
                true => Liveness::Idle,
                // An expired lease alone changes nothing: who has not been fenced may yet wake up and go on.
                false if is_fenced(membership, host) => Liveness::Gone,
                false => Liveness::Unknown,
            };
            match recover(word, liveness) {
                Resolution::Nothing | Resolution::LeaveTo(_) | Resolution::Lost(_) => return Ok(ending),
                Resolution::SalvageOrBury(dead) | Resolution::Bury(dead) => {
                    let salvaged = matches!(word, Ownership::Offered { .. })
                        && rescue::salvage(control, &control.map_state()?, me, dead)?;
                    if salvaged {
                        continue;
                    }
                    if has_checkpoint(name, control, dead) {
                        self.check_fitness(name, control)?;
                        rescue::take(control, me, dead)?;
                    } else if matches!(rescue::bury(control, me, dead)?, Ownership::Lost { .. }) {
                        return Ok(Some(TakeoverOutcome::Lost.into()));
                    }
                }
                Resolution::Retake(dead) => {
                    self.check_fitness(name, control)?;
                    rescue::take(control, me, dead)?;
                }
                Resolution::BringBack(_) => {
                    let Some(restored) = bring_back(membership, name, control)? else {
                        return Ok(Some(TakeoverOutcome::Lost.into()));
                    };
                    ending = Some(Ending {
                        outcome: TakeoverOutcome::Resumed,
                        last_commit: Some(restored.commit),
                        undone: restored.elapsed,
                        pages: restored.pages,
                        resumed: None,
                    });
                }
                Resolution::Stranded { target, .. } => {
                    self.check_fitness(name, control)?;
                    rescue::redirect(control, me, target)?;
                }
                Resolution::TakeOver(_) => {
                    let mut ending = ending.unwrap_or_else(|| TakeoverOutcome::Rescued.into());
                    self.run_taken(name, control, me)?;
                    ending.resumed = Some(times.last_beat.elapsed());
                    return Ok(Some(ending));
                }
                Resolution::TakeBack(_) => {
                    let mut ending = ending.unwrap_or_else(|| TakeoverOutcome::Rescued.into());
                    self.thaw(name, control, me)?;
                    ending.resumed = Some(times.last_beat.elapsed());
                    return Ok(Some(ending));
                }
            }
        }
    }

    /// Refuses a guest that could not run here, before anything of it is changed.
    fn check_fitness(&self, name: &GuestName, control: &GuestControl) -> Result<()> {
        let needs = takeover_needs(name, control)?;
        Verdict::new(name.clone(), self.dir.name().clone(), check(&needs, &self.describe())).into_result()
    }

    /// Starts a worker for a guest that is frozen for this host, and waits until it runs it.
    fn run_taken(self: &Arc<Self>, name: &GuestName, control: &GuestControl, me: HostSlot) -> Result<()> {
        let reservation = self.table.reserve(name, self.dir.name(), Duration::ZERO)?;
        let worker = self.start_worker(&reservation, control, me, None)?.id();
        if let Err(error) = self.order(name, &WorkerRequest::Arm, PATIENCE_WITH_ARMING) {
            self.clear_away(name, worker);
            return Err(error);
        }
        let landed = |phase| !matches!(phase, Phase::Empty | Phase::Starting | Phase::Armed);
        match self.table.wait(name, worker, PATIENCE_WITH_LANDING, landed) {
            Some(Phase::Running | Phase::Halted | Phase::Leaving | Phase::Released) => Ok(()),
            Some(_) | None => Err(Error::refused(format!(
                "guest {name} is frozen for this host, and its worker did not run it: see {}",
                self.dir.worker_log(name).display()
            ))),
        }
    }

    fn begin_takeover(&self, name: &GuestName, control: &GuestControl) -> Arc<Record> {
        let purpose = Purpose {
            kind: JobKind::Takeover,
            guest: Some(name.clone()),
            to: Some(self.dir.name().clone()),
            limit: None,
        };
        // Nobody has ordered it who would wait for its beginning.
        let record = Arc::new(Record::new(JobId::random(), self.dir.name(), purpose, oneshot::channel().0));
        let job = Arc::new(Job::new(Errand::Takeover));
        // It is too late to call it off: whoever runs the guest now, it was taken from its host.
        let _ = job.enter(Stage::Landed);
        self.begun_with(&record, &job, (control.pool().id(), control.id()));
        record
    }

    fn end_takeover(&self, record: &Arc<Record>, report: &TakeoverReport) {
        self.end_job(record, Ok(JobResult::Takeover(Box::new(report.clone()))));
    }

    /// There was nothing to take: somebody else was quicker.
    fn forget_takeover(&self, record: &Arc<Record>) {
        let why = Error::refused("somebody else was quicker, or the guest is in good hands");
        if self.ledger.end(record, Err(why), |_| {}) == Ended::Recorded {
            record.close();
            self.tell_job_ended(record);
        }
    }
}

/// Whether a guest that `dead` ran has a checkpoint from which it could go on.
pub(in crate::agent) fn has_checkpoint(name: &GuestName, control: &GuestControl, dead: HostSlot) -> bool {
    match control.last_commit(dead) {
        Ok(commit) => commit.is_some(),
        Err(error) => {
            tracing::error!(
                "guest {name}: it was protected, and its last checkpoint cannot be used: {}",
                story(&error)
            );
            false
        }
    }
}

/// Brings the memory of a guest that this host has taken, and its state, back to its last checkpoint, and publishes that. `None`:
/// there is none after all, and the guest is lost.
pub(in crate::agent) fn bring_back(
    membership: &Membership,
    name: &GuestName,
    control: &GuestControl,
) -> Result<Option<Restored>> {
    let me = membership.slot();
    let word = control.ownership().load().map_err(nil_migrate::Error::from)?;
    let Ownership::Taken { source, epoch, .. } = word else {
        return Err(nil_migrate::Error::NotToBeHad { me, found: word }.into());
    };
    // Nothing that is written from here on may go on behind the back of a peer that has fenced this host.
    let deadman = Deadman::guard(membership.tether()?)?;
    let restored = control.restore(source, epoch, || control.ownership().load() == Ok(word));
    drop(deadman);
    match restored {
        Ok(restored) => {
            rescue::raise(control, &control.map_state()?, me)?;
            Ok(Some(restored))
        }
        Err(
            error @ (nil_pool::Error::NoCommit { .. }
            | nil_pool::Error::Damaged { .. }
            | nil_pool::Error::DamagedWord { .. }),
        ) => {
            tracing::error!("guest {name}: it cannot be brought back: {}", story(&error));
            rescue::give_up(control, me)?;
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn is_fenced(membership: &Membership, slot: HostSlot) -> bool {
    membership.pool().life(slot).is_some_and(|life| life.fence == Fence::Fenced)
}

fn is_frozen_for(word: Ownership, slot: HostSlot) -> bool {
    matches!(word, Ownership::Frozen { target, .. } if target == slot)
}

/// A number that puts hosts in another order for each guest.
fn mix(host: [u8; 16], guest: [u8; 16]) -> u128 {
    u128::from_be_bytes(host) ^ u128::from_be_bytes(guest)
}
