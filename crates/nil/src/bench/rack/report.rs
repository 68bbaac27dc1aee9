//! What a run came to: text for a person, one JSON document for a program.

use super::Campaign;
use super::drainer::Ended;
use super::vigil::Most;
use crate::cli::Table;
use crate::lab::errand::Outcome;
use crate::lab::figures::{Figures, Microseconds, Samples};
use crate::lab::histogram;
use crate::lab::lock::lock;
use nil_pool::Bytes;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// The result of `nil bench rack`.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) seed: u64,
    pub(super) hosts: u16,
    pub(super) pools: u16,
    pub(super) guests: u16,
    pub(super) memory_bytes: u64,
    /// Orders to migrate, by how they ended.
    pub(super) orders: u64,
    pub(super) outcomes: BTreeMap<Outcome, u64>,
    pub(super) agent_kills: u64,
    /// Hosts that were to be emptied, by how that ended; and the guests that left because of it.
    pub(super) drains: BTreeMap<Ended, u64>,
    pub(super) drained_guests: u64,
    /// Orders that failed although every agent had lived all the time: how many, and the first of them. No promise is
    /// broken by that, but it is worth knowing.
    pub(super) failed_undisturbed: u64,
    pub(super) failures: Vec<String>,
    pub(super) seconds: f64,
    /// Seconds in which orders were under way.
    pub(super) busy_seconds: f64,
    /// Guests that moved, per second of those.
    pub(super) moves_per_second: f64,
    /// How long guests stood still, as both workers measured it, in microseconds.
    pub(super) blackout_us: Option<Figures>,
    /// How long orders took that moved their guest, in microseconds.
    pub(super) order_us: Option<Figures>,
    /// Guests that arrived over several hosts, and how long that took, in microseconds.
    pub(super) routes: u64,
    pub(super) route_us: Option<Figures>,
    /// Bytes of guests' memory that handoffs copied; decoupling and recoupling is not counted.
    pub(super) copied_bytes: u64,
    pub(super) quiet_points: u64,
    /// Times that a guest verified all of its memory and registers.
    pub(super) verifications: u64,
    pub(super) pool_checks: u64,
    /// Processor time of all agents, in seconds.
    pub(super) agent_cpu_seconds: f64,
    /// The most that any agent held at a quiet point.
    pub(super) agents_at_most: Most,
    /// The most jobs that any agent knew of at a quiet point.
    pub(super) jobs_at_most: usize,
    pub(super) violations: usize,
    pub(super) violation_details: Vec<Violation>,
    #[serde(skip)]
    blackouts: Option<Samples>,
}

/// Something that never may happen.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Violation {
    pub(super) seed: u64,
    pub(super) what: String,
    pub(super) history: String,
    pub(super) logs: String,
}

impl Campaign<'_> {
    pub(super) fn report(&self, took: Duration, violation_details: Vec<Violation>) -> Report {
        let tally = lock(&self.tally);
        let moved = tally.outcomes.get(&Outcome::Moved).copied().unwrap_or(0);
        #[expect(clippy::cast_precision_loss, reason = "a count of orders")]
        let moves_per_second = moved as f64 / tally.busy.as_secs_f64().max(f64::EPSILON);
        Report {
            seed: self.seed,
            hosts: self.args.hosts,
            pools: self.args.pools,
            guests: self.args.guests,
            memory_bytes: self.args.memory.get(),
            orders: tally.orders,
            outcomes: tally.outcomes.clone(),
            agent_kills: tally.kills,
            drains: tally.drains.clone(),
            drained_guests: tally.drained_guests,
            failed_undisturbed: tally.undisturbed,
            failures: tally.undisturbed_failures.clone(),
            seconds: took.as_secs_f64(),
            busy_seconds: tally.busy.as_secs_f64(),
            moves_per_second,
            blackout_us: tally.blackouts.as_ref().and_then(Samples::figures),
            order_us: tally.times.as_ref().and_then(Samples::figures),
            routes: tally.routes,
            route_us: tally.route_times.as_ref().and_then(Samples::figures),
            copied_bytes: tally.copied_bytes,
            quiet_points: self.judge.quiet_points,
            verifications: self.judge.verifications,
            pool_checks: self.judge.pool_checks,
            agent_cpu_seconds: self.vigil.cpu().as_secs_f64(),
            agents_at_most: self.vigil.most(),
            jobs_at_most: self.judge.most_jobs,
            violations: violation_details.len(),
            violation_details,
            blackouts: tally.blackouts.clone(),
        }
    }
}

impl Report {
    pub(super) fn is_good(&self) -> bool {
        self.violations == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hosts, pools, guests, orders, agent_kills, seconds, seed, .. } = self;
        writeln!(
            f,
            "{orders} orders to {guests} guests of {} on {hosts} hosts and {pools} pools in {seconds:.0} s, {agent_kills} \
             agents killed meanwhile (seed {seed})\n",
            Bytes(self.memory_bytes)
        )?;
        let mut table = Table::new(["ORDERS", "ENDED"]);
        for (outcome, count) in &self.outcomes {
            table.row([count.to_string(), outcome.to_string()]);
        }
        writeln!(f, "{table}")?;
        let drains: Vec<String> = self.drains.iter().map(|(ended, count)| format!("{count} {ended}")).collect();
        if !drains.is_empty() {
            writeln!(
                f,
                "hosts that were to be emptied: {}; {} guests left them\n",
                drains.join(", "),
                self.drained_guests
            )?;
        }
        writeln!(f, "{:.1} guests moved per second while orders were under way", self.moves_per_second)?;
        writeln!(f, "{} guests went over several hosts", self.routes)?;
        for (what, figures) in [
            ("a guest stood still at a handoff", self.blackout_us),
            ("a move took", self.order_us),
            ("a way over several hosts took", self.route_us),
        ] {
            if let Some(Figures { p50, p90, p99, max }) = figures {
                let [p50, p90, p99, max] = [p50, p90, p99, max].map(Microseconds::human);
                writeln!(f, "{what}: p50 {p50}, p90 {p90}, p99 {p99}, at most {max}")?;
            }
        }
        if let Some(blackouts) = &self.blackouts {
            writeln!(f, "\nhow long guests stood still:\n{}", histogram::render(blackouts))?;
        }
        let Most { open_files, threads, private_bytes } = self.agents_at_most;
        writeln!(
            f,
            "agents: {:.1} s of processor time in all; at most {open_files} files, {threads} threads, {}, {} jobs each",
            self.agent_cpu_seconds,
            Bytes(private_bytes),
            self.jobs_at_most
        )?;
        writeln!(
            f,
            "{} quiet points, {} verifications of all memory and registers of a guest, {} checks of a pool",
            self.quiet_points, self.verifications, self.pool_checks
        )?;
        if self.failed_undisturbed > 0 {
            writeln!(f, "\n{} orders failed although all agents lived, among them:", self.failed_undisturbed)?;
            self.failures.iter().try_for_each(|story| writeln!(f, "  {story}"))?;
        }
        for Violation { seed, what, history, logs } in &self.violation_details {
            writeln!(f, "\nVIOLATION (seed {seed}): {what}\n{history}\n{logs}")?;
        }
        match self.violations {
            0 => writeln!(
                f,
                "\nno violation: every guest ran exactly once, none was lost, nothing leaked, every pool is sound"
            ),
            1 => writeln!(f, "\n1 VIOLATION"),
            count => writeln!(f, "\n{count} VIOLATIONS"),
        }
    }
}
