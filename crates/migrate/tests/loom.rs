//! The atomics of the handoff under loom: every interleaving and every reordering that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p nil-migrate --release --test loom --target-dir target/loom`
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use nil_migrate::Handoff;
use nil_migrate::countdown::{Countdown, Occupancy};
use nil_migrate::gate::Gate;
use nil_migrate::protocol::{Arrival, Tally};
use nil_pool::sync::{AtomicU32, Ordering};
use nil_pool::{Epoch, HostSlot, OwnershipWord};

const EPOCH: Epoch = Epoch(5);

/// Checks every interleaving with at most three preemptions: sleepers at a gate have too many without a bound.
fn bounded_model(test: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(test);
}

fn handoff() -> Handoff {
    let slot = |index| HostSlot::new(index).expect("a small slot");
    Handoff::new(slot(1), slot(2), EPOCH).expect("a legal handoff")
}

/// An area of a state slot: loom fails a test in which it is read and written at once.
struct Area(UnsafeCell<u32>);

// SAFETY: loom checks every access for data races; that is what the tests are for.
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    fn write(&self, value: u32) {
        // SAFETY: loom hands out a valid pointer and panics when anybody else holds one.
        self.0.with_mut(|content| unsafe { *content = value });
    }

    fn read(&self) -> u32 {
        // SAFETY: loom hands out a valid pointer and panics when anybody writes meanwhile.
        self.0.with(|content| unsafe { *content })
    }
}

#[test]
fn loom_the_last_vcpu_thread_sees_what_every_other_saved() {
    loom::model(|| {
        let shared = Arc::new((Countdown::new(Tally::open(EPOCH, 2)), [Area::new(), Area::new()]));
        let threads: Vec<_> = (0..2)
            .map(|index: usize| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let (countdown, areas) = &*shared;
                    areas[index].write(7);
                    let last = countdown.arrive(EPOCH, true) == Arrival::LastOfAll;
                    if last {
                        assert_eq!((areas[0].read(), areas[1].read()), (7, 7));
                    }
                    last
                })
            })
            .collect();
        let lasts = threads.into_iter().map(|thread| thread.join().expect("no panic")).filter(|&last| last).count();
        assert_eq!(lasts, 1);
    });
}

#[test]
fn loom_a_thread_that_comes_late_is_not_counted_into_the_next_round() {
    loom::model(|| {
        let countdown = Arc::new(Countdown::new(Tally::open(EPOCH, 1)));
        let late = Arc::clone(&countdown);
        let thread = thread::spawn(move || late.arrive(EPOCH, true));
        countdown.set(Tally::closed(EPOCH));
        countdown.set(Tally::open(Epoch(EPOCH.0 + 1), 1));
        let arrival = thread.join().expect("no panic");
        assert!(matches!(arrival, Arrival::LastOfAll | Arrival::TooLate));
        assert_eq!(countdown.read(), Tally::open(Epoch(EPOCH.0 + 1), 1));
    });
}

#[test]
fn loom_nobody_writes_for_a_round_that_is_over_once_the_place_is_empty() {
    loom::model(|| {
        let shared = Arc::new((Countdown::new(Tally::open(EPOCH, 1)), Occupancy::new(), Area::new()));
        let late = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let (countdown, occupancy, area) = &*late;
            let _occupied = occupancy.enter();
            if countdown.read().is_open() {
                area.write(1);
            }
        });
        let (countdown, occupancy, area) = &*shared;
        countdown.set(Tally::closed(EPOCH));
        if occupancy.is_empty() {
            area.write(2);
        }
        thread.join().expect("no panic");
    });
}

#[test]
fn loom_whoever_claims_has_read_all_that_was_saved_and_exactly_one_of_claim_and_cancel_wins() {
    loom::model(|| {
        let handoff = handoff();
        let shared = Arc::new((OwnershipWord::new(handoff.offered()), [Area::new(), Area::new()]));
        let target = Arc::clone(&shared);
        let claims = thread::spawn(move || {
            let (word, slots) = &*target;
            if word.load() != Ok(handoff.frozen()) {
                return false;
            }
            let loaded = slots[EPOCH.slot()].read();
            let claimed = word.transition(handoff.frozen(), handoff.claimed());
            assert!(!claimed || loaded == 7);
            claimed
        });
        let source = Arc::clone(&shared);
        let publishes = thread::spawn(move || {
            let (word, slots) = &*source;
            slots[EPOCH.slot()].write(7);
            assert!(word.transition(handoff.offered(), handoff.frozen()));
        });
        publishes.join().expect("no panic");
        let (word, slots) = &*shared;
        let cancelled = word.transition(handoff.frozen(), handoff.kept());
        if cancelled {
            // The guest runs on and is frozen again while a late target still reads: it reads the other slot.
            slots[handoff.next_epoch().slot()].write(8);
        }
        let claimed = claims.join().expect("no panic");
        assert!(claimed != cancelled);
        let expected = if claimed { handoff.claimed() } else { handoff.kept() };
        assert_eq!(word.load(), Ok(expected));
    });
}

#[test]
fn loom_of_a_late_freeze_and_a_withdrawal_exactly_one_wins() {
    loom::model(|| {
        let handoff = handoff();
        let word = Arc::new(OwnershipWord::new(handoff.offered()));
        let vcpu = Arc::clone(&word);
        let freezes = thread::spawn(move || vcpu.transition(handoff.offered(), handoff.frozen()));
        let withdrawn = word.transition(handoff.offered(), handoff.kept());
        assert!(freezes.join().expect("no panic") != withdrawn);
    });
}

#[test]
fn loom_no_sleeper_misses_the_opening_of_its_gate() {
    bounded_model(|| {
        let shared = Arc::new((Gate::new(), AtomicU32::new(0)));
        let sleepers: Vec<_> = (0..2)
            .map(|_| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let (gate, outcome) = &*shared;
                    gate.wait(|| Some(outcome.load(Ordering::Relaxed)).filter(|&n| n != 0))
                })
            })
            .collect();
        let (gate, outcome) = &*shared;
        outcome.store(3, Ordering::Relaxed);
        gate.open();
        for sleeper in sleepers {
            assert_eq!(sleeper.join().expect("no panic"), 3);
        }
    });
}

#[test]
fn loom_two_openings_of_a_gate_for_two_conditions_reach_both_sleepers() {
    bounded_model(|| {
        let shared = Arc::new((Gate::new(), AtomicU32::new(0), AtomicU32::new(0)));
        let waits_for = |which: usize| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let (gate, first, second) = &*shared;
                let word = if which == 0 { first } else { second };
                gate.wait(|| Some(word.load(Ordering::Relaxed)).filter(|&n| n != 0))
            })
        };
        let (one, two) = (waits_for(0), waits_for(1));
        let (gate, first, second) = &*shared;
        first.store(1, Ordering::Relaxed);
        gate.open();
        second.store(2, Ordering::Relaxed);
        gate.open();
        assert_eq!((one.join().expect("no panic"), two.join().expect("no panic")), (1, 2));
    });
}

/// The tests above see what they should: a payload that is published without a release is found out.
#[test]
#[should_panic(expected = "Causality violation")]
fn loom_notices_a_payload_that_is_published_without_a_release() {
    loom::model(|| {
        let shared = Arc::new((AtomicU32::new(0), Area::new()));
        let target = Arc::clone(&shared);
        let reads = thread::spawn(move || {
            let (word, area) = &*target;
            if word.load(Ordering::Acquire) == 1 {
                area.read();
            }
        });
        let (word, area) = &*shared;
        area.write(7);
        word.store(1, Ordering::Relaxed);
        reads.join().expect("no panic");
    });
}
