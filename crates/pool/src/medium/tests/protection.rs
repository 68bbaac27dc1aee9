//! Commits of a protected guest, when its owner dies with what its caches held, and whoever brings the guest back, too.

use super::super::{Fate, become_host, die, draw};
use super::{Settings, Verdict, crash_everywhere, require};
use crate::Draft;
use crate::fault::armed::crash_after;
use crate::protection::tests::{EPOCH, Scene};

/// The guest can be brought back to the last commit or to the one before, whole; to the last, once it had been made.
pub(super) fn owner_dies(settings: &Settings) -> Verdict {
    let scene = Scene::build();
    scene.commit_up_to(2);
    let work = || scene.commit(&mut Draft::after_last(&scene.protection).expect("active"));
    crash_everywhere(
        settings,
        || {},
        work,
        |ended| {
            if crash_after(draw(600), || scene.restore(EPOCH)).is_none() {
                die(1, Fate::Chance);
                become_host(2);
            }
            let restored = scene.restore(EPOCH).map_err(|error| error.to_string())?;
            let found = restored.commit;
            require(found == 3 || (!ended && found == 2), || format!("it is at commit {found}"))?;
            // Who has brought it back dies as well: the next one finds the same.
            die(2, Fate::Chance);
            become_host(3);
            let again = scene.restore(EPOCH).map_err(|error| error.to_string())?;
            require(again.commit == found, || format!("it was at commit {found}, and is at {}", again.commit))?;
            scene.assert_is(found, "brought back");
            Ok(())
        },
    )
}

#[test]
fn a_protected_guest_survives_its_owner() {
    owner_dies(&Settings::default()).expect("every crash has an answer");
}
