//! Many orders at once, from one quiet point to the next.

use super::drainer::{self, Ended};
use super::reaper::{Disturbances, Kill};
use super::vigil::Vigil;
use crate::lab::chronicle::Chronicle;
use crate::lab::dice::Dice;
use crate::lab::errand::{Done, Errand, Outcome, Report, await_arrival};
use crate::lab::figures::Samples;
use crate::lab::fleet::Fleet;
use crate::lab::interrupt;
use crate::lab::lock::lock;
use crate::lab::progress::Progress;
use crate::lab::resident::Resident;
use anyhow::bail;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Orders under way at the same time.
const LANES: usize = 4;
/// How often a lane looks for a guest again when every one is busy, or between two agents' lives.
const LOOK: Duration = Duration::from_millis(5);
/// How long an order is expected to take before any has been seen.
const FIRST_GUESS: Duration = Duration::from_millis(100);
/// How many failures are told.
const TOLD: usize = 20;

/// What has been done, and what came of it.
#[derive(Debug, Default)]
pub(in crate::bench) struct Tally {
    pub(super) orders: u64,
    pub(super) kills: u64,
    pub(super) outcomes: BTreeMap<Outcome, u64>,
    /// Orders that failed although every agent had lived all the time.
    pub(super) undisturbed_failures: Vec<String>,
    pub(super) undisturbed: u64,
    pub(super) blackouts: Option<Samples>,
    /// Time of orders that moved their guest.
    pub(super) times: Option<Samples>,
    pub(super) copied_bytes: u64,
    /// Guests that arrived over several hosts, and how long that took.
    pub(super) routes: u64,
    pub(super) route_times: Option<Samples>,
    /// Hosts that were to be emptied, by how that ended.
    pub(super) drains: BTreeMap<Ended, u64>,
    /// Guests that left because of that.
    pub(super) drained_guests: u64,
    /// Time that orders were under way at all.
    pub(super) busy: Duration,
    typical: Option<Duration>,
}

impl Tally {
    /// Orders that the agents carried out, one way or the other.
    pub(in crate::bench) fn answered(&self) -> u64 {
        self.outcomes.iter().filter(|(outcome, _)| outcome.is_answer()).map(|(_, count)| count).sum()
    }

    /// All others.
    pub(in crate::bench) fn failed(&self) -> u64 {
        self.orders - self.answered()
    }

    fn add(&mut self, done: &Done, story: String, disturbed: bool) {
        self.orders += 1;
        *self.outcomes.entry(done.outcome).or_default() += 1;
        if !done.outcome.is_answer() && !disturbed {
            self.undisturbed += 1;
            if self.undisturbed_failures.len() < TOLD {
                self.undisturbed_failures.push(story);
            }
        }
        let Some(report) = done.report.as_ref().filter(|_| done.outcome == Outcome::Moved) else { return };
        for blackout in report.blackouts() {
            self.blackouts.get_or_insert_with(Samples::new).record(blackout);
        }
        self.copied_bytes = self.copied_bytes.saturating_add(report.copied_bytes());
        let took = u64::try_from(done.took.as_nanos()).unwrap_or(u64::MAX);
        if matches!(report, Report::Route(_)) {
            self.routes += 1;
            self.route_times.get_or_insert_with(Samples::new).record(took);
            return;
        }
        self.times.get_or_insert_with(Samples::new).record(took);
        let typical = self.typical.get_or_insert(done.took);
        *typical = (*typical * 7 + done.took) / 8;
    }
}

/// What one stretch is made of.
pub(in crate::bench) struct Stretch<'a> {
    pub(in crate::bench) fleet: &'a Fleet,
    pub(in crate::bench) guests: &'a [Resident],
    pub(in crate::bench) seed: u64,
    /// Orders to give.
    pub(in crate::bench) orders: u64,
    /// Agents to kill meanwhile.
    pub(in crate::bench) kills: u64,
    /// Hosts to empty meanwhile.
    pub(in crate::bench) drains: u64,
    /// Set when no more orders are to be given; set here when something has failed.
    pub(in crate::bench) enough: &'a AtomicBool,
    pub(in crate::bench) vigil: &'a Vigil,
    pub(in crate::bench) chronicle: &'a Chronicle,
    pub(in crate::bench) tally: &'a Mutex<Tally>,
}

impl Stretch<'_> {
    /// Gives the orders and kills the agents; returns when all orders are over and all agents are up.
    pub(in crate::bench) fn play(&self, progress: &Progress) -> anyhow::Result<()> {
        let begun = std::time::Instant::now();
        let (first, killed, drained) = {
            let tally = lock(self.tally);
            (tally.orders, tally.kills, tally.drains.values().sum())
        };
        let (given, disturbances, failed) = (AtomicU64::new(0), Disturbances::default(), self.enough);
        let busy: Mutex<BTreeSet<usize>> = Mutex::default();
        let result = std::thread::scope(|scope| {
            let lane = || -> anyhow::Result<()> {
                loop {
                    let number = given.fetch_add(1, Ordering::AcqRel);
                    if number >= self.orders || failed.load(Ordering::Acquire) {
                        return Ok(());
                    }
                    self.order(first + number, &busy, &disturbances, progress)
                        .inspect_err(|_| failed.store(true, Ordering::Release))?;
                }
            };
            let lanes: Vec<_> = (0..LANES).map(|_| scope.spawn(lane)).collect();
            let kills = scope.spawn(|| self.kill(killed, &given, &disturbances, failed));
            let drains = scope.spawn(|| self.drain(drained, &given, &disturbances, failed));
            let mut all = kills.join().unwrap_or_else(|_| bail!("the thread that kills agents panicked"));
            all = all.and(drains.join().unwrap_or_else(|_| bail!("the thread that empties hosts panicked")));
            for lane in lanes {
                all = all.and(lane.join().unwrap_or_else(|_| bail!("a thread that gives orders panicked")));
            }
            all.and_then(|()| await_arrival(self.fleet, None))
        });
        lock(self.tally).busy += begun.elapsed();
        result
    }

    /// Gives one order.
    fn order(
        &self,
        number: u64,
        busy: &Mutex<BTreeSet<usize>>,
        disturbances: &Disturbances,
        progress: &Progress,
    ) -> anyhow::Result<()> {
        let mut dice = Dice::of_round(self.seed, number);
        let guest = self.take_guest(&mut dice, busy)?;
        let resident = &self.guests[guest];
        let errand = Errand::draw(&mut dice);
        await_arrival(self.fleet, Some(resident))?;
        // A guest whose agent was killed may be frozen, or offered, until the next one has seen to it.
        let from =
            interrupt::wait_for("a guest is nobody's", super::reaper::PATIENCE, || Ok(resident.owner(self.fleet).ok()));
        let from = match from {
            Ok(from) => from,
            Err(error) => {
                return Err(error.context(format!(
                    "guest {}: {:?}",
                    resident.name(),
                    resident.control().ownership().load()
                )));
            }
        };
        let (before, typical) = (disturbances.now(), lock(self.tally).typical.unwrap_or(FIRST_GUESS));
        let done = errand.run(self.fleet, resident, from, typical);
        let story = format!(
            "guest {}: order {number}: h{} → h{}, {errand:?}: {} after {} ms{}",
            resident.name(),
            from.host,
            done.to,
            done.outcome,
            done.took.as_millis(),
            done.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default()
        );
        self.chronicle.note(story.clone());
        let mut tally = lock(self.tally);
        tally.add(&done, story, !disturbances.none_since(before));
        let answered = tally.answered();
        drop(tally);
        if done.outcome.is_answer() {
            progress.reached(answered, || format!("guest {} {}", resident.name(), done.outcome));
        }
        lock(busy).remove(&guest);
        if !done.outcome.is_answer() {
            // The agent is coming up again.
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Takes one of the guests with which nothing is being done.
    fn take_guest(&self, dice: &mut Dice, busy: &Mutex<BTreeSet<usize>>) -> anyhow::Result<usize> {
        loop {
            interrupt::check()?;
            let mut taken = lock(busy);
            let free: Vec<usize> = (0..self.guests.len()).filter(|guest| !taken.contains(guest)).collect();
            if let Some(&guest) = dice.choose(&free) {
                taken.insert(guest);
                return Ok(guest);
            }
            drop(taken);
            std::thread::sleep(LOOK);
        }
    }

    /// Kills agents, spread over the stretch.
    fn kill(
        &self,
        first: u64,
        given: &AtomicU64,
        disturbances: &Disturbances,
        failed: &AtomicBool,
    ) -> anyhow::Result<()> {
        self.now_and_then(self.kills, given, failed, |number| {
            // Of numbers that no order has.
            let mut dice = Dice::of_round(!self.seed, first + number);
            let kill = Kill::draw(&mut dice, self.fleet.hosts().len());
            kill.carry_out(self.fleet, disturbances, self.vigil, self.chronicle)?;
            lock(self.tally).kills += 1;
            Ok(())
        })
    }

    /// Empties hosts, spread over the stretch.
    fn drain(
        &self,
        first: u64,
        given: &AtomicU64,
        disturbances: &Disturbances,
        failed: &AtomicBool,
    ) -> anyhow::Result<()> {
        self.now_and_then(self.drains, given, failed, |number| {
            let mut dice = Dice::of_round(self.seed.rotate_left(32), first + number);
            let errand = drainer::Errand::draw(&mut dice, self.fleet.hosts().len());
            errand.carry_out(self.fleet, disturbances, self.tally, self.chronicle)
        })
    }

    /// Does something so many times, spread over the orders of the stretch.
    fn now_and_then(
        &self,
        times: u64,
        given: &AtomicU64,
        failed: &AtomicBool,
        act: impl Fn(u64) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for number in 0..times {
            let due = (number * 2 + 1) * self.orders / (times * 2);
            while given.load(Ordering::Acquire) <= due && !failed.load(Ordering::Acquire) {
                interrupt::check()?;
                std::thread::sleep(LOOK);
            }
            act(number).inspect_err(|_| failed.store(true, Ordering::Release))?;
        }
        Ok(())
    }
}
