//! Migration namespaces: which hosts reach each other by reference, in however many handoffs.

use crate::model::{DeviceId, Fabric, HostId, Node};
use crate::sharing::Sharing;
use std::collections::VecDeque;

/// Hosts among which a guest can move by reference, with the devices over which it does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Namespace {
    /// The hosts. A host that shares nothing with anybody is a namespace of its own.
    pub hosts: Vec<HostId>,
    /// The devices that they reach.
    pub devices: Vec<DeviceId>,
}

/// All namespaces of a fabric, in the order of their first hosts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Namespaces {
    list: Vec<Namespace>,
    of_host: Vec<u32>,
}

impl Namespaces {
    pub(crate) fn of(sharing: &Sharing, hosts: usize, devices: usize) -> Self {
        let mut flood = Flood::new(sharing, hosts, devices);
        let mut of_host = vec![u32::MAX; hosts];
        let mut list = Vec::new();
        for first in (0..hosts).map(HostId::at) {
            if of_host[first.index()] != u32::MAX {
                continue;
            }
            let number = u32::try_from(list.len()).expect("no more namespaces than hosts");
            let mut space = Namespace { hosts: Vec::new(), devices: Vec::new() };
            flood.from(first, |reached, _| match reached {
                Reached::Host(host) => {
                    of_host[host.index()] = number;
                    space.hosts.push(host);
                }
                Reached::Device(device) => space.devices.push(device),
            });
            space.hosts.sort_unstable();
            space.devices.sort_unstable();
            list.push(space);
        }
        Self { list, of_host }
    }

    /// The namespaces.
    #[must_use]
    pub fn list(&self) -> &[Namespace] {
        &self.list
    }

    /// The place in [`Namespaces::list`] of a host's namespace.
    #[must_use]
    pub fn of_host(&self, host: HostId) -> usize {
        self.of_host[host.index()] as usize
    }
}

impl Fabric {
    /// The migration namespaces of this fabric.
    #[must_use]
    pub fn namespaces(&self) -> Namespaces {
        Namespaces::of(&Sharing::of(self), self.hosts().len(), self.devices().len())
    }

    /// How many handoffs each host is away from `host`: 0 itself, 1 its neighbours by reference, `None` what cannot be
    /// reached. Neither room nor cordons count: this is what the fabric would allow.
    #[must_use]
    pub fn handoffs_from(&self, host: HostId) -> Vec<Option<u32>> {
        handoffs_from(&Sharing::of(self), host, self.hosts().len(), self.devices().len())
    }
}

/// As [`Fabric::handoffs_from`], for who has prepared the fabric already.
pub(crate) fn handoffs_from(sharing: &Sharing, host: HostId, hosts: usize, devices: usize) -> Vec<Option<u32>> {
    let mut handoffs = vec![None; hosts];
    Flood::new(sharing, hosts, devices).from(host, |reached, distance| {
        if let Reached::Host(host) = reached {
            handoffs[host.index()] = Some(distance / 2);
        }
    });
    handoffs
}

/// What a flood comes to.
pub(crate) enum Reached {
    Host(HostId),
    Device(DeviceId),
}

/// A breadth-first walk from host to device to host. Each cluster is entered once from hosts and once from devices.
pub(crate) struct Flood<'a> {
    sharing: &'a Sharing,
    hosts: Vec<bool>,
    devices: Vec<bool>,
    down: Vec<bool>,
    up: Vec<bool>,
}

impl<'a> Flood<'a> {
    pub(crate) fn new(sharing: &'a Sharing, hosts: usize, devices: usize) -> Self {
        let clusters = sharing.clusters.len();
        Self {
            sharing,
            hosts: vec![false; hosts],
            devices: vec![false; devices],
            down: vec![false; clusters],
            up: vec![false; clusters],
        }
    }

    /// Visits all that can be reached from `first` and was not visited before, with the number of steps: hosts at even,
    /// devices at odd ones.
    pub(crate) fn from(&mut self, first: HostId, mut visit: impl FnMut(Reached, u32)) {
        let mut queue = VecDeque::from([(Reached::Host(first), 0_u32)]);
        self.hosts[first.index()] = true;
        while let Some((reached, distance)) = queue.pop_front() {
            match reached {
                Reached::Host(host) => {
                    self.descend(host, |device| queue.push_back((Reached::Device(device), distance + 1)));
                }
                Reached::Device(device) => {
                    self.ascend(device, |host| queue.push_back((Reached::Host(host), distance + 1)));
                }
            }
            visit(reached, distance);
        }
    }

    fn descend(&mut self, host: HostId, mut found: impl FnMut(DeviceId)) {
        let mut reach = |device: DeviceId| {
            if first_time(&mut self.devices, device.index()) {
                found(device);
            }
        };
        for port in self.sharing.host_ports.row(host.index()) {
            if let Node::Device(device) = port.to {
                reach(device);
            }
        }
        for cluster in self.sharing.host_clusters.row(host.index()).iter().map(|cluster| *cluster as usize) {
            if first_time(&mut self.down, cluster) {
                self.sharing.clusters[cluster].devices.iter().copied().for_each(&mut reach);
            }
        }
    }

    fn ascend(&mut self, device: DeviceId, mut found: impl FnMut(HostId)) {
        let mut reach = |host: HostId| {
            if first_time(&mut self.hosts, host.index()) {
                found(host);
            }
        };
        for port in self.sharing.device_ports.row(device.index()) {
            if let Node::Host(host) = port.to {
                reach(host);
            }
        }
        for cluster in self.sharing.device_clusters.row(device.index()).iter().map(|cluster| *cluster as usize) {
            if first_time(&mut self.up, cluster) {
                self.sharing.clusters[cluster].hosts.iter().copied().for_each(&mut reach);
            }
        }
    }
}

/// Whether something is come to for the first time.
fn first_time(seen: &mut [bool], at: usize) -> bool {
    !std::mem::replace(&mut seen[at], true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{any_fabric, by_hand, fabric};
    use proptest::prelude::*;

    fn sizes(fabric: &Fabric) -> Vec<usize> {
        fabric.namespaces().list().iter().map(|space| space.hosts.len()).collect()
    }

    #[test]
    fn two_hosts_at_one_device_are_a_namespace_and_a_third_is_another() {
        assert_eq!(sizes(&fabric("A-P B-P C-Q")), [2, 1]);
    }

    #[test]
    fn two_hosts_at_one_switch_without_memory_are_not_neighbours() {
        assert_eq!(sizes(&fabric("A-s B-s")), [1, 1]);
        assert_eq!(sizes(&fabric("A-s B-s s-P")), [2]);
    }

    #[test]
    fn memory_is_not_reached_through_other_memory() {
        // A sees P, B sees Q; that P and Q hang at one switch, which no host is at, is of no use.
        assert_eq!(sizes(&fabric("A-P P-s s-Q B-Q")), [1, 1]);
        assert_eq!(sizes(&fabric("A-P P-s s-Q B-Q C-s")), [3]);
    }

    #[test]
    fn handoffs_are_counted_from_host_to_host() {
        let fabric = fabric("A-P B-P B-Q C-Q D-R");
        assert_eq!(fabric.handoffs_from(HostId(0)), [Some(0), Some(1), Some(2), None]);
    }

    proptest! {
        #[test]
        fn namespaces_are_those_that_are_found_by_hand(fabric in any_fabric()) {
            let spaces = fabric.namespaces();
            let expected = by_hand::namespaces(&fabric);
            let found: Vec<Vec<HostId>> = spaces.list().iter().map(|space| space.hosts.clone()).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
