//! What is looked at all the time: every host's lease and fence, every guest's ownership word.
//!
//! | violation | |
//! |---|---|
//! | a host is fenced that nobody struck, and whose lease never stood still for nearly its expiry | it was shot |
//! | an epoch of a guest goes back, or two hosts own it in the same one | it has two owners |

use crate::lab::fleet::Fleet;
use crate::lab::lock::lock;
use nil_pool::{Epoch, Fence, GuestControl, GuestId, HostSlot, Ownership};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often to look.
const LOOK: Duration = Duration::from_millis(5);

/// A life of a host.
type HostLife = (HostSlot, Epoch);

#[derive(Debug)]
struct Lease {
    count: u64,
    moved: Instant,
    longest: Duration,
    is_fenced: bool,
}

/// What was seen so far.
#[derive(Debug)]
pub(super) struct Watch {
    /// For how long a lease must have stood still at least so that its host may be fenced.
    bound: Duration,
    guests: Mutex<BTreeMap<GuestId, (String, GuestControl)>>,
    /// Hosts that were struck in this round, by their names.
    struck: Mutex<BTreeSet<String>>,
    /// Slots of hosts that were fenced although nobody had struck them: the machine was too slow for them.
    unasked: Mutex<BTreeSet<HostSlot>>,
    violation: Mutex<Option<String>>,
    over: AtomicBool,
}

impl Watch {
    pub(super) fn new(expiry: Duration) -> Self {
        Self {
            // This observer and those that decide look at different moments.
            bound: expiry * 8 / 10,
            guests: Mutex::default(),
            struck: Mutex::default(),
            unasked: Mutex::default(),
            violation: Mutex::default(),
            over: AtomicBool::new(false),
        }
    }

    pub(super) fn add(&self, name: &str, control: &GuestControl) {
        lock(&self.guests).insert(control.id(), (name.to_owned(), control.clone()));
    }

    pub(super) fn remove(&self, id: GuestId) {
        lock(&self.guests).remove(&id);
    }

    /// From now on a host may be fenced.
    pub(super) fn strike(&self, host: &str) {
        lock(&self.struck).insert(host.to_owned());
    }

    /// Everything is at rest: nobody may be fenced any more. Returns the slots of those that were, and that nobody struck.
    pub(super) fn calm(&self) -> BTreeSet<HostSlot> {
        lock(&self.struck).clear();
        std::mem::take(&mut lock(&self.unasked))
    }

    pub(super) fn violation(&self) -> Option<String> {
        lock(&self.violation).clone()
    }

    /// Lets [`Watch::keep`] return.
    pub(super) fn close(&self) {
        self.over.store(true, Ordering::Release);
    }

    pub(super) fn keep(&self, fleet: &Fleet) {
        let (mut leases, mut words) = (BTreeMap::new(), BTreeMap::new());
        while !self.over.load(Ordering::Acquire) {
            self.look_at_hosts(fleet, &mut leases);
            self.look_at_guests(&mut words);
            std::thread::sleep(LOOK);
        }
    }

    fn violated(&self, what: String) {
        lock(&self.violation).get_or_insert(what);
    }

    fn look_at_hosts(&self, fleet: &Fleet, leases: &mut BTreeMap<HostLife, Lease>) {
        let pool = &fleet.pools()[0];
        for (slot, life) in pool.lives() {
            let now = Instant::now();
            let fresh = || Lease { count: life.lease, moved: now, longest: Duration::ZERO, is_fenced: false };
            let lease = leases.entry((slot, life.epoch)).or_insert_with(fresh);
            lease.longest = lease.longest.max(now - lease.moved);
            if life.lease != lease.count {
                (lease.count, lease.moved) = (life.lease, now);
            }
            if life.fence == Fence::Standing || lease.is_fenced {
                continue;
            }
            lease.is_fenced = true;
            let name = pool.host(slot).map(|host| host.name).unwrap_or_default();
            if lock(&self.struck).contains(&name) {
                continue;
            }
            lock(&self.unasked).insert(slot);
            if lease.longest < self.bound {
                self.violated(format!(
                    "host {name}: it was fenced, although nobody had struck it and its lease never stood still for longer \
                     than {:?}",
                    lease.longest
                ));
            }
        }
    }

    fn look_at_guests(&self, words: &mut BTreeMap<GuestId, Ownership>) {
        let guests: Vec<_> = lock(&self.guests).values().cloned().collect();
        for (name, control) in guests {
            let Ok(word) = control.ownership().load() else { continue };
            let before = words.insert(control.id(), word);
            if let Some(before) = before.filter(|before| !may_follow(*before, word)) {
                self.violated(format!("guest {name}: its word was {before}, and is {word}"));
            }
        }
    }
}

/// Whether a word may be seen after another, however much was missed in between.
fn may_follow(before: Ownership, now: Ownership) -> bool {
    match (before, now) {
        // It has been stopped.
        (_, Ownership::Vacant) => true,
        (Ownership::Owned { host, epoch }, Ownership::Owned { host: next, epoch: then }) => {
            then > epoch || (then == epoch && host == next)
        }
        (before, now) => now.epoch() >= before.epoch(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_has_one_owner_and_never_goes_back() {
        let slot = |number: u16| HostSlot::new(number).expect("a slot");
        let owned = |host, epoch| Ownership::Owned { host: slot(host), epoch: Epoch(epoch) };
        assert!(may_follow(owned(1, 1), owned(2, 2)) && may_follow(owned(1, 1), owned(1, 1)));
        assert!(!may_follow(owned(1, 1), owned(2, 1)), "two owners");
        assert!(!may_follow(owned(1, 2), owned(1, 1)), "back");
        let frozen = Ownership::Frozen { source: slot(1), target: slot(2), epoch: Epoch(1) };
        assert!(may_follow(owned(1, 1), frozen) && may_follow(frozen, owned(2, 2)));
        assert!(!may_follow(owned(1, 2), frozen));
    }
}
