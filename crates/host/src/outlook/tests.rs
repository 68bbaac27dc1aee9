use super::*;
use serde_json::{Value, json};

const GIB: u64 = 1 << 30;
const MEMORY: u64 = 64 << 20;

fn name(text: &str) -> HostName {
    text.parse().expect("a good name")
}

fn id(number: u8) -> GuestId {
    GuestId::from_bytes([number; 16])
}

/// A host that has joined these pools. No such pool is open to us, so nothing is known of cordons.
fn host(called: &str, pools: &[u8]) -> Value {
    let joined = pools.iter().map(|number| {
        let (id, path) = (PoolId::from_bytes([*number; 16]), format!("/pools/{number}"));
        json!({"id": id, "path": path, "slot": 0, "free_bytes": 64 * GIB, "total_bytes": 64 * GIB})
    });
    json!({"name": called, "agent_pid": 1, "pools": joined.collect::<Vec<_>>(), "guests": 0, "unattended": []})
}

/// A guest whose home is pool 1.
fn guest(number: u8, at: &str, memory_in: &str, state: &str) -> Value {
    let pooled = if memory_in == "pool" { MEMORY } else { 0 };
    json!({
        "name": format!("g{number}"), "id": id(number), "kind": "vm", "host": at, "state": state, "memory_bytes": MEMORY,
        "vcpus": 1, "pool": "/pools/1",
        "memory": {
            "in": memory_in, "pooled_bytes": pooled, "total_bytes": MEMORY, "placed": pooled > 0, "pins": 0, "holds": 0
        },
    })
}

#[expect(clippy::needless_pass_by_value, reason = "tests make them for this alone")]
fn outlook(hosts: Vec<Value>, guests: Vec<Value>, usage: &Usage) -> Outlook {
    let survey: Survey = serde_json::from_value(json!({"hosts": hosts, "guests": guests})).expect("a survey");
    Outlook::of(&survey, usage).expect("an outlook")
}

fn idle() -> Usage {
    Usage::default()
}

fn targets(plan: &PlacementPlan) -> Vec<(&str, &str)> {
    plan.moves().map(|one| (one.guest.as_str(), one.to.as_str())).collect()
}

#[test]
fn guests_leave_for_hosts_that_share_their_pool_a_few_at_a_time() {
    let hosts = vec![host("A", &[1]), host("B", &[1]), host("C", &[2])];
    let guests =
        vec![guest(1, "A", "pool", "running"), guest(2, "A", "dram", "running"), guest(3, "B", "pool", "running")];
    let outlook = outlook(hosts, guests, &idle());
    let plan = outlook.drain(&name("A"), 1, &Lessons::default()).expect("a plan");
    assert_eq!((targets(&plan).len(), plan.waves.len()), (2, 2), "{plan:?}");
    assert!(plan.moves().all(|one| one.to == name("B") && one.from == name("A") && one.handoffs == 1));
    // What lies in the pool is not copied; what lies in DRAM goes through it.
    assert_eq!(plan.copied_bytes, 2 * MEMORY);
    assert!(plan.left.is_empty() && plan.predicted_us > 0);
}

#[test]
fn a_guest_is_not_sent_where_it_was_refused() {
    let hosts = vec![host("A", &[1]), host("B", &[1]), host("C", &[1])];
    let guests = vec![guest(1, "A", "pool", "running"), guest(2, "A", "pool", "running")];
    let outlook = outlook(hosts, guests, &idle());
    for refused in ["B", "C"] {
        let refusals = BTreeMap::from([(id(1), BTreeSet::from([name(refused)]))]);
        let lessons = Lessons { refusals, ..Lessons::default() };
        let plan = outlook.drain(&name("A"), 4, &lessons).expect("a plan");
        let to = plan.moves().find(|one| one.id == id(1)).map(|one| one.to.to_string());
        assert!(to.as_deref().is_some_and(|to| to != refused), "{plan:?}");
        assert_eq!(plan.moves().count(), 2);
    }
    let everybody = BTreeMap::from([(id(1), BTreeSet::from([name("B"), name("C")]))]);
    let lessons = Lessons { refusals: everybody, ..Lessons::default() };
    let plan = outlook.drain(&name("A"), 4, &lessons).expect("a plan");
    assert_eq!(plan.left.iter().map(|stay| stay.id).collect::<Vec<_>>(), [id(1)]);
    let lessons = Lessons { given_up: BTreeSet::from([id(1)]), ..Lessons::default() };
    let plan = outlook.drain(&name("A"), 4, &lessons).expect("a plan");
    assert_eq!((targets(&plan).len(), plan.left.len()), (1, 0), "whoever has given it up tells why");
}

#[test]
fn guests_that_do_not_run_are_left_or_waited_for() {
    let guests = [(1, "lost"), (2, "stopped"), (3, "starting"), (4, "migrating")];
    let guests = guests.map(|(number, state)| guest(number, "A", "pool", state)).to_vec();
    let outlook = outlook(vec![host("A", &[1]), host("B", &[1])], guests, &idle());
    let plan = outlook.drain(&name("A"), 4, &Lessons::default()).expect("a plan");
    let left: Vec<&str> = plan.left.iter().map(|stay| stay.why.as_str()).collect();
    assert_eq!((targets(&plan).len(), left), (0, vec!["it is lost", "it is stopped"]));
    assert_eq!(outlook.busy(&name("A")).iter().map(|stay| stay.id).collect::<Vec<_>>(), [id(3), id(4)]);
    assert!(outlook.busy(&name("B")).is_empty());
}

#[test]
fn a_guest_that_can_go_nowhere_is_left_with_the_reason() {
    let outlook = outlook(vec![host("A", &[1]), host("B", &[2])], vec![guest(1, "A", "pool", "running")], &idle());
    let plan = outlook.drain(&name("A"), 4, &Lessons::default()).expect("a plan");
    assert!(plan.waves.is_empty() && plan.left[0].why.contains("shares memory with A"), "{plan:?}");
    let error = outlook.drain(&name("Z"), 4, &Lessons::default()).expect_err("nobody knows it");
    assert!(error.to_string().contains('Z'), "{error}");
}

#[test]
fn hosts_are_evened_out_by_what_their_guests_use() {
    let cpus = u64::try_from(std::thread::available_parallelism().map_or(1, std::num::NonZero::get)).expect("a few");
    let guests: Vec<Value> = (1..=2).map(|number| guest(number, "A", "pool", "running")).collect();
    let hosts = vec![host("A", &[1]), host("B", &[1])];
    let busy = Usage::assumed((1..=2).map(|number| (id(number), cpus * 400)));
    let how = Rebalance { moves: 8, ..Rebalance::default() };
    let uneven = outlook(hosts.clone(), guests.clone(), &busy);
    let RebalancePlan { plan, before, after } = uneven.rebalance(&how);
    assert_eq!(uneven.evenness(), before);
    assert_eq!((plan.moves().count(), before.most), (1, Some(name("A"))), "{plan:?}");
    assert!(after.deviation_permille < before.deviation_permille);
    assert!(outlook(hosts, guests, &idle()).rebalance(&how).plan.waves.is_empty());
}

#[test]
fn a_guest_goes_over_a_host_that_has_no_room_for_it_to_one_that_shares_no_pool_with_its_own() {
    let mut hop = host("H", &[1, 2]);
    hop["resources"] = json!({"cpus": 1, "load_permille": 0, "dram_bytes": 64 * GIB, "free_dram_bytes": 64 * GIB});
    let guests = vec![guest(1, "A", "pool", "running"), guest(2, "H", "pool", "running")];
    let busy = Usage::assumed([(id(1), 100), (id(2), 900)]);
    let outlook = outlook(vec![host("A", &[1]), hop, host("Z", &[2])], guests, &busy);
    let plan = outlook.drain(&name("A"), 4, &Lessons::default()).expect("a plan");
    let told = plan.moves().next().map(|one| (one.to.as_str(), one.way.as_str(), one.handoffs, one.rehomed));
    assert_eq!(told, Some(("Z", "A –1→ H –2→ Z", 2, true)), "{plan:?}");
}

/// A host of another machine, by what its agent has told.
fn far(called: &str, pools: &[u8], load_permille: u32) -> Value {
    let joined = pools.iter().map(|number| {
        let id = PoolId::from_bytes([*number; 16]);
        json!({"id": id, "name": format!("{number}-of-{called}"), "free_bytes": 64 * GIB, "total_bytes": 64 * GIB})
    });
    let has = json!({"cpus": 4, "load_permille": load_permille, "dram_bytes": 64 * GIB, "free_dram_bytes": 64 * GIB});
    json!({
        "name": called, "id": nil_pool::HostId::random(), "here": false, "life": "elsewhere", "standing": "alive",
        "cordoned": false, "address": "10.0.0.1:7070", "pools": [], "guests": 0, "resources": has,
        "joined": joined.collect::<Vec<_>>(),
    })
}

#[test]
fn a_guest_goes_over_a_busy_host_of_another_machine_to_one_that_no_pool_of_this_machine_knows() {
    let survey = |hop: Value| {
        let survey = json!({
            "hosts": [host("A", &[1])], "guests": [guest(1, "A", "pool", "running")],
            "elsewhere": [hop, far("Z", &[2], 0)],
        });
        serde_json::from_value::<Survey>(survey).expect("a survey")
    };
    let usage = Usage::assumed([(id(1), 900)]);
    let drained = |hop: Value| {
        let plan = Outlook::of(&survey(hop), &usage).expect("an outlook").drain(&name("A"), 4, &Lessons::default());
        plan.expect("a plan")
    };
    let plan = drained(far("H", &[1, 2], 800));
    let told = plan.moves().next().map(|one| (one.to.as_str(), one.way.as_str(), one.handoffs, one.rehomed));
    assert_eq!(told, Some(("Z", "A –1→ H –2-of-H→ Z", 2, true)), "{plan:?}");
    assert_eq!(targets(&drained(far("H", &[1, 2], 0))), [("g1", "H")]);
    let mut cordoned = far("H", &[1, 2], 800);
    cordoned["cordoned"] = true.into();
    let left = drained(cordoned).left;
    assert!(left.len() == 1 && left[0].why.contains("cordoned"), "{left:?}");
}

#[test]
fn a_guest_changes_its_home_where_its_host_has_the_targets_pool_too() {
    let outlook = outlook(vec![host("A", &[1, 2]), host("Z", &[2])], vec![guest(1, "A", "pool", "running")], &idle());
    let plan = outlook.drain(&name("A"), 4, &Lessons::default()).expect("a plan");
    let told = plan.moves().next().map(|one| (one.to.as_str(), one.handoffs, one.rehomed));
    assert_eq!(told, Some(("Z", 1, true)), "{plan:?}");
}
