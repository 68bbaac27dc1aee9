//! The pool's own operations on the simulated medium: stopped before every single write, and their host dead with what its
//! caches held.

/// Tests that mutations are noticed, each by a scenario, with the `noticed` of the module.
macro_rules! noticed {
    ($($name:ident: $mutation:expr, by $scenario:expr;)*) => {
        $(
            #[test]
            fn $name() {
                noticed($mutation, $scenario);
            }
        )*
    };
}

mod handoff;
mod mutations;
mod observers;
mod operations;
mod others;
mod protection;
mod software;
mod software_mutations;
mod stripes;

use super::{Fate, Settings, become_host, die, draw, end, start};
use crate::crash_tests::Scene;
use crate::fault::armed::crash_after;
use crate::ownership::HostSlot;
use crate::recovery::Actor;
use crate::{Coherence, Membership, Pool, Severity};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What went wrong; else how often the mutation has left something out.
type Verdict = Result<usize, String>;

/// More writes than any operation makes.
const ENOUGH: usize = 30_000;
/// At every write: everything lost, nothing lost, and what chance leaves.
const FATES: [Fate; 3] = [Fate::Lost, Fate::Kept, Fate::Chance];

/// Runs `work`, whose panics are findings as well.
fn attempt<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let said = |payload: Box<dyn std::any::Any + Send>| {
        let text = payload.downcast_ref::<String>().cloned();
        text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    };
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| Err(format!("a panic: {}", said(payload))))
}

/// Runs one simulation; gives how often its mutation has left something out.
fn simulate(settings: &Settings, seed: usize, work: impl FnOnce() -> Result<(), String>) -> Verdict {
    start(Settings { seed: settings.seed.wrapping_add(seed as u64 * 0x1_0001), ..settings.clone() });
    let outcome = attempt(work).and_then(|()| match super::overwritten() {
        None => Ok(()),
        Some(offset) => Err(format!("the word at {offset:#x} was lost with its line")),
    });
    let left_out = end();
    outcome.map(|()| left_out)
}

/// Stops `work`, of host 0, before each of its writes, with each fate of what its caches hold; then `judge`, as host 1, which is
/// told whether the work had come to its end. The file is as before in between, `reset` sees to the rest.
fn crash_everywhere(
    settings: &Settings,
    reset: impl Fn(),
    work: impl Fn(),
    judge: impl Fn(bool) -> Result<(), String>,
) -> Verdict {
    let mut left_out = 0;
    for writes in (settings.first..ENOUGH).step_by(settings.every) {
        let mut ended = false;
        let mut fates = FATES.to_vec();
        let mut number = 0;
        while let Some(fate) = fates.get(number).copied() {
            reset();
            let run = simulate(settings, writes * FATES.len() + number, || {
                ended = crash_after(writes, &work).is_some();
                die(0, fate);
                become_host(1);
                judge(ended)
            });
            left_out += run.map_err(|wrong| format!("stopped before write {writes}, {fate:?}: {wrong}"))?;
            number += 1;
            // Whatever is promised at the end is looked at more often.
            if ended && number == FATES.len() {
                fates.resize(4 * FATES.len(), Fate::Chance);
            }
        }
        if ended {
            return Ok(left_out);
        }
    }
    Err(format!("it makes more than {ENOUGH} writes"))
}

/// Host 1 recovers what host 0 left; it dies, too, somewhere in it, and host 2 begins anew.
fn recover(stage: &Stage) -> Result<(), String> {
    let host = &stage.scene.host;
    let recover = || {
        let _turn = stage.peer().map(|peer| peer.exclusive().expect("its turn"));
        Actor::new(host.pool(), host.slot()).recover()
    };
    if crash_after(draw(60), recover).is_none() {
        die(1, Fate::Chance);
        become_host(2);
        recover();
    }
    let again = recover();
    if again.is_nothing() { Ok(()) } else { Err(format!("recovery found more to do: {again:?}")) }
}

/// Nothing is wrong with the pool, and nobody has left anything behind.
fn sound(pool: &Pool) -> Result<(), String> {
    let report = pool.check(false);
    let wrong = report
        .findings
        .iter()
        .filter(|finding| finding.severity != Severity::Note || finding.what.contains("left behind"));
    let wrong: Vec<_> = wrong.map(|finding| format!("{}: {}", finding.place, finding.what)).collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

fn require(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// A scene that simulations leave as it is.
struct Stage {
    _place: crate::crash_tests::Place,
    scene: Scene,
    sequence: u64,
    /// Hosts 1, 2 and 3, where each acts in its own name.
    peers: Vec<Membership>,
}

impl Stage {
    fn build() -> Self {
        Self::of(&Settings::default())
    }

    /// One with hosts whose caches agree as is said there.
    fn of(settings: &Settings) -> Self {
        let place = crate::crash_tests::place();
        let scene = Scene::build_with(&place, settings.coherence);
        let sequence = scene.host.journal_sequence();
        let peers = if settings.coherence == Coherence::Hardware { &[][..] } else { &["b", "c", "d"] };
        let join = |name: &&str| scene.pool.join(&crate::crash_tests::identity(name)).expect("membership");
        let peers = peers.iter().map(join).collect();
        Self { _place: place, scene, sequence, peers }
    }

    /// The slot that the next host gets.
    fn free_slot(&self) -> HostSlot {
        let taken = 1 + u16::try_from(self.peers.len()).expect("a few");
        HostSlot::new(taken).expect("a small slot")
    }

    /// The host that acts now, if it is not the first.
    fn peer(&self) -> Option<&Membership> {
        self.peers.get(super::current_host().checked_sub(1)?)
    }

    fn reset(&self) {
        self.scene.host.rewind_journal(self.sequence);
    }
}
