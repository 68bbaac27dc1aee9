//! Capacity that is offered to this host, asked back from it, or taken from its guests.
//!
//! ```text
//! offered ──▶ it can be mapped here: accepted      else: declined, and looked at again in every round
//! accepted, its release asked for, no guest uses it ──▶ let go      the last host to do so releases it
//! its guest's memory is taken away ──▶ the guest's worker stops it by itself; one that does not is killed
//! ```

use super::Host;
use super::table::Entry;
use crate::error::{Error, Result};
use crate::message::Phase;
use crate::name::{GuestName, HostName};
use crate::order::RunVm;
use nil_pool::{AbsentPools, Answer, CapacityInfo, Composition, GuestControl, HostId, Membership, Pool, Tag};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a worker may take to stop a guest whose memory is taken away, before it is killed.
const PATIENCE_WITH_WORKER: Duration = Duration::from_secs(3);

/// Capacities that are being taken from guests of ours, and since when we know.
pub(super) type Demands = BTreeMap<Tag, Instant>;

impl Host {
    /// Answers what has been offered to this host since the last round, and lets go of what is asked back.
    pub(super) fn answer_offers(&self) {
        for membership in self.pools.all() {
            for capacity in membership.pool().capacities() {
                let Some(answer) = capacity.answer_of(self.id).filter(|_| is_whole(&capacity)) else { continue };
                if let Some(new) = self.answer_to(&membership, &capacity, answer).filter(|new| *new != answer) {
                    match membership.answer_offer(capacity.tag, new) {
                        Ok(()) => tracing::info!("capacity {}: {new} by this host", capacity.tag),
                        Err(error) => tracing::warn!("capacity {}: it cannot be answered for: {error}", capacity.tag),
                    }
                }
                self.release_if_last(&membership, &capacity);
            }
        }
    }

    /// What this host says of a capacity; `None` when it has nothing to say yet.
    fn answer_to(&self, membership: &Membership, capacity: &CapacityInfo, answer: Answer) -> Option<Answer> {
        match (answer, capacity.release_asked) {
            (Answer::Accepted, true) if !self.uses(capacity) => Some(Answer::Released),
            // Offered, or taken back that it be released, or perhaps usable by now.
            (Answer::Offered | Answer::Released | Answer::DeclinedAsUnusable, false) => {
                Some(usable(membership, capacity))
            }
            (Answer::Accepted | Answer::DeclinedByPolicy, _)
            | (Answer::Offered | Answer::Released | Answer::DeclinedAsUnusable, true) => None,
        }
    }

    /// The access list of a new guest.
    pub(super) fn hosts_that_may_run(&self, order: &RunVm, pool: &Pool) -> Result<Vec<HostId>> {
        if !order.hosts.is_empty() && !order.hosts.contains(self.dir.name()) {
            return Err(Error::refused(format!(
                "host {} is to run guest {}, and is not among the hosts that may; name it, too",
                self.dir.name(),
                order.name
            )));
        }
        let id_of = |name: &HostName| {
            let host = pool.find_host(name.as_str()).map(|host| host.id);
            host.ok_or_else(|| Error::refused(format!("there is no host {name} in pool {}", pool.path().display())))
        };
        order.hosts.iter().map(id_of).collect()
    }

    /// Whether a guest of this host uses it.
    fn uses(&self, capacity: &CapacityInfo) -> bool {
        let user = capacity.user.as_deref();
        self.table.entries().iter().any(|(name, _)| Some(name.as_str()) == user)
    }

    /// Releases what is asked back, once nobody holds it any more.
    fn release_if_last(&self, membership: &Membership, capacity: &CapacityInfo) {
        if !capacity.release_asked || capacity.user.is_some() {
            return;
        }
        let all = self.pools.all();
        let members: Vec<&Membership> = all.iter().map(AsRef::as_ref).collect();
        match membership.release_capacity_with(capacity.tag, &members, AbsentPools::Refuse) {
            Ok(()) => tracing::info!("capacity {}: released, as was asked for", capacity.tag),
            // Another host holds it, or is releasing it at this moment, or has done so.
            Err(
                nil_pool::Error::CapacityAccepted { .. }
                | nil_pool::Error::CapacityInUse { .. }
                | nil_pool::Error::CapacityBusy { .. }
                | nil_pool::Error::NoCapacity { .. },
            ) => {}
            Err(error) => tracing::warn!("capacity {}: it cannot be released yet: {error}", capacity.tag),
        }
    }

    /// Kills workers that do not stop their guests although the memory is being taken away.
    pub(super) fn enforce_demands(&self, known: &mut Demands) {
        let entries = self.table.entries();
        let demanded: Vec<_> = entries.iter().filter_map(|(name, entry)| demanded(name, entry)).collect();
        known.retain(|tag, _| demanded.iter().any(|(_, demanded)| demanded.tag == *tag));
        for (name, demanded) in &demanded {
            let since = known.entry(demanded.tag).or_insert_with(Instant::now);
            let Some(entry) = self.table.find(name).filter(|_| since.elapsed() >= PATIENCE_WITH_WORKER) else {
                continue;
            };
            // As its worker should have done: from here on the demand cannot be withdrawn.
            if entry.control.heed(demanded) {
                tracing::error!(
                    "guest {name}: its memory, capacity {}, is taken away by force, and its worker does not stop it; \
                     killing the worker",
                    demanded.tag
                );
                entry.worker.kill();
            }
        }
    }
}

/// The hosts that may run a guest; all, if none is named.
pub(super) fn access_of(guest: &GuestName, control: &GuestControl) -> Vec<HostId> {
    let pool = control.pool();
    let state = pool.find_guest(guest.as_str()).and_then(|guest| guest.state);
    state.and_then(|tag| pool.find_capacity(tag)).map(|capacity| capacity.access).unwrap_or_default()
}

/// What is demanded of a guest that runs here.
fn demanded(name: &GuestName, entry: &Entry) -> Option<(GuestName, nil_pool::Demanded)> {
    let here = matches!(entry.phase, Phase::Running | Phase::Halted);
    let lost = matches!(entry.control.ownership().load(), Ok(nil_pool::Ownership::Lost { .. }));
    entry.control.demanded().filter(|_| here && !lost).map(|demanded| (name.clone(), demanded))
}

/// Whether it is a capacity of its own. Stripes are offered with what they are stripes of.
fn is_whole(capacity: &CapacityInfo) -> bool {
    capacity.damage.is_none() && !matches!(capacity.composition, Composition::LegOf(_))
}

/// Whether this host could attach it.
fn usable(membership: &Membership, capacity: &CapacityInfo) -> Answer {
    match membership.pool().try_capacity(capacity.tag) {
        Ok(()) => Answer::Accepted,
        Err(error) => {
            tracing::debug!("capacity {}: {error}", capacity.tag);
            Answer::DeclinedAsUnusable
        }
    }
}
