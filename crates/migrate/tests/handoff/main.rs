//! Handoffs between two hosts that are threads of one process, over a real pool file: every way in which one can end.
#![cfg(not(loom))]

mod lab;

use lab::{Body, LONG, Lab, Loads, SHORT, arm, freeze_and_die, hand_over, land, landed};
use nil_migrate::protocol::{ArmEvent, Handoff, arm_step};
use nil_migrate::{Error, HandoffReport, Landing, Outcome, Reason, Target, TornDown, WaitStyle, recover, rescue};
use nil_migrate::{Liveness, Resolution};
use nil_pool::{Arm, Epoch, Ownership};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// One handoff that must succeed; returns the epoch of the new owner.
fn move_guest(lab: &Lab, bodies: &mut [Body; 2], from: usize, epoch: Epoch, style: WaitStyle) -> Epoch {
    let (source, target) = (lab.source(from, epoch), lab.target(1 - from, style));
    arm(&source, &target);
    let [first, second] = bodies;
    let (leaving, landing) = if from == 0 { (first, second) } else { (second, first) };
    thread::scope(|scope| {
        let lands = scope.spawn(|| land(&target, landing, true));
        let outcome = hand_over(&source, leaving, lab.hosts[1 - from].slot, LONG);
        let at = landed(&lands.join().expect("the target's threads end")).expect("the guest lands");
        assert_eq!(outcome, Outcome::Released { epoch: at });
        at
    })
}

fn there_and_back(vcpus: usize, times: u64, style: WaitStyle) {
    let lab = Lab::new(vcpus);
    let mut bodies = [Body::new(vcpus), Body::new(vcpus)];
    let mut epoch = Epoch(1);
    for turn in 0..2 * times {
        let from = usize::from(turn % 2 == 1);
        bodies[from].run();
        assert_eq!(bodies[from].runs(), turn + 1, "a run of the guest was lost");
        epoch = move_guest(&lab, &mut bodies, from, epoch, style);
    }
    assert_eq!(lab.word(), lab.owned(0, epoch));
    assert_eq!(u64::from(epoch.0), 1 + 2 * times);
}

#[test]
fn a_guest_goes_there_and_back_a_thousand_times() {
    there_and_back(2, 1_000, WaitStyle::Auto);
}

#[test]
fn a_guest_with_one_vcpu_goes_there_and_back_with_every_style_of_waiting() {
    for style in [WaitStyle::Auto, WaitStyle::Spin, WaitStyle::Doorbell] {
        there_and_back(1, 50, style);
    }
}

#[test]
fn a_guest_with_more_vcpus_than_cpus_goes_there_and_back() {
    for style in [WaitStyle::Auto, WaitStyle::Spin, WaitStyle::Doorbell] {
        there_and_back(6, 10, style);
    }
}

/// What a target's worker wrote before it died: nobody lands.
fn poise_and_die(lab: &Lab, host: usize, epoch: Epoch) {
    let me = &lab.hosts[host];
    me.control.arm().store(Arm::Idle);
    let mut arm = Arm::Idle;
    for event in [ArmEvent::Begin, ArmEvent::Ready, ArmEvent::Poise] {
        // The source offers when it sees `Armed`.
        while event == ArmEvent::Poise && Handoff::of(lab.word()).is_none() {
            thread::yield_now();
        }
        let next = arm_step(arm, me.slot, epoch, event).expect("the documented order");
        assert!(me.control.arm().transition(arm, next));
        arm = next;
    }
}

#[test]
fn a_guest_whose_target_dies_before_it_is_poised_never_stops() {
    let lab = Lab::new(2);
    let (source, target) = (lab.source(0, Epoch(1)), lab.target(1, WaitStyle::Auto));
    arm(&source, &target);
    let refused = source.offer(lab.hosts[1].slot, SHORT).expect_err("nobody is poised");
    assert!(matches!(refused, Error::Withdrawn { epoch: Epoch(2), reason: Reason::NotPoised }), "{refused}");
    assert_eq!(lab.word(), lab.owned(0, Epoch(2)));
    assert!(source.owns());
}

#[test]
fn a_guest_whose_target_dies_after_it_is_poised_goes_on_at_its_source() {
    let lab = Lab::new(2);
    let mut bodies = [Body::new(2), Body::new(2)];
    bodies[0].run();
    let source = lab.source(0, Epoch(1));
    let [body, _] = &mut bodies;
    let outcome = thread::scope(|scope| {
        scope.spawn(|| poise_and_die(&lab, 1, Epoch(1)));
        source.await_armed(lab.hosts[1].slot, LONG).expect("the target arms");
        hand_over(&source, body, lab.hosts[1].slot, SHORT)
    });
    assert_eq!(outcome, Outcome::TakenBack { epoch: Epoch(2), reason: Reason::Expired });
    assert_eq!(lab.word(), lab.owned(0, Epoch(2)));
    bodies[0].run();
    let epoch = move_guest(&lab, &mut bodies, 0, Epoch(2), WaitStyle::Auto);
    assert_eq!((epoch, bodies[1].runs()), (Epoch(3), 2));
}

#[test]
fn a_handoff_that_is_called_off_before_its_offer_changes_nothing() {
    let lab = Lab::new(2);
    let (source, target) = (lab.source(0, Epoch(1)), lab.target(1, WaitStyle::Auto));
    arm(&source, &target);
    source.request_cancel();
    let to = lab.hosts[1].slot;
    assert!(matches!(source.await_armed(to, LONG), Err(Error::CalledOff)));
    assert!(matches!(source.offer(to, LONG), Err(Error::CalledOff)));
    assert_eq!(lab.word(), lab.owned(0, Epoch(1)));
    source.forget_cancel();
    source.await_armed(to, LONG).expect("the next handoff is not called off");
}

#[test]
fn a_handoff_that_is_called_off_while_its_target_gets_poised_is_withdrawn() {
    let lab = Lab::new(2);
    let (source, target) = (lab.source(0, Epoch(1)), lab.target(1, WaitStyle::Auto));
    arm(&source, &target);
    thread::scope(|scope| {
        scope.spawn(|| {
            while Handoff::of(lab.word()).is_none() {
                thread::yield_now();
            }
            source.request_cancel();
        });
        let withdrawn = source.offer(lab.hosts[1].slot, LONG).expect_err("nobody is poised");
        assert!(matches!(withdrawn, Error::Withdrawn { epoch: Epoch(2), reason: Reason::Cancelled }), "{withdrawn}");
    });
    assert_eq!(lab.word(), lab.owned(0, Epoch(2)));
}

#[test]
fn a_guest_that_stands_still_goes_on_at_once_when_its_handoff_is_called_off() {
    let lab = Lab::new(2);
    let mut bodies = [Body::new(2), Body::new(2)];
    bodies[0].run();
    let source = lab.source(0, Epoch(1));
    let [body, _] = &mut bodies;
    let outcome = thread::scope(|scope| {
        scope.spawn(|| {
            poise_and_die(&lab, 1, Epoch(1));
            while !matches!(lab.word(), Ownership::Frozen { .. }) {
                thread::yield_now();
            }
            source.request_cancel();
        });
        source.await_armed(lab.hosts[1].slot, LONG).expect("the target arms");
        hand_over(&source, body, lab.hosts[1].slot, LONG)
    });
    assert_eq!(outcome, Outcome::TakenBack { epoch: Epoch(2), reason: Reason::Cancelled });
    source.forget_cancel();
    bodies[0].run();
    let epoch = move_guest(&lab, &mut bodies, 0, Epoch(2), WaitStyle::Auto);
    assert_eq!((epoch, bodies[1].runs()), (Epoch(3), 2));
}

#[test]
fn of_a_claim_and_a_call_off_exactly_one_wins() {
    for round in 0..200 {
        let lab = Lab::new(1);
        let mut bodies = [Body::new(1), Body::new(1)];
        let (source, target) = (lab.source(0, Epoch(1)), lab.target(1, WaitStyle::Spin));
        arm(&source, &target);
        let [leaving, landing] = &mut bodies;
        let (outcome, landings) = thread::scope(|scope| {
            let lands = scope.spawn(|| land(&target, landing, true));
            scope.spawn(|| {
                while !matches!(lab.word(), Ownership::Frozen { .. } | Ownership::Owned { epoch: Epoch(2), .. }) {
                    std::hint::spin_loop();
                }
                (0..round * 50).for_each(|_| std::hint::spin_loop());
                source.request_cancel();
            });
            let outcome = hand_over(&source, leaving, lab.hosts[1].slot, LONG);
            (outcome, lands.join().expect("the target's threads end"))
        });
        let owner = usize::from(outcome == Outcome::Released { epoch: Epoch(2) });
        assert_eq!(lab.word(), lab.owned(owner, Epoch(2)), "{outcome:?}");
        assert_eq!(landed(&landings).is_some(), owner == 1, "{outcome:?}");
    }
}

#[test]
fn a_guest_whose_target_dies_while_it_loads_goes_on_at_its_source() {
    let lab = Lab::new(1);
    let mut bodies = [Body::new(1), Body::new(1)];
    bodies[1].vcpus[0].loads = Loads::Dies;
    let (source, target) = (lab.source(0, Epoch(1)), lab.target(1, WaitStyle::Auto));
    arm(&source, &target);
    let [leaving, landing] = &mut bodies;
    thread::scope(|scope| {
        let lands = scope.spawn(|| land(&target, landing, false));
        let outcome = hand_over(&source, leaving, lab.hosts[1].slot, SHORT);
        assert_eq!(outcome, Outcome::TakenBack { epoch: Epoch(2), reason: Reason::Expired });
        assert!(lands.join().expect("the panic is caught")[0].is_none());
    });
    assert_eq!(lab.word(), lab.owned(0, Epoch(2)));
}

#[test]
fn a_target_that_claims_too_late_tears_itself_down() {
    let lab = Lab::new(2);
    let mut bodies = [Body::new(2), Body::new(2)];
    bodies[0].run();
    bodies[1].vcpus[1].loads = Loads::Slowly(4 * SHORT);
    let (source, target) = (lab.source(0, Epoch(1)), lab.target(1, WaitStyle::Auto));
    arm(&source, &target);
    let [leaving, landing] = &mut bodies;
    thread::scope(|scope| {
        let lands = scope.spawn(|| land(&target, landing, false));
        let outcome = hand_over(&source, leaving, lab.hosts[1].slot, SHORT);
        assert_eq!(outcome, Outcome::TakenBack { epoch: Epoch(2), reason: Reason::Expired });
        for landing in lands.join().expect("the target's threads end") {
            assert!(matches!(landing, Some(Landing::TornDown(TornDown::Superseded))), "{landing:?}");
        }
    });
    assert_eq!(lab.word(), lab.owned(0, Epoch(2)));
    assert_eq!(target.landed(), None);
}

#[test]
fn a_guest_that_its_target_cannot_load_goes_on_at_its_source_at_once() {
    for whose in 0..3 {
        let lab = Lab::new(2);
        let mut bodies = [Body::new(2), Body::new(2)];
        match whose {
            2 => bodies[1].machine.get_mut().expect("not poisoned").loads = Loads::Refuses,
            vcpu => bodies[1].vcpus[vcpu].loads = Loads::Refuses,
        }
        let (source, target) = (lab.source(0, Epoch(1)), lab.target(1, WaitStyle::Auto));
        arm(&source, &target);
        let [leaving, landing] = &mut bodies;
        thread::scope(|scope| {
            let lands = scope.spawn(|| land(&target, landing, false));
            let outcome = hand_over(&source, leaving, lab.hosts[1].slot, LONG);
            assert_eq!(outcome, Outcome::TakenBack { epoch: Epoch(2), reason: Reason::Refused });
            let landings = lands.join().expect("the target's threads end");
            let refused =
                |landing: &Option<Landing<_>>| matches!(landing, Some(Landing::TornDown(TornDown::Refused(_))));
            assert_eq!(landings.iter().filter(|landing| refused(landing)).count(), 1, "{landings:?}");
        });
        assert_eq!(lab.word(), lab.owned(0, Epoch(2)));
    }
}

#[test]
fn a_guest_that_cannot_be_saved_goes_on_and_can_be_moved_later() {
    for whose in 0..3 {
        let lab = Lab::new(2);
        let mut bodies = [Body::new(2), Body::new(2)];
        bodies[0].run();
        match whose {
            2 => bodies[0].machine.get_mut().expect("not poisoned").saves = false,
            vcpu => bodies[0].vcpus[vcpu].saves = false,
        }
        let (source, target) = (lab.source(0, Epoch(1)), lab.target(1, WaitStyle::Auto));
        arm(&source, &target);
        let [leaving, landing] = &mut bodies;
        thread::scope(|scope| {
            let lands = scope.spawn(|| land(&target, landing, true));
            let outcome = hand_over(&source, leaving, lab.hosts[1].slot, LONG);
            assert_eq!(outcome, Outcome::TakenBack { epoch: Epoch(2), reason: Reason::SaveFailed });
            assert_eq!(landed(&lands.join().expect("the target's threads end")), None);
        });
        let [leaving, _] = &mut bodies;
        leaving.machine.get_mut().expect("not poisoned").saves = true;
        leaving.vcpus.iter_mut().for_each(|part| part.saves = true);
        let epoch = move_guest(&lab, &mut bodies, 0, source.epoch(), WaitStyle::Auto);
        assert_eq!((epoch, bodies[1].runs()), (Epoch(3), 1));
    }
}

#[test]
fn a_target_claims_a_guest_whose_source_died_after_freezing() {
    let lab = Lab::new(2);
    let mut bodies = [Body::new(2), Body::new(2)];
    bodies[0].run();
    let (source, target) = (lab.source(0, Epoch(1)), lab.target(1, WaitStyle::Auto));
    arm(&source, &target);
    let [leaving, landing] = &mut bodies;
    thread::scope(|scope| {
        let lands = scope.spawn(|| land(&target, landing, true));
        freeze_and_die(&source, leaving, lab.hosts[1].slot);
        assert_eq!(landed(&lands.join().expect("the target's threads end")), Some(Epoch(2)));
    });
    assert_eq!((lab.word(), bodies[1].runs()), (lab.owned(1, Epoch(2)), 1));
    assert!(!source.owns());
}

/// Host 0 has frozen the guest at epoch 1, then its worker died; so has the target's, after it had poised.
fn frozen_by_a_dead_worker(lab: &Lab) {
    let mut body = Body::new(lab.vcpus);
    body.run();
    let source = lab.source(0, Epoch(1));
    thread::scope(|scope| {
        scope.spawn(|| poise_and_die(lab, 1, Epoch(1)));
        source.await_armed(lab.hosts[1].slot, LONG).expect("the target arms");
        freeze_and_die(&source, &mut body, lab.hosts[1].slot);
    });
}

#[test]
fn a_guest_whose_source_and_target_died_is_thawed_at_home() {
    let lab = Lab::new(2);
    frozen_by_a_dead_worker(&lab);
    assert_eq!(recover(lab.word(), |_| Liveness::Idle), Resolution::TakeBack(lab.hosts[0].slot));
    let mut body = Body::new(2);
    assert_eq!(landed(&land(&lab.home(0), &mut body, false)), Some(Epoch(2)));
    assert_eq!((lab.word(), body.runs()), (lab.owned(0, Epoch(2)), 1));
}

#[test]
fn a_fresh_worker_of_the_target_takes_over_a_guest_whose_source_is_gone() {
    let lab = Lab::new(2);
    frozen_by_a_dead_worker(&lab);
    let source = lab.hosts[0].slot;
    let resolution = recover(lab.word(), |host| if host == source { Liveness::Gone } else { Liveness::Idle });
    assert_eq!(resolution, Resolution::TakeOver(lab.hosts[1].slot));
    let target = lab.target(1, WaitStyle::Auto);
    target.begin().expect("a fresh worker begins where the dead one stopped");
    target.arm().expect("the target has begun");
    let mut body = Body::new(2);
    assert_eq!(landed(&land(&target, &mut body, false)), Some(Epoch(2)));
    assert_eq!((lab.word(), body.runs()), (lab.owned(1, Epoch(2)), 1));
}

#[test]
fn of_a_thaw_at_home_and_a_claim_exactly_one_wins() {
    let mut won = [0, 0];
    for _ in 0..200 {
        let lab = Lab::new(1);
        frozen_by_a_dead_worker(&lab);
        let (home, target) = (lab.home(0), lab.target(1, WaitStyle::Auto));
        let (at_home, at_target) = thread::scope(|scope| {
            let at_home = scope.spawn(|| landed(&land(&home, &mut Body::new(1), false)));
            let at_target = landed(&land(&target, &mut Body::new(1), false));
            (at_home.join().expect("the threads end"), at_target)
        });
        assert!(at_home.is_some() != at_target.is_some(), "{at_home:?} and {at_target:?}");
        let winner = usize::from(at_target.is_some());
        assert_eq!(lab.word(), lab.owned(winner, Epoch(2)));
        won[winner] += 1;
    }
    println!("won at home, at the target: {won:?}");
}

#[test]
fn of_a_cancel_and_a_claim_exactly_one_wins_thousands_of_times() {
    let lab = Lab::new(1);
    let mut bodies = [Body::new(1), Body::new(1)];
    let (mut owner, mut epoch, mut runs) = (0, Epoch(1), 0);
    let mut won = [0, 0];
    for round in 0..3_000_u64 {
        bodies[owner].run();
        runs += 1;
        let (source, target) = (lab.source(owner, epoch), lab.target(1 - owner, WaitStyle::Auto));
        arm(&source, &target);
        let [first, second] = &mut bodies;
        let (leaving, landing) = if owner == 0 { (first, second) } else { (second, first) };
        // From far too little to enough: on the way the two meet.
        let patience = Duration::from_micros(20 * (round % 30));
        let (outcome, at) = thread::scope(|scope| {
            let lands = scope.spawn(|| landed(&land(&target, landing, true)));
            let outcome = hand_over(&source, leaving, lab.hosts[1 - owner].slot, patience);
            (outcome, lands.join().expect("the target's threads end"))
        });
        let claimed = at.is_some();
        let next = epoch.next().expect("few epochs");
        match outcome {
            Outcome::Released { epoch } => assert!(claimed && epoch == next),
            Outcome::TakenBack { epoch, .. } => assert!(!claimed && epoch == next),
            Outcome::Displaced => panic!("nobody else is there"),
        }
        owner = if claimed { 1 - owner } else { owner };
        epoch = next;
        won[usize::from(claimed)] += 1;
        assert_eq!(lab.word(), lab.owned(owner, epoch));
        assert_eq!(bodies[owner].runs(), runs, "a run of the guest was lost");
    }
    println!("taken back, claimed: {won:?}");
    assert!(won[0] > 0, "the source never took the guest back: the race did not take place");
}

#[test]
fn an_aborted_landing_gives_the_guest_back() {
    let lab = Lab::new(2);
    let (source, target) = (lab.source(0, Epoch(1)), lab.target(1, WaitStyle::Auto));
    arm(&source, &target);
    let mut body = Body::new(2);
    thread::scope(|scope| {
        let lands = scope.spawn(|| land(&target, &mut body, true));
        target.abort();
        for landing in lands.join().expect("the target's threads end") {
            assert!(matches!(landing, Some(Landing::TornDown(TornDown::Aborted))), "{landing:?}");
        }
    });
    let refused = source.offer(lab.hosts[1].slot, LONG).expect_err("the target has refused");
    assert!(matches!(refused, Error::NotArmed { found: Arm::Refused { .. }, .. }), "{refused}");
    assert_eq!(lab.word(), lab.owned(0, Epoch(1)));
}

#[test]
fn an_offer_needs_a_target_that_armed_for_this_very_epoch() {
    let lab = Lab::new(1);
    let source = lab.source(0, Epoch(1));
    let to = lab.hosts[1].slot;
    assert!(matches!(source.offer(to, SHORT), Err(Error::NotArmed { found: Arm::Idle, .. })));
    lab.hosts[1].control.arm().store(Arm::Armed { host: to, epoch: Epoch(7) });
    assert!(matches!(source.offer(to, SHORT), Err(Error::NotArmed { .. })));
    assert!(matches!(source.offer(lab.hosts[0].slot, SHORT), Err(Error::Illegal(_))));
    assert_eq!(lab.word(), lab.owned(0, Epoch(1)));
}

#[test]
fn who_does_not_own_the_guest_cannot_offer_it() {
    let lab = Lab::new(1);
    let source = lab.source(1, Epoch(1));
    lab.hosts[0].control.arm().store(Arm::Armed { host: lab.hosts[0].slot, epoch: Epoch(1) });
    let refused = source.offer(lab.hosts[0].slot, SHORT).expect_err("host 0 owns it");
    assert!(matches!(refused, Error::NotOwner { .. }), "{refused}");
    assert!(!source.owns());
}

#[test]
fn a_guest_that_is_not_on_its_way_to_a_host_is_not_to_be_had_by_it() {
    let lab = Lab::new(1);
    let own = &lab.hosts[0];
    let refused = Target::new(own.control.clone(), Arc::clone(&own.state), own.slot, 1, WaitStyle::Auto);
    assert!(matches!(refused, Err(Error::NotToBeHad { .. })));
    let refused = Target::home(own.control.clone(), Arc::clone(&own.state), own.slot, 1);
    assert!(matches!(refused, Err(Error::NotToBeHad { .. })));
}

#[test]
fn whoever_does_not_own_the_guest_leaves_its_state_alone() {
    let lab = Lab::new(1);
    frozen_by_a_dead_worker(&lab);
    lab.hosts[1].control.arm().store(Arm::Armed { host: lab.hosts[1].slot, epoch: Epoch(1) });
    assert!(matches!(lab.source(0, Epoch(1)).offer(lab.hosts[1].slot, SHORT), Err(Error::NotOwner { .. })));
    assert_eq!(landed(&land(&lab.home(0), &mut Body::new(1), false)), Some(Epoch(2)));
}

#[test]
fn a_vcpu_that_is_kicked_without_an_offer_runs_on() {
    let lab = Lab::new(1);
    let mut body = Body::new(1);
    let freeze = lab.source(0, Epoch(1)).freeze(0, &mut body.vcpus[0], &body.machine);
    assert!(matches!(freeze, nil_migrate::Freeze::NoOffer));
}

/// The worker of host 0 died between its offer and its freeze, when `parts` of the guest's three parts were saved.
fn offered_by_a_dead_worker(lab: &Lab, parts: usize) -> Handoff {
    let handoff = Handoff::new(lab.hosts[0].slot, lab.hosts[1].slot, Epoch(1)).expect("a legal handoff");
    assert!(lab.hosts[0].control.ownership().transition(handoff.owned(), handoff.offered()));
    lab.write_state(0, &mut Body::new(2), Epoch(1), parts);
    handoff
}

#[test]
fn a_whole_state_that_its_source_did_not_publish_any_more_is_salvaged() {
    let lab = Lab::new(2);
    let handoff = offered_by_a_dead_worker(&lab, 3);
    let agent = &lab.hosts[1];
    let word = rescue::salvage_or_bury(&agent.control, &agent.state, agent.slot, lab.hosts[0].slot);
    assert_eq!(word.expect("the offer was the dead host's"), handoff.frozen());
    assert_eq!(landed(&land(&lab.home(0), &mut Body::new(2), false)), Some(Epoch(2)));
}

#[test]
fn a_state_that_is_not_whole_is_reported_as_lost() {
    for parts in 0..3 {
        let lab = Lab::new(2);
        offered_by_a_dead_worker(&lab, parts);
        let (agent, dead) = (&lab.hosts[1], lab.hosts[0].slot);
        let word = rescue::salvage_or_bury(&agent.control, &agent.state, agent.slot, dead);
        assert_eq!(word.expect("the offer was the dead host's"), Ownership::Lost { host: dead, epoch: Epoch(1) });
    }
}

#[test]
fn what_an_earlier_guest_left_in_the_same_memory_is_not_salvaged() {
    let lab = Lab::new(2);
    lab.write_state(0, &mut Body::new(2), Epoch(1), 3);
    let source = lab.source(0, Epoch(1));
    thread::scope(|scope| {
        scope.spawn(|| poise_and_die(&lab, 1, Epoch(1)));
        source.await_armed(lab.hosts[1].slot, LONG).expect("the target arms");
        source.offer(lab.hosts[1].slot, LONG).expect("the target is poised");
    });
    let (agent, dead) = (&lab.hosts[1], lab.hosts[0].slot);
    let word = rescue::salvage_or_bury(&agent.control, &agent.state, agent.slot, dead);
    assert_eq!(word.expect("the offer was the dead host's"), Ownership::Lost { host: dead, epoch: Epoch(1) });
}

#[test]
fn a_frozen_guest_cannot_be_buried() {
    let lab = Lab::new(1);
    frozen_by_a_dead_worker(&lab);
    let before = lab.word();
    assert!(rescue::bury(&lab.hosts[1].control, lab.hosts[1].slot, lab.hosts[0].slot).is_err());
    assert_eq!(lab.word(), before);
}

#[test]
fn a_damaged_state_is_refused_and_the_guest_goes_on_at_its_source() {
    let lab = Lab::new(1);
    frozen_by_a_dead_worker(&lab);
    // The dead source's last act: the machine's area is begun anew, and never finished.
    drop(lab.hosts[0].state.machine(Epoch(1).slot()).writer(Epoch(1)));
    let landings = land(&lab.target(1, WaitStyle::Auto), &mut Body::new(1), false);
    assert!(matches!(landings[0], Some(Landing::TornDown(TornDown::Refused(_)))), "{landings:?}");
    let handoff = Handoff::of(lab.word()).expect("the guest is still frozen");
    assert_eq!(lab.word(), handoff.frozen());
}

#[test]
fn a_handoff_leaves_a_report_of_its_phases() {
    let lab = Lab::new(2);
    let mut bodies = [Body::new(2), Body::new(2)];
    move_guest(&lab, &mut bodies, 0, Epoch(1), WaitStyle::Auto);
    let handoff = Handoff::new(lab.hosts[0].slot, lab.hosts[1].slot, Epoch(1)).expect("a legal handoff");
    let report = HandoffReport::of(&handoff, lab.hosts[1].control.timeline(), 1_000_000_000).expect("all stamps");
    assert!(report.blackout_ns > 0 && report.phases.load_ns > 0 && report.phases.save_ns > 0, "{report:?}");
}
