//! A guest's memory that is to come to a NUMA node.
//!
//! The tests that take two nodes are ignored, for most hosts have one: where there are two,
//! `cargo nextest run -p nil-mover --run-ignored only` runs them.

use nil_mover::numa::{Node, NumaError, bound_to, where_is};
use nil_mover::topology::IdList;
use nil_mover::{
    Budget, Direction, Error, GuestMemory, Move, MoveControl, MoveOutcome, MovePlan, MoveReport, Pace, StallReason,
};
use nil_pool::{
    CreateOptions, Epoch, GuestKind, GuestRequest, HostId, HostIdentity, HostKind, Membership, MemoryHome, PinRequest,
    Pool,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tempfile::TempDir;

const BYTES: usize = 16 << 20;
/// A store into every 64th word is one into every eighth cache line.
const STRIDE: usize = 64;

/// A guest in DRAM, all of its memory touched.
struct Ground {
    memory: Arc<GuestMemory>,
    host: Membership,
    _directory: TempDir,
}

impl Ground {
    fn new() -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let options = CreateOptions { size: Some(BYTES as u64 + (64 << 20)), ..CreateOptions::default() };
        let pool = Pool::create(&directory.path().join("pool"), &options).expect("a pool");
        let agent = HostIdentity { id: HostId::random(), name: "a".to_owned(), kind: HostKind::Agent, address: None };
        let host = pool.join(&agent).expect("membership");
        let request = GuestRequest {
            name: "g".to_owned(),
            kind: GuestKind::Vm,
            memory_bytes: BYTES as u64,
            home: MemoryHome::Dram,
            vcpus: 1,
            features: 0,
        };
        let control = host.create_guest(&request).expect("a guest");
        control.publish(host.slot()).expect("an owner");
        let state = control.map_state().expect("its state area");
        let memory = Arc::new(GuestMemory::in_dram(&control, &state, None).expect("its memory"));
        memory.set_owner(host.slot(), Epoch(1));
        host.place_memory(&control).expect("a capacity for its memory");
        memory.populate().expect("pages");
        Self { memory, host, _directory: directory }
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the range is mapped and aligned as long as the memory lives, and everybody accesses it atomically.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.memory.len() / size_of::<AtomicU64>()) }
    }

    fn go(&self, plan: MovePlan) -> Result<MoveReport, Error> {
        Move::new(Arc::clone(&self.memory), plan, Vec::new())?.run(&MoveControl::default(), |_| ())
    }

    /// All of it is on the node, and stays there.
    fn is_settled_on(&self, node: u32) -> bool {
        let here: u64 = where_is(self.memory.as_ptr(), self.memory.len())
            .expect("query")
            .bytes
            .iter()
            .filter_map(|(id, bytes)| (id.get() == node).then_some(*bytes))
            .sum();
        let bound = bound_to(self.memory.as_ptr()).expect("query").expect("it is bound");
        here == BYTES as u64 && bound.to_string() == node.to_string()
    }
}

fn fast(direction: Direction, node: Option<u32>) -> MovePlan {
    let budget = Budget { pace: Pace::Fast, bandwidth: None };
    MovePlan { budget, node, ..MovePlan::of_everything(direction) }
}

/// Nodes on which this host has memory for this process.
fn nodes() -> Vec<u32> {
    let list = std::fs::read_to_string("/sys/devices/system/node/has_memory").expect("a kernel with nodes");
    let list = IdList::parse(&list, 1024).expect("a list");
    list.iter().filter(|node| Node::with_memory(*node).is_ok()).collect()
}

fn two_nodes() -> [u32; 2] {
    let mut nodes = nodes();
    nodes.truncate(2);
    nodes.try_into().expect("this host has memory on one node only; these tests take a host with two")
}

#[test]
fn what_is_on_the_node_already_is_bound_to_it_and_does_not_move() {
    let ground = Ground::new();
    let node = nodes()[0];
    ground.go(fast(Direction::Recouple, Some(node))).expect("to the node");
    let report = ground.go(fast(Direction::Recouple, Some(node))).expect("to where it is");
    assert_eq!((report.outcome, report.total_bytes, report.copied_bytes), (MoveOutcome::Done, 0, 0));
    assert!(ground.is_settled_on(node));
}

#[test]
fn what_comes_out_of_the_pool_comes_to_the_node() {
    let ground = Ground::new();
    let node = nodes()[0];
    ground.words().iter().for_each(|word| word.store(7, Ordering::Relaxed));
    ground.go(fast(Direction::Decouple, None)).expect("to the pool");
    let report = ground.go(fast(Direction::Recouple, Some(node))).expect("to the node");
    assert_eq!((report.outcome, report.copied_bytes), (MoveOutcome::Done, BYTES as u64));
    assert!(ground.is_settled_on(node));
    assert!(ground.words().iter().all(|word| word.load(Ordering::Relaxed) == 7));
}

#[test]
fn what_comes_out_of_the_pool_for_no_node_is_not_bound_to_the_one_before() {
    let ground = Ground::new();
    ground.go(fast(Direction::Decouple, None)).expect("to the pool");
    ground.go(fast(Direction::Recouple, Some(nodes()[0]))).expect("to the node");
    ground.go(fast(Direction::Decouple, None)).expect("to the pool");
    ground.go(fast(Direction::Recouple, None)).expect("to any node");
    for granule in 0..BYTES / (2 << 20) {
        assert_eq!(bound_to(ground.memory.as_ptr().wrapping_add(granule * (2 << 20))), Ok(None), "granule {granule}");
    }
}

#[test]
fn a_move_to_a_node_that_is_not_there_is_refused_by_name_and_moves_nothing() {
    let ground = Ground::new();
    let absent = (0..1024).rev().find(|node| Node::with_memory(*node).is_err()).expect("fewer nodes than 1024");
    let error = ground.go(fast(Direction::Recouple, Some(absent))).expect_err("no such node");
    assert!(matches!(error, Error::Numa(NumaError::NoSuchNode { node, .. }) if node == absent), "{error}");
    assert_eq!(bound_to(ground.memory.as_ptr()), Ok(None));
}

#[test]
#[ignore = "takes a host with memory on two NUMA nodes"]
fn no_store_is_lost_while_a_guest_s_memory_goes_from_node_to_node() {
    let ground = Ground::new();
    let nodes = two_nodes();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let storm = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                rounds += 1;
                for word in ground.words().iter().step_by(STRIDE) {
                    assert_eq!(word.swap(rounds, Ordering::Relaxed), rounds - 1);
                }
            }
            rounds
        });
        ground.go(fast(Direction::Recouple, Some(nodes[1]))).expect("to the second node");
        for _ in 0..10 {
            for node in nodes {
                let report = ground.go(fast(Direction::Recouple, Some(node))).expect("to the other node");
                assert_eq!((report.outcome, report.copied_bytes), (MoveOutcome::Done, BYTES as u64));
                assert!(ground.is_settled_on(node));
            }
        }
        stop.store(true, Ordering::Relaxed);
        let rounds = storm.join().expect("no store was lost");
        assert!(ground.words().iter().step_by(STRIDE).all(|word| word.load(Ordering::Relaxed) == rounds));
    });
}

#[test]
#[ignore = "takes a host with memory on two NUMA nodes"]
fn a_move_between_nodes_keeps_to_its_bandwidth() {
    let ground = Ground::new();
    let [first, second] = two_nodes();
    ground.go(fast(Direction::Recouple, Some(first))).expect("to the first node");
    let budget = Budget { pace: Pace::Paced { max_stall_us: 1000, max_slowdown_pct: 50 }, bandwidth: Some(64 << 20) };
    let report = ground.go(MovePlan { budget, ..fast(Direction::Recouple, Some(second)) }).expect("to the second node");
    assert_eq!((report.outcome, report.copied_bytes), (MoveOutcome::Done, BYTES as u64));
    assert!(report.bytes_per_s <= 2 * (64 << 20), "{} bytes per second", report.bytes_per_s);
    assert!(ground.is_settled_on(second));
}

#[test]
#[ignore = "takes a host with memory on two NUMA nodes"]
fn a_pin_stalls_a_move_between_nodes_and_the_rest_goes() {
    let ground = Ground::new();
    let [first, second] = two_nodes();
    ground.go(fast(Direction::Recouple, Some(first))).expect("to the first node");
    let pin = PinRequest {
        offset: 4096,
        bytes: 4096,
        owner: "vfio".to_owned(),
        reason: "DMA".to_owned(),
        host: ground.host.slot(),
    };
    let pin = ground.memory.pins().take(&pin).expect("a pin");
    let plan = MovePlan { stall_timeout_us: 1000, ..fast(Direction::Recouple, Some(second)) };
    let report = ground.go(plan.clone()).expect("as far as it goes");
    let MoveOutcome::Stalled(stall) = &report.outcome else { panic!("{report:?}") };
    assert!(matches!(stall.reason, StallReason::Pinned { ref owner, .. } if owner == "vfio"), "{stall}");
    assert_eq!(report.copied_bytes, BYTES as u64 - nil_pool::GRANULE);
    ground.memory.pins().release(pin).expect("released");
    let report = ground.go(plan).expect("the rest");
    assert_eq!((report.outcome, report.copied_bytes), (MoveOutcome::Done, nil_pool::GRANULE));
    assert!(ground.is_settled_on(second));
}
