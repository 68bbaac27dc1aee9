//! Watching over the other hosts of the pools: who beats, who is late, who has expired, who has been fenced.
//!
//! ```text
//! look ─▶ lease moved ──────────────▶ alive
//!    └──▶ stands still ─▶ late ─▶ suspect ─▶ expired ─┬─ auto ───────────▶ fence ─▶ take its guests
//!               └── nobody of it is left, for sure ───┤
//!                                                     ├─ ask ──▶ say so ─ `nil takeover` ─▶ the same
//!                                                     └─ never
//! ```
//!
//! Only memory is looked at: a network that is cut makes nobody dead. As long as anything of a host beats, nobody takes
//! anything from it.

mod fencing;
mod taking;

use fencing::Evidence;
pub(crate) use fencing::FenceCommand;
pub(super) use taking::{bring_back, has_checkpoint};

use super::Host;
use super::pools::name_or_slot;
use crate::error::{Error, Result};
use crate::name::GuestName;
use crate::report::{HostStanding, Takeover, TakeoverReport};
use nil_pool::{Epoch, Fence, HostSlot, LeaseState, LeaseWatch, Life, Membership, Ownership, PoolId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often to look at least, and at most: half of the shortest interval that a host beats in.
const PACES: std::ops::RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_millis(50);
/// How long to leave a host alone after everything has been done about it that could be.
const RESPITE: Duration = Duration::from_secs(1);

/// A host in a pool.
type Peer = (PoolId, HostSlot);

/// What was seen of a host's present life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sight {
    pub(super) life: Epoch,
    pub(super) standing: LeaseState,
    pub(super) fence: Fence,
    /// Whether nothing of it is left, for sure.
    pub(super) sure: bool,
    /// For how long its lease had stood still, and when that was seen.
    still: Duration,
    at: Instant,
}

impl Sight {
    /// Whether it may be taken for dead: by its lease, or for sure.
    fn is_dead(self) -> bool {
        self.sure || self.standing == LeaseState::Expired || self.fence != Fence::Standing
    }

    fn evidence(self) -> Evidence {
        Evidence { still: self.still, sure: self.sure, at: self.at }
    }
}

impl HostStanding {
    /// What to call it.
    pub(super) fn of(sight: Sight) -> Self {
        match sight {
            Sight { fence: Fence::Fenced, .. } => Self::Fenced,
            Sight { fence: Fence::Declared | Fence::Fencing, .. } => Self::Fencing,
            Sight { sure: true, .. } => Self::Dead,
            Sight { standing: LeaseState::Alive, .. } => Self::Alive,
            Sight { standing: LeaseState::Late, .. } => Self::Late,
            Sight { standing: LeaseState::Suspect, .. } => Self::Suspect,
            Sight { standing: LeaseState::Expired, .. } => Self::Expired,
        }
    }
}

/// A host under watch.
#[derive(Debug)]
struct Watched {
    life: Epoch,
    lease: LeaseWatch,
}

/// What is known of the others, and what is being done about them.
#[derive(Debug, Default)]
pub(super) struct Vigil {
    seen: Mutex<BTreeMap<Peer, Sight>>,
    /// Hosts about which something is being done now; and when something was done last.
    busy: Mutex<BTreeSet<Peer>>,
    done: Mutex<BTreeMap<Peer, Instant>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vigil {
    /// What was seen of a host, if it was looked at.
    pub(super) fn sight(&self, pool: PoolId, slot: HostSlot) -> Option<Sight> {
        lock(&self.seen).get(&(pool, slot)).copied()
    }

    /// Begins to do something about a host; false when that is going on, or was done just now.
    fn begin(&self, peer: Peer) -> bool {
        if lock(&self.done).get(&peer).is_some_and(|last| last.elapsed() < RESPITE) {
            return false;
        }
        lock(&self.busy).insert(peer)
    }

    fn end(&self, peer: Peer) {
        lock(&self.done).insert(peer, Instant::now());
        lock(&self.busy).remove(&peer);
    }
}

impl Host {
    /// Watches until the agent ends.
    pub(super) fn keep_vigil(self: &Arc<Self>) {
        let (clock, mut watched, mut pace) = (Instant::now(), BTreeMap::new(), *PACES.end());
        loop {
            std::thread::sleep(pace);
            pace = self.look_around(&mut watched, clock.elapsed(), pace);
        }
    }

    /// Looks at every host once. Returns when to look again.
    fn look_around(self: &Arc<Self>, watched: &mut BTreeMap<Peer, Watched>, now: Duration, pace: Duration) -> Duration {
        let (mut next, mut present) = (*PACES.end(), BTreeSet::new());
        for membership in self.pools.all() {
            let pool = membership.pool();
            for (slot, life) in pool.lives().into_iter().filter(|(slot, _)| *slot != membership.slot()) {
                let peer = (pool.id(), slot);
                present.insert(peer);
                let terms = life.terms.unwrap_or_default();
                next = next.min(terms.interval() / 2);
                let fresh = || Watched { life: life.epoch, lease: LeaseWatch::new(terms, life.lease, now) };
                let known = watched.entry(peer).or_insert_with(fresh);
                if known.life != life.epoch || known.lease.terms() != terms {
                    *known = fresh();
                }
                let standing = known.lease.look(life.lease, now, pace);
                let still = known.lease.still();
                let sure = life.fence == Fence::Standing && still > terms.interval() && pool.is_dead_for_sure(slot);
                let at = Instant::now();
                let sight = Sight { life: life.epoch, standing, fence: life.fence, sure, still, at };
                self.note_sight(&membership, slot, sight);
                // Whoever does not say how it beats may have processes that would not notice.
                let may_fence = sure || life.terms.is_some();
                if sight.is_dead() && may_fence {
                    self.attend_to_dead(&membership, slot, life, sight.evidence());
                }
            }
        }
        watched.retain(|peer, _| present.contains(peer));
        lock(&self.vigil.seen).retain(|peer, _| present.contains(peer));
        next.clamp(*PACES.start(), *PACES.end())
    }

    /// Takes note of what was seen, and says what has changed.
    fn note_sight(&self, membership: &Membership, slot: HostSlot, sight: Sight) {
        let pool = membership.pool();
        let before = lock(&self.vigil.seen).insert((pool.id(), slot), sight);
        let (was, is) = (before.map(HostStanding::of), HostStanding::of(sight));
        if was == Some(is) || (was.is_none() && is == HostStanding::Alive) {
            return;
        }
        let name = name_or_slot(pool, slot);
        match is {
            HostStanding::Alive | HostStanding::Late => tracing::debug!("host {name}: {is}"),
            HostStanding::Suspect => tracing::info!("host {name}: its lease stands still; it is suspect"),
            HostStanding::Expired | HostStanding::Dead | HostStanding::Fencing | HostStanding::Fenced => {
                tracing::warn!("host {name}: {is} in pool {}", pool.path().display());
            }
        }
        // A beat that is missed and made up for is no news.
        if is > HostStanding::Late || was.is_some_and(|was| was > HostStanding::Late) {
            let asks = self.takeover == Takeover::Ask && is >= HostStanding::Expired && has_guests(membership, slot);
            let detail = asks.then(|| format!("`nil takeover {name}` fences it and takes its guests"));
            self.tell_host(name, pool.id(), is, detail);
        }
    }

    /// Does what is due about a host that may be taken for dead, on a thread of its own.
    fn attend_to_dead(self: &Arc<Self>, membership: &Arc<Membership>, slot: HostSlot, life: Life, evidence: Evidence) {
        let wanted = match self.takeover {
            Takeover::Auto => life.fence != Fence::Fenced || has_guests(membership, slot),
            // What is frozen for us by a host that somebody has fenced is ours already.
            Takeover::Ask | Takeover::Never => life.fence == Fence::Fenced && is_frozen_for_us(membership, slot),
        };
        let peer = (membership.pool().id(), slot);
        if !wanted || !self.vigil.begin(peer) {
            return;
        }
        let membership = Arc::clone(membership);
        let begun = self.spawn("takeover", move |host| {
            host.fence_and_take(&membership, slot, life, evidence, None);
            host.vigil.end(peer);
        });
        if let Err(error) = begun {
            self.vigil.end(peer);
            tracing::error!("a dead host is not seen to: {}", error.story());
        }
    }
}

impl Host {
    /// Fences a host, or that of a guest, because a person says so, and takes what it had, or that guest.
    ///
    /// # Errors
    /// There is none of that name; it beats; this agent is never to do this.
    pub(crate) fn take_over_dead(self: &Arc<Self>, name: &str) -> Result<Vec<TakeoverReport>> {
        if self.takeover == Takeover::Never {
            return Err(Error::refused(format!(
                "the agent of host {} takes nothing over: it was started with takeover = \"never\"",
                self.dir.name()
            )));
        }
        let (mut reports, mut found) = (Vec::new(), false);
        for membership in self.pools.all() {
            let pool = membership.pool();
            let (slot, only) = match (pool.find_host(name), pool.find_guest(name)) {
                (Some(host), _) => (host.slot, None),
                (None, Some(guest)) => {
                    let Some(slot) = guest.ownership.and_then(Ownership::responsible) else { continue };
                    (slot, Some(guest.name.parse::<GuestName>().map_err(|error| Error::refused(error.to_string()))?))
                }
                (None, None) => continue,
            };
            found = true;
            let (life, sight) = self.check_dead(&membership, slot)?;
            let peer = (pool.id(), slot);
            lock(&self.vigil.done).remove(&peer);
            if !self.vigil.begin(peer) {
                return Err(Error::Busy(format!(
                    "{name} is being taken over already; `nil ps` shows how things stand"
                )));
            }
            reports.extend(self.fence_and_take(&membership, slot, life, sight.evidence(), only.as_ref()));
            self.vigil.end(peer);
        }
        if found {
            Ok(reports)
        } else {
            Err(Error::refused(format!(
                "there is no host and no guest {name} in the pools of host {}",
                self.dir.name()
            )))
        }
    }

    /// Refuses to take anything from a host that lives.
    fn check_dead(&self, membership: &Membership, slot: HostSlot) -> Result<(Life, Sight)> {
        let pool = membership.pool();
        let name = name_or_slot(pool, slot);
        if slot == membership.slot() {
            return Err(Error::refused(format!("host {name} is this one; it takes over from others")));
        }
        let known = pool.life(slot).zip(self.vigil.sight(pool.id(), slot));
        let Some((life, sight)) = known.filter(|(life, sight)| life.epoch == sight.life) else {
            return Err(Error::refused(format!("host {name} is not known well enough yet; try again in a moment")));
        };
        if !sight.is_dead() {
            return Err(Error::refused(format!(
                "host {name} is {}: nothing is taken from a host that may run its guests. Its lease must stand still until it has \
                 expired",
                HostStanding::of(sight)
            )));
        }
        if !sight.sure && life.terms.is_none() && sight.fence == Fence::Standing {
            return Err(Error::refused(format!(
                "host {name} does not say how it beats (an older nil, perhaps): its processes would not notice that it was fenced"
            )));
        }
        Ok((life, sight))
    }
}

/// Whether a host has frozen a guest for us, or had when it was fenced.
fn is_frozen_for_us(membership: &Membership, slot: HostSlot) -> bool {
    let ours = |word| matches!(word, Ownership::Frozen { source, target, .. } if source == slot && target == membership.slot());
    membership.pool().ownerships().into_iter().any(|(_, word)| ours(word))
}

/// Whether a host is responsible for a guest, or one is frozen for it.
fn has_guests(membership: &Membership, slot: HostSlot) -> bool {
    let pool = membership.pool();
    pool.ownerships().into_iter().any(|(_, word)| match word {
        Ownership::Vacant | Ownership::Lost { .. } => false,
        word => word.responsible() == Some(slot),
    })
}
