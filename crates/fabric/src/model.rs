//! What a fabric is made of: hosts, switches, memory devices, and the links between them.
//!
//! A [`Fabric`] that exists is consistent: names are unique, links join what can be linked, figures are possible. It is
//! made by a [`Builder`], which refuses the rest; the readers of files stand upon that.

use crate::error::{Error, Result};
use crate::name::{Name, PoolUuid};
use crate::quantity::{Bytes, Rate};
use serde::Serialize;
use std::collections::HashMap;

/// More hosts, switches, devices or links than any fabric has.
const MOST: usize = 1 << 20;
/// A longer latency, in nanoseconds, is no memory's: 1 s.
const LONGEST_LATENCY_NS: u64 = 1_000_000_000;
/// More CPUs than any host has.
const MOST_CPUS: u32 = 1 << 16;

macro_rules! id {
    ($name:ident, $thing:literal) => {
        #[doc = concat!("A ", $thing, " of one fabric: its place in the list of them.")]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(pub(crate) u32);

        impl $name {
            pub(crate) fn index(self) -> usize {
                self.0 as usize
            }

            /// The place `at` in a list, all of which have at most 2²⁰ entries.
            pub(crate) fn at(at: usize) -> Self {
                Self(u32::try_from(at).expect("at most 2^20 of them: the builder counts"))
            }
        }
    };
}

id!(HostId, "host");
id!(SwitchId, "switch");
id!(DeviceId, "memory device");
id!(LinkId, "link");

/// A thing that links end at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Node {
    /// A host.
    Host(HostId),
    /// A switch.
    Switch(SwitchId),
    /// A memory device.
    Device(DeviceId),
}

/// A host.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Host {
    /// Its name.
    pub name: Name,
    /// The rack that it stands in. Pictures are arranged by it; nothing else depends on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rack: Option<Name>,
    /// Its CPUs, at least 1.
    pub cpus: u32,
    /// Its DRAM that guests may have, used or not.
    pub dram: Bytes,
    /// How much of that is free.
    pub dram_free: Bytes,
    /// The part of its CPUs that is busy, 0 to 1.
    pub load: f64,
    /// How fast memory went from its DRAM into pools, as was measured there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub into_pool: Option<Rate>,
    /// How fast memory came out of pools into its DRAM, as was measured there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_of_pool: Option<Rate>,
    /// It takes no guests, neither to keep nor to hand on.
    pub cordoned: bool,
}

/// A switch: memory behind it is reached through it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Switch {
    /// Its name.
    pub name: Name,
    /// The rack that it stands in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rack: Option<Name>,
}

/// A memory device, on which a pool may lie.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Device {
    /// Its name.
    pub name: Name,
    /// The rack that it stands in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rack: Option<Name>,
    /// Its size.
    pub size: Bytes,
    /// How much of that is free.
    pub free: Bytes,
    /// What it can deliver to all hosts together.
    pub bandwidth: Rate,
    /// The pool that lies on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolUuid>,
}

/// A link between two things, good for both directions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its ends.
    pub ends: [Node; 2],
    /// What it adds to every access, in nanoseconds.
    pub latency_ns: u64,
    /// What it can carry.
    pub bandwidth: Rate,
    /// Whether memory that is reached over it can be shared with other hosts.
    pub shared: bool,
}

/// Hosts, switches, memory devices and links, all consistent.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Fabric {
    hosts: Vec<Host>,
    switches: Vec<Switch>,
    devices: Vec<Device>,
    links: Vec<Link>,
    names: HashMap<Name, Node>,
}

impl Fabric {
    /// The hosts, in the order in which they were given.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The switches, in the order in which they were given.
    #[must_use]
    pub fn switches(&self) -> &[Switch] {
        &self.switches
    }

    /// The devices, in the order in which they were given.
    #[must_use]
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// The links, in the order in which they were given.
    #[must_use]
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// A host of this fabric.
    #[must_use]
    pub fn host(&self, id: HostId) -> &Host {
        &self.hosts[id.index()]
    }

    /// A device of this fabric.
    #[must_use]
    pub fn device(&self, id: DeviceId) -> &Device {
        &self.devices[id.index()]
    }

    /// A link of this fabric.
    #[must_use]
    pub fn link(&self, id: LinkId) -> &Link {
        &self.links[id.index()]
    }

    /// Whatever has this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Node> {
        self.names.get(name).copied()
    }

    /// The host of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn find_host(&self, name: &str) -> Result<HostId> {
        match self.find(name) {
            Some(Node::Host(id)) => Ok(id),
            _ => Err(unknown("host", name, self.hosts.iter().map(|host| &host.name))),
        }
    }

    /// The device of this name, or on which the pool with this UUID lies.
    ///
    /// # Errors
    /// There is none.
    pub fn find_device(&self, name: &str) -> Result<DeviceId> {
        if let Some(Node::Device(id)) = self.find(name) {
            return Ok(id);
        }
        let holds = |device: &Device| device.pool.as_ref().is_some_and(|pool| pool.as_str() == name);
        let place = self.devices.iter().position(holds).map(DeviceId::at);
        place.ok_or_else(|| unknown("memory device", name, self.devices.iter().map(|device| &device.name)))
    }

    /// The name of something of this fabric.
    #[must_use]
    pub fn name(&self, node: Node) -> &Name {
        match node {
            Node::Host(id) => &self.hosts[id.index()].name,
            Node::Switch(id) => &self.switches[id.index()].name,
            Node::Device(id) => &self.devices[id.index()].name,
        }
    }

    /// The rack of something of this fabric.
    #[must_use]
    pub fn rack(&self, node: Node) -> Option<&Name> {
        match node {
            Node::Host(id) => self.hosts[id.index()].rack.as_ref(),
            Node::Switch(id) => self.switches[id.index()].rack.as_ref(),
            Node::Device(id) => self.devices[id.index()].rack.as_ref(),
        }
    }

    pub(crate) fn host_ids(&self) -> impl Iterator<Item = HostId> + use<> {
        (0..self.hosts.len()).map(HostId::at)
    }

    pub(crate) fn device_ids(&self) -> impl Iterator<Item = DeviceId> + use<> {
        (0..self.devices.len()).map(DeviceId::at)
    }

    pub(crate) fn link_ids(&self) -> impl Iterator<Item = LinkId> + use<> {
        (0..self.links.len()).map(LinkId::at)
    }
}

fn unknown<'a>(thing: &'static str, name: &str, known: impl ExactSizeIterator<Item = &'a Name>) -> Error {
    const SHOWN: usize = 8;
    let count = known.len();
    let names: Vec<&str> = known.take(SHOWN).map(Name::as_str).collect();
    let more = if count > SHOWN { format!(" and {} more", count - SHOWN) } else { String::new() };
    let known = if names.is_empty() {
        "; there is none at all".to_owned()
    } else {
        format!("; known: {}{more}", names.join(", "))
    };
    Error::Unknown { thing, name: name.chars().take(80).collect(), known }
}

/// Puts a fabric together and refuses what is inconsistent.
#[derive(Debug, Default)]
pub struct Builder {
    fabric: Fabric,
}

impl Builder {
    /// A fabric with nothing in it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a host.
    ///
    /// # Errors
    /// Its name is taken, or a figure is impossible.
    pub fn host(&mut self, host: Host) -> Result<HostId> {
        let wrong = |what: &str| Err(Error::Implausible { name: host.name.clone(), what: what.to_owned() });
        if !(1..=MOST_CPUS).contains(&host.cpus) {
            return wrong("a host has 1 to 65536 CPUs");
        }
        if !(0.0..=1.0).contains(&host.load) {
            return wrong("the load is the busy part of the CPUs, from 0 to 1");
        }
        if [host.into_pool, host.out_of_pool].contains(&Some(Rate(0))) {
            return wrong("memory that is not copied at all; leave the rate out if it was not measured");
        }
        if host.dram_free > host.dram {
            return wrong("more DRAM is free than there is");
        }
        let id = HostId::at(room(self.fabric.hosts.len(), "hosts")?);
        self.take(&host.name, Node::Host(id))?;
        self.fabric.hosts.push(host);
        Ok(id)
    }

    /// Adds a switch.
    ///
    /// # Errors
    /// Its name is taken.
    pub fn switch(&mut self, switch: Switch) -> Result<SwitchId> {
        let id = SwitchId::at(room(self.fabric.switches.len(), "switches")?);
        self.take(&switch.name, Node::Switch(id))?;
        self.fabric.switches.push(switch);
        Ok(id)
    }

    /// Adds a memory device.
    ///
    /// # Errors
    /// Its name is taken, or a figure is impossible.
    pub fn device(&mut self, device: Device) -> Result<DeviceId> {
        let wrong = |what: &str| Err(Error::Implausible { name: device.name.clone(), what: what.to_owned() });
        if device.free > device.size {
            return wrong("more of it is free than there is");
        }
        if device.bandwidth.0 == 0 {
            return wrong("a bandwidth of nothing; leave the device out if it cannot be reached");
        }
        let id = DeviceId::at(room(self.fabric.devices.len(), "memory devices")?);
        self.take(&device.name, Node::Device(id))?;
        self.fabric.devices.push(device);
        Ok(id)
    }

    /// Adds a link.
    ///
    /// # Errors
    /// It joins what cannot be linked, or a figure is impossible.
    pub fn link(&mut self, link: Link) -> Result<LinkId> {
        let [a, b] = link.ends;
        let (a, b) = (self.fabric.name(a), self.fabric.name(b));
        let bad = |why| Err(Error::BadLink { a: a.clone(), b: b.clone(), why });
        match link.ends {
            [Node::Host(_), Node::Host(_)] => return bad("hosts share memory over devices, not with each other"),
            [Node::Device(_), Node::Device(_)] => return bad("one memory device is not reached through another"),
            [a, b] if a == b => return bad("a link has two ends"),
            _ => {}
        }
        if link.latency_ns > LONGEST_LATENCY_NS {
            return bad("a latency of more than a second is no memory's");
        }
        if link.bandwidth.0 == 0 {
            return bad("a bandwidth of nothing; leave the link out if it is down");
        }
        let id = LinkId::at(room(self.fabric.links.len(), "links")?);
        self.fabric.links.push(link);
        Ok(id)
    }

    /// What has this name so far.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Node> {
        self.fabric.find(name)
    }

    /// The fabric.
    #[must_use]
    pub fn finish(self) -> Fabric {
        self.fabric
    }

    fn take(&mut self, name: &Name, node: Node) -> Result<()> {
        if self.fabric.names.contains_key(name) {
            return Err(Error::Duplicate { name: name.clone() });
        }
        self.fabric.names.insert(name.clone(), node);
        Ok(())
    }
}

fn room(taken: usize, things: &'static str) -> Result<usize> {
    if taken < MOST { Ok(taken) } else { Err(Error::TooMany { things, found: taken as u64 + 1, most: MOST as u64 }) }
}
