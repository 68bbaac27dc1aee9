//! One round: an errand, a kill, and what became of the guest.

use super::agents::Agents;
use super::drill;
use super::hunt::{Catch, Hunt};
use super::journey::{Errand, Journey, Phase};
use super::judge::{End, Outcome, Stage, allowed};
use super::plan::{Plan, Victim};
use super::settling;
use super::subject::{Order, Subject};
use super::trail::Trail;
use crate::lab::{Rack, interrupt};
use anyhow::bail;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// How long the hosts may take until the guest runs, or is known to be lost.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long after that until what the guest has in the pool fits to that: a move that nobody waits for comes to its end.
const PATIENCE_WITH_REST: Duration = Duration::from_secs(30);
/// The sleep between two looks.
const LOOK: Duration = Duration::from_millis(3);

/// A round, as far as it has come. It is the history that a violation is told with.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) plan: Plan,
    pub(super) journey: Journey,
    trail: Trail,
    catch: Option<Catch>,
    order: Option<String>,
    /// How long the target stood still.
    stalled_for: Option<Duration>,
    /// How long the errand took, if it went through.
    pub(super) took: Option<Duration>,
    /// The errand failed although nobody had been killed yet. That breaks no promise to the guest, and a machine with too
    /// much to do gives reason enough; but it is worth knowing.
    pub(super) failed_undisturbed: bool,
}

/// What a kill came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finding {
    /// What the instant fell into.
    pub(super) phase: Phase,
    /// Where the word stood just before the kill.
    pub(super) before: Stage,
    /// And when the victim was dead: killing takes its time, and the others act meanwhile.
    pub(super) at_death: Stage,
    pub(super) outcome: Outcome,
    pub(super) end: End,
    /// Whether all victims were there to be killed; else some had gone by themselves.
    pub(super) complete: bool,
    /// The guest goes on from saved state although its owner of that time is dead.
    pub(super) rescued: bool,
    /// Granules that were not in the pool when the victims were dead.
    pub(super) away: u64,
}

impl Round {
    pub(super) fn new(plan: Plan, journey: Journey) -> Self {
        Self {
            plan,
            journey,
            trail: Trail::begin(),
            catch: None,
            order: None,
            stalled_for: None,
            took: None,
            failed_undisturbed: false,
        }
    }

    /// Plays it. `typical` is how long the errand takes when nobody is killed, `free` what the pool has free without a
    /// guest. An error is a violation, or an interruption.
    pub(super) fn play(
        &mut self,
        rack: &Rack,
        subject: &Subject,
        typical: Duration,
        free: u64,
    ) -> anyhow::Result<Finding> {
        let counters = subject.counters()?;
        let hunt = Hunt::prepare(rack, subject.words(), self.journey, self.plan, typical)?;
        self.trail = Trail::begin();
        self.trail.look(subject.words());
        let mut order = Some(subject.order(rack, self.plan.errand, self.journey.from, self.plan.pace)?);
        let over = || order.as_ref().is_none_or(Order::is_finished);
        self.catch = Some(hunt.kill(&mut self.trail, over)?);
        let struck = Instant::now();
        let mut agents = Agents::killed(self.plan.victim.agents(&self.journey), self.plan.away);
        let settled = loop {
            interrupt::check()?;
            self.trail.look(subject.words());
            agents.see_to(rack, struck)?;
            self.let_the_target_go_on(struck);
            if order.as_ref().is_some_and(Order::is_finished) {
                self.note_order(order.take())?;
            }
            let seen = settling::end(rack, subject, &counters)?;
            match seen {
                Ok(end) if order.is_none() && agents.are_up(rack) => break end,
                Ok(_) | Err(_) if struck.elapsed() < PATIENCE => {}
                Ok(end) => {
                    bail!("the guest {end}, but an agent is not up, or the order has no answer, after {PATIENCE:?}")
                }
                Err(why) => bail!("the hosts have not settled within {PATIENCE:?}: {why}"),
            }
            std::thread::sleep(LOOK);
        };
        self.await_rest(rack, subject, settled, free)?;
        self.trail.verdict().map_err(anyhow::Error::msg)?;
        let Some(catch) = &self.catch else { bail!("nobody was hunted") };
        self.judge(catch, settled)
    }

    /// Waits until what the guest has in the pool fits to how it has ended up.
    fn await_rest(&mut self, rack: &Rack, subject: &Subject, end: End, free: u64) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            interrupt::check()?;
            self.trail.look(subject.words());
            match settling::misfit(rack, subject, end, free)? {
                None => return Ok(()),
                Some(_) if begun.elapsed() < PATIENCE_WITH_REST => std::thread::sleep(LOOK),
                Some(misfit) => bail!("the guest {end}, and {PATIENCE_WITH_REST:?} later: {misfit}"),
            }
        }
    }

    fn let_the_target_go_on(&mut self, struck: Instant) {
        let Some(stall) = self.plan.stall.filter(|&stall| struck.elapsed() >= stall) else {
            return;
        };
        if let Some(target) = self.catch.as_mut().and_then(|catch| catch.stalled.take()) {
            target.go_on();
            self.stalled_for = Some(stall);
        }
    }

    /// Takes note of how the errand ended for whoever had ordered it.
    fn note_order(&mut self, order: Option<Order>) -> anyhow::Result<()> {
        let Some(order) = order else { return Ok(()) };
        let (answer, took) = order.join().map_err(|_| anyhow::anyhow!("the thread that had ordered it panicked"))?;
        let failure = match &answer {
            Ok(answer) => drill::failure(answer),
            Err(error) => Some(format!("failed: {}", error.story())),
        };
        let catch = self.catch.as_ref();
        let undisturbed = catch.is_some_and(|catch| catch.after_end || catch.pids.is_empty());
        self.failed_undisturbed = undisturbed && answer.is_err();
        if let Some(failure) = &failure
            && self.plan.errand != Errand::Migration
            && self.plan.victim == Victim::TargetAgent
        {
            bail!("a {} failed although only a host died that has no part in it: {failure}", self.plan.errand);
        }
        self.took = failure.is_none().then_some(took);
        self.order = Some(failure.unwrap_or_else(|| "done".to_owned()));
        Ok(())
    }

    /// Compares the end with what the word at the victims' death allows.
    ///
    /// Victims that had gone by themselves count as dead: a worker ends by itself only when the guest is another's, and
    /// then what becomes of the guest does not depend on it.
    fn judge(&self, catch: &Catch, end: End) -> anyhow::Result<Finding> {
        let word = catch.at_death.ownership;
        let allowed = allowed(&self.journey, self.plan.victim, word);
        if !allowed.contains(&end) {
            let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
            bail!(
                "the word was `{word}` when the victim was dead, and then the guest {end}; allowed: {}",
                allowed.join(" or ")
            );
        }
        let source_died = self.plan.victim.has_source_worker();
        let before = Stage::of(catch.before.ownership, &self.journey);
        Ok(Finding {
            phase: self.journey.phase(&catch.before),
            before,
            at_death: Stage::of(word, &self.journey),
            outcome: end.outcome(&self.journey),
            end,
            complete: catch.complete,
            rescued: matches!(end, End::Runs { .. }) && source_died && before != Stage::OwnedByTarget,
            away: catch.at_death.places.away(),
        })
    }

    /// Everything that is known of it, for a violation.
    pub(super) fn history(&self) -> String {
        let Self { plan, journey, catch, order, .. } = self;
        let mut text = format!(
            "{plan}; from {:?} ({}), the other is {:?} ({})",
            journey.from,
            journey.source,
            journey.from.other(),
            journey.target
        );
        // Writing into a String cannot fail.
        let _ = match catch {
            Some(Catch { pids, at, before, at_death, .. }) => {
                write!(text, "; killed {pids:?} at {} µs; before: {before}; at death: {at_death}", at.as_micros())
            }
            None => write!(text, "; nobody was killed"),
        };
        if let Some(stall) = self.stalled_for {
            let _ = write!(text, "; the target stood still until {} ms after the kill", stall.as_millis());
        }
        let _ = write!(text, "; the order: {}; words: {}", order.as_deref().unwrap_or("no answer"), self.trail);
        text
    }
}
