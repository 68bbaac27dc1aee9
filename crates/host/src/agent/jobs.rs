//! What is being done with a guest's memory, or with the guest, and how that is called off.
//!
//! ```text
//! Stage         what a cancel does at once                           what the job undoes when it sees it
//! ───────────────────────────────────────────────────────────────────────────────────────────────────────────
//! Preparing     nothing: the job looks before its next stage         nothing has moved
//! Moving        the worker stops after the chunk that it is at       what has moved goes back; capacity released
//! Arming        hangs up on the target's agent: its worker goes home the same
//! HandingOver   the source withdraws or cancels, if it still can     the same, if it still could
//! Switching     too late: it is refused                              –
//! Undoing       nothing: that is what is happening already           –
//! Landed        too late: it is refused                              –
//! ```
//!
//! The stage is entered and acted upon under one lock, so that no cancel falls between two stages: a job that was
//! cancelled does not enter another one but `Undoing` or `Landed`.

use crate::client::HangUp;
use crate::error::{Error, Result};
use crate::name::HostName;
use nil_mover::Direction;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a job is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Errand {
    /// All of the memory, or a part that nobody holds, goes that way.
    Move(Direction),
    /// A part is pulled back from the pool.
    PullBack,
    /// The guest goes to another host.
    Migration {
        /// Which.
        to: HostName,
    },
    /// The guest's home moves to another pool.
    Rehoming {
        /// Where that is.
        to: PathBuf,
    },
    /// The guest has come from another host, and its memory comes into this host's DRAM.
    Settling,
    /// A move that an earlier agent had ordered comes to its end.
    Orphan(Direction),
    /// The host is emptied.
    Drain,
    /// Hosts are evened out.
    Rebalance,
    /// The guest comes from a host that is dead.
    Takeover,
}

/// How far a job is, as far as calling it off goes.
#[derive(Debug)]
pub(super) enum Stage {
    /// Nothing has been begun that would have to be stopped.
    Preparing,
    /// The worker moves memory.
    Moving,
    /// The target gets ready; this hangs up on its agent.
    Arming(HangUp),
    /// The worker hands the guest over.
    HandingOver,
    /// The worker switches to the guest's new home.
    Switching,
    /// What was moved is being moved back.
    Undoing,
    /// The guest is the target's.
    Landed,
}

/// What remains to be done by whoever calls a job off, besides waiting for its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stopping {
    /// Nothing.
    Nothing,
    /// Tell the worker to stop moving.
    Move,
    /// Tell the worker to take the guest back.
    Handoff,
}

/// Something that is being done with a guest.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) errand: Errand,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    cancelled: bool,
    stage: Stage,
    end: Option<End>,
}

/// How a job ended, in a sentence, for whoever has called it off.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// Everything is as it was before it.
    AsBefore(String),
    /// It is not: it went through, or failed, or could not be undone.
    Otherwise(String),
}

impl Job {
    pub(super) fn new(errand: Errand) -> Self {
        let state = State { cancelled: false, stage: Stage::Preparing, end: None };
        Self { errand, state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a stage.
    ///
    /// # Errors
    /// [`Error::CalledOff`] when the job is to stop instead.
    pub(super) fn enter(&self, stage: Stage) -> Result<()> {
        let mut state = self.lock();
        let goes_on = matches!(stage, Stage::Undoing | Stage::Landed);
        if state.cancelled && !goes_on {
            return Err(Error::CalledOff);
        }
        state.stage = stage;
        Ok(())
    }

    /// What `what` sees in the stage that it is at.
    pub(super) fn look<T>(&self, what: impl FnOnce(&Stage) -> T) -> T {
        what(&self.lock().stage)
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.lock().cancelled
    }

    /// What has gone wrong with the target's agent, unless that is how the job was called off.
    pub(super) fn or_called_off(&self, error: Error) -> Error {
        match error {
            Error::Hangup { .. } | Error::Broken { .. } if self.is_cancelled() => Error::CalledOff,
            other => other,
        }
    }

    /// Calls the job off. `stop` is told what to stop, while the job cannot enter another stage; it must be quick.
    ///
    /// # Errors
    /// The guest is the target's already.
    pub(super) fn cancel(&self, stop: impl FnOnce(Stopping)) -> Result<()> {
        let mut state = self.lock();
        let stopping = match &state.stage {
            Stage::Landed => {
                return Err(Error::refused(
                    "it came too late: the guest has been claimed by its target and runs there",
                ));
            }
            Stage::Switching => {
                return Err(Error::refused("it came too late: the guest's home is the other pool already"));
            }
            Stage::Preparing | Stage::Undoing => Stopping::Nothing,
            Stage::Moving => Stopping::Move,
            Stage::HandingOver => Stopping::Handoff,
            Stage::Arming(target) => {
                target.hang_up();
                Stopping::Nothing
            }
        };
        state.cancelled = true;
        stop(stopping);
        Ok(())
    }

    /// Says how the job ended; what is said first counts.
    pub(super) fn end(&self, how: End) {
        self.lock().end.get_or_insert(how);
        self.changed.notify_all();
    }

    /// Waits a while for its end.
    pub(super) fn wait(&self, patience: Duration) -> Option<End> {
        let waited = self.changed.wait_timeout_while(self.lock(), patience, |state| state.end.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.end.clone()
    }
}

impl fmt::Display for Errand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Move(direction) | Self::Orphan(direction) => write!(f, "its memory is being {}d", direction.verb()),
            Self::PullBack => f.write_str("a part of its memory is being pulled back"),
            Self::Migration { to } => write!(f, "it is being moved to host {to}"),
            Self::Drain => f.write_str("the host is being emptied"),
            Self::Rebalance => f.write_str("hosts are being evened out"),
            Self::Rehoming { to } => write!(f, "its home is being moved to pool {}", to.display()),
            Self::Takeover => f.write_str("it is being taken from a dead host"),
            Self::Settling => f.write_str("it has just come, and its memory is being recoupled"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migration() -> Job {
        Job::new(Errand::Migration { to: "B".parse().expect("a good name") })
    }

    fn stopped(job: &Job) -> Stopping {
        let mut found = None;
        job.cancel(|stopping| found = Some(stopping)).expect("it can be called off");
        found.expect("asked")
    }

    #[test]
    fn each_stage_is_stopped_in_its_own_way() {
        let target = HangUp::default();
        for (stage, stopping) in [
            (Stage::Preparing, Stopping::Nothing),
            (Stage::Moving, Stopping::Move),
            (Stage::Arming(target.clone()), Stopping::Nothing),
            (Stage::HandingOver, Stopping::Handoff),
            (Stage::Undoing, Stopping::Nothing),
        ] {
            let job = migration();
            job.enter(stage).expect("not called off");
            assert_eq!(stopped(&job), stopping);
            assert!(job.is_cancelled());
        }
        assert!(target.is_hung_up(), "the target was not hung up on");
    }

    #[test]
    fn a_job_that_was_called_off_enters_no_stage_but_the_last_ones() {
        let job = migration();
        job.cancel(|_| {}).expect("it can be called off");
        for stage in [Stage::Preparing, Stage::Moving, Stage::HandingOver] {
            assert!(matches!(job.enter(stage), Err(Error::CalledOff)));
        }
        job.enter(Stage::Undoing).expect("what was moved must go back");
        job.enter(Stage::Landed).expect("the target may have been quicker");
        let late = job.cancel(|_| {}).expect_err("too late").to_string();
        assert!(late.contains("too late"), "{late}");
    }

    #[test]
    fn whoever_waits_is_told_how_it_ended() {
        let job = migration();
        assert_eq!(job.wait(Duration::ZERO), None);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| job.wait(Duration::from_secs(60)));
            job.end(End::Otherwise("it came too late".to_owned()));
            job.end(End::AsBefore("what is said first counts".to_owned()));
            let end = End::Otherwise("it came too late".to_owned());
            assert_eq!(waiting.join().expect("no panic"), Some(end));
        });
    }
}
