//! What has no entry in the journal: joining and leaving, reports, pins, the placement map, zeros, and making a pool.

use super::super::{Fate, become_host, die};
use super::{Settings, Stage, Verdict, crash_everywhere, require, simulate, sound};
use crate::crash_tests::{identity, place, shared};
use crate::fault::armed::{crash_after, taken};
use crate::format::GRANULE;
use crate::format::slot_word::{Reference, SlotState};
use crate::liveness::ProcessIdentity;
use crate::recovery::Actor;
use crate::sync::Ordering;
use crate::tables::Seen;
use crate::{
    Access, Coherence, CreateOptions, Epoch, GuestId, HostSlot, JobId, PinRequest, Place as GranulePlace, Placed, Pool,
    Tag,
};

/// Makes the claim of an entry that of a process that is gone.
fn end_claim(pool: &Pool, slot: HostSlot) {
    let claim = pool.tables().host_claim(slot);
    if claim.load(Ordering::Acquire) != 0 {
        let here = pool.inner.here;
        let dead = ProcessIdentity { started: here.started + 1, ..here };
        claim.store(dead.claim_word(), Ordering::Release);
    }
}

/// A host dies while it joins: the entry is there for the next one, whose record is whole.
pub(super) fn join(settings: &Settings) -> Verdict {
    let stage = Stage::of(settings);
    let pool = &stage.scene.pool;
    let (first, second) = (identity("new"), identity("next"));
    let slot = stage.free_slot();
    let work = || drop(pool.join(&first).expect("membership"));
    crash_everywhere(
        settings,
        || {},
        work,
        |ended| {
            sound(pool)?;
            let found = pool.host(slot).map(|host| host.name);
            if ended {
                return require(found.as_deref() == Some("new"), || format!("{found:?} has joined"));
            }
            require(found.is_none_or(|name| name == "new"), || "another has joined".to_owned())?;
            let live = pool.host(slot).is_some();
            end_claim(pool, slot);
            let joined = pool.join(&second).map_err(|error| error.to_string())?;
            // Without compare-and-swap nobody can tell whether somebody is about to come in by a door that has been passed.
            let may_be_lost = settings.coherence == Coherence::Software;
            require(live || joined.slot() == slot || may_be_lost, || "the entry is lost".to_owned())?;
            sound(pool)
        },
    )
}

/// A host dies while it leaves: it is there, or it is not, and its entry is free then.
pub(super) fn leave(settings: &Settings) -> Verdict {
    let stage = Stage::of(settings);
    let pool = &stage.scene.pool;
    let slot = stage.free_slot();
    let host = identity("new");
    // It joins in the simulation, too, so that there is one that leaves in each of them.
    let work = || pool.join(&host).expect("membership").leave().expect("it leaves");
    let judge = |ended: bool| {
        sound(pool)?;
        if ended {
            let (word, claim) = (pool.tables().host(slot), pool.tables().host_claim(slot).load(Ordering::Acquire));
            require(word == Seen::Free && claim == 0, || format!("after leaving: {word:?}, claim {claim:#x}"))?;
        }
        Ok(())
    };
    // Both words lie in one line: what chance leaves of it has to be one of the few states in between.
    let mut left_out = 0;
    for seed in 0..4 {
        left_out += crash_everywhere(&Settings { seed: 1000 * seed, ..settings.clone() }, || {}, work, judge)?;
    }
    Ok(left_out)
}

/// A report is there when its writer says so, and never damaged.
pub(super) fn report(settings: &Settings) -> Verdict {
    let stage = Stage::of(settings);
    let (pool, host) = (&stage.scene.pool, &stage.scene.host);
    let room = pool.report_entries().len();
    let job = JobId::random();
    for number in 0..room {
        host.keep_report(JobId::random(), GuestId::random(), number.to_string().as_bytes()).expect("kept");
    }
    // The ring is full: the next one takes the place of the first.
    let entry = (room + 1) % room;
    let work = || host.keep_report(job, GuestId::random(), &[7; 300]).expect("kept");
    crash_everywhere(
        settings,
        || {},
        work,
        |ended| {
            Actor::new(pool, host.slot()).recover();
            let found = pool.report_in(entry).map_err(|bad| format!("it is damaged: {bad}"))?;
            let kept = found.as_ref().is_some_and(|found| found.job == job);
            require(kept || !ended, || "it is lost".to_owned())?;
            require(!kept || found.is_some_and(|found| found.bytes == [7; 300]), || {
                "it says something else".to_owned()
            })?;
            let before = pool.report_in(entry - 1).map_err(|bad| format!("another one is damaged: {bad}"))?;
            require(before.is_some(), || "another one is lost".to_owned())
        },
    )
}

/// A pin is whole when its taker says so; who dies before leaves an entry that pins nothing.
pub(super) fn pin(settings: &Settings) -> Verdict {
    let stage = Stage::of(settings);
    let host = stage.scene.host.slot();
    let pins = stage.scene.guest("old").map_state().expect("its state").pins();
    let (owner, reason) = ("virtio-blk0".to_owned(), "a buffer that a device writes to".to_owned());
    let request = PinRequest { offset: 4096, bytes: 8192, owner, reason, host };
    let work = || {
        pins.take(&request).expect("pinned");
    };
    crash_everywhere(
        settings,
        || {},
        work,
        |ended| {
            let found = pins.list();
            let whole =
                found.iter().all(|pin| (pin.offset, pin.bytes, pin.owner.as_str()) == (4096, 8192, "virtio-blk0"));
            require(whole && found.len() <= 1, || format!("{found:?}"))?;
            require(!ended || found.len() == 1, || "it is lost".to_owned())
        },
    )
}

/// The count of granules that are away is never too low, and a granule is where its mover says.
pub(super) fn placement(settings: &Settings) -> Verdict {
    let stage = Stage::of(settings);
    let (host, epoch) = (stage.scene.host.slot(), Epoch(1));
    let map = stage.scene.map("old");
    let mut left_out = 0;
    for place in [GranulePlace::Local { host, epoch }, GranulePlace::Mixed { host, epoch }] {
        // There and back, so that both directions are stopped everywhere.
        let work = || {
            map.put(0, Placed::cold(place));
            map.put(1, Placed::cold(place));
            map.put(0, Placed::cold(GranulePlace::Pooled));
        };
        left_out += crash_everywhere(
            settings,
            || {},
            work,
            |ended| {
                let (away, counted) = (map.away(), map.summary().away());
                require(away >= counted, || format!("{counted} granules are away, and {away} are counted"))?;
                let there = map.get(1).map(|placed| placed.place);
                require(!ended || there == Ok(place), || format!("granule 1 is {there:?}"))
            },
        )?;
    }
    Ok(left_out)
}

/// A new capacity reads as zeros, also where the kernel does not make them.
pub(super) fn zeros(settings: &Settings) -> Verdict {
    let settings = Settings { punches: false, ..settings.clone() };
    let stage = Stage::of(&settings);
    let scene = &stage.scene;
    let owners = scene.pool.tables().owners();
    let over = Reference { slot: 0, generation: 1 };
    scene.host.add_capacity(&shared(Tag::random(), 1)).expect("capacity");
    let slots = scene.pool.tables().capacity_slots();
    assert!(slots.transition(0, SlotState::Live { generation: 1 }, SlotState::Free { generation: 1 }));
    // Every granule that is free holds what a dead capacity left there.
    let length = usize::try_from(GRANULE).expect("small");
    for granule in owners.first_data..owners.words.len() {
        if owners.words[granule].load(Ordering::Acquire) == 0 {
            owners.words[granule].store(over.encode(), Ordering::Release);
            let at = granule as u64 * GRANULE;
            let old = crate::mapping::Mapping::map(&scene.pool.inner.backing, at, length, Access::ReadWrite);
            let old = old.map_err(|error| error.to_string())?;
            old.words(0, length / 8).iter().step_by(512).for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
        }
    }
    let tag = Tag::random();
    let work = || drop(scene.host.add_capacity(&shared(tag, 1)).expect("capacity"));
    // Only what was added is looked at: stopping inside it is the business of the operations.
    let mut left_out = 0;
    for seed in 0..super::FATES.len() {
        left_out += simulate(&settings, seed, || {
            work();
            die(0, super::FATES[seed]);
            become_host(1);
            let capacity = scene.pool.map_capacity(tag).map_err(|error| error.to_string())?;
            let words = capacity.mapping().words(0, length / 8);
            let old = words.iter().filter(|word| word.load(Ordering::Relaxed) != 0).count();
            require(old == 0, || format!("{old} words are of an earlier capacity"))
        })?;
        stage.reset();
    }
    Ok(left_out)
}

/// A copy of the header that is missing is mended from the other one; tables that are not those of a new pool are not.
fn sound_but_for_headers(pool: &Pool) -> Result<(), String> {
    let findings = pool.check(true).findings;
    let wrong = findings.iter().find(|finding| !(finding.place.starts_with("header") && finding.repaired));
    require(wrong.is_none(), || format!("{wrong:?}"))
}

/// Whoever dies while he makes a pool over another one leaves no pool, or a sound one.
pub(super) fn format(settings: &Settings) -> Verdict {
    let place = place();
    let options = CreateOptions { size: Some(4 * GRANULE), force: true, ..CreateOptions::default() };
    Pool::create(&place.path, &options).expect("a new pool");
    let made = std::cell::Cell::new(None);
    let work = || made.set(Some(Pool::create(&place.path, &options).expect("a new pool").id()));
    crash_everywhere(
        settings,
        || made.set(None),
        work,
        |ended| match Pool::open(&place.path, Access::ReadWrite) {
            Ok(pool) => {
                sound_but_for_headers(&pool)?;
                require(!ended || made.get() == Some(pool.id()), || "the old pool is back".to_owned())
            }
            Err(error) => require(!ended, || error.to_string()),
        },
    )
}

/// The same where the first copy of the header becomes valid, and all that it speaks of must be there.
pub(super) fn first_header(settings: &Settings) -> Verdict {
    let place = place();
    let options = CreateOptions { size: Some(4 * GRANULE), force: true, ..CreateOptions::default() };
    Pool::create(&place.path, &options).expect("a new pool");
    let work = || drop(Pool::create(&place.path, &options).expect("a new pool"));
    let all = std::cell::Cell::new(0);
    simulate(&Settings::default(), 0, || {
        let before = taken();
        work();
        all.set(taken() - before);
        Ok(())
    })?;
    // A copy of the header is 512 words, a zero in place of the magic, and two steps of its write-back.
    let second = all.get() - 515;
    let mut left_out = 0;
    for (writes, seed) in (second - 4..second + 2).flat_map(|writes| (0..16).map(move |seed| (writes, seed))) {
        left_out += simulate(settings, 100 * writes + seed, || {
            crash_after(writes, work);
            die(0, Fate::Chance);
            become_host(1);
            Pool::open(&place.path, Access::ReadWrite).map_or(Ok(()), |pool| sound_but_for_headers(&pool))
        })?;
    }
    Ok(left_out)
}

fn survives(scenario: fn(&Settings) -> Verdict) {
    scenario(&Settings::default()).expect("every crash has an answer");
}

#[test]
fn joining_survives_its_host() {
    survives(join);
}

#[test]
fn leaving_survives_its_host() {
    survives(leave);
}

#[test]
fn keeping_a_report_survives_its_host() {
    survives(report);
}

#[test]
fn taking_a_pin_survives_its_host() {
    survives(pin);
}

#[test]
fn the_placement_map_survives_its_host() {
    survives(placement);
}

#[test]
fn zeros_survive_who_made_them() {
    survives(zeros);
}

#[test]
fn a_pool_survives_who_made_it() {
    survives(format);
    survives(first_header);
}
