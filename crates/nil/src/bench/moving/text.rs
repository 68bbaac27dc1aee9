//! The report for a person: a table for each direction, one for whole journeys beside the peers', and the targets.

use super::super::report::Outcome;
use super::report::{Case, CaseFigures, Journey, Peer, Report, RoundTrips};
use crate::cli::Table;
use crate::lab::figures::{Figures, Microseconds};
use nil_mover::Direction;
use nil_pool::Bytes;
use std::fmt;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for direction in [Direction::Decouple, Direction::Recouple] {
            let of_this = |case: &&Case| case.direction == direction && case.outcome.figures().is_some();
            let mut cases = self.cases.iter().filter(of_this).peekable();
            if cases.peek().is_some() {
                writeln!(f, "{}\n\n{}", heading(direction), case_table(cases))?;
            }
        }
        if !self.journeys.is_empty() || !self.peers.is_empty() {
            writeln!(f, "The whole way from memory to memory, by one order:\n\n{}", self.journey_table())?;
        }
        for trips in &self.round_trips {
            if let Some(found) = trips.outcome.figures() {
                writeln!(f, "Round trips, {}:\n{}", trips.shape, Trips(trips, found))?;
            }
        }
        for case in &self.overhead {
            let own = Bytes(case.overhead.worker_bytes + case.overhead.state_bytes);
            let tables = Bytes(case.overhead.page_table_bytes);
            writeln!(f, "nil itself takes {own} ({} %) and {tables} of page tables: {}", case.percent, case.shape)?;
        }
        self.skipped(f)?;
        if !self.targets.is_empty() {
            writeln!(f, "\nTargets:")?;
            self.targets.iter().try_for_each(|target| writeln!(f, "  {target}"))?;
        }
        writeln!(f, "\nThis is emulation: the hosts are processes of one machine, and the pool is a tmpfs.")?;
        writeln!(f, "Speeds and pauses are the guest's own; pauses during which the machine stood still do not count.")?;
        self.limits.iter().try_for_each(|sentence| writeln!(f, "{sentence}"))
    }
}

fn heading(direction: Direction) -> &'static str {
    match direction {
        Direction::Decouple => "Decouple: from the source's DRAM into the pool, while the guest runs.",
        Direction::Recouple => {
            "Recouple: from the pool into the target's DRAM, while the guest runs, right after it has landed."
        }
    }
}

fn case_table<'a>(cases: impl Iterator<Item = &'a Case>) -> Table<14> {
    let mut table = Table::new([
        "MEMORY", "PAGES", "VCPUS", "GUEST", "BUDGET", "GB/S", "MEMCPY", "SHARE", "SPEED", "STALL P50", "P99", "MAX",
        "MOVER'S MAX", "LOST",
    ]);
    for Case { shape, outcome, .. } in cases {
        let Some(found) = outcome.figures() else { continue };
        let [p50, p99, max] = stalls(found);
        table.row([
            shape.memory.to_string(),
            shape.page.to_string(),
            shape.vcpus.to_string(),
            shape.guest.to_string(),
            shape.budget.to_string(),
            found.gb_per_s.to_string(),
            found.memcpy_gb_per_s.to_string(),
            format!("{} %", found.memcpy_pct),
            format!("{} %", found.guest_speed_pct),
            p50,
            p99,
            max,
            format!("{} µs", found.mover.stall_us.max),
            found.lost_stores.to_string(),
        ]);
    }
    table
}

fn stalls(found: &CaseFigures) -> [String; 3] {
    let none = || "none".to_owned();
    match &found.stall_us {
        Some(Figures { p50, p99, max, .. }) => [p50, p99, max].map(|figure| figure.human()),
        None => [none(), none(), none()],
    }
}

impl Report {
    fn journey_table(&self) -> Table<11> {
        let mut table = Table::new([
            "BY", "MEMORY", "PAGES", "VCPUS", "GUEST", "MOVES", "TAKES", "RUNS THERE AFTER", "STANDS STILL", "COPIED",
            "WORK MEANWHILE",
        ]);
        for journey in &self.journeys {
            let Journey { shape, journeys, total_us, until_landed_us, blackout_us, copied_bytes, guest_work_pct } = journey;
            table.row([
                format!("nil ({})", shape.budget),
                shape.memory.to_string(),
                shape.page.to_string(),
                shape.vcpus.to_string(),
                shape.guest.to_string(),
                journeys.to_string(),
                total_us.p50.human(),
                until_landed_us.p50.human(),
                blackout_us.p50.human(),
                Bytes(*copied_bytes).to_string(),
                format!("{guest_work_pct} %"),
            ]);
        }
        for Peer { name, memory, vcpus, guest, outcome } in &self.peers {
            let Some(found) = outcome.figures() else { continue };
            table.row([
                (*name).to_owned(),
                memory.to_string(),
                "4k".to_owned(),
                vcpus.to_string(),
                guest.to_string(),
                found.samples.to_string(),
                found.total_us.p50.human(),
                found.until_landed_us.p50.human(),
                found.downtime_us.p50.human(),
                Bytes(found.copied_bytes).to_string(),
                format!("{} %", found.guest_work_pct),
            ]);
        }
        table
    }

    fn skipped(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Case { shape, direction, outcome } in &self.cases {
            if let Outcome::Skipped { skipped } = outcome {
                writeln!(f, "skipped: {}, {shape}: {skipped}", direction.verb())?;
            }
        }
        for RoundTrips { shape, outcome, .. } in &self.round_trips {
            if let Outcome::Skipped { skipped } = outcome {
                writeln!(f, "skipped: round trips, {shape}: {skipped}")?;
            }
        }
        for Peer { name, memory, guest, outcome, .. } in &self.peers {
            if let Outcome::Skipped { skipped } = outcome {
                writeln!(f, "skipped: {name}, {memory}, {guest}: {skipped}")?;
            }
        }
        Ok(())
    }
}

/// Round trips, in a few lines.
struct Trips<'a>(&'a RoundTrips, &'a super::report::TripFigures);

impl fmt::Display for Trips<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(RoundTrips { asked, .. }, found) = self;
        let median = |figures: &Figures| Microseconds::human(figures.p50);
        writeln!(
            f,
            "  {} of {asked} made, {} verified, {} stores lost, {} copied in {} s",
            found.done,
            found.verified,
            found.lost_stores,
            Bytes(found.copied_bytes),
            found.seconds
        )?;
        let [decouple, handoff, recouple] = [&found.decouple_us, &found.handoff_us, &found.recouple_us].map(median);
        writeln!(f, "  medians: decouple {decouple}, handoff {handoff}, recouple {recouple}")?;
        match &found.first_error {
            Some(error) => writeln!(f, "  the guest found: {error}"),
            None => writeln!(f, "  {} pages written, {} page checks", found.pages_written, found.page_checks),
        }
    }
}
