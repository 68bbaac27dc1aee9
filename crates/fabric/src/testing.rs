//! Small fabrics for tests, and the slow, obvious answers that the quick ones are compared with.

use crate::model::{Builder, Device, Fabric, Host, Link, Node, Switch};
use crate::name::Name;
use crate::quantity::{Bytes, Rate};
use proptest::prelude::*;

pub(crate) const GIB: u64 = 1 << 30;

pub(crate) fn host(name: &str) -> Host {
    Host {
        name: name.parse().expect("a good name"),
        rack: None,
        cpus: 16,
        dram: Bytes(64 * GIB),
        dram_free: Bytes(64 * GIB),
        load: 0.0,
        into_pool: None,
        out_of_pool: None,
        cordoned: false,
    }
}

pub(crate) fn device(name: &str) -> Device {
    Device {
        name: name.parse().expect("a good name"),
        rack: None,
        size: Bytes(1024 * GIB),
        free: Bytes(1024 * GIB),
        bandwidth: Rate(64 * GIB),
        pool: None,
    }
}

pub(crate) fn link(ends: [Node; 2]) -> Link {
    Link { ends, latency_ns: 100, bandwidth: Rate(32 * GIB), shared: true }
}

/// A fabric from its links, `A-P B-s s-P`: hosts are A to M, devices N to Z, switches small letters. A name may go on
/// with digits. `A=P` is a link whose memory cannot be shared.
pub(crate) fn fabric(links: &str) -> Fabric {
    fabric_with(links, |_| {}, |_| {})
}

/// As [`fabric`], with hosts and devices changed before they are added.
pub(crate) fn fabric_with(links: &str, hosts: impl Fn(&mut Host), devices: impl Fn(&mut Device)) -> Fabric {
    let mut builder = Builder::new();
    for word in links.split_whitespace() {
        let (a, b) = word.split_once(['-', '=']).expect("two names");
        let ends = [a, b].map(|name| builder.find(name).unwrap_or_else(|| add(&mut builder, name, &hosts, &devices)));
        builder.link(Link { shared: word.contains('-'), ..link(ends) }).expect("a good link");
    }
    builder.finish()
}

fn add(builder: &mut Builder, name: &str, hosts: &impl Fn(&mut Host), devices: &impl Fn(&mut Device)) -> Node {
    match name.as_bytes()[0] {
        b'A'..=b'M' => {
            let mut host = host(name);
            hosts(&mut host);
            Node::Host(builder.host(host).expect("a good host"))
        }
        b'N'..=b'Z' => {
            let mut device = device(name);
            devices(&mut device);
            Node::Device(builder.device(device).expect("a good device"))
        }
        _ => {
            Node::Switch(builder.switch(Switch { name: name.parse().expect("a good name"), rack: None }).expect("new"))
        }
    }
}

/// Any small fabric: hosts, switches, devices, and links that may be missing, doubled or not shared.
pub(crate) fn any_fabric() -> impl Strategy<Value = Fabric> {
    let one_link = (0_usize..16, 0_usize..16, 0_u32..8, 1_u64..=4, 1_u64..=64);
    let figures = (proptest::collection::vec((0_u32..=9, any::<bool>()), 7), proptest::collection::vec(0_u64..=64, 5));
    (2_usize..=7, 0_usize..=4, 1_usize..=5, proptest::collection::vec(one_link, 0..28), figures).prop_map(
        |(hosts, switches, devices, links, (host_figures, rooms))| {
            let mut builder = Builder::new();
            let mut nodes = Vec::new();
            for (at, (load, cordoned)) in (0..hosts).zip(host_figures) {
                let mut host = host(&format!("h{at}"));
                host.load = f64::from(load) / 10.0;
                host.cordoned = cordoned && load % 3 == 0;
                host.dram_free = Bytes(u64::from(load) * 4 * GIB);
                nodes.push(Node::Host(builder.host(host).expect("a good host")));
            }
            for at in 0..switches {
                let name: Name = format!("s{at}").parse().expect("a good name");
                nodes.push(Node::Switch(builder.switch(Switch { name, rack: None }).expect("a good switch")));
            }
            for (at, room) in (0..devices).zip(rooms) {
                let device = Device { free: Bytes(room * GIB), ..device(&format!("d{at}")) };
                nodes.push(Node::Device(builder.device(device).expect("a good device")));
            }
            for (a, b, kind, bandwidth, latency) in links {
                // Hosts are not linked with hosts, nor devices with devices: one end is a host or a switch, the other a
                // switch or a device.
                let ends = [nodes[a % (hosts + switches)], nodes[hosts + b % (switches + devices)]];
                let bandwidth = Rate(bandwidth * 8 * GIB);
                // A switch with itself makes no link.
                let _ = builder.link(Link { ends, latency_ns: latency * 10, bandwidth, shared: kind != 0 });
            }
            builder.finish()
        },
    )
}

/// The same answers, found without any cleverness.
pub(crate) mod by_hand {
    use crate::model::{Builder, DeviceId, Fabric, HostId, LinkId, Node};

    /// The devices that a host reaches, through switches only.
    pub(crate) fn reach(fabric: &Fabric, host: HostId) -> Vec<DeviceId> {
        let mut seen = vec![Node::Host(host)];
        let mut at = 0;
        while at < seen.len() {
            let node = seen[at];
            at += 1;
            if node != Node::Host(host) && !matches!(node, Node::Switch(_)) {
                continue;
            }
            for link in fabric.links().iter().filter(|link| link.shared && link.ends.contains(&node)) {
                seen.extend(link.ends.into_iter().filter(|end| !seen.contains(end)).collect::<Vec<_>>());
            }
        }
        let mut devices: Vec<DeviceId> = seen
            .into_iter()
            .filter_map(|node| match node {
                Node::Device(device) => Some(device),
                Node::Host(_) | Node::Switch(_) => None,
            })
            .collect();
        devices.sort_unstable();
        devices
    }

    pub(crate) fn namespaces(fabric: &Fabric) -> Vec<Vec<HostId>> {
        let reach: Vec<Vec<DeviceId>> = fabric.host_ids().map(|host| self::reach(fabric, host)).collect();
        let mut space: Vec<usize> = (0..reach.len()).collect();
        for _ in 0..reach.len() {
            for (a, of_a) in reach.iter().enumerate() {
                for (b, of_b) in reach.iter().enumerate() {
                    if of_a.iter().any(|device| of_b.contains(device)) {
                        let least = space[a].min(space[b]);
                        (space[a], space[b]) = (least, least);
                    }
                }
            }
        }
        let spaces = (0..reach.len())
            .map(|number| fabric.host_ids().filter(|host| space[host.index()] == number).collect::<Vec<_>>());
        spaces.filter(|hosts| !hosts.is_empty()).collect()
    }

    /// The fabric without one thing, and without the links at it. Names stay.
    pub(crate) fn without(fabric: &Fabric, node: Option<Node>, link: Option<LinkId>) -> Fabric {
        let mut builder = Builder::new();
        for host in fabric.host_ids().filter(|id| node != Some(Node::Host(*id))) {
            builder.host(fabric.host(host).clone()).expect("it was good before");
        }
        for (at, switch) in fabric.switches().iter().enumerate() {
            if node != Some(Node::Switch(crate::model::SwitchId::at(at))) {
                builder.switch(switch.clone()).expect("it was good before");
            }
        }
        for device in fabric.device_ids().filter(|id| node != Some(Node::Device(*id))) {
            builder.device(fabric.device(device).clone()).expect("it was good before");
        }
        for id in fabric.link_ids().filter(|id| link != Some(*id)) {
            let link = fabric.link(id);
            let ends = link.ends.map(|end| builder.find(fabric.name(end).as_str()));
            if let [Some(a), Some(b)] = ends {
                builder.link(crate::model::Link { ends: [a, b], ..*link }).expect("it was good before");
            }
        }
        builder.finish()
    }
}
