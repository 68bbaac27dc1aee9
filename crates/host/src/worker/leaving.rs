//! The guest leaves for another host, or does not; or one that was to come is not waited for any more.

use super::memory::hole;
use super::orders::{Orders, Post};
use crate::error::{Error, Result, story};
use crate::message::{Phase, WorkerReply};
use nil_migrate::protocol::{ArmEvent, arm_step};
use nil_pool::{Arm, HostSlot, Side};
use nil_vmm::{Deadlines, HandoffOutcome, Vm};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

impl Orders {
    /// Hands the guest over; returns when it is over, either way.
    pub(super) fn handoff(&self, to: u16, deadline: Duration) -> Result<WorkerReply> {
        let Some(to) = HostSlot::new(to) else {
            return Err(Error::refused(format!("{to} is not a host's slot in a pool")));
        };
        let vm = self.vm()?;
        let _handing_over = self.handing_over.lock().unwrap_or_else(PoisonError::into_inner);
        // A commit says nothing of a guest that runs elsewhere.
        let _unprotected = self.protecting.suspend();
        if let Some(hole) = hole(&vm) {
            return Ok(WorkerReply::Hole(hole));
        }
        if let Err(moving) = self.moves.close_for("the guest is on its way to another host") {
            return Ok(WorkerReply::Hole(moving.to_string()));
        }
        self.enter(&[Phase::Running], Phase::Leaving, None).inspect_err(|_| self.moves.reopen())?;
        let begun = Instant::now();
        vm.forget_cancel();
        self.set_cancellable(true);
        let handoff = vm.handoff(to, Deadlines { claimed: deadline, ..Deadlines::default() });
        self.set_cancellable(false);
        tracing::debug!("the handoff took {:?}", begun.elapsed());
        let left = matches!(handoff, Ok(HandoffOutcome::Released { .. }));
        let reply = self.note_handoff(&vm, handoff);
        if !left {
            self.moves.reopen();
        }
        reply
    }

    /// What a handoff means for the worker, and for who has ordered it.
    fn note_handoff(&self, vm: &Vm, handoff: nil_vmm::Result<HandoffOutcome>) -> Result<WorkerReply> {
        let stays = |why: Option<String>| {
            let _ = self.board.enter(&[Phase::Leaving], Phase::Running, why);
        };
        match handoff {
            Ok(HandoffOutcome::Released { report, .. }) => {
                self.end(Phase::Released, None);
                Ok(WorkerReply::Released(report))
            }
            Ok(HandoffOutcome::TakenBack { reason, detail, .. }) => {
                let why = detail.map_or_else(|| reason.to_string(), |detail| format!("{reason}: {detail}"));
                stays(Some(why.clone()));
                Ok(WorkerReply::TakenBack(why))
            }
            Err(error @ nil_vmm::Error::Migrate(nil_migrate::Error::Displaced { .. })) => {
                let _ = self.board.enter(&[Phase::Leaving], Phase::Halted, Some(story(&error)));
                Err(error.into())
            }
            Err(nil_vmm::Error::Migrate(nil_migrate::Error::CalledOff)) => {
                stays(None);
                Ok(WorkerReply::TakenBack(nil_migrate::Reason::Cancelled.to_string()))
            }
            Err(error) => match hole(vm) {
                Some(hole) => {
                    stays(None);
                    Ok(WorkerReply::Hole(hole))
                }
                None => {
                    stays(Some(story(&error)));
                    Err(error.into())
                }
            },
        }
    }

    fn set_cancellable(&self, cancellable: bool) {
        *self.cancellable.lock().unwrap_or_else(PoisonError::into_inner) = cancellable;
    }

    /// Has the handoff that is on end without the guest's leaving, unless it has been claimed.
    pub(super) fn cancel_handoff(&self) -> Result<()> {
        let cancellable = self.cancellable.lock().unwrap_or_else(PoisonError::into_inner);
        if !*cancellable {
            return Err(Error::refused("the guest is not being handed over"));
        }
        self.vm()?.cancel_handoff();
        Ok(())
    }

    /// Gives up taking the guest over, unless it is about to land.
    ///
    /// A source freezes for a target only that is `Poised`, and one becomes that only from `Armed`. So once this worker
    /// has refused, or the arm word is not its own any more, the guest does not come, and the VM can go.
    pub(super) fn disarm(&self) -> Result<()> {
        self.check(&[Phase::Armed])?;
        let Post { control, me } = self.post();
        let word = control.arm();
        let armed = word.load().map_err(nil_migrate::Error::from)?;
        let safe = match armed {
            Arm::Poised { host, .. } if host == me => false,
            Arm::Armed { host, epoch } if host == me => {
                let refused = arm_step(armed, host, epoch, ArmEvent::Refuse).map_err(nil_migrate::Error::from)?;
                word.transition(armed, refused)
            }
            Arm::Idle | Arm::Arming { .. } | Arm::Armed { .. } | Arm::Poised { .. } | Arm::Refused { .. } => true,
        };
        if !safe {
            return Err(Error::refused("the guest is about to land"));
        }
        control.bell(Side::Source).ring();
        self.vm()?.halt();
        self.end(Phase::TornDown, Some("its source called it off".to_owned()));
        Ok(())
    }
}
