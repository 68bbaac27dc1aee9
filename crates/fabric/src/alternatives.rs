//! The `k` quickest ways, none of which passes a place twice (J. Yen, Finding the K shortest loopless paths, 1971).
//!
//! Each way that was found is left at each of its places in turn: up to there it is kept, its places are not to be
//! passed again, and the next step must not be one that a way with the same beginning has taken. The cheapest of all
//! that comes of this is the next one.

use crate::model::{DeviceId, HostId};
use crate::path::{Begin, Path, PathRequest};
use crate::planner::{Planner, cheapest};
use crate::quantity::Duration;
use crate::search::{Bound, Place, Rules, Start};
use std::collections::BTreeSet;

/// Rules that hold, but for places that were passed already.
struct Without<'a, R> {
    rules: &'a R,
    passed: &'a [Place],
}

impl<R: Rules> Without<'_, R> {
    fn passed(&self, place: Place) -> bool {
        self.passed.contains(&place)
    }
}

impl<R: Rules> Rules for Without<'_, R> {
    fn may_hop(&self, host: HostId) -> bool {
        !self.passed(Place::Host(host)) && self.rules.may_hop(host)
    }

    fn may_relocate(&self, host: HostId) -> bool {
        self.rules.may_relocate(host)
    }

    fn may_lie(&self, device: DeviceId) -> bool {
        !self.passed(Place::Device(device)) && self.rules.may_lie(device)
    }

    fn has_room(&self, device: DeviceId) -> bool {
        self.rules.has_room(device)
    }

    fn may_end(&self, host: HostId) -> bool {
        !self.passed(Place::Host(host)) && self.rules.may_end(host)
    }
}

pub(crate) fn find<R: Rules>(planner: &Planner<'_>, request: &PathRequest, rules: &R, count: usize) -> Vec<Path> {
    let bound = Bound::to(planner, request.to, request.memory);
    let first = cheapest(planner, request, rules, &bound, begin(request), &[]);
    let mut found: Vec<Vec<Place>> = first.into_iter().collect();
    let mut candidates: BTreeSet<(Duration, Vec<Place>)> = BTreeSet::new();
    while let Some(last) = found.last().filter(|_| found.len() < count) {
        for kept in 1..last.len() {
            let (beginning, at) = (&last[..kept], last[kept - 1]);
            let same = found.iter().filter(|way| way.starts_with(beginning));
            let banned: Vec<Place> = same.filter_map(|way| way.get(kept)).copied().collect();
            let passed = &beginning[..kept - 1];
            let rules = Without { rules, passed };
            let start = match (at, passed.last()) {
                (Place::Host(_), None) => begin(request),
                (Place::Host(host), Some(Place::Device(from))) => Start::At { host, begin: Begin::Device(*from) },
                (Place::Device(device), Some(Place::Host(holder))) => Start::On { device, holder: *holder },
                _ => unreachable!("hosts and devices alternate, and a host comes first"),
            };
            if let Some(rest) = cheapest(planner, request, &rules, &bound, start, &banned) {
                let way: Vec<Place> = passed.iter().copied().chain(rest).collect();
                if !found.contains(&way) {
                    candidates.insert((priced(planner, request, &way).time(), way));
                }
            }
        }
        match candidates.pop_first() {
            Some((_, way)) => found.push(way),
            None => break,
        }
    }
    found.iter().map(|way| priced(planner, request, way)).collect()
}

fn begin(request: &PathRequest) -> Start {
    Start::At { host: request.from, begin: request.begin }
}

fn priced(planner: &Planner<'_>, request: &PathRequest, places: &[Place]) -> Path {
    planner.priced(places, request.memory, request.begin, request.end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::{CostModel, Relocation};
    use crate::error::Error;
    use crate::model::Fabric;
    use crate::path::End;
    use crate::quantity::Bytes;
    use crate::testing::{GIB, any_fabric, fabric, fabric_with};
    use proptest::prelude::*;

    fn ask(fabric: &Fabric, from: &str, to: &str) -> PathRequest {
        let host = |name| fabric.find_host(name).expect("a host");
        PathRequest::new(host(from), host(to), Bytes(GIB))
    }

    fn short(fabric: &Fabric, request: &PathRequest) -> Result<String, Error> {
        Planner::new(fabric).path(request).map(|path| path.in_short(fabric))
    }

    #[test]
    fn neighbours_hand_off_and_copy_nothing() {
        let fabric = fabric("A-P B-P");
        let path = Planner::new(&fabric).path(&ask(&fabric, "A", "B")).expect("a way");
        assert_eq!((path.handoffs(), path.copied()), (1, Bytes(0)));
        assert_eq!(path.in_short(&fabric), "A –P→ B");
    }

    #[test]
    fn hosts_that_share_nothing_go_over_one_that_shares_with_both() {
        let fabric = fabric("A-P B-P B-Q C-Q");
        let path = Planner::new(&fabric).path(&ask(&fabric, "A", "C")).expect("a way");
        let told: Vec<String> = path.legs.iter().map(|leg| leg.step.told(&fabric)).collect();
        assert_eq!(told, ["hand off A → B over P", "relocate at B from P to Q", "hand off B → C over Q"]);
    }

    #[test]
    fn memory_in_dram_is_decoupled_first_and_recoupled_at_last() {
        let fabric = fabric("A-P B-P");
        let request = PathRequest { begin: Begin::Dram, end: End::Dram, ..ask(&fabric, "A", "B") };
        let path = Planner::new(&fabric).path(&request).expect("a way");
        let told: Vec<String> = path.legs.iter().map(|leg| leg.step.told(&fabric)).collect();
        assert_eq!(told, ["decouple at A into P", "hand off A → B over P", "recouple at B from P"]);
    }

    #[test]
    fn cordoned_avoided_and_full_places_are_gone_around() {
        let links = "A-P B-P B-Q E-Q C-P C-R E-R";
        let cordon = fabric_with(links, |host| host.cordoned = host.name.as_str() == "B", |_| {});
        assert_eq!(short(&cordon, &ask(&cordon, "A", "E")).expect("a way"), "A –P→ C –R→ E");
        let full = fabric_with(
            links,
            |_| {},
            |device| {
                if device.name.as_str() == "Q" {
                    device.free = Bytes(0);
                }
            },
        );
        assert_eq!(short(&full, &ask(&full, "A", "E")).expect("a way"), "A –P→ C –R→ E");
        let plain = fabric(links);
        let avoid =
            |name| PathRequest { avoid_hosts: vec![plain.find_host(name).expect("a host")], ..ask(&plain, "A", "E") };
        assert_eq!(short(&plain, &avoid("B")).expect("a way"), "A –P→ C –R→ E");
        assert_eq!(short(&plain, &avoid("C")).expect("a way"), "A –P→ B –Q→ E");
        let busy = fabric_with(
            links,
            |host| {
                if host.name.as_str() == "B" {
                    host.load = 0.8;
                }
            },
            |_| {},
        );
        assert_eq!(short(&busy, &ask(&busy, "A", "E")).expect("a way"), "A –P→ C –R→ E");
    }

    #[test]
    fn where_there_is_no_way_the_reason_is_told() {
        let why = |fabric: &Fabric, request: &PathRequest| short(fabric, request).expect_err("no way").to_string();
        let apart = fabric("A-P E-Q");
        assert!(why(&apart, &ask(&apart, "A", "E")).contains("share no memory"));
        let over = |change: fn(&mut crate::model::Host)| fabric_with("A-P B-P B-Q E-Q", change, |_| {});
        let cordoned = over(|host| host.cordoned = host.name.as_str() == "B");
        assert!(why(&cordoned, &ask(&cordoned, "A", "E")).contains("a host that is cordoned"));
        let closed = over(|host| host.cordoned = host.name.as_str() == "E");
        assert!(why(&closed, &ask(&closed, "A", "E")).contains("E is cordoned"));
        let small = over(|host| host.dram_free = Bytes(0));
        assert!(why(&small, &ask(&small, "A", "E")).contains("too little DRAM"));
        let plain = over(|_| {});
        let avoid = PathRequest { avoid_hosts: vec![HostId(1)], ..ask(&plain, "A", "E") };
        assert!(why(&plain, &avoid).contains("to be avoided"));
        assert!(why(&plain, &ask(&plain, "A", "A")).contains("it is there"));
    }

    #[test]
    fn alternatives_come_in_the_order_of_their_time() {
        let fabric = fabric("A-P B-P B-Q E-Q C-P C-R E-R");
        let paths = Planner::new(&fabric).alternatives(&ask(&fabric, "A", "E"), 9).expect("ways");
        let told: Vec<String> = paths.iter().map(|path| path.in_short(&fabric)).collect();
        assert_eq!(told, ["A –P→ B –Q→ E", "A –P→ C –R→ E"]);
    }

    #[test]
    fn no_alternative_comes_back_to_where_it_left_the_quickest_way() {
        let fabric = fabric("A-P B-P B-Q C-Q C-R B-R B-S E-S");
        let paths = Planner::new(&fabric).alternatives(&ask(&fabric, "A", "E"), 9).expect("a way");
        let told: Vec<String> = paths.iter().map(|path| path.in_short(&fabric)).collect();
        assert_eq!(told, ["A –P→ B –S→ E"]);
    }

    /// Every way without a place twice, by trying all of them.
    fn all_ways<R: Rules>(planner: &Planner<'_>, request: &PathRequest, rules: &R) -> Vec<(Duration, Vec<Place>)> {
        let mut ways = Vec::new();
        let mut open = vec![(vec![Place::Host(request.from)], request.begin)];
        while let Some((way, lies)) = open.pop() {
            let Some(Place::Host(host)) = way.last().copied() else { continue };
            let mut devices: Vec<DeviceId> = planner.sharing().reached_by(host).collect();
            devices.sort_unstable();
            devices.dedup();
            for device in devices {
                let stays = matches!(lies, Begin::AnyDevice) || lies == Begin::Device(device);
                let may = stays || (rules.has_room(device) && (lies == Begin::Dram || rules.may_relocate(host)));
                let passed = way.contains(&Place::Device(device)) || (stays && way.len() > 1);
                if passed || !may || !rules.may_lie(device) {
                    continue;
                }
                let mut targets: Vec<HostId> = planner.sharing().reaching(device).collect();
                targets.sort_unstable();
                targets.dedup();
                for target in targets.into_iter().filter(|target| !way.contains(&Place::Host(*target))) {
                    let mut longer = way.clone();
                    longer.extend([Place::Device(device), Place::Host(target)]);
                    if rules.may_end(target) {
                        ways.push((priced(planner, request, &longer).time(), longer));
                    } else if rules.may_hop(target) {
                        open.push((longer, Begin::Device(device)));
                    }
                }
            }
        }
        ways.sort();
        ways
    }

    fn any_request() -> impl Strategy<Value = (usize, usize, u64, u8, bool, Option<usize>, bool)> {
        let avoid = proptest::option::of(0_usize..7);
        (0_usize..7, 0_usize..7, 1_u64..40, 0_u8..3, any::<bool>(), avoid, any::<bool>())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn the_quickest_ways_are_the_quickest_of_all_ways(
            fabric in any_fabric(),
            (from, to, memory, begin, dram, avoid, direct) in any_request(),
        ) {
            let host = |at: usize| HostId::at(at % fabric.hosts().len());
            let relocation = if direct { Relocation::Direct } else { Relocation::ThroughDram };
            // Copying faster than the links allow, so that their bandwidths count.
            let fast = crate::quantity::Rate(300 * GIB);
            let model = CostModel { relocation, into_pool: fast, out_of_pool: fast, ..CostModel::default() };
            let planner = Planner::with_model(&fabric, model);
            let mut request = PathRequest::new(host(from), host(to), Bytes(memory * GIB));
            request.begin = match (begin, planner.sharing().reached_by(request.from).last()) {
                (0, _) => Begin::Dram,
                (1, Some(device)) => Begin::Device(device),
                _ => Begin::AnyDevice,
            };
            request.end = if dram { End::Dram } else { End::Device };
            request.avoid_hosts.extend(avoid.map(host));
            let all = all_ways(&planner, &request, &planner.rules(&request));
            let times: Vec<Duration> = all.iter().take(5).map(|(time, _)| *time).collect();
            let found = find(&planner, &request, &planner.rules(&request), 5);
            prop_assert_eq!(found.iter().map(Path::time).collect::<Vec<_>>(), times);
            for path in &found {
                let mut hosts = path.hops();
                hosts.extend([path.from, path.to]);
                hosts.sort_unstable();
                hosts.dedup();
                prop_assert_eq!(hosts.len(), path.handoffs() + 1);
            }
        }
    }
}
