//! The fabric as it is seen from living hosts: who has joined which pool, and no more than that.
//!
//! Nobody has told what lies between a host and a pool, so there is one link for each membership, with the figures that
//! are assumed when nothing is said.

use crate::error::Result;
use crate::model::{Builder, Device, Fabric, Host, Link, Node};
use crate::name::{Name, PoolUuid};
use crate::quantity::Bytes;
use crate::schema::{DEVICE_BANDWIDTH, LINK_BANDWIDTH, LINK_LATENCY_NS};
use std::collections::BTreeMap;

/// A pool that somebody has joined.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LivePool {
    /// Its identity.
    pub id: PoolUuid,
    /// What to call it.
    pub name: Name,
    /// Its size.
    pub size: Bytes,
    /// How much of that is free.
    pub free: Bytes,
}

/// A host that lives, with the pools that it has joined.
#[derive(Clone, PartialEq, Debug)]
pub struct LiveHost {
    /// The host.
    pub host: Host,
    /// Its pools.
    pub pools: Vec<PoolUuid>,
}

impl Fabric {
    /// Puts hosts and pools together. Of a pool that nobody describes, nothing but its identity is known.
    ///
    /// # Errors
    /// Names are taken twice, or figures are impossible.
    pub fn from_pools(hosts: &[LiveHost], pools: &[LivePool]) -> Result<Self> {
        let mut builder = Builder::new();
        let mut devices = BTreeMap::new();
        for pool in pools {
            let device = builder.device(device_of(pool))?;
            devices.insert(pool.id.clone(), device);
        }
        for LiveHost { host, pools } in hosts {
            let host = builder.host(host.clone())?;
            for pool in pools {
                let device = match devices.get(pool) {
                    Some(device) => *device,
                    None => {
                        let unknown =
                            LivePool { id: pool.clone(), name: pool.as_str().parse()?, size: Bytes(0), free: Bytes(0) };
                        let device = builder.device(device_of(&unknown))?;
                        devices.insert(pool.clone(), device);
                        device
                    }
                };
                builder.link(Link {
                    ends: [Node::Host(host), Node::Device(device)],
                    latency_ns: LINK_LATENCY_NS,
                    bandwidth: LINK_BANDWIDTH,
                    shared: true,
                })?;
            }
        }
        Ok(builder.finish())
    }
}

fn device_of(pool: &LivePool) -> Device {
    Device {
        name: pool.name.clone(),
        rack: None,
        size: pool.size,
        free: pool.free,
        bandwidth: DEVICE_BANDWIDTH,
        pool: Some(pool.id.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{GIB, host};

    const P: &str = "5e1f0b1c-0000-4000-8000-00000000000a";
    const Q: &str = "5e1f0b1c-0000-4000-8000-00000000000b";

    fn live(name: &str, pools: &[&str]) -> LiveHost {
        LiveHost { host: host(name), pools: pools.iter().map(|pool| pool.parse().expect("a uuid")).collect() }
    }

    #[test]
    fn hosts_that_joined_one_pool_are_neighbours_whether_or_not_it_is_described() {
        let pool = LivePool {
            id: P.parse().expect("a uuid"),
            name: "pool".parse().expect("a name"),
            size: Bytes(8 * GIB),
            free: Bytes(GIB),
        };
        let hosts = [live("A", &[P]), live("B", &[P, Q]), live("C", &[Q]), live("D", &[])];
        let fabric = Fabric::from_pools(&hosts, &[pool]).expect("a fabric");
        assert_eq!(fabric.handoffs_from(fabric.find_host("A").expect("A")), [Some(0), Some(1), Some(2), None]);
        assert_eq!(fabric.device(fabric.find_device(P).expect("the pool")).free, Bytes(GIB));
        assert_eq!(fabric.device(fabric.find_device(Q).expect("the other")).name.as_str(), Q);
    }
}
