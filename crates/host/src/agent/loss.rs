//! Doing without a pool whose memory is no more.

use super::Host;
use super::ledger::now_ms;
use super::table::Entry;
use crate::name::GuestName;
use crate::report::LostPool;
use nil_pool::Membership;
use std::sync::Arc;
use std::time::Duration;

/// How long workers of guests that are no more may take to end.
const WORKERS_END: Duration = Duration::from_secs(2);

impl Host {
    /// Does without a pool whose memory is no more. Its guests' workers find that out by themselves, and end; one that has not
    /// before long is killed, since its guest has no owner any more.
    pub(super) fn lose_pool(self: &Arc<Self>, membership: &Membership) {
        let (id, path) = (membership.pool().id(), membership.pool().path().to_owned());
        if !self.pools.lose(id) {
            return;
        }
        let entries = move |host: &Self| {
            let of_pool = |(_, entry): &(GuestName, Entry)| entry.control.pool().id() == id;
            host.table.entries().into_iter().filter(of_pool).collect::<Vec<_>>()
        };
        let guests: Vec<GuestName> = entries(self).into_iter().map(|(name, _)| name).collect();
        let why = nil_pool::Error::Lost { path: path.clone() }.to_string();
        let running = guests.iter().map(GuestName::as_str).collect::<Vec<_>>().join(", ");
        tracing::error!("{why}; guests of it that ran here: {}", if guests.is_empty() { "none" } else { &running });
        let lost = LostPool { id, path, at_ms: now_ms(), why, guests };
        self.pools.remember(lost.clone());
        self.tell_pool_lost(lost);
        let bury = self.spawn("bury", move |host| {
            std::thread::sleep(WORKERS_END);
            entries(host).into_iter().for_each(|(_, entry)| entry.worker.kill());
        });
        if let Err(error) = bury {
            tracing::error!("workers of guests that are no more may run on: {}", error.story());
        }
    }

    /// Looks whether the pool of a guest is there, and does without it if it is not.
    pub(super) fn look_for_loss(self: &Arc<Self>, entry: &Entry) {
        let Ok(membership) = self.pools.get(entry.control.pool().id()) else { return };
        // Only an access tells.
        if membership.is_fenced() && membership.pool().is_lost() {
            self.lose_pool(&membership);
        }
    }
}
