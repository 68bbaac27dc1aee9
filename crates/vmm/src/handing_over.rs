//! The coordinator's side of a handoff: a running guest leaves for another host, or stays.

use crate::error::{Error, Result};
use crate::kick;
use crate::placement;
use crate::shared::Request;
use crate::vm::{HUSH, Role, Vm, lock};
use nil_migrate::{Handoff, HandoffReport, Outcome, Reason};
use nil_pool::{Epoch, GuestControl, HostSlot, Stamp};
use std::os::unix::thread::JoinHandleExt;
use std::thread;
use std::time::{Duration, Instant};

/// How long a guest runs on between the offer and the kick. The offer wakes threads on both sides, which take a CPU from
/// the guest where CPUs are scarce; without a breath, that would lengthen the blackout instead of preceding it.
const BREATH: Duration = Duration::from_micros(150);

/// How long a handoff may take, step by step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deadlines {
    /// For the target to be armed. The guest runs.
    pub armed: Duration,
    /// For the target to be poised after the offer. The guest runs.
    pub poised: Duration,
    /// For the target to claim after the kick. The guest stands still; afterwards it is taken back.
    pub claimed: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { armed: Duration::from_secs(30), poised: Duration::from_millis(500), claimed: Duration::from_millis(500) }
    }
}

/// How a handoff ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HandoffOutcome {
    /// The target runs the guest. This VM is an empty shell now.
    Released {
        /// The epoch of the target's ownership.
        epoch: Epoch,
        /// What it cost; `None` if the target's last stamp did not come in time.
        report: Option<HandoffReport>,
    },
    /// The guest runs on here.
    TakenBack {
        /// The epoch of this host's ownership.
        epoch: Epoch,
        /// Why.
        reason: Reason,
        /// What could not be saved, when that was the reason.
        detail: Option<String>,
    },
}

impl Vm {
    /// Makes place for a new target in the arm word. To be called by the owner before it has a target armed.
    pub fn clear_arm(&self) {
        self.shared.source().clear_arm();
    }

    /// Hands the guest over to `to`, which is armed or about to be, and returns when it runs there, or here again.
    ///
    /// # Errors
    /// Whatever kept the handoff from beginning; the guest runs on here. [`nil_migrate::Error::Displaced`]: the guest
    /// has been taken from this worker, which has stopped its vCPUs.
    pub fn handoff(&self, to: HostSlot, deadlines: Deadlines) -> Result<HandoffOutcome> {
        self.report_landing();
        if !matches!(*lock(&self.role), Role::Running) {
            return Err(Error::NotNow { wanted: "be handed over", state: "not running here" });
        }
        let source = self.shared.source();
        let me = source.host();
        source.await_armed(to, deadlines.armed)?;
        // From here until the handoff is over nothing moves. What is not in the pool now would be a hole over there.
        let _closed = self.memory().close().map_err(Error::Hole)?;
        let handoff = match source.offer(to, deadlines.poised) {
            Ok(handoff) => handoff,
            Err(nil_migrate::Error::Withdrawn { epoch, reason }) => {
                self.memory().set_owner(me, epoch);
                return Ok(HandoffOutcome::TakenBack { epoch, reason, detail: None });
            }
            Err(error) => return Err(error.into()),
        };
        let threads = lock(&self.threads);
        placement::step_aside(self.shared.vcpu_threads());
        thread::sleep(BREATH);
        self.shared.ask(Request::Freeze);
        source.kick(|| threads.iter().for_each(|thread| kick::kick(thread.as_pthread_t())));
        let outcome = source.settle(&handoff, deadlines.claimed);
        self.shared.ask(Request::None);
        drop(threads);
        match outcome {
            Outcome::Released { epoch } => {
                self.memory().disown();
                *lock(&self.role) = Role::Over;
                Ok(HandoffOutcome::Released { epoch, report: self.report(source.control(), &handoff) })
            }
            Outcome::TakenBack { epoch, reason } => {
                self.memory().set_owner(me, epoch);
                let detail = self.shared.take_failure();
                Ok(HandoffOutcome::TakenBack { epoch, reason, detail })
            }
            Outcome::Displaced => {
                self.halt();
                let found = source.control().ownership().load().map_err(nil_migrate::Error::from)?;
                Err(nil_migrate::Error::Displaced { found }.into())
            }
        }
    }

    /// Calls off the handoff that is on or about to begin, from any thread: the guest runs on here, unless the target
    /// claims it first. What became of it is [`Vm::handoff`]'s outcome.
    pub fn cancel_handoff(&self) {
        self.shared.source().request_cancel();
    }

    /// Forgets that an earlier handoff was called off. To be called by whoever orders the next one.
    pub fn forget_cancel(&self) {
        self.shared.source().forget_cancel();
    }

    /// The report of a handoff that has just been claimed. Waits a moment for the target's last stamp.
    fn report(&self, control: &GuestControl, handoff: &Handoff) -> Option<HandoffReport> {
        thread::sleep(HUSH);
        let timeline = control.timeline();
        let patience = Instant::now() + Duration::from_millis(20);
        while timeline.get(Stamp::Entered) == 0 && Instant::now() < patience {
            thread::sleep(Duration::from_micros(100));
        }
        HandoffReport::of(handoff, timeline, self.tsc_hz)
    }
}
