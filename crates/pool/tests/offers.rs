//! Capacity that is offered, accepted, asked back, and taken away by force.
#![cfg(not(loom))]

use nil_pool::{
    AbsentPools, Access, Answer, CapacityRequest, CreateOptions, Error, GRANULE, GuestControl, GuestKind, GuestRequest,
    HostId, HostIdentity, HostKind, Membership, MemoryHome, Ownership, Pool, Tag,
};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

struct Ground {
    _directory: TempDir,
    path: PathBuf,
    pool: Pool,
}

impl Ground {
    fn new() -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
        let path = directory.path().join("pool");
        let options = CreateOptions { size: Some(32 * GRANULE), ..CreateOptions::default() };
        let pool = Pool::create(&path, &options).expect("a new pool");
        Self { _directory: directory, path, pool }
    }

    fn agent(&self, name: &str) -> Membership {
        let (id, name) = (HostId::random(), name.to_owned());
        self.pool.join(&HostIdentity { id, name, kind: HostKind::Agent, address: None }).expect("membership")
    }

    #[track_caller]
    fn assert_sound(&self) {
        let report = self.pool.check(false);
        assert!(report.is_clean(), "{report:#?}");
    }
}

/// Adds capacity for these hosts.
fn add(by: &Membership, hosts: &[&Membership]) -> Tag {
    let tag = Tag::random();
    let access = hosts.iter().map(|host| host.identity().id).collect();
    let request = CapacityRequest { access, ..CapacityRequest::shared(tag, 2 * GRANULE) };
    by.add_capacity(&request).expect("capacity");
    tag
}

fn answer(host: &Membership, tag: Tag) -> Option<Answer> {
    host.pool().find_capacity(tag).expect("the capacity").answer_of(host.identity().id)
}

fn guest(host: &Membership, access: &[HostId]) -> GuestControl {
    let (name, kind, home) = ("g".to_owned(), GuestKind::Vm, MemoryHome::Pool);
    let request = GuestRequest { name, kind, memory_bytes: 2 * GRANULE, home, vcpus: 1, features: 0 };
    let control = host.create_guest_for(&request, access).expect("a guest");
    control.publish(host.slot()).expect("published");
    control
}

#[test]
fn only_a_host_that_is_listed_and_has_accepted_maps_a_capacity() {
    let ground = Ground::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| ground.agent(name));
    let tag = add(&c, &[&a, &b]);
    let maps = |host: &Membership| host.pool().map_capacity(tag).map(|_| ());
    assert_eq!([&a, &b, &c].map(|host| answer(host, tag)), [Some(Answer::Offered), Some(Answer::Offered), None]);
    assert!(matches!(maps(&a), Err(Error::NotAccepted { answer: Answer::Offered, .. })));
    a.answer_offer(tag, Answer::Accepted).expect("answered");
    maps(&a).expect("accepted");
    let again = Pool::open(&ground.path, Access::ReadWrite).expect("the pool");
    again.on_behalf_of(a.slot()).expect("a host").map_capacity(tag).expect("accepted");
    b.answer_offer(tag, Answer::DeclinedByPolicy).expect("answered");
    assert!(matches!(maps(&b), Err(Error::NotAccepted { answer: Answer::DeclinedByPolicy, .. })));
    let refusal = maps(&c).expect_err("not listed").to_string();
    assert!(refusal.contains("host c is not on the access list of capacity"), "{refusal}");
    assert!(matches!(again.map_capacity(tag), Err(Error::NotOnAccessList { .. })), "nobody is on no list");
    assert!(matches!(c.answer_offer(tag, Answer::Accepted), Err(Error::NotOnAccessList { .. })));
    ground.assert_sound();
}

#[test]
fn a_capacity_without_a_list_is_everybodys() {
    let ground = Ground::new();
    let (a, b) = (ground.agent("a"), ground.agent("b"));
    let tag = add(&a, &[]);
    b.pool().map_capacity(tag).expect("everybody's");
    ground.pool.map_capacity(tag).expect("everybody's");
    b.release_capacity(tag).expect("nobody holds it");
}

#[test]
fn a_capacity_is_released_when_the_last_of_its_hosts_has_let_go() {
    let ground = Ground::new();
    let (a, b) = (ground.agent("a"), ground.agent("b"));
    let tag = add(&a, &[&a, &b]);
    for host in [&a, &b] {
        host.answer_offer(tag, Answer::Accepted).expect("answered");
    }
    let refusal = a.release_capacity(tag).expect_err("held").to_string();
    assert!(refusal.contains("is held by a, b") && refusal.contains("--ask"), "{refusal}");
    a.answer_offer(tag, Answer::Released).expect("answered");
    assert!(matches!(b.release_capacity(tag), Err(Error::CapacityAccepted { hosts, .. }) if hosts == "b"));
    assert_eq!((answer(&a, tag), answer(&b, tag)), (Some(Answer::Released), Some(Answer::Accepted)));
    b.answer_offer(tag, Answer::Released).expect("answered");
    b.release_capacity(tag).expect("nobody holds it");
    ground.assert_sound();
}

#[test]
fn a_host_that_has_left_holds_nothing_and_force_asks_nobody() {
    let ground = Ground::new();
    let (a, b) = (ground.agent("a"), ground.agent("b"));
    let (left, held) = (add(&a, &[&b]), add(&a, &[&a, &b]));
    b.answer_offer(left, Answer::Accepted).expect("answered");
    a.answer_offer(held, Answer::Accepted).expect("answered");
    b.leave().expect("left");
    a.release_capacity(left).expect("nobody holds it");
    let taken = a.force_release(held, &[], AbsentPools::Refuse, PATIENCE).expect("taken");
    assert_eq!(taken.guest, None);
    assert_eq!(ground.pool.capacities(), []);
    ground.assert_sound();
}

#[test]
fn what_was_answered_of_a_capacity_is_not_said_of_the_next_in_its_place() {
    let ground = Ground::new();
    let a = ground.agent("a");
    let layout = ground.pool.header().layout;
    let tag = add(&a, &[&a]);
    a.answer_offer(tag, Answer::Accepted).expect("answered");
    let slot = ground.pool.find_capacity(tag).expect("the capacity").slot;
    let file = std::fs::File::options().read(true).write(true).open(&ground.path).expect("the file");
    let word = || {
        let mut bytes = [0; 8];
        let at = layout.capacities.at(slot.index()) + 984;
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, at).expect("the word");
        u64::from_le_bytes(bytes)
    };
    assert_eq!(word(), 1 << 45 | 1);
    // As if a host had answered late: its word is of generation 1.
    let answered = word();
    a.force_release(tag, &[], AbsentPools::Refuse, PATIENCE).expect("taken");
    let next = loop {
        let next = add(&a, &[&a]);
        if ground.pool.find_capacity(next).expect("the capacity").slot == slot {
            break next;
        }
        a.release_capacity(next).expect("released");
    };
    std::os::unix::fs::FileExt::write_all_at(&file, &answered.to_le_bytes(), layout.capacities.at(slot.index()) + 984)
        .expect("written");
    assert_eq!(answer(&a, next), Some(Answer::Offered));
}

#[test]
fn memory_of_a_guest_is_mapped_only_by_the_hosts_that_may_run_it() {
    let ground = Ground::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| ground.agent(name));
    let control = guest(&a, &[a.identity().id, b.identity().id]);
    let seen_by = |host: &Membership| host.pool().guest(control.slot(), control.id()).expect("the guest");
    seen_by(&a).map_memory().expect("listed");
    seen_by(&b).map_memory().expect("listed");
    assert!(matches!(seen_by(&c).map_memory(), Err(Error::NotOnAccessList { host, .. }) if host == "c"));
    seen_by(&c).map_state().expect("everybody may see how it is");
    a.destroy_guest(&control).expect("destroyed");
    ground.assert_sound();
}

#[test]
fn a_guest_whose_memory_is_taken_away_is_lost_before_anybody_gets_it() {
    let ground = Ground::new();
    let (a, b) = (ground.agent("a"), ground.agent("b"));
    let before = ground.pool.usage().free;
    let control = guest(&a, &[]);
    let tag = control.config().expect("its record").memory;
    let stopped = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // What a worker does.
        scope.spawn(|| {
            let demanded = loop {
                if let Some(demanded) = control.demanded() {
                    break demanded;
                }
                std::thread::yield_now();
            };
            assert_eq!((demanded.by, demanded.tag, demanded.heeded), (b.slot(), tag, false));
            assert!(control.heed(&demanded));
            assert!(ground.pool.find_capacity(tag).is_some(), "it is still the guest's");
            stopped.store(true, Ordering::Release);
            let word = control.ownership().load().expect("a word");
            let Ownership::Owned { host, epoch } = word else { panic!("{word}") };
            assert!(control.ownership().transition(word, Ownership::Lost { host, epoch }));
        });
        let taken = b.force_release(tag, &[], AbsentPools::Refuse, PATIENCE).expect("taken");
        assert!(stopped.load(Ordering::Acquire));
        assert_eq!(taken.guest.as_deref(), Some("g"));
    });
    assert_eq!(ground.pool.find_capacity(tag), None);
    ground.assert_sound();
    b.destroy_guest(&control).expect("destroyed by anyone");
    assert_eq!(ground.pool.usage().free, before);
}

#[test]
fn a_capacity_that_is_added_under_the_tag_of_memory_that_was_taken_is_not_the_lost_guests() {
    let ground = Ground::new();
    let (a, b) = (ground.agent("a"), ground.agent("b"));
    let before = ground.pool.usage().free;
    let control = guest(&a, &[]);
    let tag = control.config().expect("its record").memory;
    let word = control.ownership().load().expect("a word");
    let Ownership::Owned { host, epoch } = word else { panic!("{word}") };
    assert!(control.ownership().transition(word, Ownership::Lost { host, epoch }));
    b.force_release(tag, &[], AbsentPools::Refuse, Duration::ZERO).expect("taken");
    // Smaller than what the guest had: nothing of it could be there.
    b.add_capacity(&CapacityRequest::shared(tag, GRANULE)).expect("the tag is free");
    for repair in [false, true] {
        let report = ground.pool.check(repair);
        assert!(report.is_clean(), "{report:#?}");
        let told = |what: &str| report.findings.iter().any(|finding| finding.what.contains(what));
        assert!(told(&format!("another capacity has the tag {tag} of its memory")), "{report:#?}");
    }
    assert_eq!(ground.pool.find_capacity(tag).expect("the capacity").user, None);
    assert!(!control.is_placed());
    // The guest takes nothing along that is not its own.
    b.destroy_guest(&control).expect("destroyed by anyone");
    assert_eq!(ground.pool.usage().free, before - GRANULE);
    b.release_capacity(tag).expect("released");
    ground.assert_sound();
}

#[test]
fn a_demand_that_nobody_heeds_is_withdrawn_and_the_guest_keeps_its_memory() {
    let ground = Ground::new();
    let (a, b) = (ground.agent("a"), ground.agent("b"));
    let control = guest(&a, &[]);
    let tag = control.config().expect("its record").memory;
    let refusal = b.force_release(tag, &[], AbsentPools::Refuse, Duration::from_millis(20)).expect_err("unheeded");
    assert!(matches!(&refusal, Error::NotHeeded { host, guest, .. } if host == "a" && guest == "g"), "{refusal}");
    assert_eq!(control.demanded(), None);
    control.map_memory().expect("it has its memory");
    ground.assert_sound();
}

#[test]
fn of_heeding_and_withdrawing_exactly_one_wins() {
    let ground = Ground::new();
    let (a, b) = (ground.agent("a"), ground.agent("b"));
    let control = guest(&a, &[]);
    let tag = control.config().expect("its record").memory;
    for _ in 0..50 {
        let over = AtomicBool::new(false);
        let heeded = std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                while !over.load(Ordering::Acquire) {
                    if let Some(demanded) = control.demanded() {
                        return control.heed(&demanded);
                    }
                }
                false
            });
            let ended = b.force_release(tag, &[], AbsentPools::Refuse, Duration::ZERO);
            over.store(true, Ordering::Release);
            let heeded = worker.join().expect("no panic");
            match ended {
                Err(Error::NotHeeded { .. }) => assert!(!heeded),
                Err(Error::StillStopping { .. }) => assert!(heeded),
                other => panic!("{other:?}"),
            }
            heeded
        });
        assert_eq!(control.demanded().is_some_and(|demanded| demanded.heeded), heeded);
        if heeded {
            return;
        }
    }
}

#[test]
fn the_state_of_a_guest_is_not_taken_and_a_lost_guest_is_not_asked() {
    let ground = Ground::new();
    let (a, b) = (ground.agent("a"), ground.agent("b"));
    let control = guest(&a, &[]);
    let info = ground.pool.find_guest("g").expect("the guest");
    let state = info.state.expect("its state");
    let refusal = b.force_release(state, &[], AbsentPools::Refuse, PATIENCE).expect_err("state");
    assert!(matches!(refusal, Error::StateOfGuest { .. }), "{refusal}");
    let word = control.ownership().load().expect("a word");
    let Ownership::Owned { host, epoch } = word else { panic!("{word}") };
    assert!(control.ownership().transition(word, Ownership::Lost { host, epoch }));
    let taken = b.force_release(info.memory, &[], AbsentPools::Refuse, Duration::ZERO).expect("taken");
    assert_eq!(taken.guest.as_deref(), Some("g"));
    ground.assert_sound();
}
