//! The words that processes race on, under loom: every interleaving that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p nil-pool --release --test loom --target-dir target/loom`
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::thread;
use nil_pool::exclusion::Tickets;
use nil_pool::format::slot_word::{Reference, SlotState};
use nil_pool::owner_map::{OwnerMap, RESERVED};
use nil_pool::placement::PlacementWords;
use nil_pool::reports;
use nil_pool::slots::{Contest, Slots};
use nil_pool::tag_index::TagIndex;
use nil_pool::{Epoch, HostSlot, Ownership, OwnershipWord, Place, Placed, Tag};

fn host(index: u16) -> HostSlot {
    HostSlot::new(index).expect("a small slot")
}

fn words(values: &[u64]) -> Vec<AtomicU64> {
    values.iter().map(|value| AtomicU64::new(*value)).collect()
}

fn making(slot: u16) -> (Reference, u64) {
    let generation = 5;
    (Reference { slot, generation }, SlotState::Making { host: host(slot), generation }.encode())
}

/// Runs `work` for index 0 and 1 in two threads and returns what they returned.
fn both<T: 'static>(work: impl Fn(u16) -> T + Clone + Send + Sync + 'static) -> [T; 2] {
    let other = work.clone();
    let thread = thread::spawn(move || other(1));
    let first = work(0);
    [first, thread.join().expect("the thread ends")]
}

fn bounded(preemptions: usize, test: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(test);
}

#[test]
fn two_claims_never_get_the_same_granule() {
    loom::model(|| {
        let map = Arc::new((words(&[RESERVED, 0, 0]), words(&[making(0).1, making(1).1])));
        let claims = both({
            let map = Arc::clone(&map);
            move |slot| {
                let owners = OwnerMap { words: &map.0, capacities: Slots::dense(&map.1), first_data: 1 };
                owners.claim(making(slot).0, 1, 1).map(|claimed| claimed.extents[0].first)
            }
        });
        let [Ok(first), Ok(second)] = claims else { panic!("there is room for both: {claims:?}") };
        assert_ne!(first, second);
    });
}

#[test]
fn the_last_granule_goes_to_exactly_one() {
    loom::model(|| {
        let map = Arc::new((words(&[RESERVED, 0]), words(&[making(0).1, making(1).1])));
        let claims = both({
            let map = Arc::clone(&map);
            move |slot| {
                let owners = OwnerMap { words: &map.0, capacities: Slots::dense(&map.1), first_data: 1 };
                owners.claim(making(slot).0, 1, 1).is_ok()
            }
        });
        assert_eq!(claims.iter().filter(|won| **won).count(), 1, "{claims:?}");
    });
}

#[test]
fn a_granule_left_behind_is_reclaimed_while_recovery_gives_it_back() {
    loom::model(|| {
        // Slot 2 is free again; its last use still stands in the owner map.
        let over = Reference { slot: 2, generation: 3 };
        let slots = [making(0).1, 0, SlotState::Free { generation: 3 }.encode()];
        let map = Arc::new((words(&[RESERVED, over.encode()]), words(&slots)));
        let recovery = Arc::clone(&map);
        let thread = thread::spawn(move || {
            let owners = OwnerMap { words: &recovery.0, capacities: Slots::dense(&recovery.1), first_data: 1 };
            owners.release(over, &owners.owned(over));
        });
        let owners = OwnerMap { words: &map.0, capacities: Slots::dense(&map.1), first_data: 1 };
        let claimed = owners.claim(making(0).0, 1, 1);
        thread.join().expect("recovery ends");
        let owner = map.0[1].load(Ordering::Relaxed);
        assert_eq!(owner, if claimed.is_ok() { making(0).0.encode() } else { 0 });
    });
}

#[test]
fn a_name_goes_to_exactly_one_of_two_makers() {
    loom::model(|| {
        // A maker's name is its word in the second list; what the records and the index are in a pool.
        let table = Arc::new((words(&[making(0).1, making(1).1]), words(&[0, 0])));
        let won = both({
            let table = Arc::clone(&table);
            move |slot| {
                let (slots, me) = (Slots::dense(&table.0), making(slot).0);
                table.1[usize::from(slot)].store(1, Ordering::Release);
                fence(Ordering::SeqCst);
                let named = |slot: &u16| table.1[usize::from(*slot)].load(Ordering::Acquire) == 1;
                let rivals = (0..2).filter(named).map(|slot| making(slot).0);
                let won = slots.contest(me, rivals) == Contest::Won;
                let live = won && slots.commit(me, host(slot));
                if !live {
                    slots.abort(me, host(slot));
                }
                live
            }
        });
        assert_eq!(won.iter().filter(|won| **won).count(), 1, "{won:?}");
        let slots = Slots::dense(&table.0);
        let live = (0..2).filter(|slot| matches!(slots.load(*slot), Ok(SlotState::Live { .. }))).count();
        assert_eq!(live, 1);
    });
}

#[test]
fn a_tag_entered_by_two_at_once_goes_to_exactly_one() {
    bounded(2, || {
        let tag = Tag::from_bytes([9; 16]);
        let pool = Arc::new((words(&[making(0).1, making(1).1]), words(&[0; 16])));
        let won = both({
            let pool = Arc::clone(&pool);
            move |slot| {
                let slots = Slots::dense(&pool.0);
                let (index, me) = (TagIndex { words: &pool.1, capacities: slots }, making(slot).0);
                assert!(index.insert(tag, me), "there is room");
                fence(Ordering::SeqCst);
                let live = slots.contest(me, index.candidates(tag)) == Contest::Won && slots.commit(me, host(slot));
                if !live {
                    index.remove(tag, me);
                    slots.abort(me, host(slot));
                }
                live
            }
        });
        assert_eq!(won.iter().filter(|won| **won).count(), 1, "{won:?}");
    });
}

#[test]
fn of_claim_and_cancel_exactly_one_wins_and_the_payload_is_seen() {
    loom::model(|| {
        let (source, target, epoch) = (host(0), host(1), Epoch(7));
        let offered = Ownership::Offered { source, target, epoch };
        let frozen = Ownership::Frozen { source, target, epoch };
        let record = Arc::new((OwnershipWord::new(offered), AtomicU64::new(0)));
        let theirs = Arc::clone(&record);
        let claimer = thread::spawn(move || {
            if theirs.0.load() != Ok(frozen) {
                return false;
            }
            assert_eq!(theirs.1.load(Ordering::Relaxed), 42, "the payload comes before the word");
            theirs.0.transition(frozen, Ownership::Owned { host: target, epoch: Epoch(8) })
        });
        record.1.store(42, Ordering::Relaxed);
        assert!(record.0.transition(offered, frozen));
        let cancelled = record.0.transition(frozen, Ownership::Owned { host: source, epoch: Epoch(8) });
        let claimed = claimer.join().expect("the claimer ends");
        assert!(cancelled != claimed, "cancelled {cancelled}, claimed {claimed}");
    });
}

fn local() -> Placed {
    Placed::cold(Place::Local { host: host(0), epoch: Epoch(1) })
}

fn pooled() -> Placed {
    Placed::cold(Place::Pooled)
}

fn is_away(word: &AtomicU64) -> bool {
    Placed::decode(word.load(Ordering::Acquire)).expect("a placement").place.is_away()
}

#[test]
fn who_sees_that_no_granule_is_away_sees_every_one_in_the_pool() {
    loom::model(|| {
        let map = Arc::new((AtomicU64::new(2), words(&[local().encode(); 2])));
        let movers: Vec<_> = [0, 1]
            .map(|granule| {
                let map = Arc::clone(&map);
                thread::spawn(move || PlacementWords { away: &map.0, granules: &map.1 }.put(granule, pooled()))
            })
            .into();
        if map.0.load(Ordering::Acquire) == 0 {
            assert!(map.1.iter().all(|word| !is_away(word)));
        }
        movers.into_iter().for_each(|mover| mover.join().expect("the thread ends"));
        assert_eq!(map.0.load(Ordering::Acquire), 0);
    });
}

#[test]
fn who_sees_a_granule_away_sees_it_counted() {
    loom::model(|| {
        let map = Arc::new((AtomicU64::new(1), words(&[pooled().encode(), local().encode()])));
        let movers: Vec<_> = [(0, local()), (1, pooled())]
            .map(|(granule, placed)| {
                let map = Arc::clone(&map);
                thread::spawn(move || PlacementWords { away: &map.0, granules: &map.1 }.put(granule, placed))
            })
            .into();
        // Read by a change of nothing: loom does not try every order of a load and a store by a thread that has loaded the
        // same word before, as `put` does.
        let seen = map.1[0].fetch_add(0, Ordering::Acquire);
        if seen == local().encode() {
            assert!(map.0.load(Ordering::Acquire) >= 1);
        }
        movers.into_iter().for_each(|mover| mover.join().expect("the thread ends"));
        assert_eq!(map.0.load(Ordering::Acquire), 1);
    });
}

#[test]
fn two_reports_at_once_never_get_the_same_entry_or_number() {
    bounded(3, || {
        let entries = Arc::new(words(&[0, SlotState::Live { generation: 1 }.encode()]));
        let claims = both({
            let entries = Arc::clone(&entries);
            move |writer| reports::claim(Slots::dense(&entries), host(writer), |_| false)
        });
        let [Some(first), Some(second)] = claims else { panic!("there is room for both: {claims:?}") };
        assert!(first.slot != second.slot && first.generation != second.generation, "{claims:?}");
    });
}

#[test]
fn a_report_that_is_overwritten_while_it_is_read_is_never_taken_for_whole() {
    bounded(3, || {
        // One entry: its word and two words of contents, whose values are the report's number.
        let ring = Arc::new(words(&[SlotState::Live { generation: 1 }.encode(), 1, 1]));
        let theirs = Arc::clone(&ring);
        let writer = thread::spawn(move || {
            let entries = Slots::strided(&theirs, 3);
            let claimed = reports::claim(entries, host(0), |_| false).expect("an entry");
            theirs[1].store(claimed.generation, Ordering::Relaxed);
            theirs[2].store(claimed.generation, Ordering::Relaxed);
            assert!(entries.commit(claimed, host(0)));
        });
        let before = ring[0].load(Ordering::Acquire);
        let contents = [&ring[1], &ring[2]].map(|word| word.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let after = ring[0].load(Ordering::Relaxed);
        if let (true, Ok(SlotState::Live { generation })) = (before == after, SlotState::decode(before)) {
            assert_eq!(contents, [generation; 2]);
        }
        writer.join().expect("the writer ends");
    });
}

#[test]
fn one_of_two_hosts_has_its_turn_at_a_time() {
    bounded(3, || {
        let shared = Arc::new((words(&[0, 0]), AtomicU64::new(0)));
        both({
            let shared = Arc::clone(&shared);
            move |host| {
                let (tickets, inside) = (Tickets::new(&shared.0, 1), &shared.1);
                let patient = |_| {
                    thread::yield_now();
                    Ok::<_, ()>(Some(()))
                };
                tickets.take(host.into(), patient).expect("patience");
                assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0, "both have their turn");
                inside.fetch_sub(1, Ordering::Relaxed);
                tickets.give_back(host.into());
            }
        });
    });
}
