//! Capacity that is offered to this host, asked back from it, or taken from its guests.
//!
//! ```text
//! offered ──▶ it can be mapped here: accepted      else: declined, and looked at again in every round
//!                  └ or, if a person is to be asked: it stays open until one accepts or refuses it
//! accepted, its release asked for, no guest uses it ──▶ let go      the last host to do so releases it
//! its guest's memory is taken away ──▶ the guest's worker stops it by itself; one that does not is killed
//! ```

use super::Host;
use super::table::Entry;
use crate::config::Acceptance;
use crate::error::{Error, Result, story};
use crate::message::Phase;
use crate::name::{GuestName, HostName};
use crate::order::RunVm;
use crate::report::OfferReport;
use nil_pool::{AbsentPools, Answer, CapacityInfo, Composition, GuestControl, HostId, Membership, Pool, Tag};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a worker may take to stop a guest whose memory is taken away, before it is killed.
const PATIENCE_WITH_WORKER: Duration = Duration::from_secs(3);

/// Capacities that are being taken from guests of ours, and since when we know.
pub(super) type Demands = BTreeMap<Tag, Instant>;

/// How offers are answered, and what those who watch have been told of them.
#[derive(Debug)]
pub(super) struct Offers {
    accept: Acceptance,
    /// Held while an offer is looked at and answered, so that nobody answers what another has just answered.
    told: Mutex<BTreeMap<Tag, Answer>>,
}

/// What a person says to an offer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Decision {
    Accept,
    Refuse,
}

impl Offers {
    pub(super) fn new(accept: Acceptance) -> Self {
        Self { accept, told: Mutex::default() }
    }
}

impl Host {
    /// Answers what has been offered to this host since the last round, and lets go of what is asked back.
    pub(super) fn answer_offers(&self) {
        let mut told = self.offers.told.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = BTreeMap::new();
        for membership in self.pools.all() {
            for capacity in membership.pool().capacities() {
                let Some(answer) = capacity.answer_of(self.id).filter(|_| is_whole(&capacity)) else { continue };
                let mut now = answer;
                if let Some(new) = self.answer_to(&membership, &capacity, answer).filter(|new| *new != answer) {
                    match membership.answer_offer(capacity.tag, new) {
                        Ok(()) => {
                            tracing::info!("capacity {}: {new} by this host", capacity.tag);
                            now = new;
                        }
                        Err(error) => tracing::warn!("capacity {}: it cannot be answered for: {error}", capacity.tag),
                    }
                }
                // What an agent finds that was answered before it began is no news.
                let is_news = match told.get(&capacity.tag) {
                    Some(known) => *known != now,
                    None => now != answer || now == Answer::Offered,
                };
                if is_news {
                    self.tell_offer(offer_report(&membership, &capacity, now));
                }
                seen.insert(capacity.tag, now);
                self.release_if_last(&membership, &capacity);
            }
        }
        *told = seen;
    }

    /// Everything that is, or was, offered to this host.
    pub(crate) fn offers(&self) -> Vec<OfferReport> {
        let mut offers = Vec::new();
        for membership in self.pools.all() {
            let capacities = membership.pool().capacities();
            let whole = capacities.iter().filter(|capacity| is_whole(capacity));
            offers.extend(whole.filter_map(|it| Some(offer_report(&membership, it, it.answer_of(self.id)?))));
        }
        offers
    }

    /// Answers an offer as a person has decided.
    pub(crate) fn decide_offer(&self, tag: Tag, decision: Decision) -> Result<OfferReport> {
        let mut told = self.offers.told.lock().unwrap_or_else(PoisonError::into_inner);
        let (membership, capacity, before) = self.find_offer(tag)?;
        let name = self.dir.name();
        let after = match (decision, before) {
            (
                Decision::Accept,
                Answer::Offered | Answer::Released | Answer::DeclinedByPolicy | Answer::DeclinedAsUnusable,
            ) if capacity.release_asked => {
                return Err(Error::refused(format!(
                    "capacity {tag} is asked back, and host {name} cannot have it any more"
                )));
            }
            (Decision::Accept, _) => {
                membership.pool().try_capacity(tag).map_err(|error| {
                    Error::refused(format!("capacity {tag} cannot be mapped on host {name}: {}", story(&error)))
                })?;
                Answer::Accepted
            }
            (Decision::Refuse, Answer::Accepted) => {
                return Err(Error::refused(format!(
                    "host {name} has accepted capacity {tag} already; `nil capacity release {} {tag} --ask` has its hosts \
                     let go of it",
                    membership.pool().path().display()
                )));
            }
            (Decision::Refuse, _) => Answer::DeclinedByPolicy,
        };
        if after != before {
            membership.answer_offer(tag, after)?;
            tracing::info!("capacity {tag}: {after} by this host, as a person has decided");
            self.tell_offer(offer_report(&membership, &capacity, after));
        }
        told.insert(tag, after);
        Ok(offer_report(&membership, &capacity, after))
    }

    fn find_offer(&self, tag: Tag) -> Result<(Arc<Membership>, CapacityInfo, Answer)> {
        let found = self.pools.all().into_iter().find_map(|membership| {
            let capacity = membership.pool().find_capacity(tag).filter(is_whole)?;
            let answer = capacity.answer_of(self.id)?;
            Some((membership, capacity, answer))
        });
        found.ok_or_else(|| {
            let name = self.dir.name();
            Error::Unknown(format!(
                "no capacity {tag} is offered to host {name}; `nil capacity list POOL` shows a pool's, `nil capacity show \
                 POOL {tag}` to whom it is offered"
            ))
        })
    }

    /// What this host says of a capacity; `None` when it has nothing to say yet.
    fn answer_to(&self, membership: &Membership, capacity: &CapacityInfo, answer: Answer) -> Option<Answer> {
        match (answer, capacity.release_asked) {
            (Answer::Accepted, true) if !self.uses(capacity) => Some(Answer::Released),
            // Offered, or perhaps usable by now.
            (Answer::Offered | Answer::DeclinedAsUnusable, false) => {
                Some(match (usable(membership, capacity), self.offers.accept) {
                    (Answer::Accepted, Acceptance::Ask) => Answer::Offered,
                    (answer, _) => answer,
                })
            }
            // Taken back that it be released: it was accepted once, by whoever had to.
            (Answer::Released, false) => Some(usable(membership, capacity)),
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

/// A capacity that is offered to this host.
fn offer_report(membership: &Membership, capacity: &CapacityInfo, answer: Answer) -> OfferReport {
    OfferReport {
        tag: capacity.tag,
        pool: membership.pool().id(),
        path: membership.pool().path().to_path_buf(),
        class: capacity.class,
        bytes: capacity.bytes,
        label: capacity.label.clone(),
        answer,
        release_asked: capacity.release_asked,
    }
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
