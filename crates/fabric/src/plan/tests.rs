//! Plans are followed step by step, with books of their own, and must never take more than there is.

use super::Plan;
use crate::cost::{CostModel, Relocation};
use crate::guest::{Guest, Limits, Memory};
use crate::model::{Builder, Device, DeviceId, Fabric, Host, HostId};
use crate::path::{PathRequest, Step};
use crate::planner::Planner;
use crate::quantity::{Bytes, Rate};
use crate::rebalance::Balance;
use crate::testing::{GIB, any_fabric, by_hand, fabric, fabric_with};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn guest(fabric: &Fabric, name: &str, host: &str, gib: u64, lies: Memory) -> Guest {
    let host = fabric.find_host(host).expect("a host");
    Guest { name: name.parse().expect("a good name"), host, memory: Bytes(gib * GIB), lies, millicpus: 1000 }
}

fn targets(fabric: &Fabric, guests: &[Guest], plan: &Plan) -> Vec<String> {
    let told = plan.moves().map(|one| format!("{} → {}", guests[one.guest].name, fabric.host(one.path.to).name));
    told.collect()
}

#[test]
fn a_drained_host_is_emptied_onto_those_with_room_the_largest_first() {
    let fabric = fabric("A-P B-P C-P");
    let on = Memory::Device(DeviceId(0));
    let guests =
        [guest(&fabric, "small", "A", 1, on), guest(&fabric, "large", "A", 8, on), guest(&fabric, "other", "B", 8, on)];
    let plan = Planner::new(&fabric).drain(&guests, &[HostId(0)], Limits::default());
    assert_eq!(targets(&fabric, &guests, &plan), ["large → B", "small → C"]);
    assert_eq!((plan.waves.len(), plan.left.len(), plan.copied()), (1, 0, Bytes(0)));
}

#[test]
fn guests_in_dram_take_it_along_and_need_it_at_the_target() {
    let fabric = fabric_with(
        "A-P B-P",
        |host| {
            if host.name.as_str() == "B" {
                host.dram_free = Bytes(9 * GIB);
            }
        },
        |_| {},
    );
    let guests = [guest(&fabric, "one", "A", 8, Memory::Dram), guest(&fabric, "two", "A", 7, Memory::Dram)];
    let plan = Planner::new(&fabric).drain(&guests, &[HostId(0)], Limits::default());
    assert_eq!(targets(&fabric, &guests, &plan), ["one → B"]);
    assert_eq!(plan.copied(), Bytes(16 * GIB));
    assert_eq!(plan.left[0].why, "of 1 other hosts that share memory with A: 1 without 7 GiB of free DRAM");
}

#[test]
fn what_does_not_fit_into_one_wave_goes_in_the_next() {
    let fabric = fabric("A-P B-P");
    let guests: Vec<Guest> =
        (0..7).map(|at| guest(&fabric, &format!("g{at}"), "A", 1, Memory::Device(DeviceId(0)))).collect();
    let limits = Limits { moves_per_host: 3, ..Limits::default() };
    let plan = Planner::new(&fabric).drain(&guests, &[HostId(0)], limits);
    assert_eq!(plan.waves.iter().map(|wave| wave.moves.len()).collect::<Vec<_>>(), [3, 3, 1]);
    assert_eq!(plan.time(), plan.waves.iter().map(super::Wave::time).sum());
}

#[test]
fn copies_do_not_share_what_bandwidth_there_is_for_one() {
    // The device carries one copy into it at a time; the hosts' links would carry many.
    let narrow = Rate(2_000_000_000);
    let fabric = fabric_with("A-P B-P C-P D-P", |_| {}, |device| device.bandwidth = narrow);
    let guests = [guest(&fabric, "one", "A", 1, Memory::Dram), guest(&fabric, "two", "B", 1, Memory::Dram)];
    let plan = Planner::new(&fabric).drain(&guests, &[HostId(0), HostId(1)], Limits::default());
    assert_eq!(plan.waves.len(), 2);
    let wide = fabric_with("A-P B-P C-P D-P", |_| {}, |_| {});
    let plan = Planner::new(&wide).drain(&guests, &[HostId(0), HostId(1)], Limits::default());
    assert_eq!(plan.waves.len(), 1);
}

#[test]
fn who_is_left_is_told_why() {
    let why = |fabric: &Fabric, lies: Memory| {
        let guests = [guest(fabric, "g", "A", 8, lies)];
        let plan = Planner::new(fabric).drain(&guests, &[HostId(0)], Limits::default());
        plan.left[0].why.clone()
    };
    assert_eq!(why(&fabric("A-P B-Q"), Memory::Dram), "no other host shares memory with A");
    let not = |change: fn(&mut Host)| fabric_with("A-P B-P C-P", change, |_| {});
    let closed = not(|host| host.cordoned = host.name.as_str() != "A");
    assert!(why(&closed, Memory::Dram).ends_with("2 cordoned or being emptied"));
    let busy = not(|host| host.load = 0.9);
    assert!(why(&busy, Memory::Dram).ends_with("2 without 1.0 free CPUs"));
    let full = fabric_with("A-P B-P", |_| {}, |device| device.free = Bytes(0));
    assert!(why(&full, Memory::Dram).contains("no device on the way has 8 GiB free"));
}

#[test]
fn the_busiest_host_gives_to_the_idlest_and_an_even_fabric_is_left_alone() {
    let load = |host: &mut Host| host.load = if host.name.as_str() == "A" { 0.8 } else { 0.2 };
    let uneven = fabric_with("A-P B-P C-P", load, |_| {});
    let guests: Vec<Guest> = (0..6)
        .map(|at| Guest { millicpus: 2000, ..guest(&uneven, &format!("g{at}"), "A", 1, Memory::Device(DeviceId(0))) })
        .collect();
    let made = Planner::new(&uneven).rebalance(&guests, Balance::default(), Limits::default());
    assert_eq!(targets(&uneven, &guests, &made.plan), ["g0 → B", "g1 → C", "g2 → B"]);
    assert!(made.after.highest < made.before.highest && made.after.deviation < made.before.deviation);
    let even = fabric("A-P B-P C-P");
    let made = Planner::new(&even).rebalance(&guests, Balance::default(), Limits::default());
    assert_eq!(made.plan, Plan::default());
}

/// Signed books, so that what is overdrawn is seen.
struct Books {
    dram: Vec<i128>,
    millicpus: Vec<i128>,
    room: Vec<i128>,
}

impl Books {
    fn of(fabric: &Fabric, limits: Limits) -> Self {
        let cpus = |host: &Host| {
            let most = i128::from(host.cpus) * 10 * i128::from(limits.cpu_percent);
            #[expect(clippy::cast_possible_truncation)]
            let busy = (host.load * f64::from(host.cpus) * 1000.0).round() as i128;
            // A host that is over the limit already has nothing to give, and owes nothing.
            (most - busy).max(0)
        };
        Self {
            dram: fabric.hosts().iter().map(|host| i128::from(host.dram_free.0)).collect(),
            millicpus: fabric.hosts().iter().map(cpus).collect(),
            room: fabric.devices().iter().map(|device| i128::from(device.free.0)).collect(),
        }
    }

    fn are_sound(&self) -> bool {
        self.dram.iter().chain(&self.millicpus).chain(&self.room).all(|left| *left >= 0)
    }
}

/// Follows a plan. Everything is taken when its wave begins and given back when it has ended, which no real order of
/// events can be worse than.
fn follow(
    planner: &Planner<'_>,
    guests: &[Guest],
    plan: &Plan,
    emptied: &[HostId],
    limits: Limits,
) -> Result<Books, TestCaseError> {
    let fabric = planner.fabric();
    let through_dram = planner.model().relocation == Relocation::ThroughDram;
    let mut books = Books::of(fabric, limits);
    let mut moved = vec![0; guests.len()];
    for wave in &plan.waves {
        prop_assert!(!wave.moves.is_empty());
        let mut dram_back = Vec::new();
        let mut room_back = Vec::new();
        let mut cpus_back = Vec::new();
        let mut moves_at: BTreeMap<HostId, u32> = BTreeMap::new();
        let mut rates: BTreeMap<(bool, u32), u64> = BTreeMap::new();
        for one in &wave.moves {
            let guest = &guests[one.guest];
            let bytes = i128::from(guest.memory.0);
            moved[one.guest] += 1;
            let (mut at, mut lies) = (guest.host, guest.lies);
            let mut own: BTreeMap<(bool, u32), u64> = BTreeMap::new();
            *moves_at.entry(at).or_default() += 1;
            for leg in &one.path.legs {
                let mut copying = |host: HostId, device: DeviceId| {
                    let rate = leg.rate().expect("copies have a rate").0;
                    let links = planner.links(host, device).into_iter().map(|link| (false, link.0));
                    for key in links.chain([(true, device.0)]) {
                        let most = own.entry(key).or_default();
                        *most = rate.max(*most);
                    }
                };
                match leg.step {
                    Step::Decouple { at: host, into } => {
                        prop_assert_eq!((host, lies), (at, Memory::Dram));
                        books.room[into.index()] -= bytes;
                        dram_back.push((host, bytes));
                        copying(host, into);
                        lies = Memory::Device(into);
                    }
                    Step::Relocate { at: host, from, to } => {
                        prop_assert_eq!((host, lies), (at, Memory::Device(from)));
                        books.room[to.index()] -= bytes;
                        room_back.push((from, bytes));
                        if through_dram {
                            books.dram[host.index()] -= bytes;
                            dram_back.push((host, bytes));
                        }
                        copying(host, from);
                        copying(host, to);
                        lies = Memory::Device(to);
                    }
                    Step::Handoff { from, to, over } => {
                        prop_assert_eq!((from, lies), (at, Memory::Device(over)));
                        for host in [from, to] {
                            prop_assert!(by_hand::reach(fabric, host).contains(&over));
                        }
                        prop_assert!(!fabric.host(to).cordoned && !emptied.contains(&to));
                        *moves_at.entry(to).or_default() += 1;
                        at = to;
                    }
                    Step::Recouple { at: host, from } => {
                        prop_assert_eq!((host, lies), (at, Memory::Device(from)));
                        books.dram[host.index()] -= bytes;
                        room_back.push((from, bytes));
                        copying(host, from);
                        lies = Memory::Dram;
                    }
                }
            }
            prop_assert_eq!(at, one.path.to);
            prop_assert_eq!(lies == Memory::Dram, guest.lies == Memory::Dram);
            books.millicpus[at.index()] -= i128::from(guest.millicpus);
            cpus_back.push((guest.host, i128::from(guest.millicpus)));
            for (key, rate) in own {
                *rates.entry(key).or_default() += rate;
            }
        }
        prop_assert!(books.are_sound());
        prop_assert!(moves_at.values().all(|count| *count <= limits.moves_per_host));
        for ((is_device, id), rate) in rates {
            let all =
                if is_device { fabric.devices()[id as usize].bandwidth } else { fabric.links()[id as usize].bandwidth };
            prop_assert!(rate <= all.percent(planner.model().copy_share).0);
        }
        for (host, bytes) in dram_back {
            books.dram[host.index()] += bytes;
        }
        for (device, bytes) in room_back {
            books.room[device.index()] += bytes;
        }
        for (host, millicpus) in cpus_back {
            books.millicpus[host.index()] += millicpus;
        }
    }
    for left in &plan.left {
        moved[left.guest] += 1;
        prop_assert!(!left.why.is_empty());
    }
    prop_assert!(moved.iter().all(|times| *times <= 1));
    for (at, guest) in guests.iter().enumerate().filter(|(_, guest)| emptied.contains(&guest.host)) {
        prop_assert_eq!(moved[at], 1, "{} is neither placed nor named", guest.name);
    }
    Ok(books)
}

/// When all of a plan is done, there is still no way for those that it has left: found by asking for a way to each host
/// that would do, one by one.
fn nobody_left_has_a_place(
    planner: &Planner<'_>,
    guests: &[Guest],
    plan: &Plan,
    emptied: &[HostId],
    books: &Books,
) -> Result<(), TestCaseError> {
    let fabric = planner.fabric();
    let free = |left: i128| Bytes(u64::try_from(left).expect("sound books"));
    let mut after = Builder::new();
    for (host, left) in fabric.host_ids().zip(&books.dram) {
        let cordoned = fabric.host(host).cordoned || emptied.contains(&host);
        let host = Host { dram: free(*left), dram_free: free(*left), cordoned, ..fabric.host(host).clone() };
        after.host(host).expect("a good host");
    }
    for switch in fabric.switches() {
        after.switch(switch.clone()).expect("a good switch");
    }
    for (device, left) in fabric.devices().iter().zip(&books.room) {
        after.device(Device { size: free(*left), free: free(*left), ..device.clone() }).expect("a good device");
    }
    for link in fabric.links() {
        after.link(*link).expect("a good link");
    }
    let after = after.finish();
    let later = Planner::with_model(&after, planner.model().clone());
    for guest in plan.left.iter().map(|left| &guests[left.guest]) {
        for to in fabric.host_ids().filter(|host| books.millicpus[host.index()] >= i128::from(guest.millicpus)) {
            let (begin, end) = (guest.begin(), guest.end());
            let request = PathRequest { begin, end, ..PathRequest::new(guest.host, to, guest.memory) };
            prop_assert!(later.path(&request).is_err(), "{} could go to {}", guest.name, fabric.host(to).name);
        }
    }
    Ok(())
}

fn any_guests() -> impl Strategy<Value = Vec<(usize, u64, bool, u64)>> {
    proptest::collection::vec((0_usize..7, 1_u64..20, any::<bool>(), 0_u64..6000), 0..16)
}

fn made(fabric: &Fabric, guests: Vec<(usize, u64, bool, u64)>) -> Vec<Guest> {
    let made = guests.into_iter().enumerate().map(|(at, (host, gib, dram, millicpus))| {
        let host = HostId::at(host % fabric.hosts().len());
        let lies = match by_hand::reach(fabric, host).first() {
            Some(device) if !dram => Memory::Device(*device),
            _ => Memory::Dram,
        };
        let name = format!("g{at}").parse().expect("a good name");
        Guest { name, host, memory: Bytes(gib * GIB), lies, millicpus }
    });
    made.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn a_drain_never_takes_more_than_there_is_and_forgets_nobody(
        fabric in any_fabric(),
        guests in any_guests(),
        hosts in proptest::collection::btree_set(0_usize..7, 1..3),
        moves_per_host in 1_u32..4,
        direct in any::<bool>(),
        fast in any::<bool>(),
    ) {
        let guests = made(&fabric, guests);
        let emptied: Vec<HostId> = hosts.into_iter().filter(|at| *at < fabric.hosts().len()).map(HostId::at).collect();
        let relocation = if direct { Relocation::Direct } else { Relocation::ThroughDram };
        let mut model = CostModel { relocation, ..CostModel::default() };
        if fast {
            (model.into_pool, model.out_of_pool) = (Rate(200 * GIB), Rate(100 * GIB));
        }
        let planner = Planner::with_model(&fabric, model);
        let limits = Limits { moves_per_host, ..Limits::default() };
        let plan = planner.drain(&guests, &emptied, limits);
        let books = follow(&planner, &guests, &plan, &emptied, limits)?;
        nobody_left_has_a_place(&planner, &guests, &plan, &emptied, &books)?;
        prop_assert_eq!(&planner.drain(&guests, &emptied, limits), &plan);
    }

    #[test]
    fn a_rebalance_never_takes_more_than_there_is_and_makes_nothing_worse(
        fabric in any_fabric(),
        guests in any_guests(),
        moves in 1_usize..8,
    ) {
        let guests = made(&fabric, guests);
        let planner = Planner::new(&fabric);
        let limits = Limits::default();
        let balance = Balance { moves, ..Balance::default() };
        let made = planner.rebalance(&guests, balance, limits);
        follow(&planner, &guests, &made.plan, &[], limits)?;
        prop_assert!(made.plan.moves().count() <= moves);
        prop_assert!(made.plan.left.len() + made.plan.moves().count() <= moves);
        if made.plan.left.is_empty() {
            prop_assert!(made.after.highest <= made.before.highest);
        }
    }
}
