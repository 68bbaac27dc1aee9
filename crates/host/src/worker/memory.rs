//! What a worker does with its guest's memory: moves it, pins it, and says where it lies.

use super::moves::Telling;
use super::orders::Orders;
use super::status::Shown;
use crate::error::{Error, Result};
use crate::joined::first_of;
use crate::message::{Lane, Phase};
use nil_mover::{HOLDER, MovePlan, MoveProgress, MoveRange, MoveReport};
use nil_pool::{Pin, PinRequest};
use nil_vmm::Vm;
use std::sync::{MutexGuard, PoisonError};
use std::time::Instant;

impl Orders {
    /// Moves memory, on the calling thread, to the end. `tell` hears how far it is.
    pub(super) fn move_memory(
        &self,
        lane: Lane,
        plan: MovePlan,
        bandwidth: Option<u64>,
        tell: impl Fn(&MoveProgress),
    ) -> Result<MoveReport> {
        let vm = self.vm()?;
        self.check(&[Phase::Running])?;
        // What moves comes into the image, or goes out of it.
        let _unprotected = self.protecting.suspend();
        let moving = self.moves.begin(lane, bandwidth)?;
        let limit = moving.control.bandwidth();
        self.board().show_move(lane, Some(Shown { progress: beginning(&plan, vm.memory().len()), limit }));
        // Before it has anything to tell, and before it maps the capacity: an agent that has just come up releases the
        // capacity of a guest whose memory is all local and does not move.
        let progress = MoveProgress {
            direction: plan.direction,
            done_bytes: 0,
            total_bytes: plan.range.map_or(vm.memory().len() as u64, |range| range.bytes),
            bytes_per_s: 0,
            stall: None,
        };
        self.board().show_move(lane, Some(Shown { progress, limit: moving.control.bandwidth() }));
        let mut telling = Telling::default();
        let moved = vm.move_memory(plan, &moving.control, |progress| {
            if telling.is_worth_telling(progress, Instant::now()) {
                let shown = Shown { progress: progress.clone(), limit: moving.control.bandwidth() };
                self.board().show_move(lane, Some(shown));
                tell(progress);
            }
        });
        // The next move in this lane shows itself when this one has given it up.
        self.board().show_move(lane, None);
        drop(moving);
        let report = moved?;
        Ok(MoveReport { undeclared: first_of(report.undeclared), ..report })
    }

    /// Has the move in a lane end after the chunk that it is at.
    pub(super) fn cancel_move(&self, lane: Lane) -> Result<()> {
        self.moves.control(lane)?.cancel();
        Ok(())
    }

    /// Limits the move in a lane from now on.
    pub(super) fn set_bandwidth(&self, lane: Lane, bytes_per_s: Option<u64>) -> Result<()> {
        self.moves.control(lane)?.set_bandwidth(bytes_per_s);
        Ok(())
    }

    /// Pins a part of the memory; returns the pin's name.
    pub(super) fn pin(&self, range: MoveRange, owner: String, reason: String) -> Result<String> {
        let _no_handoff = self.no_handoff(&[Phase::Running])?;
        let request = PinRequest { offset: range.offset, bytes: range.bytes, owner, reason, host: self.post().me };
        Ok(self.vm()?.memory().pins().take(&request)?.to_string())
    }

    /// Ends a pin. A handoff that is on may end with the guest here, so wait for that.
    pub(super) fn release_pin(&self, name: &str) -> Result<()> {
        let _no_handoff = self.no_handoff(&[Phase::Running, Phase::Halted])?;
        let vm = self.vm()?;
        let pins = vm.memory().pins();
        let pin = pins.list().into_iter().find(|pin| pin.id.to_string() == name);
        let Pin { id, .. } = pin.ok_or_else(|| Error::refused(format!("there is no pin {name}")))?;
        Ok(pins.release(id)?)
    }

    /// Keeps handoffs off while something is done that must be done before one or after it, if the phase allows it then.
    pub(super) fn no_handoff(&self, allowed: &[Phase]) -> Result<MutexGuard<'_, ()>> {
        let guard = self.handing_over.lock().unwrap_or_else(PoisonError::into_inner);
        self.check(allowed)?;
        Ok(guard)
    }

    /// The guest has landed: its pins, all of which are on memory in the pool, are this host's now.
    pub(super) fn take_pins_over(&self) {
        let Ok(vm) = self.vm() else { return };
        let pins = vm.memory().pins();
        let me = self.post().me;
        for pin in pins.list().into_iter().filter(|pin| pin.host != me) {
            // It fails only when the pin has ended meanwhile.
            if let Err(error) = pins.rehost(pin.id, me) {
                tracing::debug!("pin {} was not taken over: {error}", pin.id);
            }
        }
    }

    /// Shows where the memory lies in this process, for who looks into it from outside.
    pub(super) fn show_memory(&self, vm: &Vm) {
        self.board().show_memory(vm.memory().as_ptr() as u64);
    }
}

/// How far a move is that begins.
fn beginning(plan: &MovePlan, all: usize) -> MoveProgress {
    let all = u64::try_from(all).unwrap_or(u64::MAX);
    let total_bytes = plan.range.map_or(all, |range| range.bytes);
    MoveProgress { direction: plan.direction, done_bytes: 0, total_bytes, bytes_per_s: 0, stall: None }
}

/// Why a guest cannot be handed over by its memory, if so. A part that is held is about to come into this host's DRAM:
/// the hold is not for the target.
pub(super) fn hole(vm: &Vm) -> Option<String> {
    if let Some(hold) = vm.memory().pins().list().into_iter().find(|pin| pin.owner == HOLDER) {
        return Some(format!("part of its memory is held in the DRAM of this host ({})", hold.reason));
    }
    if vm.memory().placement().away() == 0 {
        return None;
    }
    vm.memory().close().err().map(|hole| hole.to_string())
}
