//! The part of a fabric that shares memory, prepared for searching.
//!
//! A host reaches a device over a link, or through switches that reach each other: a *cluster*. All hosts at a cluster
//! reach all devices at it, so that hosts and devices times clusters stand for what would be hosts times devices. Only
//! links whose memory can be shared count.

use crate::model::{DeviceId, Fabric, HostId, LinkId, Node, SwitchId};
use crate::rows::Rows;

/// A link as one of its ends sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Port {
    pub(crate) to: Node,
    pub(crate) link: LinkId,
}

/// Switches that reach each other, with the hosts and devices at them.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) switches: Vec<SwitchId>,
    pub(crate) hosts: Vec<HostId>,
    pub(crate) devices: Vec<DeviceId>,
}

impl Cluster {
    /// Whether anybody reaches anything here.
    pub(crate) fn is_live(&self) -> bool {
        !self.hosts.is_empty() && !self.devices.is_empty()
    }
}

/// Who is linked to what, over links whose memory can be shared.
#[derive(Clone, Debug)]
pub(crate) struct Sharing {
    /// To switches and devices.
    pub(crate) host_ports: Rows<Port>,
    /// To anything.
    pub(crate) switch_ports: Rows<Port>,
    /// To switches and hosts.
    pub(crate) device_ports: Rows<Port>,
    pub(crate) clusters: Vec<Cluster>,
    /// Of each switch.
    pub(crate) cluster_of: Vec<u32>,
    /// The clusters that a host is linked to, each once.
    pub(crate) host_clusters: Rows<u32>,
    /// The clusters that a device is linked to, each once.
    pub(crate) device_clusters: Rows<u32>,
}

impl Sharing {
    pub(crate) fn of(fabric: &Fabric) -> Self {
        let (hosts, switches, devices) = (fabric.hosts().len(), fabric.switches().len(), fabric.devices().len());
        let mut ports = [Vec::new(), Vec::new(), Vec::new()];
        for link in fabric.link_ids().filter(|link| fabric.link(*link).shared) {
            let [a, b] = fabric.link(link).ends;
            for (from, to) in [(a, b), (b, a)] {
                let (kind, place) = match from {
                    Node::Host(id) => (0, id.index()),
                    Node::Switch(id) => (1, id.index()),
                    Node::Device(id) => (2, id.index()),
                };
                ports[kind].push((place, Port { to, link }));
            }
        }
        let [of_hosts, of_switches, of_devices] = ports;
        let host_ports = Rows::group(hosts, of_hosts);
        let switch_ports = Rows::group(switches, of_switches);
        let device_ports = Rows::group(devices, of_devices);
        let (clusters, cluster_of) = clusters(switches, &switch_ports);
        let of = |ports: &Rows<Port>, count: usize| {
            let mut found = Vec::new();
            for row in 0..count {
                let mut near: Vec<u32> = ports
                    .row(row)
                    .iter()
                    .filter_map(|port| match port.to {
                        Node::Switch(switch) => Some(cluster_of[switch.index()]),
                        Node::Host(_) | Node::Device(_) => None,
                    })
                    .collect();
                near.sort_unstable();
                near.dedup();
                found.extend(near.into_iter().map(|cluster| (row, cluster)));
            }
            Rows::group(count, found)
        };
        let (host_clusters, device_clusters) = (of(&host_ports, hosts), of(&device_ports, devices));
        Self { host_ports, switch_ports, device_ports, clusters, cluster_of, host_clusters, device_clusters }
    }

    /// The devices that a host reaches; one that it reaches in several ways comes several times.
    pub(crate) fn reached_by(&self, host: HostId) -> impl Iterator<Item = DeviceId> {
        let direct = self.host_ports.row(host.index()).iter().filter_map(|port| match port.to {
            Node::Device(device) => Some(device),
            Node::Host(_) | Node::Switch(_) => None,
        });
        let clusters = self.host_clusters.row(host.index()).iter();
        direct.chain(clusters.flat_map(|cluster| self.clusters[*cluster as usize].devices.iter().copied()))
    }

    /// The hosts that reach a device; one that reaches it in several ways comes several times.
    pub(crate) fn reaching(&self, device: DeviceId) -> impl Iterator<Item = HostId> {
        let direct = self.device_ports.row(device.index()).iter().filter_map(|port| match port.to {
            Node::Host(host) => Some(host),
            Node::Device(_) | Node::Switch(_) => None,
        });
        let clusters = self.device_clusters.row(device.index()).iter();
        direct.chain(clusters.flat_map(|cluster| self.clusters[*cluster as usize].hosts.iter().copied()))
    }
}

/// Floods the switches, one cluster after the other.
fn clusters(switches: usize, ports: &Rows<Port>) -> (Vec<Cluster>, Vec<u32>) {
    const NONE: u32 = u32::MAX;
    let mut cluster_of = vec![NONE; switches];
    let mut clusters = Vec::new();
    for first in 0..switches {
        if cluster_of[first] != NONE {
            continue;
        }
        let number = u32::try_from(clusters.len()).expect("no more clusters than switches");
        let mut cluster = Cluster { switches: vec![SwitchId::at(first)], hosts: Vec::new(), devices: Vec::new() };
        cluster_of[first] = number;
        let mut looked_at = 0;
        while let Some(switch) = cluster.switches.get(looked_at).copied() {
            looked_at += 1;
            for port in ports.row(switch.index()) {
                match port.to {
                    Node::Host(host) => cluster.hosts.push(host),
                    Node::Device(device) => cluster.devices.push(device),
                    Node::Switch(next) if cluster_of[next.index()] == NONE => {
                        cluster_of[next.index()] = number;
                        cluster.switches.push(next);
                    }
                    Node::Switch(_) => {}
                }
            }
        }
        cluster.hosts.sort_unstable();
        cluster.hosts.dedup();
        cluster.devices.sort_unstable();
        cluster.devices.dedup();
        clusters.push(cluster);
    }
    (clusters, cluster_of)
}
