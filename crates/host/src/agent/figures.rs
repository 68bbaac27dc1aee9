//! The host's figures, for Prometheus.

use super::Host;
use crate::metrics::{self, Answered, Picture};

impl Host {
    /// All of them, as text.
    pub(crate) fn metrics(&self) -> String {
        let name = self.dir.name().as_str();
        let picture = Picture {
            host: name.to_owned(),
            guests: self.list().into_iter().filter(|guest| guest.host.as_deref() == Some(name)).collect(),
            pools: self.pools.reports(),
            lease_age: self.pools.lease_age(),
            jobs: self.ledger.running(),
            peers: self.known_hosts().into_iter().filter(|host| !host.here).map(|host| host.standing).collect(),
        };
        metrics::text(&self.counted, &picture)
    }

    /// A watcher of events has missed some.
    pub(crate) fn count_missed_events(&self) {
        self.counted.events_missed();
    }

    /// A request was answered.
    pub(crate) fn count_answer(&self, answered: Answered) {
        self.counted.answered(answered);
    }
}
