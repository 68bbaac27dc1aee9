//! Fabrics that nobody has built: for trying things out, for figures, for pictures.
//!
//! Each rack has a switch, hosts and devices at it, and a bridge host to the next rack: its first host is linked
//! straight to the first device of the next rack. So the racks form a ring of one namespace, and a guest goes from rack
//! to rack by a handoff, a relocation and another handoff.

use crate::error::{Error, Result};
use crate::model::{Builder, Device, DeviceId, Fabric, Host, HostId, Link, Node, Switch};
use crate::name::{Name, PoolUuid};
use crate::quantity::{Bytes, Rate};

const GIB: u64 = 1 << 30;

/// What is to be generated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// How many racks.
    pub racks: u32,
    /// How many hosts in each.
    pub hosts: u32,
    /// How many devices in each.
    pub devices: u32,
    /// Which of all fabrics of that shape: loads and free memory depend on it.
    pub seed: u64,
}

/// More of anything than a generated fabric has.
const MOST: u64 = 100_000;

impl Fabric {
    /// A fabric of this shape: the same one for the same shape.
    ///
    /// # Errors
    /// It would have no rack, or a rack no host, or there would be more than 100,000 of something.
    pub fn generate(shape: &Shape) -> Result<Self> {
        for (things, count) in [("hosts", shape.hosts), ("memory devices", shape.devices)] {
            let found = u64::from(shape.racks) * u64::from(count);
            if found > MOST {
                return Err(Error::TooMany { things, found, most: MOST });
            }
        }
        if shape.racks == 0 || shape.hosts == 0 {
            let why = "give at least one rack, with at least one host in each".to_owned();
            return Err(Error::Unreadable { what: "the shape of the fabric".to_owned(), why });
        }
        let mut dice = Dice(shape.seed);
        let mut builder = Builder::new();
        let racks = (1..=shape.racks).map(|number| Rack::add(&mut builder, shape, number, &mut dice));
        let racks: Vec<Rack> = racks.collect::<Result<_>>()?;
        // Two racks need one bridge, not one there and one back.
        let bridges = if racks.len() == 2 { 1 } else { racks.len() };
        for (rack, next) in racks.iter().zip(racks.iter().cycle().skip(1)).take(bridges).filter(|_| racks.len() > 1) {
            if let (Some(host), Some(device)) = (rack.hosts.first(), next.devices.first()) {
                let ends = [Node::Host(*host), Node::Device(*device)];
                builder.link(Link { ends, latency_ns: 400, bandwidth: Rate(16 * GIB), shared: true })?;
            }
        }
        Ok(builder.finish())
    }
}

struct Rack {
    hosts: Vec<HostId>,
    devices: Vec<DeviceId>,
}

impl Rack {
    fn add(builder: &mut Builder, shape: &Shape, number: u32, dice: &mut Dice) -> Result<Self> {
        let rack: Name = format!("r{number}").parse()?;
        let switch = builder.switch(Switch { name: format!("{rack}s1").parse()?, rack: Some(rack.clone()) })?;
        let mut hosts = Vec::new();
        for at in 1..=shape.hosts {
            let dram = 512 * GIB;
            hosts.push(builder.host(Host {
                name: format!("{rack}h{at}").parse()?,
                rack: Some(rack.clone()),
                cpus: 64,
                dram: Bytes(dram),
                dram_free: Bytes(dram / 100 * (20 + dice.below(60))),
                load: f64::from(u32::try_from(5 + dice.below(70)).unwrap_or(0)) / 100.0,
                into_pool: None,
                out_of_pool: None,
                cordoned: false,
            })?);
        }
        let mut devices = Vec::new();
        for at in 1..=shape.devices {
            let size = 4096 * GIB;
            devices.push(builder.device(Device {
                name: format!("{rack}d{at}").parse()?,
                rack: Some(rack.clone()),
                size: Bytes(size),
                free: Bytes(size / 100 * (10 + dice.below(80))),
                bandwidth: Rate(128 * GIB),
                pool: Some(dice.uuid()?),
            })?);
        }
        let links = hosts
            .iter()
            .map(|host| (Node::Host(*host), 120, 32))
            .chain(devices.iter().map(|device| (Node::Device(*device), 90, 64)));
        for (node, latency_ns, gib) in links.collect::<Vec<_>>() {
            builder.link(Link {
                ends: [node, Node::Switch(switch)],
                latency_ns,
                bandwidth: Rate(gib * GIB),
                shared: true,
            })?;
        }
        Ok(Self { hosts, devices })
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): enough to make loads look like loads.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn uuid(&mut self) -> Result<PoolUuid> {
        let (a, b) = (self.next(), self.next());
        let (high, mid, low) = (a >> 32, a >> 16 & 0xffff, a & 0xfff);
        format!("{high:08x}-{mid:04x}-4{low:03x}-8{:03x}-{:012x}", b >> 52, b & 0xffff_ffff_ffff).parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { racks: 4, hosts: 16, devices: 4, seed: 1 };

    #[test]
    fn racks_form_one_namespace_of_the_size_that_was_asked_for() {
        let fabric = Fabric::generate(&SHAPE).expect("a fabric");
        assert_eq!((fabric.hosts().len(), fabric.devices().len(), fabric.switches().len()), (64, 16, 4));
        assert_eq!(fabric.namespaces().list().len(), 1);
    }

    #[test]
    fn the_same_seed_gives_the_same_fabric_and_another_another() {
        let generate = |seed| Fabric::generate(&Shape { seed, ..SHAPE }).expect("a fabric").to_toml();
        assert_eq!(generate(7), generate(7));
        assert_ne!(generate(7), generate(8));
        assert_eq!(Fabric::from_toml(&generate(7)).expect("our own").to_toml(), generate(7));
    }

    #[test]
    fn what_is_no_fabric_or_too_large_a_one_is_refused() {
        for shape in [
            Shape { racks: 0, ..SHAPE },
            Shape { hosts: 0, ..SHAPE },
            Shape { racks: u32::MAX, hosts: u32::MAX, ..SHAPE },
        ] {
            assert!(Fabric::generate(&shape).is_err(), "{shape:?}");
        }
        for (racks, hosts, devices) in [(1, 1, 0), (2, 1, 1), (1, 3, 2)] {
            assert!(Fabric::generate(&Shape { racks, hosts, devices, seed: 0 }).is_ok());
        }
    }
}
