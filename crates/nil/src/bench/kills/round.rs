//! One round: a migration, a kill, and what became of the guest.

use super::hunt::{Catch, Hunt};
use super::judge::{End, Outcome, Stage, allowed};
use super::plan::{Journey, Plan};
use super::prey;
use super::subject::{Counters, Order, Subject, side_of};
use super::trail::Trail;
use crate::lab::{Rack, Side, interrupt};
use anyhow::{Context, bail};
use nil_host::{GuestReport, GuestState, MigrationOutcome, MigrationReport};
use nil_pool::Ownership;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// How long the hosts may take until the guest runs, or is known to be lost.
const PATIENCE: Duration = Duration::from_secs(120);
/// The sleep between two looks.
const LOOK: Duration = Duration::from_millis(3);
/// How long a restarted agent may take to answer until it is started once more: a child of the dead one that is still
/// being born holds its lock for a moment.
const START_AGAIN: Duration = Duration::from_secs(2);

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
    /// How long the migration took, if it went through.
    pub(super) took: Option<Duration>,
    /// The migration failed although nobody had been killed yet. That breaks no promise to the guest, and a machine with
    /// too much to do gives reason enough; but it is worth knowing.
    pub(super) failed_undisturbed: bool,
}

/// What a round came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finding {
    /// Where the word stood just before the kill.
    pub(super) before: Stage,
    /// And when the victim was dead: killing takes its time, and the others act meanwhile.
    pub(super) at_death: Stage,
    pub(super) outcome: Outcome,
    pub(super) end: End,
    /// The guest goes on from saved state although its owner of that time is dead.
    pub(super) rescued: bool,
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

    /// Plays it. `None` when the victim had gone before it could be killed. An error is a violation, or an interruption.
    pub(super) fn play(&mut self, rack: &Rack, subject: &Subject) -> anyhow::Result<Option<Finding>> {
        let counters = subject.counters()?;
        let hunt = Hunt::prepare(rack, subject.control(), self.journey, self.plan)?;
        self.trail = Trail::begin();
        self.trail.look(subject.control());
        let mut order = Some(subject.order_migration(rack, self.journey.from)?);
        let over = || order.as_ref().is_none_or(Order::is_finished);
        self.catch = Some(hunt.kill(&mut self.trail, over)?);
        let struck = Instant::now();
        let mut agents = Agents { killed: self.plan.victim.agent(&self.journey), away: self.plan.away, asked: None };
        let settled = loop {
            interrupt::check()?;
            self.trail.look(subject.control());
            agents.see_to(rack, struck)?;
            self.let_the_target_go_on(struck);
            if order.as_ref().is_some_and(Order::is_finished) {
                self.note_order(order.take())?;
            }
            let seen = end(rack, subject, &counters)?;
            match seen {
                Ok(end) if order.is_none() && agents.are_up(rack) => break end,
                Ok(_) | Err(_) if struck.elapsed() < PATIENCE => {}
                Ok(end) => bail!(
                    "the guest {end}, but an agent is not up, or the order to migrate has no answer, after {PATIENCE:?}"
                ),
                Err(why) => bail!("the hosts have not settled within {PATIENCE:?}: {why}"),
            }
            std::thread::sleep(LOOK);
        };
        self.trail.look(subject.control());
        self.trail.verdict().map_err(anyhow::Error::msg)?;
        subject.counters()?.check_since(&counters)?;
        self.judge(settled)
    }

    fn let_the_target_go_on(&mut self, struck: Instant) {
        let Some(stall) = self.plan.stall.filter(|&stall| struck.elapsed() >= stall) else { return };
        if let Some(target) = self.catch.as_mut().and_then(|catch| catch.stalled.take()) {
            target.go_on();
            self.stalled_for = Some(stall);
        }
    }

    /// Takes note of how the migration ended for whoever had ordered it.
    fn note_order(&mut self, order: Option<Order>) -> anyhow::Result<()> {
        let Some(order) = order else { return Ok(()) };
        let reply = order.join().map_err(|_| anyhow::anyhow!("the thread that had ordered the migration panicked"))?;
        match &reply {
            Ok(MigrationReport { outcome: MigrationOutcome::Moved, total_us, .. }) => {
                self.took = Some(Duration::from_micros(*total_us));
                self.order = Some("moved".into());
            }
            Ok(MigrationReport { outcome: MigrationOutcome::TakenBack { why }, .. }) => {
                self.order = Some(format!("taken back: {why}"));
            }
            Ok(MigrationReport {
                outcome: MigrationOutcome::Cancelled { why } | MigrationOutcome::Stalled { why }, ..
            }) => self.order = Some(format!("called off: {why}")),
            Err(error) => self.order = Some(format!("failed: {}", error.story())),
        }
        let undisturbed = self.catch.as_ref().is_some_and(|catch| catch.after_end || catch.pids.is_empty());
        self.failed_undisturbed = undisturbed && reply.is_err();
        Ok(())
    }

    /// Compares the end with what the word at the victim's death allows.
    fn judge(&self, end: End) -> anyhow::Result<Option<Finding>> {
        let Some(catch) = self.catch.as_ref().filter(|catch| catch.complete) else { return Ok(None) };
        let word = catch.at_death.0;
        let allowed = allowed(&self.journey, self.plan.victim, word);
        if !allowed.contains(&end) {
            let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
            bail!(
                "the word was `{word}` when the victim was dead, and then the guest {end}; allowed: {}",
                allowed.join(" or ")
            );
        }
        let source_died = self.plan.victim.has_source_worker();
        let (before, at_death) = (Stage::of(catch.before.0, &self.journey), Stage::of(word, &self.journey));
        let rescued = matches!(end, End::Runs { .. }) && source_died && before != Stage::OwnedByTarget;
        Ok(Some(Finding { before, at_death, outcome: end.outcome(&self.journey), end, rescued }))
    }

    /// Everything that is known of it, for a violation.
    pub(super) fn history(&self) -> String {
        let Self { plan, journey, catch, order, .. } = self;
        let mut text = format!(
            "from {:?} ({}) to {:?} ({}); victim: {}, {}",
            journey.from,
            journey.source,
            journey.from.other(),
            journey.target,
            plan.victim,
            plan.moment
        );
        // Writing into a String cannot fail.
        let _ = match catch {
            Some(catch) => write!(
                text,
                "; killed {:?} at {} µs; before: {} ({}); at death: {} ({})",
                catch.pids,
                catch.at.as_micros(),
                catch.before.0,
                catch.before.1,
                catch.at_death.0,
                catch.at_death.1
            ),
            None => write!(text, "; nobody was killed"),
        };
        if let Some(stall) = self.stalled_for {
            let _ = write!(text, "; the target stood still until {} ms after the kill", stall.as_millis());
        }
        let _ = write!(text, "; the order: {}; words: {}", order.as_deref().unwrap_or("no answer"), self.trail);
        text
    }
}

/// How the guest has ended up, if it is clear; or what is unclear.
fn end(rack: &Rack, subject: &Subject, before: &Counters) -> anyhow::Result<Result<End, String>> {
    let word = subject.control().ownership().load()?;
    let workers = prey::workers(rack);
    match word {
        Ownership::Owned { host, epoch } => {
            let side = side_of(rack, host)?;
            let Some(report) = subject.report(rack, side) else {
                return Ok(Err(format!("{word}, and the agent of that host does not know it or does not answer")));
            };
            let adopted = report.state == GuestState::Running && report.worker_pid.is_some_and(|pid| workers == [pid]);
            if !adopted {
                let GuestReport { state, worker_pid, .. } = &report;
                return Ok(Err(format!(
                    "{word}; its host says it is {state} in process {worker_pid:?}; workers are {workers:?}"
                )));
            }
            Ok(if goes_on(subject, before)? {
                Ok(End::Runs { host, epoch })
            } else {
                Err(format!("{word}, it has a worker, and does not go on: {:?}", subject.counters()?))
            })
        }
        Ownership::Lost { host, epoch } => {
            let known =
                subject.report(rack, side_of(rack, host)?).is_some_and(|report| report.state == GuestState::Lost);
            Ok(if known && workers.is_empty() {
                Ok(End::Lost { host, epoch })
            } else {
                Err(format!("{word}, known as such by its host: {known}; workers are {workers:?}"))
            })
        }
        Ownership::Vacant | Ownership::Offered { .. } | Ownership::Frozen { .. } => {
            Ok(Err(format!("{word}; workers are {workers:?}")))
        }
    }
}

/// Whether the guest runs now, not just until the kill.
fn goes_on(subject: &Subject, before: &Counters) -> anyhow::Result<bool> {
    let now = subject.counters()?;
    std::thread::sleep(LOOK);
    Ok(now.have_moved_since(before) && subject.counters()?.have_moved_since(&now))
}

/// A killed agent that is to be started again.
#[derive(Debug)]
struct Agents {
    killed: Option<Side>,
    away: Duration,
    asked: Option<Instant>,
}

impl Agents {
    /// Starts it when it has been away for long enough.
    fn see_to(&mut self, rack: &Rack, struck: Instant) -> anyhow::Result<()> {
        let Some(side) = self.killed.filter(|_| struck.elapsed() >= self.away) else { return Ok(()) };
        let due = self.asked.is_none_or(|asked| asked.elapsed() > START_AGAIN && rack.call(side).is_err());
        if due {
            self.asked = Some(Instant::now());
            rack.start_again(side).with_context(|| format!("the agent of {side:?} cannot be started again"))?;
        }
        Ok(())
    }

    fn are_up(&self, rack: &Rack) -> bool {
        [Side::A, Side::B].into_iter().all(|side| rack.call(side).is_ok())
            && (self.killed.is_none() || self.asked.is_some())
    }
}
