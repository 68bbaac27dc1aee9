//! The hosts that share a pool with this one, what they have, and the fabric that they make.
//!
//! What hosts of other machines have their agents are asked again and again, so that nobody who plans has to wait for them.

use super::Host;
use crate::error::{Error, Result};
use crate::fabric::live_fabric;
use crate::name::HostName;
use crate::report::{HostReport, HostStanding, KnownHost, Life, Resources};
use crate::survey::Survey;
use nil_fabric::Picture;
use nil_pool::{HostSlot, Pool};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often other hosts are asked what they have.
const ROUND: Duration = Duration::from_secs(10);
/// For how long what they have told is taken to be so.
const HOLDS: Duration = Duration::from_secs(60);
/// How long one may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What hosts of other machines have, and when they told so.
#[derive(Debug, Default)]
pub(super) struct Neighbours(Mutex<BTreeMap<HostName, (Instant, Resources)>>);

impl Neighbours {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<HostName, (Instant, Resources)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, name: &HostName) -> Option<Resources> {
        self.lock().get(name).filter(|(at, _)| at.elapsed() < HOLDS).map(|(_, has)| *has)
    }
}

impl Host {
    /// Asks the agents of other machines what their hosts have, until this agent ends.
    pub(super) fn ask_neighbours(self: &Arc<Self>) {
        loop {
            for neighbour in self.known_hosts() {
                if self.orders.is_closed() {
                    return;
                }
                let name = neighbour.name;
                // Those of this run directory tell everybody themselves.
                let is_near = neighbour.here || self.dir.run_dir().host(&name).path().is_dir();
                if is_near || neighbour.life == Life::Gone || !self.has_address(&name) {
                    continue;
                }
                let asked = self.call_host(&name).and_then(|mut agent| {
                    agent.set_patience(Some(PATIENCE));
                    agent.describe()
                });
                match asked.map(|report| report.resources) {
                    Ok(Some(has)) => drop(self.neighbours.lock().insert(name, (Instant::now(), has.plausible()))),
                    Ok(None) => {}
                    Err(error) => tracing::debug!("host {name} does not tell what it has: {}", error.story()),
                }
            }
            self.neighbours.lock().retain(|_, (at, _)| at.elapsed() < HOLDS);
            std::thread::sleep(ROUND);
        }
    }

    /// Every host in the pools that this one has joined, by name.
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
                    resources: self.neighbours.of(&name),
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
        let mut known: Vec<KnownHost> = known.into_values().collect();
        if let Some(here) = known.iter_mut().find(|host| host.here) {
            here.resources = Some(self.resources());
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
