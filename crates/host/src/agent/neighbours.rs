//! The hosts that share a pool with this one, and the fabric that they make.

use super::Host;
use crate::error::{Error, Result};
use crate::fabric::live_fabric;
use crate::name::HostName;
use crate::report::{HostReport, KnownHost, Life};
use crate::survey::Survey;
use nil_fabric::Picture;
use nil_pool::{HostSlot, Ownership, Pool};
use std::collections::BTreeMap;

impl Host {
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
                    name,
                    id: host.id,
                    life,
                    cordoned: false,
                    address: None,
                    pools: Vec::new(),
                    guests: 0,
                });
                entry.life = entry.life.min(life);
                entry.cordoned |= host.cordoned;
                entry.address = entry.address.take().or(host.address.map(|address| address.to_string()));
                entry.pools.push(pool.id());
                entry.guests += responsible.iter().filter(|slot| **slot == host.slot).count();
            }
        }
        known.into_values().collect()
    }

    /// A picture of the fabric as this host knows it, in SVG. Agents of other hosts are not asked.
    ///
    /// # Errors
    /// They make no fabric that can be drawn.
    pub(crate) fn draw_fabric(&self) -> Result<String> {
        let me = self.describe();
        // What there is of this machine, those on it have in common. Of the others the pools tell.
        let here = self.known_hosts().into_iter().filter(|host| host.life == Life::Alive);
        let report = |host: KnownHost| {
            let pools = me.pools.iter().filter(|pool| host.pools.contains(&pool.id)).cloned().collect();
            HostReport { name: host.name, id: Some(host.id), pools, ..me.clone() }
        };
        let survey = Survey { guests: Vec::new(), hosts: here.map(report).collect() };
        let fabric =
            live_fabric(&survey).map_err(|error| Error::refused(format!("the fabric cannot be drawn: {error}")))?;
        Ok(Picture::of(&fabric).svg())
    }
}

/// Of each guest in the pool, the slot of the host that is responsible for it.
fn responsible_slots(pool: &Pool) -> Vec<HostSlot> {
    pool.guests().iter().filter_map(|guest| guest.ownership.and_then(Ownership::responsible)).collect()
}
