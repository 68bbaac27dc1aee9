//! The critical path allocates nothing: counted by an allocator that notes who calls it.
#![cfg(not(loom))]

#[allow(dead_code, reason = "this test needs less of it than the others")]
#[path = "handoff/lab.rs"]
mod lab;

use lab::{Body, LONG, Lab, arm};
use nil_migrate::{Freeze, Landing, WaitStyle};
use nil_pool::Epoch;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::thread;

thread_local! {
    /// How often the running thread has asked for memory.
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator as it came; the counter is a plain cell that is initialised
// at compile time, so counting allocates nothing itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.with(|asked| asked.set(asked.get() + 1));
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `System` through `alloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations<T>(work: impl FnOnce() -> T) -> (u64, T) {
    let before = ASKED.with(Cell::get);
    let result = work();
    (ASKED.with(Cell::get) - before, result)
}

#[test]
fn the_counter_counts() {
    let (asked, boxed) = allocations(|| Box::new(7));
    assert_eq!((asked, *boxed), (1, 7));
}

#[test]
fn a_vcpu_freezes_and_lands_without_an_allocation() {
    for style in [WaitStyle::Auto, WaitStyle::Spin, WaitStyle::Doorbell] {
        let lab = Lab::new(1);
        let mut bodies = [Body::new(1), Body::new(1)];
        let (source, target) = (lab.source(0, Epoch(1)), lab.target(1, style));
        arm(&source, &target);
        let [leaving, landing] = &mut bodies;
        thread::scope(|scope| {
            let lands = scope.spawn(|| {
                let mut seat = target.seat(0);
                allocations(|| seat.land(&mut landing.vcpus[0], &landing.machine))
            });
            source.offer(lab.hosts[1].slot, LONG).expect("the target is poised");
            let (asked, freeze) = allocations(|| source.freeze(0, &mut leaving.vcpus[0], &leaving.machine));
            assert!(matches!(freeze, Freeze::Saved(_)), "{freeze:?}");
            assert_eq!(asked, 0, "the source allocated");
            let (asked, landing) = lands.join().expect("the target's thread ends");
            assert!(matches!(landing, Landing::Landed { .. }), "{landing:?}");
            assert_eq!(asked, 0, "the target allocated");
        });
    }
}
