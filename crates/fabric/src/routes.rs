//! Over which links a host reaches a device: the route of the lowest latency, and of those the widest.
//!
//! Routes between switches are found when they are first asked for, one switch of origin at a time, and kept.

use crate::model::{DeviceId, Fabric, HostId, LinkId, Node, SwitchId};
use crate::quantity::Rate;
use crate::sharing::Sharing;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::OnceLock;

/// What a route is worth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// What it adds to every access, in nanoseconds.
    pub latency_ns: u64,
    /// What it can carry: no more than any of its links, or the device.
    pub bandwidth: Rate,
}

impl Route {
    fn better_than(self, other: Self) -> bool {
        (self.latency_ns, Reverse(self.bandwidth)) < (other.latency_ns, Reverse(other.bandwidth))
    }

    fn and(self, latency_ns: u64, bandwidth: Rate) -> Self {
        Self { latency_ns: self.latency_ns + latency_ns, bandwidth: self.bandwidth.min(bandwidth) }
    }
}

/// How one switch is reached from another.
#[derive(Clone, Copy)]
struct Reached {
    route: Route,
    /// The last link on the way, and the switch before it.
    last: Option<(LinkId, SwitchId)>,
}

/// All routes of a fabric.
pub(crate) struct Routes {
    /// The place of each switch in its cluster.
    place: Vec<u32>,
    /// From each switch to all of its cluster, by place.
    from: Vec<OnceLock<Box<[Reached]>>>,
}

/// The two ends of a route that goes through switches: from the host into the first, from the device into the last.
type Ends = ((LinkId, SwitchId), (LinkId, SwitchId));

impl Routes {
    pub(crate) fn of(fabric: &Fabric, sharing: &Sharing) -> Self {
        let mut place = vec![0; fabric.switches().len()];
        for cluster in &sharing.clusters {
            for (at, switch) in (0_u32..).zip(&cluster.switches) {
                place[switch.index()] = at;
            }
        }
        Self { place, from: fabric.switches().iter().map(|_| OnceLock::new()).collect() }
    }

    /// The best route from a host to a device, if there is any.
    pub(crate) fn best(&self, fabric: &Fabric, sharing: &Sharing, host: HostId, device: DeviceId) -> Option<Route> {
        self.find(fabric, sharing, host, device).map(|(route, _)| route)
    }

    /// The links of the best route.
    pub(crate) fn links(&self, fabric: &Fabric, sharing: &Sharing, host: HostId, device: DeviceId) -> Vec<LinkId> {
        match self.find(fabric, sharing, host, device) {
            None => Vec::new(),
            Some((_, Err(direct))) => vec![direct],
            Some((_, Ok(((first, origin), (last, end))))) => {
                let row = self.row(fabric, sharing, origin);
                let mut links = vec![last];
                let mut at = end;
                while let Some((link, before)) = row[self.place[at.index()] as usize].last {
                    links.push(link);
                    at = before;
                }
                links.push(first);
                links.reverse();
                links
            }
        }
    }

    fn find(
        &self,
        fabric: &Fabric,
        sharing: &Sharing,
        host: HostId,
        device: DeviceId,
    ) -> Option<(Route, Result<Ends, LinkId>)> {
        let limit = fabric.device(device).bandwidth;
        let mut best: Option<(Route, Result<Ends, LinkId>)> = None;
        let mut offer = |route: Route, over| {
            if best.as_ref().is_none_or(|(known, _)| route.better_than(*known)) {
                best = Some((route, over));
            }
        };
        for port in sharing.host_ports.row(host.index()) {
            let link = fabric.link(port.link);
            let begin = Route { latency_ns: link.latency_ns, bandwidth: link.bandwidth.min(limit) };
            match port.to {
                Node::Device(end) if end == device => offer(begin, Err(port.link)),
                Node::Device(_) | Node::Host(_) => {}
                Node::Switch(first) => {
                    for end in sharing.device_ports.row(device.index()) {
                        let Node::Switch(last) = end.to else { continue };
                        if sharing.cluster_of[first.index()] != sharing.cluster_of[last.index()] {
                            continue;
                        }
                        let within = self.row(fabric, sharing, first)[self.place[last.index()] as usize].route;
                        let closing = fabric.link(end.link);
                        let route = begin.and(within.latency_ns, within.bandwidth);
                        let route = route.and(closing.latency_ns, closing.bandwidth);
                        offer(route, Ok(((port.link, first), (end.link, last))));
                    }
                }
            }
        }
        best
    }

    /// All routes from a switch, by the places of their ends.
    fn row(&self, fabric: &Fabric, sharing: &Sharing, origin: SwitchId) -> &[Reached] {
        self.from[origin.index()].get_or_init(|| {
            let cluster = &sharing.clusters[sharing.cluster_of[origin.index()] as usize];
            let nowhere = Route { latency_ns: u64::MAX, bandwidth: Rate(0) };
            let mut row = vec![Reached { route: nowhere, last: None }; cluster.switches.len()];
            let here = Route { latency_ns: 0, bandwidth: Rate(u64::MAX) };
            row[self.place[origin.index()] as usize].route = here;
            let mut open = BinaryHeap::from([(Reverse(0_u64), here.bandwidth, Reverse(origin))]);
            while let Some((Reverse(latency_ns), bandwidth, Reverse(at))) = open.pop() {
                if row[self.place[at.index()] as usize].route != (Route { latency_ns, bandwidth }) {
                    continue;
                }
                for port in sharing.switch_ports.row(at.index()) {
                    let Node::Switch(next) = port.to else { continue };
                    let link = fabric.link(port.link);
                    let route = Route { latency_ns, bandwidth }.and(link.latency_ns, link.bandwidth);
                    let known = &mut row[self.place[next.index()] as usize];
                    if route.better_than(known.route) {
                        *known = Reached { route, last: Some((port.link, at)) };
                        open.push((Reverse(route.latency_ns), route.bandwidth, Reverse(next)));
                    }
                }
            }
            row.into_boxed_slice()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{fabric, link};

    #[test]
    fn a_route_goes_the_quickest_way_and_is_as_narrow_as_its_narrowest_link() {
        let fabric = fabric("A-s s-t t-P");
        let mut slow = crate::model::Builder::new();
        for host in fabric.hosts() {
            slow.host(host.clone()).expect("a host");
        }
        let [s, t] = [0, 1].map(|at| slow.switch(fabric.switches()[at].clone()).expect("a switch"));
        let p = slow.device(fabric.devices()[0].clone()).expect("a device");
        let mut add = |a, b, latency_ns, bandwidth| {
            slow.link(crate::model::Link { latency_ns, bandwidth: Rate(bandwidth), ..link([a, b]) }).expect("a link")
        };
        let first = add(Node::Host(HostId(0)), Node::Switch(s), 10, 40);
        let quick = add(Node::Switch(s), Node::Switch(t), 10, 5);
        add(Node::Switch(s), Node::Switch(t), 11, 50);
        let last = add(Node::Switch(t), Node::Device(p), 10, 30);
        let slow = slow.finish();
        let sharing = Sharing::of(&slow);
        let routes = Routes::of(&slow, &sharing);
        let route = routes.best(&slow, &sharing, HostId(0), p).expect("a route");
        assert_eq!(route, Route { latency_ns: 30, bandwidth: Rate(5) });
        assert_eq!(routes.links(&slow, &sharing, HostId(0), p), [first, quick, last]);
    }
}
