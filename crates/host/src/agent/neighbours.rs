//! The hosts that share a pool with this one, those that they know, what all of them have, and the fabric that they make.
//!
//! What hosts of other machines have their agents are asked again and again, so that nobody who plans has to wait for them.
//! A host that shares no pool with this one is heard of from those that do, and then asked itself: of what a host has, and
//! which pools it has joined, only its own word counts, over a connection on which it has shown its certificate.

use super::Host;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::fabric::live_fabric;
use crate::name::HostName;
use crate::report::{HostReport, HostStanding, JoinedPool, KnownHost, Life, Resources};
use crate::survey::Survey;
use nil_fabric::Picture;
use nil_pool::{HostId, HostSlot, Pool};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often other hosts are asked what they have.
const ROUND: Duration = Duration::from_secs(10);
/// For how long what they have told is taken to be so.
const HOLDS: Duration = Duration::from_secs(60);
/// How long one may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// So many hosts of other machines are asked at most.
const MOST_HOSTS: usize = 1024;
/// So many at once.
const ASKED_AT_ONCE: usize = 16;
/// Of so many pools a host may say that it has joined them.
const MOST_POOLS: usize = 64;

/// What hosts of other machines have told.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    told: Mutex<BTreeMap<HostName, Told>>,
    /// Where hosts are of which others have told.
    addresses: Mutex<BTreeMap<HostName, String>>,
}

/// What one of them has told of itself.
#[derive(Clone, Debug)]
struct Told {
    at: Instant,
    id: HostId,
    cordoned: bool,
    resources: Option<Resources>,
    joined: Vec<JoinedPool>,
}

impl Neighbours {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<HostName, Told>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn addresses(&self) -> MutexGuard<'_, BTreeMap<HostName, String>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, name: &HostName) -> Option<Told> {
        self.lock().get(name).filter(|told| told.at.elapsed() < HOLDS).cloned()
    }

    /// Where a host is, as others have told.
    pub(super) fn address_of(&self, name: &HostName) -> Option<String> {
        self.addresses().get(name).cloned()
    }

    /// Takes note of what a host says of itself, and of where it says that others are. Returns those others.
    fn note(&self, name: &HostName, hosts: Vec<KnownHost>) -> Vec<HostName> {
        let (own, others): (Vec<_>, Vec<_>) = hosts.into_iter().partition(|host| host.here);
        if let Some(own) = own.into_iter().find(|own| own.name == *name) {
            let KnownHost { id, cordoned, resources, mut joined, .. } = own;
            joined.truncate(MOST_POOLS);
            let resources = resources.map(Resources::plausible);
            self.lock().insert(name.clone(), Told { at: Instant::now(), id, cordoned, resources, joined });
        }
        self.note_addresses(others)
    }

    /// Takes note of where others are, and returns who they are.
    fn note_addresses(&self, others: Vec<KnownHost>) -> Vec<HostName> {
        let mut addresses = self.addresses();
        let mut heard_of = Vec::new();
        for KnownHost { name, address, life, .. } in others {
            let has_room = addresses.len() < MOST_HOSTS || addresses.contains_key(&name);
            if let (Some(address), true, true) = (address, life != Life::Gone, has_room) {
                addresses.insert(name.clone(), address);
                heard_of.push(name);
            }
        }
        heard_of
    }
}

impl Host {
    /// Asks the agents of other machines what their hosts have, until this agent ends.
    pub(super) fn ask_neighbours(self: &Arc<Self>) {
        if !self.network.can_call() {
            return;
        }
        while !self.orders.is_closed() {
            self.ask_around();
            std::thread::sleep(ROUND);
        }
    }

    /// Asks them all once: those in this host's pools, those of which other hosts of this machine know, and whomever they
    /// know in turn.
    fn ask_around(&self) {
        let (mut to_ask, mut asked) = (Vec::new(), BTreeSet::from([self.dir.name().clone()]));
        for host in self.known_hosts().into_iter().filter(|host| host.life != Life::Gone) {
            to_ask.push(host.name);
        }
        // Those of this run directory tell everybody themselves; what counts is whom they know.
        for near in self.dir.run_dir().hosts().unwrap_or_default() {
            to_ask.push(near.name().clone());
        }
        while !to_ask.is_empty() && !self.orders.is_closed() {
            let mut wave = std::mem::take(&mut to_ask);
            wave.retain(|name| asked.len() < MOST_HOSTS && asked.insert(name.clone()));
            // One that is not there is waited for: not for one after the other.
            for some in wave.chunks(ASKED_AT_ONCE) {
                std::thread::scope(|scope| {
                    let asking: Vec<_> = some.iter().map(|name| scope.spawn(|| self.ask(name))).collect();
                    to_ask.extend(asking.into_iter().flat_map(|asked| asked.join().unwrap_or_default()));
                });
            }
        }
        self.neighbours.lock().retain(|_, told| told.at.elapsed() < HOLDS);
        self.neighbours.addresses().retain(|name, _| asked.contains(name));
    }

    /// Asks one of them, if it can be called. Returns those that it knows.
    fn ask(&self, name: &HostName) -> Vec<HostName> {
        let is_near = self.dir.run_dir().host(name).path().is_dir();
        if !is_near && !self.has_address(name) {
            return Vec::new();
        }
        match self.call_host(name).and_then(|mut agent| agent.within(PATIENCE, Client::hosts)) {
            Ok(hosts) if is_near => self.neighbours.note_addresses(hosts),
            Ok(hosts) => self.neighbours.note(name, hosts),
            Err(error) => {
                tracing::debug!("host {name} does not tell what it has: {}", error.story());
                Vec::new()
            }
        }
    }

    /// Asks around for a host that nobody has told of yet.
    pub(super) fn seek(&self, name: &HostName) {
        let is_near = self.dir.run_dir().host(name).path().is_dir();
        if !is_near && self.network.can_call() && self.neighbours.of(name).is_none() {
            self.ask_around();
        }
    }

    /// Every host in the pools that this one has joined, and every other one that has told what it has, by name.
    pub(crate) fn known_hosts(&self) -> Vec<KnownHost> {
        let mut known: BTreeMap<HostName, KnownHost> = BTreeMap::new();
        for membership in self.pools.all() {
            let pool = membership.pool();
            let responsible = responsible_slots(pool);
            for host in pool.hosts() {
                // Names come from shared memory: one that is none belongs to no host that could be called.
                let Ok(name) = host.name.parse::<HostName>() else { continue };
                let life = host.liveness.into();
                let entry = known.entry(name.clone()).or_insert_with(|| KnownHost {
                    here: name == *self.dir.name(),
                    resources: None,
                    joined: Vec::new(),
                    name,
                    id: host.id,
                    life,
                    standing: HostStanding::Alive,
                    cordoned: false,
                    address: None,
                    pools: Vec::new(),
                    guests: 0,
                });
                entry.life = entry.life.min(life);
                let sight = self
                    .vigil
                    .sight(pool.id(), host.slot)
                    .filter(|sight| Some(sight.life) == host.life.map(|it| it.epoch));
                entry.standing = entry.standing.max(sight.map_or(HostStanding::Alive, HostStanding::of));
                entry.cordoned |= host.cordoned;
                entry.address = entry.address.take().or(host.address.map(|address| address.to_string()));
                entry.pools.push(pool.id());
                entry.guests += responsible.iter().filter(|slot| **slot == host.slot).count();
            }
        }
        let told: Vec<HostName> = self.neighbours.lock().keys().cloned().collect();
        for name in told {
            let Some(Told { id, cordoned, resources, joined, .. }) = self.neighbours.of(&name) else { continue };
            let entry = known.entry(name.clone()).or_insert_with(|| KnownHost {
                address: self.neighbours.address_of(&name),
                name,
                id,
                here: false,
                life: Life::Elsewhere,
                standing: HostStanding::Alive,
                cordoned,
                pools: Vec::new(),
                guests: 0,
                resources: None,
                joined: Vec::new(),
            });
            (entry.resources, entry.joined) = (resources, joined);
        }
        let mut known: Vec<KnownHost> = known.into_values().collect();
        if let Some(here) = known.iter_mut().find(|host| host.here) {
            here.resources = Some(self.resources());
            here.joined = self.pools.reports().into_iter().map(JoinedPool::from).collect();
        }
        known
    }

    /// A picture of the fabric as this host knows it, in SVG. Agents of other hosts are not asked.
    ///
    /// # Errors
    /// They make no fabric that can be drawn.
    pub(crate) fn draw_fabric(&self) -> Result<String> {
        let me = self.describe();
        // What there is of this machine, those on it have in common. Of the others the pools tell, and what they have told.
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            self.known_hosts().into_iter().partition(|host| host.life == Life::Alive);
        let report = |host: KnownHost| {
            let pools = me.pools.iter().filter(|pool| host.pools.contains(&pool.id)).cloned().collect();
            HostReport { name: host.name, id: Some(host.id), pools, ..me.clone() }
        };
        let survey = Survey { guests: Vec::new(), hosts: here.into_iter().map(report).collect(), elsewhere };
        let fabric =
            live_fabric(&survey).map_err(|error| Error::refused(format!("the fabric cannot be drawn: {error}")))?;
        Ok(Picture::of(&fabric).svg())
    }
}

/// Of each guest in the pool, the slot of the host that is responsible for it.
fn responsible_slots(pool: &Pool) -> Vec<HostSlot> {
    pool.responsible_hosts().map(|(_, host)| host).collect()
}
