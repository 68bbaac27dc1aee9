//! The search for a guest's cheapest way.
//!
//! A guest is *on a device*, held by some host, or *at a host*, having come over some device. From a device it is handed
//! to any host that reaches it; at a host its memory is relocated to another device. So the search alternates between
//! hosts and devices, as the path does, and takes each device once: who holds the guest cheapest holds it best.
//!
//! A host may be come to over several devices, at different costs, and what relocation from there costs depends on the
//! device. But who came later *and* over a route that is no wider can do nothing that who came before could not do as
//! well. So a host is gone on from only when it is come to over a wider route than ever before.
//!
//! With one target, a flood from it says how many relocations and handoffs are left at least, which guides the search
//! (A*): most of the fabric is never looked at, and what is found is the cheapest.
//!
//! Without one, any host that will do is looked for, and a cluster of switches is passed once in each direction: from the
//! first device and from the first host that can. All that could be reached is reached, at nearly the least cost; but a
//! thousand hosts and a thousand devices that all reach each other are not told apart a million times.

use crate::model::{DeviceId, HostId, Node};
use crate::namespaces::{Flood, Reached};
use crate::path::{Begin, End};
use crate::planner::Planner;
use crate::quantity::{Bytes, Duration, Rate};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::ControlFlow;

/// What a guest may do where.
pub(crate) trait Rules {
    /// Whether it may be handed on at this host.
    fn may_hop(&self, host: HostId) -> bool;
    /// Whether its memory may go from one device to another there.
    fn may_relocate(&self, host: HostId) -> bool;
    /// Whether it may be come to lie on this device.
    fn may_lie(&self, device: DeviceId) -> bool;
    /// Whether its memory may be brought there.
    fn has_room(&self, device: DeviceId) -> bool;
    /// Whether it may stay at this host.
    fn may_end(&self, host: HostId) -> bool;
}

/// A place on a path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Place {
    Host(HostId),
    Device(DeviceId),
}

/// Where a search begins.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start {
    At { host: HostId, begin: Begin },
    On { device: DeviceId, holder: HostId },
}

/// A search to be made.
pub(crate) struct Search<'a, R> {
    pub(crate) planner: &'a Planner<'a>,
    pub(crate) rules: &'a R,
    pub(crate) memory: Bytes,
    pub(crate) end: End,
    /// How far it is to the target at least; none when there are several.
    pub(crate) bound: Option<&'a Bound>,
}

/// How much is left to a target at least.
pub(crate) struct Bound {
    /// Relocations and handoffs, from each host and, but for one handoff, from each device.
    hosts: Vec<u32>,
    devices: Vec<u32>,
    relocation: Duration,
    handoff: Duration,
    /// The last handoff, into the target itself.
    last: Duration,
}

const FAR: u32 = u32::MAX;

impl Bound {
    pub(crate) fn to(planner: &Planner<'_>, target: HostId, memory: Bytes) -> Self {
        let (hosts, devices) = (planner.fabric().hosts().len(), planner.fabric().devices().len());
        let mut bound = Self {
            hosts: vec![FAR; hosts],
            devices: vec![FAR; devices],
            relocation: planner.least_relocation(memory),
            handoff: planner.model().least_handoff(memory),
            last: planner.least_arrival(target, memory),
        };
        Flood::new(planner.sharing(), hosts, devices).from(target, |reached, distance| match reached {
            Reached::Host(host) => bound.hosts[host.index()] = distance / 2,
            Reached::Device(device) => bound.devices[device.index()] = distance / 2,
        });
        bound
    }

    fn left_on(&self, device: DeviceId) -> Option<Duration> {
        let left = self.devices[device.index()];
        (left != FAR).then(|| (self.relocation + self.handoff).times(left) + self.last)
    }

    fn left_at(&self, host: HostId) -> Option<Duration> {
        let left = self.hosts[host.index()];
        let between = || self.handoff.times(left.saturating_sub(1));
        (left != FAR).then(|| self.relocation.times(left) + between() + self.last)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum At {
    /// It has arrived over this device.
    Goal(HostId, DeviceId),
    Device(DeviceId, HostId),
    Hop(HostId, DeviceId),
    Start(HostId),
}

#[derive(Clone, Copy)]
struct Label {
    at: At,
    cost: Duration,
    before: u32,
}

/// What a search has come to so far.
pub(crate) struct Trail {
    labels: Vec<Label>,
    open: BinaryHeap<Reverse<(Duration, At, u32)>>,
    taken: Vec<bool>,
    cheapest: Vec<Duration>,
    /// The widest route over which each host was gone on from.
    widest: Vec<Option<Rate>>,
    /// The cheapest way to each host that waits, and how wide that is.
    waiting: Vec<Option<(Duration, Rate)>>,
    /// Clusters that were entered from a device, and those from a host that could bring memory to their devices.
    entered: Vec<bool>,
    left: Vec<bool>,
}

const NONE: u32 = u32::MAX;

impl Trail {
    /// The places on the way to a label.
    fn places(&self, mut label: u32) -> Vec<Place> {
        let mut places = Vec::new();
        while label != NONE {
            let Label { at, before, .. } = self.labels[label as usize];
            places.push(match at {
                At::Goal(host, _) | At::Hop(host, _) | At::Start(host) => Place::Host(host),
                At::Device(device, _) => Place::Device(device),
            });
            label = before;
        }
        places.reverse();
        places
    }

    fn push(&mut self, at: At, cost: Duration, guess: Duration, before: u32) {
        let number = u32::try_from(self.labels.len()).expect("fewer labels than pairs of hosts and devices");
        self.labels.push(Label { at, cost, before });
        self.open.push(Reverse((cost + guess, at, number)));
    }
}

impl<R: Rules> Search<'_, R> {
    /// Finds ways from `start`, the cheapest first, each with its places and cost, until `found` has had enough.
    ///
    /// `banned` are places to which the very first step must not go.
    pub(crate) fn run(
        &self,
        start: Start,
        banned: &[Place],
        mut found: impl FnMut(HostId, &dyn Fn() -> Vec<Place>, Duration) -> ControlFlow<()>,
    ) {
        let fabric = self.planner.fabric();
        let mut trail = Trail {
            labels: Vec::new(),
            open: BinaryHeap::new(),
            taken: vec![false; fabric.devices().len()],
            cheapest: vec![Duration::FOREVER; fabric.devices().len()],
            widest: vec![None; fabric.hosts().len()],
            waiting: vec![None; fabric.hosts().len()],
            entered: vec![false; self.planner.sharing().clusters.len()],
            left: vec![false; self.planner.sharing().clusters.len()],
        };
        let begin = match start {
            Start::At { host, begin } => {
                trail.push(At::Start(host), Duration(0), Duration(0), NONE);
                Some((host, begin))
            }
            Start::On { device, holder } => {
                trail.push(At::Device(device, holder), Duration(0), Duration(0), NONE);
                None
            }
        };
        while let Some(Reverse((_, at, number))) = trail.open.pop() {
            let banned = if number == 0 { banned } else { &[] };
            match at {
                At::Goal(host, _) => {
                    let cost = trail.labels[number as usize].cost;
                    if found(host, &|| trail.places(number), cost).is_break() {
                        return;
                    }
                }
                At::Device(device, holder) => {
                    if !std::mem::replace(&mut trail.taken[device.index()], true) {
                        self.hand_on(&mut trail, number, device, holder, banned);
                    }
                }
                At::Start(host) => {
                    let (_, begin) = begin.expect("a start at a host has where it begins");
                    // Nobody comes back to where the search began, which would be a way around what is banned there.
                    trail.widest[host.index()] = Some(Rate(u64::MAX));
                    self.go_on(&mut trail, number, host, begin, banned);
                }
                At::Hop(host, device) => {
                    let width = self.planner.route(host, device).map(|route| route.bandwidth);
                    if width > trail.widest[host.index()] {
                        trail.widest[host.index()] = width;
                        self.go_on(&mut trail, number, host, Begin::Device(device), banned);
                    }
                }
            }
        }
    }

    /// From a device to the hosts that reach it.
    ///
    fn hand_on(&self, trail: &mut Trail, number: u32, device: DeviceId, holder: HostId, banned: &[Place]) {
        let sharing = self.planner.sharing();
        for port in sharing.device_ports.row(device.index()) {
            if let Node::Host(host) = port.to {
                self.hand_to(trail, number, device, holder, host, banned);
            }
        }
        for cluster in sharing.device_clusters.row(device.index()).iter().map(|cluster| *cluster as usize) {
            if !std::mem::replace(&mut trail.entered[cluster], true) || self.bound.is_some() {
                for host in &sharing.clusters[cluster].hosts {
                    self.hand_to(trail, number, device, holder, *host, banned);
                }
            }
        }
    }

    fn hand_to(
        &self,
        trail: &mut Trail,
        number: u32,
        device: DeviceId,
        holder: HostId,
        host: HostId,
        banned: &[Place],
    ) {
        let ends = self.rules.may_end(host);
        let hops = self.planner.leads_on(host) && self.rules.may_hop(host);
        if host == holder || !(ends || hops) || banned.contains(&Place::Host(host)) {
            return;
        }
        let Some(route) = self.planner.route(host, device) else { return };
        let cost = trail.labels[number as usize].cost;
        let (model, pace) = (self.planner.model(), self.planner.pace(host));
        let arrived = cost + model.take(self.memory, route, pace).total();
        if ends {
            let last = match self.end {
                End::Device => Duration(0),
                End::Dram => model.recouple(self.memory, route, pace).time(),
            };
            trail.push(At::Goal(host, device), arrived + last, Duration(0), number);
        }
        let width = route.bandwidth;
        let known = trail.waiting[host.index()].is_some_and(|(cost, known)| cost <= arrived && known >= width);
        if hops && !known && Some(width) > trail.widest[host.index()] && self.opens(trail, host) {
            let Some(guess) = self.bound.map_or(Some(Duration(0)), |bound| bound.left_at(host)) else { return };
            if trail.waiting[host.index()].is_none_or(|(cost, _)| arrived < cost) {
                trail.waiting[host.index()] = Some((arrived, width));
            }
            trail.push(At::Hop(host, device), arrived, guess, number);
        }
    }

    /// From a host to the devices that it reaches.
    fn go_on(&self, trail: &mut Trail, number: u32, host: HostId, begin: Begin, banned: &[Place]) {
        let sharing = self.planner.sharing();
        for port in sharing.host_ports.row(host.index()) {
            if let Node::Device(device) = port.to {
                self.bring_to(trail, number, host, begin, device, banned);
            }
        }
        let copies = begin == Begin::Dram || self.rules.may_relocate(host);
        for cluster in sharing.host_clusters.row(host.index()).iter().map(|cluster| *cluster as usize) {
            if !trail.left[cluster] || self.bound.is_some() {
                trail.left[cluster] |= copies;
                for device in &sharing.clusters[cluster].devices {
                    self.bring_to(trail, number, host, begin, *device, banned);
                }
            }
        }
    }

    /// Whether there may be devices that a host reaches and nobody before it could bring memory to.
    fn opens(&self, trail: &Trail, host: HostId) -> bool {
        let sharing = self.planner.sharing();
        let clusters = sharing.host_clusters.row(host.index());
        self.bound.is_some()
            || clusters.iter().any(|cluster| !trail.left[*cluster as usize])
            || sharing.host_ports.row(host.index()).iter().any(|port| matches!(port.to, Node::Device(_)))
    }

    fn bring_to(&self, trail: &mut Trail, number: u32, host: HostId, begin: Begin, device: DeviceId, banned: &[Place]) {
        let cost = trail.labels[number as usize].cost;
        if trail.taken[device.index()] || !self.rules.may_lie(device) || banned.contains(&Place::Device(device)) {
            return;
        }
        let Some(guess) = self.bound.map_or(Some(Duration(0)), |bound| bound.left_on(device)) else { return };
        let Some(brought) = self.bring(host, begin, device) else { return };
        let cost = cost + brought;
        if cost < trail.cheapest[device.index()] {
            trail.cheapest[device.index()] = cost;
            trail.push(At::Device(device, host), cost, guess, number);
        }
    }

    /// What it costs to have the memory on a device and to begin the handoff there; none if that cannot be.
    fn bring(&self, host: HostId, begin: Begin, device: DeviceId) -> Option<Duration> {
        let route = self.planner.route(host, device)?;
        let (model, pace) = (self.planner.model(), self.planner.pace(host));
        let copy = match begin {
            Begin::AnyDevice => Duration(0),
            Begin::Device(from) if from == device => Duration(0),
            _ if !self.rules.has_room(device) => return None,
            Begin::Dram => model.decouple(self.memory, route, pace).time(),
            Begin::Device(_) if !self.rules.may_relocate(host) => return None,
            Begin::Device(from) => {
                let from = self.planner.route(host, from)?;
                model.relocate(self.memory, from, route, pace).time()
            }
        };
        Some(copy + model.hand(route).total())
    }
}
