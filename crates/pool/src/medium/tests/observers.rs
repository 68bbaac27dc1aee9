//! What a living peer sees before every write of an operation, while relaxed stores become visible in any order; and two hosts
//! that want the same name. No cache is lost here, and nothing is written back: hosts as processes of one machine.

use super::{ENOUGH, Settings, Stage, Verdict, become_host, require, simulate};
use crate::crash_tests::{Scene, guest, identity, shared};
use crate::fault::armed::interrupted;
use crate::{GuestId, JobId, Membership, MemoryHome, Tag};
use std::cell::RefCell;
use std::rc::Rc;

fn lasting(settings: &Settings) -> Settings {
    Settings { outlived: false, ..settings.clone() }
}

/// Every report that is there can be read. Most of the ring is empty; the first entries are where the first reports go.
pub(super) fn look_at_reports(scene: &Scene) -> Result<(), String> {
    let torn = (0..4).filter(|entry| scene.pool.report_in(*entry).is_err()).count();
    require(torn == 0, || format!("{torn} reports are torn"))
}

/// Everything else that is there can be read.
fn look(scene: &Scene) -> Result<(), String> {
    let pool = &scene.pool;
    let damage = pool.hosts().into_iter().filter_map(|host| host.damage);
    let damage = damage.chain(pool.capacities().into_iter().filter_map(|capacity| capacity.damage));
    let damage = damage.chain(pool.guests().into_iter().filter_map(|guest| guest.damage));
    let damage: Vec<String> = damage.collect();
    require(damage.is_empty(), || damage.join("; "))?;
    let blind = pool.guests().into_iter().find(|guest| guest.changed_by.is_none() && guest.places.is_none());
    require(blind.is_none(), || "the state area of a guest cannot be read".to_owned())
}

/// What a peer looks at.
type Look = fn(&Scene) -> Result<(), String>;

/// Host 1 looks before each write of an operation of host 0.
pub(super) fn watched(settings: &Settings, operation: fn(&Scene), look: Look) -> Verdict {
    let stage = Rc::new(Stage::of(settings));
    let mut left_out = 0;
    for writes in 0..ENOUGH {
        stage.reset();
        let seen = Rc::new(RefCell::new(Ok(())));
        let mut came = false;
        left_out += simulate(&lasting(settings), writes, || {
            let (watcher, notes) = (Rc::clone(&stage), Rc::clone(&seen));
            let watch = move || {
                become_host(1);
                *notes.borrow_mut() = look(&watcher.scene);
                become_host(0);
            };
            ((), came) = interrupted(writes, watch, || operation(&stage.scene));
            Ok(())
        })?;
        let seen = seen.borrow().clone();
        seen.map_err(|wrong: String| format!("before write {writes}: {wrong}"))?;
        if !came {
            return Ok(left_out);
        }
    }
    Err(format!("it makes more than {ENOUGH} writes"))
}

/// The target sees a guest that is frozen, and all of its state with it.
pub(super) fn frozen(settings: &Settings) -> Verdict {
    let stage = Rc::new(Stage::of(settings));
    let (guest, state, epoch) = super::handoff::prepare(&stage);
    let (guest, state) = (Rc::new(guest), Rc::new(state));
    let mut left_out = 0;
    for writes in 0..ENOUGH {
        let seen = Rc::new(RefCell::new(Ok(())));
        let mut came = false;
        left_out += simulate(&lasting(settings), writes, || {
            let (watched, area, notes) = (Rc::clone(&guest), Rc::clone(&state), Rc::clone(&seen));
            let watch = move || {
                become_host(1);
                if watched.ownership().load() == Ok(super::handoff::frozen(epoch)) {
                    let whole = super::handoff::is_whole(&area, epoch);
                    *notes.borrow_mut() =
                        whole.and_then(|whole| require(whole, || "its state is not whole".to_owned()));
                }
                become_host(0);
            };
            let work = || {
                super::handoff::hand_over(&guest, &state, epoch);
                // The source goes on, and the target looks while it does.
                crate::fault::armed::step();
            };
            ((), came) = interrupted(writes, watch, work);
            Ok(())
        })?;
        let seen = seen.borrow().clone();
        seen.map_err(|wrong: String| format!("before write {writes}: {wrong}"))?;
        if !came {
            return Ok(left_out);
        }
    }
    Err(format!("it makes more than {ENOUGH} writes"))
}

/// What a rival does in between, as another member; whether it got what both want.
type Rival = fn(&Stage, &Membership) -> bool;

/// Host 1 does the same as host 0, in between; one of them gets what both want, at most.
fn contested(settings: &Settings, own_part: fn(&Stage) -> bool, rival: Rival) -> Verdict {
    let stage = Rc::new(Stage::of(settings));
    let member = Rc::new(stage.scene.pool.join(&identity("rival")).expect("membership"));
    let sequence = member.journal_sequence();
    let compete = |writes: usize, seed: usize| {
        stage.reset();
        member.rewind_journal(sequence);
        let other = Rc::new(RefCell::new(false));
        let mut came = false;
        let left_out = simulate(&lasting(settings), writes + seed, || {
            let (scene, member, got) = (Rc::clone(&stage), Rc::clone(&member), Rc::clone(&other));
            let meanwhile = move || {
                become_host(1);
                *got.borrow_mut() = rival(&scene, &member);
                become_host(0);
            };
            let own;
            (own, came) = interrupted(writes, meanwhile, || own_part(&stage));
            require(!(own && *other.borrow()), || format!("before write {writes}: both have got it"))?;
            require(own || *other.borrow() || !came, || format!("before write {writes}: nobody has got it"))
        })?;
        Ok::<_, String>((left_out, came))
    };
    let (mut left_out, mut writes, mut came) = (0, 0, true);
    while came {
        let more;
        (more, came) = compete(writes, 0)?;
        left_out += more;
        writes += 1;
    }
    // The contest is at the end.
    for writes in writes.saturating_sub(24)..writes {
        for seed in 1..6 {
            left_out += compete(writes, 1000 * seed)?.0;
        }
    }
    Ok(left_out)
}

pub(super) fn guest_names(settings: &Settings) -> Verdict {
    contested(
        settings,
        |stage| stage.scene.host.create_guest(&guest("new", MemoryHome::Dram)).is_ok(),
        |_, member| member.create_guest(&guest("new", MemoryHome::Dram)).is_ok(),
    )
}

/// Two hosts that want the same tag.
pub(super) fn tags(settings: &Settings) -> Verdict {
    fn add(member: &Membership) -> bool {
        member.add_capacity(&shared(Tag::from_bytes([7; 16]), 1)).is_ok()
    }
    contested(settings, |stage| add(&stage.scene.host), |_, member| add(member))
}

pub(super) fn host_names(settings: &Settings) -> Verdict {
    contested(
        settings,
        |stage| stage.scene.pool.join(&identity("new")).is_ok(),
        |stage, _| stage.scene.pool.join(&identity("new")).is_ok(),
    )
}

pub(super) fn report(scene: &Scene) {
    scene.host.keep_report(JobId::random(), GuestId::random(), &[7; 300]).expect("kept");
}

/// A guest that is being created, as a peer sees it.
pub(super) fn watched_creation(settings: &Settings) -> Verdict {
    watched(settings, super::operations::create_in_dram, look)
}

#[test]
fn a_peer_never_sees_half_a_capacity() {
    watched(&Settings::default(), super::operations::add, look).expect("nothing is half");
}

#[test]
fn a_peer_never_sees_half_a_guest() {
    watched_creation(&Settings::default()).expect("nothing is half");
}

#[test]
fn a_target_never_sees_half_a_state() {
    frozen(&Settings::default()).expect("nothing is half");
}

#[test]
fn a_peer_never_sees_half_a_report() {
    watched(&Settings::default(), report, look_at_reports).expect("nothing is half");
}

#[test]
fn two_guests_never_get_the_same_name() {
    guest_names(&Settings::default()).expect("one of them");
}

#[test]
fn two_hosts_never_get_the_same_name() {
    host_names(&Settings::default()).expect("one of them");
}
