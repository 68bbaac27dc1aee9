//! Every operation that has an entry in the journal: whole or undone, wherever its host dies.

use super::{Settings, Stage, Verdict, crash_everywhere, recover, require, simulate, sound};
use crate::crash_tests::{Scene, contents, guest, shared};
use crate::{MemoryHome, Tag};

/// Runs an operation under crash at every write, and demands the state before it or the state after it; after it, if it had
/// come to its end.
pub(super) fn whole_or_nothing(settings: &Settings, operation: fn(&Scene)) -> Verdict {
    let stage = Stage::of(settings);
    let scene = &stage.scene;
    let before = contents(&scene.pool);
    let mut after = before.clone();
    simulate(&Settings { mutation: None, ..settings.clone() }, 0, || {
        operation(scene);
        after = contents(&scene.pool);
        Ok(())
    })?;
    require(before != after, || "the operation does nothing".to_owned())?;
    require(contents(&scene.pool) == before, || "the simulation has changed the file".to_owned())?;
    crash_everywhere(
        settings,
        || stage.reset(),
        || operation(scene),
        |ended| {
            recover(&stage)?;
            sound(&scene.pool)?;
            let found = contents(&scene.pool);
            require(found == after || (!ended && found == before), || {
                format!("ended: {ended}; {found:?} is neither {before:?} nor {after:?}")
            })
        },
    )
}

pub(super) fn add(scene: &Scene) {
    scene.host.add_capacity(&shared(Tag::random(), 3)).expect("capacity");
}

pub(super) fn release(scene: &Scene) {
    scene.host.release_capacity(scene.tag).expect("released");
}

pub(super) fn create(scene: &Scene) {
    scene.host.create_guest(&guest("new", MemoryHome::Pool)).expect("a guest");
}

pub(super) fn create_in_dram(scene: &Scene) {
    scene.host.create_guest(&guest("new", MemoryHome::Dram)).expect("a guest");
}

fn survives(operation: fn(&Scene)) {
    whole_or_nothing(&Settings::default(), operation).expect("every crash has an answer");
}

#[test]
fn adding_capacity_survives_its_host() {
    survives(add);
}

#[test]
fn releasing_capacity_survives_its_host() {
    survives(release);
}

#[test]
fn creating_a_guest_survives_its_host() {
    survives(create);
}

#[test]
fn creating_a_guest_in_dram_survives_its_host() {
    survives(create_in_dram);
}

#[test]
fn destroying_a_guest_survives_its_host() {
    survives(Scene::destroy);
}

#[test]
fn destroying_a_guest_on_its_way_survives_its_host() {
    survives(Scene::destroy_half);
}

#[test]
fn taking_memory_away_survives_its_host() {
    survives(Scene::take);
}

#[test]
fn placing_memory_survives_its_host() {
    survives(Scene::place);
}

#[test]
fn unplacing_memory_survives_its_host() {
    survives(Scene::unplace);
}
