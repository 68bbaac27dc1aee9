//! Guests that have two records, one in each of two pools: their home was moving when somebody died, or is moving now.
//!
//! `nil_migrate::rehoming` decides which one counts, this module destroys the other. It looks when the agent starts, when a
//! worker has ended, and now and then; a guest whose home is moving at this moment is left to who moves it.

use super::Host;
use super::jobs::Errand;
use super::table::Entry;
use crate::error::{Error, Result, story};
use crate::message::Lane;
use crate::name::GuestName;
use nil_migrate::rehoming::{Record, Verdict, Which, judge};
use nil_pool::{GuestControl, GuestId, GuestInfo, Membership, Ownership};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A record of a guest, and the membership in its pool.
type Found = (Arc<Membership>, GuestInfo);

impl Host {
    /// Sees to every guest with two records.
    pub(super) fn settle_twins(&self) {
        let mut records: BTreeMap<GuestId, Vec<Found>> = BTreeMap::new();
        for membership in self.pools.all() {
            for guest in membership.pool().guests().into_iter().filter(is_whole) {
                records.entry(guest.id).or_default().push((Arc::clone(&membership), guest));
            }
        }
        for twins in records.into_values() {
            // One at a time; the next round sees to a third.
            if let [first, second, ..] = &twins[..]
                && !self.is_being_rehomed(&first.1)
                && self.concerns_us(&twins)
            {
                self.settle_two(first, second);
            }
        }
    }

    /// Sees to a guest whose worker has ended, if it has two records. Returns the one that counts.
    pub(super) fn settle_twins_of(&self, control: &GuestControl) -> GuestControl {
        loop {
            let twins = self.records_of(control.id());
            let [first, second, ..] = &twins[..] else {
                let left =
                    twins.first().and_then(|(membership, guest)| membership.pool().guest(guest.slot, guest.id).ok());
                return left.unwrap_or_else(|| control.clone());
            };
            if self.settle_two(first, second) != Settled::Fewer {
                return control.clone();
            }
        }
    }

    /// The whole records of a guest in the host's pools.
    pub(super) fn records_of(&self, id: GuestId) -> Vec<Found> {
        let in_pool = |membership: Arc<Membership>| {
            let guests = membership.pool().guests().into_iter().filter(|guest| guest.id == id && is_whole(guest));
            guests.map(|guest| (Arc::clone(&membership), guest)).collect::<Vec<_>>()
        };
        self.pools.all().into_iter().flat_map(in_pool).collect()
    }

    /// Of several records of each guest, the one that it has its home in; of those of others, the one that counts.
    pub(super) fn without_twins(&self, mut found: Vec<Found>) -> Vec<Found> {
        let rank = |(membership, guest): &Found| {
            let at_home = self.table.find_id(guest.id).is_some_and(|entry| is_home(&entry, membership, guest));
            (at_home, guest.ownership.and_then(since))
        };
        found.sort_by(|one, other| one.1.id.cmp(&other.1.id).then_with(|| rank(other).cmp(&rank(one))));
        // Records that cannot be read have no identity.
        found.dedup_by(|later, first| later.1.id == first.1.id && is_whole(&later.1) && is_whole(&first.1));
        found
    }

    fn is_being_rehomed(&self, guest: &GuestInfo) -> bool {
        let entry = self.table.find_id(guest.id);
        entry
            .is_some_and(|entry| entry.job(Lane::Main).is_some_and(|job| matches!(job.errand, Errand::Rehoming { .. })))
    }

    /// Whether this host answers for one of the records, and no worker may refer to one without that we understood it.
    fn concerns_us(&self, twins: &[Found]) -> bool {
        let ours =
            |(membership, guest): &Found| guest.ownership.and_then(Ownership::responsible) == Some(membership.slot());
        let name = twins[0].1.name.parse::<GuestName>();
        twins.iter().any(ours) && !name.is_ok_and(|name| self.unadopted().contains(&name))
    }

    fn settle_two(&self, first: &Found, second: &Found) -> Settled {
        let name = &first.1.name;
        let worker = self.table.find_id(first.1.id).and_then(|entry| {
            let at = [(Which::First, first), (Which::Second, second)];
            at.into_iter().find(|(_, found)| is_home(&entry, &found.0, &found.1)).map(|(which, _)| which)
        });
        let (Some(one), Some(other)) = (record(first), record(second)) else { return Settled::Not };
        match judge(one, other, worker) {
            Verdict::Wait => Settled::Not,
            Verdict::Contradiction => {
                tracing::error!(
                    "guest {name} has two records, in pool {} ({}) and pool {} ({}), which contradict each other; both are \
                     left alone",
                    first.0.pool().path().display(),
                    one.word,
                    second.0.pool().path().display(),
                    other.word
                );
                Settled::Not
            }
            Verdict::Discard(which) => {
                // By the very word that was judged: a worker may publish in this moment.
                let ((membership, guest), word) = match which {
                    Which::First => (first, one.word),
                    Which::Second => (second, other.word),
                };
                let destroyed = membership
                    .pool()
                    .guest(guest.slot, guest.id)
                    .and_then(|control| membership.destroy_guest_while(&control, word));
                match destroyed {
                    Ok(()) | Err(nil_pool::Error::GuestGone { .. }) => {
                        self.reap_orphan_stripes();
                        tracing::info!(
                            "guest {name}: its record in pool {}, which does not count any more, is gone",
                            membership.pool().path().display()
                        );
                        Settled::Fewer
                    }
                    Err(error) => {
                        tracing::warn!(
                            "guest {name}: its record in pool {} does not count any more, and cannot be destroyed: {}",
                            membership.pool().path().display(),
                            story(&error)
                        );
                        Settled::Not
                    }
                }
            }
        }
    }

    /// Refuses to begin something with a guest that has two records still.
    pub(super) fn check_single(&self, name: &GuestName, id: GuestId) -> Result<()> {
        match &self.records_of(id)[..] {
            [first, second, ..] => Err(Error::refused(format!(
                "guest {name} has two records, in pool {} and in pool {}, because an earlier rehoming was cut short; its \
                 agent clears that up within seconds: try again",
                first.0.pool().path().display(),
                second.0.pool().path().display()
            ))),
            _ => Ok(()),
        }
    }
}

/// What became of an attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Settled {
    /// One record is gone.
    Fewer,
    /// Nothing has changed.
    Not,
}

fn is_whole(guest: &GuestInfo) -> bool {
    guest.damage.is_none() && guest.changed_by.is_none()
}

fn is_home(entry: &Entry, membership: &Membership, guest: &GuestInfo) -> bool {
    entry.is_home(membership.pool().id(), guest.slot)
}

fn record((membership, guest): &Found) -> Option<Record> {
    Some(Record { word: guest.ownership?, host: membership.slot() })
}

fn since(word: Ownership) -> Option<u32> {
    word.epoch().map(|epoch| epoch.0)
}
