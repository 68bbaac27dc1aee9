//! A guest that has been started and that nobody has taken note of yet.

use super::Host;
use crate::report::GuestReport;
use std::sync::Arc;

/// Stops the guest when it is dropped, unless it has been claimed: whoever had ordered it is gone.
#[derive(Debug)]
pub(crate) struct Unclaimed {
    host: Arc<Host>,
    guest: GuestReport,
    is_claimed: bool,
}

impl Unclaimed {
    pub(crate) fn new(host: &Arc<Host>, guest: GuestReport) -> Self {
        Self { host: Arc::clone(host), guest, is_claimed: false }
    }

    pub(crate) fn report(&self) -> &GuestReport {
        &self.guest
    }

    /// Somebody knows of it: it runs on.
    pub(crate) fn claim(mut self) {
        self.is_claimed = true;
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if self.is_claimed {
            return;
        }
        let Ok(name) = self.guest.name.parse() else { return };
        tracing::info!("guest {name}: whoever ordered it has gone before it ran; stopping it");
        // This may be the thread that answers, which must not wait.
        let stopping = self.host.spawn("order", move |host| {
            if let Err(error) = host.stop_guest(&name) {
                tracing::warn!("guest {name}: {}", error.story());
            }
        });
        if let Err(error) = stopping {
            tracing::error!("guest {}: it runs on: {}", self.guest.name, error.story());
        }
    }
}
