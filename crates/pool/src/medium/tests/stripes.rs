//! Capacity that is striped over two pools, when its host dies with what its caches held of both.

use super::super::{Fate, become_host, die, draw};
use super::{Settings, Verdict, crash_everywhere, require, simulate};
use crate::fault::armed::crash_after;
use crate::recovery::Actor;
use crate::stripe_crash_tests::{Scene, member};
use crate::{Tag, reap_orphan_legs};

/// The state before the operation or the state after it, once peers have settled it, who die in it themselves.
fn whole_or_nothing(settings: &Settings, operation: fn(&Scene)) -> Verdict {
    let scene = Scene::build();
    let members = [&scene.home, &scene.other];
    let sequences = members.map(crate::Membership::journal_sequence);
    let reset = || members.iter().zip(sequences).for_each(|(member, sequence)| member.rewind_journal(sequence));
    let before = scene.contents();
    let mut after = scene.contents();
    simulate(&Settings::default(), 0, || {
        operation(&scene);
        reap_orphan_legs(&members).expect("looked");
        after = scene.contents();
        Ok(())
    })?;
    let judge = |ended: bool| {
        scene.kill();
        let peers = scene.pools().map(|pool| member(pool, "peer"));
        let peers = peers.each_ref();
        if crash_after(draw(120), || scene.settle(&peers)).is_none() {
            die(1, Fate::Chance);
            become_host(2);
            for peer in peers {
                Actor::new(peer.pool(), peer.slot()).recover();
            }
            scene.settle(&peers);
        }
        let left = reap_orphan_legs(&peers).map_err(|error| error.to_string())?;
        require(left.is_empty(), || format!("orphans are left: {left:?}"))?;
        scene.assert_sound("settled");
        let found = scene.contents();
        require(found == after || (!ended && found == before), || {
            format!("ended: {ended}; {found:?} is neither {before:?} nor {after:?}")
        })
    };
    crash_everywhere(settings, reset, || operation(&scene), judge)
}

fn survives(operation: fn(&Scene)) {
    whole_or_nothing(&Settings::default(), operation).expect("every crash has an answer");
}

#[test]
fn adding_striped_capacity_survives_its_host() {
    survives(|scene| scene.add(Tag::random()));
}

#[test]
fn releasing_striped_capacity_survives_its_host() {
    survives(Scene::release);
}

#[test]
fn destroying_a_guest_with_striped_memory_survives_its_host() {
    survives(Scene::destroy);
}
