//! Moves of memory that an earlier agent had ordered, and capacity that it can no longer give back.
//!
//! A worker brings a move to its end whatever becomes of its agent. The next agent waits for that end, so that nothing
//! else is begun meanwhile, and gives the capacity back if nothing is left in it.

use super::Host;
use super::jobs::{End, Errand, Stage};
use crate::message::{Lane, WorkerRequest};
use crate::name::GuestName;
use crate::process::ProcessId;
use nil_mover::MoveProgress;
use std::sync::Arc;
use std::time::Duration;

/// How often to look whether the move has ended without our hearing of it.
const LOOK: Duration = Duration::from_secs(1);

impl Host {
    /// Sees to the memory of a guest whose worker was found running.
    pub(super) fn see_to_orphan_move(
        self: &Arc<Self>,
        name: &GuestName,
        worker: ProcessId,
        moving: Option<&MoveProgress>,
    ) {
        let errand = match moving {
            Some(moving) => Errand::Orphan(moving.direction),
            None => return self.tidy_orphan(name),
        };
        // Somebody may have been quicker to order something; then they give the capacity back.
        let Ok(occupation) = self.table.occupy(name, Lane::Main, errand) else { return };
        tracing::info!("guest {name}: {}, as an earlier agent has ordered", occupation.job.errand);
        // What it may use of the bandwidth an earlier agent has decided; it must share with the others now.
        let share = self.share_bandwidth(name, Lane::Main, None);
        let bytes_per_s = share.bytes_per_s();
        if let Err(error) = self.order(name, &WorkerRequest::SetBandwidth { lane: Lane::Main, bytes_per_s }, LOOK) {
            tracing::debug!("guest {name}: {}", error.story());
        }
        if occupation.job.enter(Stage::Moving).is_ok() {
            while !self.table.wait_unmoved(name, worker, LOOK) {}
        }
        self.tidy(&occupation);
        let end =
            format!("guest {name}: what an earlier agent had ordered has ended; what had moved stays where it is");
        tracing::info!("{end}");
        occupation.job.end(End::AsBefore(end));
    }

    /// Gives back a capacity that an earlier agent had made, or had no more use for, when it died.
    fn tidy_orphan(&self, name: &GuestName) {
        let Some(entry) = self.table.find(name) else { return };
        self.tidy_idle(name, &entry.control);
    }
}
