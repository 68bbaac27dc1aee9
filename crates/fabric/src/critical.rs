//! Critical hosts, devices, switches and links: those whose loss splits a namespace.
//!
//! The graph has the hosts, the devices, and a *hub* for each cluster of switches. Taking a vertex away is answered for
//! all vertices by one depth-first walk, taking an edge away by the same. Two things are not so simple:
//!
//! - *A hub that has lost its last host or its last device leads nowhere.* It must not hold together what is left. So
//!   hosts and devices are judged on a graph in which a cluster with one host (or one device) has no hub: its links go
//!   to that host (or device) straight, and fall off with it.
//! - *A switch, or a link to one, is a part of a hub.* What is left of its cluster is found by walking through that
//!   cluster, and joins the pieces into which the fabric would fall without the hub at all.
//!
//! The cost is that of two walks, plus for each switch and each bridge between switches that of its own cluster.

use crate::depth_first::{DepthFirst, Edge};
use crate::model::{DeviceId, Fabric, HostId, LinkId, Node, SwitchId};
use crate::namespaces::Namespaces;
use crate::rows::Rows;
use crate::sharing::Sharing;
use std::collections::HashMap;
use std::ops::Range;

/// How many hosts of a part are named.
const NAMED: usize = 4;

/// What may be lost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Element {
    /// A host.
    Host(HostId),
    /// A memory device.
    Device(DeviceId),
    /// A switch.
    Switch(SwitchId),
    /// A link.
    Link(LinkId),
}

/// Hosts that stay together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// How many there are.
    pub hosts: usize,
    /// Four of them at most.
    pub some: Vec<HostId>,
}

/// Something whose loss splits a namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Critical {
    /// What would be lost.
    pub element: Element,
    /// The place of the namespace in [`Namespaces::list`].
    pub namespace: usize,
    /// What it falls into: at least two parts, the largest first. A lost host is in none.
    pub parts: Vec<Part>,
}

impl Critical {
    /// How many hosts are no longer with most of the others.
    #[must_use]
    pub fn cut_off(&self) -> usize {
        self.parts.iter().skip(1).map(|part| part.hosts).sum()
    }
}

impl Fabric {
    /// All whose loss splits a namespace: what cuts off most hosts comes first.
    #[must_use]
    pub fn critical(&self) -> Vec<Critical> {
        let sharing = Sharing::of(self);
        let namespaces = Namespaces::of(&sharing, self.hosts().len(), self.devices().len());
        let mut found = Vec::new();
        of_vertices(self, &sharing, &mut found);
        of_clusters(self, &sharing, &mut found);
        let mut critical: Vec<Critical> = found
            .into_iter()
            .map(|(element, mut parts)| {
                parts.sort_by(|a, b| b.hosts.cmp(&a.hosts).then_with(|| a.some.cmp(&b.some)));
                Critical { element, namespace: namespaces.of_host(parts[0].some[0]), parts }
            })
            .collect();
        critical.sort_by(|a, b| b.cut_off().cmp(&a.cut_off()).then_with(|| a.element.cmp(&b.element)));
        critical
    }
}

type Found = Vec<(Element, Vec<Part>)>;

/// Which clusters are hubs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hubs {
    /// All at which anybody reaches anything.
    All,
    /// Those with two hosts and two devices at least.
    Braced,
}

/// The graph, walked through.
struct Walked {
    hosts: usize,
    first_hub: usize,
    /// The direct link of each edge, where there is exactly one.
    links: Vec<Option<LinkId>>,
    walk: DepthFirst,
    /// The hosts as the walk came to them.
    host_order: Vec<HostId>,
    /// How many hosts the walk came to before each number.
    hosts_before: Vec<u32>,
}

impl Walked {
    fn new(fabric: &Fabric, sharing: &Sharing, hubs: Hubs) -> Self {
        let hosts = fabric.hosts().len();
        let first_hub = hosts + fabric.devices().len();
        let vertices = first_hub + sharing.clusters.len();
        let mut edges = Vec::new();
        let mut links = Vec::new();
        let mut join = |a: usize, b: usize, link: Option<LinkId>| {
            let id = u32::try_from(links.len()).expect("fewer than 2^32 links");
            links.push(link);
            for (from, to) in [(a, b), (b, a)] {
                edges.push((from, Edge { to: u32::try_from(to).expect("fewer than 2^32 vertices"), id }));
            }
        };
        for ((host, device), link) in direct(fabric) {
            join(host.index(), hosts + device.index(), link);
        }
        for (number, cluster) in sharing.clusters.iter().enumerate().filter(|(_, cluster)| cluster.is_live()) {
            let of_hosts = cluster.hosts.iter().map(|host| host.index());
            let of_devices = cluster.devices.iter().map(|device| hosts + device.index());
            match (&cluster.hosts[..], &cluster.devices[..]) {
                ([only], _) if hubs == Hubs::Braced => of_devices.for_each(|device| join(only.index(), device, None)),
                (_, [only]) if hubs == Hubs::Braced => of_hosts.for_each(|host| join(host, hosts + only.index(), None)),
                _ => of_hosts.chain(of_devices).for_each(|member| join(first_hub + number, member, None)),
            }
        }
        let walk = DepthFirst::walk(vertices, &Rows::group(vertices, edges));
        let mut host_order = Vec::with_capacity(hosts);
        let mut hosts_before = vec![0];
        for vertex in walk.order() {
            if (*vertex as usize) < hosts {
                host_order.push(HostId(*vertex));
            }
            hosts_before.push(u32::try_from(host_order.len()).expect("fewer than 2^32 hosts"));
        }
        Self { hosts, first_hub, links, walk, host_order, hosts_before }
    }

    /// The hosts of a range of numbers.
    fn hosts_in(&self, range: &Range<u32>) -> &[HostId] {
        let at = |number: u32| self.hosts_before[number as usize] as usize;
        &self.host_order[at(range.start)..at(range.end)]
    }

    /// What the vertex's component falls into without it: the subtrees that fall off, and the rest.
    fn without(&self, vertex: usize) -> Pieces {
        let cut = self.walk.cut_off(vertex);
        let component = self.walk.component(vertex);
        let own = self.walk.entered(vertex);
        let mut holes: Vec<Range<u32>> = cut.clone();
        holes.push(own..own + 1);
        let rest = gaps(&component, holes);
        Pieces { cut, rest }
    }

    fn part(&self, ranges: &[Range<u32>]) -> Part {
        let hosts = ranges.iter().map(|range| self.hosts_in(range).len()).sum();
        let some = ranges.iter().flat_map(|range| self.hosts_in(range)).take(NAMED).copied().collect();
        Part { hosts, some }
    }
}

/// What is left of `all` without `holes`.
fn gaps(all: &Range<u32>, mut holes: Vec<Range<u32>>) -> Vec<Range<u32>> {
    holes.sort_by_key(|hole| hole.start);
    let mut left = Vec::new();
    let mut from = all.start;
    for hole in holes {
        if from < hole.start {
            left.push(from..hole.start);
        }
        from = hole.end;
    }
    if from < all.end {
        left.push(from..all.end);
    }
    left
}

/// The pieces that are left without a vertex.
struct Pieces {
    /// One each.
    cut: Vec<Range<u32>>,
    /// One together, the last.
    rest: Vec<Range<u32>>,
}

impl Pieces {
    /// The number of pieces, the last of which may be empty.
    fn count(&self) -> usize {
        self.cut.len() + 1
    }

    /// The piece that has this number of the walk.
    fn of(&self, number: u32) -> usize {
        let before = self.cut.partition_point(|range| range.end <= number);
        if self.cut.get(before).is_some_and(|range| range.contains(&number)) { before } else { self.cut.len() }
    }

    fn ranges(&self, piece: usize) -> &[Range<u32>] {
        self.cut.get(piece).map_or(&self.rest, std::slice::from_ref)
    }
}

/// The pairs of host and device that are linked straight, with the link if there is but one.
fn direct(fabric: &Fabric) -> Vec<((HostId, DeviceId), Option<LinkId>)> {
    let mut pairs: Vec<((HostId, DeviceId), LinkId)> = Vec::new();
    for link in fabric.link_ids().filter(|link| fabric.link(*link).shared) {
        match fabric.link(link).ends {
            [Node::Host(host), Node::Device(device)] | [Node::Device(device), Node::Host(host)] => {
                pairs.push(((host, device), link));
            }
            _ => {}
        }
    }
    pairs.sort_unstable();
    let same = pairs.chunk_by(|a, b| a.0 == b.0);
    same.map(|links| (links[0].0, if let [(_, link)] = links { Some(*link) } else { None })).collect()
}

fn note(found: &mut Found, element: Element, parts: impl IntoIterator<Item = Part>) {
    let parts: Vec<Part> = parts.into_iter().filter(|part| part.hosts > 0).collect();
    if parts.len() > 1 {
        found.push((element, parts));
    }
}

/// Hosts and devices.
fn of_vertices(fabric: &Fabric, sharing: &Sharing, found: &mut Found) {
    let walked = Walked::new(fabric, sharing, Hubs::Braced);
    let hosts = fabric.host_ids().map(|host| (Element::Host(host), host.index()));
    let devices = fabric.device_ids().map(|device| (Element::Device(device), walked.hosts + device.index()));
    for (element, vertex) in hosts.chain(devices) {
        let pieces = walked.without(vertex);
        if pieces.count() > 1 {
            note(found, element, (0..pieces.count()).map(|piece| walked.part(pieces.ranges(piece))));
        }
    }
}

/// Links and switches.
fn of_clusters(fabric: &Fabric, sharing: &Sharing, found: &mut Found) {
    let walked = Walked::new(fabric, sharing, Hubs::All);
    for (edge, lower) in walked.walk.bridges() {
        if let Some(link) = walked.links[edge as usize] {
            let below = walked.walk.subtree(lower);
            let rest = gaps(&walked.walk.component(lower), vec![below.clone()]);
            note(found, Element::Link(link), [walked.part(&[below]), walked.part(&rest)]);
        }
    }
    let mut bridges = vec![Vec::new(); sharing.clusters.len()];
    for link in switch_bridges(fabric, sharing) {
        if let [Node::Switch(end), _] = fabric.link(link).ends {
            bridges[sharing.cluster_of[end.index()] as usize].push(link);
        }
    }
    for (number, bridges) in bridges.into_iter().enumerate().filter(|(number, _)| sharing.clusters[*number].is_live()) {
        let hub = Hub::new(sharing, &walked, number);
        hub.attachments(found);
        for switch in &sharing.clusters[number].switches {
            note(found, Element::Switch(*switch), hub.parts_without(Some(*switch), None));
        }
        for link in bridges {
            note(found, Element::Link(link), hub.parts_without(None, Some(link)));
        }
    }
}

/// The links between switches without which their cluster falls apart.
fn switch_bridges(fabric: &Fabric, sharing: &Sharing) -> Vec<LinkId> {
    let switches = fabric.switches().len();
    let mut edges = Vec::new();
    for at in 0..switches {
        for port in sharing.switch_ports.row(at) {
            if let Node::Switch(to) = port.to {
                edges.push((at, Edge { to: to.0, id: port.link.0 }));
            }
        }
    }
    let walk = DepthFirst::walk(switches, &Rows::group(switches, edges));
    walk.bridges().map(|(link, _)| LinkId(link)).collect()
}

/// A cluster, and the pieces of the fabric that it holds together.
struct Hub<'a> {
    sharing: &'a Sharing,
    walked: &'a Walked,
    number: usize,
    pieces: Pieces,
}

/// A link between a host or a device and a switch.
struct Attachment {
    member: Node,
    piece: usize,
    switch: SwitchId,
    link: LinkId,
}

impl<'a> Hub<'a> {
    fn new(sharing: &'a Sharing, walked: &'a Walked, number: usize) -> Self {
        Self { sharing, walked, number, pieces: walked.without(walked.first_hub + number) }
    }

    fn list(&self) -> impl Iterator<Item = Attachment> {
        let cluster = &self.sharing.clusters[self.number];
        cluster.switches.iter().flat_map(move |switch| {
            self.sharing.switch_ports.row(switch.index()).iter().filter_map(move |port| {
                let vertex = match port.to {
                    Node::Host(host) => host.index(),
                    Node::Device(device) => self.walked.hosts + device.index(),
                    Node::Switch(_) => return None,
                };
                let piece = self.pieces.of(self.walked.walk.entered(vertex));
                Some(Attachment { member: port.to, piece, switch: *switch, link: port.link })
            })
        })
    }

    /// The links by which hosts and devices hang at this cluster.
    fn attachments(&self, found: &mut Found) {
        let cluster = &self.sharing.clusters[self.number];
        let mut links_of: HashMap<Node, u32> = HashMap::new();
        let mut members_of = vec![0_u32; self.pieces.count()];
        for attachment in self.list() {
            let links = links_of.entry(attachment.member).or_default();
            *links += 1;
            if *links == 1 {
                members_of[attachment.piece] += 1;
            }
        }
        for Attachment { member, piece, link, .. } in self.list().filter(|one| links_of[&one.member] == 1) {
            let last = match member {
                Node::Host(_) => cluster.hosts.len() == 1,
                Node::Device(_) | Node::Switch(_) => cluster.devices.len() == 1,
            };
            if last {
                note(found, Element::Link(link), self.parts_without(None, Some(link)));
            } else if members_of[piece] == 1 {
                let own = self.pieces.ranges(piece);
                let component = self.walked.walk.component(self.walked.first_hub + self.number);
                let rest = gaps(&component, own.to_vec());
                note(found, Element::Link(link), [self.walked.part(own), self.walked.part(&rest)]);
            }
        }
    }

    /// What the namespace falls into without a switch or a link of this cluster.
    fn parts_without(&self, switch: Option<SwitchId>, link: Option<LinkId>) -> Vec<Part> {
        let shard_of = self.shards(switch, link);
        let shards = shard_of.values().max().map_or(0, |last| last + 1);
        let left: Vec<Attachment> =
            self.list().filter(|one| Some(one.switch) != switch && Some(one.link) != link).collect();
        let mut has = vec![(false, false); shards];
        for one in &left {
            let (hosts, devices) = &mut has[shard_of[&one.switch]];
            *hosts |= matches!(one.member, Node::Host(_));
            *devices |= matches!(one.member, Node::Device(_));
        }
        // A piece, or behind them a shard, with whom it is together.
        let count = self.pieces.count();
        let mut together: Vec<usize> = (0..count + shards).collect();
        for one in &left {
            let shard = shard_of[&one.switch];
            if has[shard] == (true, true) {
                let (a, b) = (first_of(&mut together, one.piece), first_of(&mut together, count + shard));
                together[a.max(b)] = a.min(b);
            }
        }
        let mut ranges: Vec<Vec<Range<u32>>> = vec![Vec::new(); count];
        for piece in 0..count {
            let first = first_of(&mut together, piece);
            ranges[first].extend_from_slice(self.pieces.ranges(piece));
        }
        ranges.iter().map(|ranges| self.walked.part(ranges)).collect()
    }

    /// The part of the cluster in which each switch is, without a switch or a link.
    fn shards(&self, switch: Option<SwitchId>, link: Option<LinkId>) -> HashMap<SwitchId, usize> {
        let mut shard_of = HashMap::new();
        let mut count = 0;
        for first in self.sharing.clusters[self.number].switches.iter().filter(|one| Some(**one) != switch) {
            if shard_of.contains_key(first) {
                continue;
            }
            let mut open = vec![*first];
            shard_of.insert(*first, count);
            while let Some(at) = open.pop() {
                for port in self.sharing.switch_ports.row(at.index()) {
                    if let Node::Switch(next) = port.to {
                        let gone = Some(next) == switch || Some(port.link) == link;
                        if !gone && !shard_of.contains_key(&next) {
                            shard_of.insert(next, count);
                            open.push(next);
                        }
                    }
                }
            }
            count += 1;
        }
        shard_of
    }
}

/// The first of those that `at` is together with.
fn first_of(together: &mut [usize], mut at: usize) -> usize {
    while together[at] != at {
        together[at] = together[together[at]];
        at = together[at];
    }
    at
}

#[cfg(test)]
mod tests;
