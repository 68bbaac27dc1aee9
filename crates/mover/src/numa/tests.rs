//! Memory that really goes from one node to another. These tests are ignored, for most hosts have one node: where there are
//! two, `cargo nextest run -p nil-mover --run-ignored only numa` runs them.

use super::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Huge pages must not reach beyond the part that a test looks at.
const ALIGN: usize = 2 << 20;
const WORDS: usize = (16 << 20) / size_of::<u64>();
const BYTES: usize = WORDS * size_of::<u64>();

/// Two nodes with memory for this process.
fn two_nodes() -> [Node; 2] {
    let allowed = syscalls::allowed().expect("NUMA").nodes();
    let nodes: Vec<Node> = allowed.iter().filter_map(|node| Node::with_memory(node).ok()).take(2).collect();
    nodes.try_into().expect("this host has memory on one node only; these tests take a host with two")
}

/// Words of which a whole number of huge pages is looked at.
struct Words(Vec<AtomicU64>);

impl Words {
    fn new() -> Self {
        Self((0..WORDS + ALIGN).map(|_| AtomicU64::new(0)).collect())
    }

    fn part(&self) -> &[AtomicU64] {
        let start = self.0.as_ptr().addr();
        let skip = (start.next_multiple_of(ALIGN) - start) / size_of::<u64>();
        &self.0[skip..][..WORDS]
    }

    fn start(&self) -> *const u8 {
        self.part().as_ptr().cast()
    }
}

#[test]
#[ignore = "takes a host with memory on two NUMA nodes"]
fn pages_come_over_from_another_node_with_what_they_hold() {
    let [first, second] = two_nodes();
    let words = Words::new();
    for (number, word) in (1..).zip(words.part()) {
        word.store(number, Ordering::Relaxed);
    }
    first.bring(words.start(), BYTES).expect("to the first node");
    assert_eq!(where_is(words.start(), BYTES).expect("query").on(first.id()), BYTES as u64);
    let moved = second.bring(words.start(), BYTES).expect("to the second node");
    assert_eq!(moved, NodeMove { moved_bytes: BYTES as u64, ..NodeMove::default() });
    assert_eq!(where_is(words.start(), BYTES).expect("query").on(second.id()), BYTES as u64);
    assert!((1..).zip(words.part()).all(|(number, word)| word.load(Ordering::Relaxed) == number));
    assert_eq!(bound_to(words.start()), Ok(Some([second.id()].into_iter().collect())));
}

#[test]
#[ignore = "takes a host with memory on two NUMA nodes"]
fn untouched_pages_come_from_the_node_to_which_the_rest_went() {
    let [_, second] = two_nodes();
    let mut memory = vec![0_u8; 64 << 20];
    let skip = memory.as_ptr().addr().next_multiple_of(ALIGN) - memory.as_ptr().addr();
    let part = &mut memory[skip..][..BYTES];
    part[..BYTES / 2].fill(1);
    second.bring(part.as_ptr(), BYTES).expect("to the second node");
    part[BYTES / 2..].fill(1);
    assert_eq!(where_is(part.as_ptr(), BYTES).expect("query").on(second.id()), BYTES as u64);
}

#[test]
#[ignore = "takes a host with memory on two NUMA nodes"]
fn no_store_is_lost_while_pages_go_from_node_to_node() {
    let nodes = two_nodes();
    let words = Words::new();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let storm = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                rounds += 1;
                for word in words.part().iter().step_by(64) {
                    assert_eq!(word.swap(rounds, Ordering::Relaxed), rounds - 1);
                }
            }
            rounds
        });
        for round in 0..20 {
            nodes[round % 2].bring(words.start(), BYTES).expect("to the other node");
        }
        stop.store(true, Ordering::Relaxed);
        let rounds = storm.join().expect("no store was lost");
        assert!(words.part().iter().step_by(64).all(|word| word.load(Ordering::Relaxed) == rounds));
    });
    assert_eq!(where_is(words.start(), BYTES).expect("query").on(nodes[1].id()), BYTES as u64);
}
