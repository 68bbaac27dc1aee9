//! Memory of processes that run goes into the pool and back; the programs check that they notice nothing.

use super::stand::{Ground, Subject, bring_back, can_run, check_under, guarded};
use nil_process::{Error, Guard, Leave};

/// Moves a program's memory there and back, `rounds` times; it checks itself before, in between and after.
fn survives(name: &str, rounds: u32, least_pooled: u64) {
    if !can_run() {
        return;
    }
    let (ground, mut subject) = (Ground::new(128), Subject::start(name));
    subject.check();
    guarded(subject.pid(), &ground, |mut guard| {
        for round in 0..rounds {
            let there = guard.decouple().expect("decoupled");
            let pooled = guard.pooled_bytes().expect("a process");
            assert!(pooled >= least_pooled, "round {round}: {pooled:#x} bytes are in the pool: {there:?}");
            check_under(&mut guard, &mut subject);
            guard.recouple().expect("recoupled");
            assert_eq!(guard.pooled_bytes().expect("a process"), 0);
            check_under(&mut guard, &mut subject);
        }
        guard.leave(Leave::Running).expect("left");
    });
    subject.check();
    subject.end();
}

#[test]
fn no_store_of_two_threads_is_lost() {
    survives("stores", 10, 48 << 20);
}

#[test]
fn a_child_that_is_forked_has_memory_of_its_own() {
    survives("fork", 2, 8 << 20);
}

#[test]
fn memory_that_was_given_up_comes_back_as_zeros() {
    survives("dontneed", 3, 8 << 20);
}

#[test]
fn memory_that_grows_meets_no_other() {
    survives("mremap", 3, 4 << 20);
}

#[test]
fn rights_stay_what_they_were() {
    survives("mprotect", 3, 4 << 20);
}

#[test]
fn the_heap_grows_and_shrinks() {
    survives("heap", 3, 4 << 20);
}

#[test]
fn threads_begin_and_end() {
    survives("join", 3, 0);
}

#[test]
fn memory_without_pages_does_not_move() {
    survives("sparse", 3, 0);
}

#[test]
fn a_sleep_is_not_interrupted() {
    survives("sleep", 2, 4 << 20);
}

#[test]
fn every_signal_arrives() {
    survives("signals", 2, 8 << 20);
}

#[test]
fn what_is_left_in_the_pool_is_found_there_by_the_next_guard() {
    if !can_run() {
        return;
    }
    let (ground, mut subject) = (Ground::new(128), Subject::start("stores"));
    guarded(subject.pid(), &ground, |mut guard| {
        guard.decouple().expect("decoupled");
        guard.leave(Leave::Running).expect("left");
    });
    subject.check();
    guarded(subject.pid(), &ground, |mut guard| {
        assert!(guard.pooled_bytes().expect("a process") >= 48 << 20);
        guard.decouple().expect("what is there stays there");
        check_under(&mut guard, &mut subject);
        bring_back(guard);
    });
    subject.check();
    subject.end();
}

#[test]
fn a_capacity_that_is_too_small_leaves_the_rest_where_it_was() {
    if !can_run() {
        return;
    }
    let (ground, mut subject) = (Ground::new(16), Subject::start("stores"));
    guarded(subject.pid(), &ground, |mut guard| {
        assert!(matches!(guard.decouple(), Err(Error::NoRoom { .. })));
        check_under(&mut guard, &mut subject);
        bring_back(guard);
    });
    subject.check();
    subject.end();
}

#[test]
fn a_process_that_is_traced_is_refused() {
    if !can_run() {
        return;
    }
    let (ground, subject) = (Ground::new(16), Subject::start("join"));
    guarded(subject.pid(), &ground, |guard| {
        let again = Guard::attach(guard.pid(), &ground.home()).map(drop);
        assert!(again.expect_err("one is enough").to_string().contains("somebody else traces it"));
    });
    subject.end();
}

#[test]
fn a_process_that_ends_is_said_to_have_ended() {
    if !can_run() {
        return;
    }
    let (ground, mut subject) = (Ground::new(64), Subject::start("join"));
    let pid = subject.pid();
    guarded(pid, &ground, |mut guard| {
        subject.child.kill().expect("killed");
        let ended = guard.watch(|| false).expect_err("it has ended");
        assert!(matches!(ended, Error::Gone { pid: gone } if gone == pid));
    });
}
