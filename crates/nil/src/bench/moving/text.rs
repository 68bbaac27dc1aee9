//! The report for a person: a table for each direction, one for whole journeys beside the peers', and the targets.

use super::super::report::Outcome;
use super::report::{Case, CaseFigures, Figure, Journey, Peer, Ratio, Report, RoundTrips, Shape};
use crate::cli::Table;
use crate::lab::figures::{Figures, Microseconds};
use nil_mover::Direction;
use nil_pool::Bytes;
use std::fmt;

/// From this share of a move's time on that a vCPU waits for a core, the report says so.
const BUSY_PCT: f64 = 5.0;

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
        for Ratio { peer, shape, total, copied } in &self.ratios {
            let Shape { budget, page, memory, guest, .. } = shape;
            writeln!(
                f,
                "{peer} : nil ({budget}, {page} pages), {memory}, {guest}: time {total}, bytes copied {copied}"
            )?;
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
        self.errors(f)?;
        self.busy(f)?;
        self.skipped(f)?;
        if !self.targets.is_empty() {
            writeln!(f, "\nTargets:")?;
            self.targets.iter().try_for_each(|target| writeln!(f, "  {target}"))?;
        }
        writeln!(f, "\nThis is emulation: the hosts are processes of one machine, and the pool is a tmpfs.")?;
        writeln!(
            f,
            "Speeds and pauses are the guest's own; pauses during which the machine stood still do not count."
        )?;
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
        "MEMORY",
        "PAGES",
        "VCPUS",
        "GUEST",
        "BUDGET",
        "GB/S",
        "MEMCPY",
        "SHARE",
        "SPEED",
        "STALL P50",
        "P99",
        "MAX",
        "MOVER'S MAX",
        "LOST",
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
            "BY",
            "MEMORY",
            "PAGES",
            "VCPUS",
            "GUEST",
            "MOVES",
            "TAKES",
            "RUNS THERE AFTER",
            "STANDS STILL",
            "COPIED",
            "WORK MEANWHILE",
        ]);
        for journey in &self.journeys {
            let Journey { shape, journeys, total_us, until_landed_us, blackout_us, copied_bytes, guest_work_pct } =
                journey;
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

    /// What guests have found amiss.
    fn errors(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Case { shape, direction, outcome } in &self.cases {
            if let Some(error) = outcome.figures().and_then(|found| found.first_error.as_deref()) {
                writeln!(f, "the guest found an error: {}, {shape}: {error}", direction.verb())?;
            }
        }
        Ok(())
    }

    /// Whether guests lost their time to something else than the mover.
    fn busy(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waits = self.cases.iter().filter_map(|case| case.outcome.figures()).map(|found| found.core_wait_pct.0);
        match waits.reduce(f64::max) {
            Some(most) if most >= BUSY_PCT => writeln!(
                f,
                "\nGuests waited up to {} % of the moves for a core: with more cores, or fewer other programs, they are \
                 faster.",
                Figure(most)
            ),
            Some(_) | None => Ok(()),
        }
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
            "  {} of {asked} made, {} verified, lost stores: {}, {} copied in {} s",
            found.done,
            found.verified,
            found.lost_stores,
            Bytes(found.copied_bytes),
            found.seconds
        )?;
        let steps = [&found.decouple_us, &found.handoff_us, &found.recouple_us, &found.blackout_us];
        let [decouple, handoff, recouple, still] = steps.map(median);
        writeln!(
            f,
            "  medians: decouple {decouple}, handoff {handoff} (it stood still for {still}), recouple {recouple}"
        )?;
        match &found.first_error {
            Some(error) => writeln!(f, "  the guest found: {error}"),
            None => writeln!(f, "  {} pages written, {} page checks", found.pages_written, found.page_checks),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::{
        BudgetName, Findings, MachinePauses, MoverFigures, MoverStalls, OverheadCase, Page, PeerFigures, TripFigures,
    };
    use super::*;
    use crate::bench::report::Dirty;
    use crate::lab::overhead::Overhead;

    fn shape(budget: BudgetName) -> Shape {
        Shape { memory: Bytes(1 << 30), page: Page::Huge, vcpus: 1, guest: Dirty::Stores, budget }
    }

    fn times(p50: f64) -> Figures {
        let [p90, p99, max] = [1.5, 3.0, 9.0].map(|factor| Microseconds(p50 * factor));
        Figures { p50: Microseconds(p50), p90, p99, max }
    }

    fn case(direction: Direction, budget: BudgetName, memcpy_pct: f64) -> Case {
        let figures = CaseFigures {
            moves: 5,
            gb_per_s: Figure(memcpy_pct / 10.0),
            memcpy_gb_per_s: Figure(10.0),
            memcpy_pct: Figure(memcpy_pct),
            guest_speed_pct: Figure(85.0),
            first_100ms_speed_pct: (direction == Direction::Recouple).then_some(Figure(70.0)),
            stall_us: Some(times(20.0)),
            stalls: 100,
            longest_pause_us: Microseconds(9_000.0),
            pauses_missed: 0,
            core_wait_pct: Figure(2.0),
            mover: MoverFigures {
                stall_us: MoverStalls { p50: 20, p99: 90, max: 450 },
                slowdown_pct: Figure(14.0),
                smallest_chunk_bytes: 65_536,
                largest_chunk_bytes: 2 << 20,
                copied_bytes: 1 << 30,
                zero_bytes: 0,
                untouched_bytes: 0,
                huge_bytes: 1 << 30,
            },
            lost_stores: 0,
            first_error: None,
            machine: MachinePauses::default(),
        };
        Case { shape: shape(budget), direction, outcome: Outcome::Measured(figures) }
    }

    fn peer(name: &'static str, outcome: Outcome<PeerFigures>) -> Peer {
        Peer { name, memory: Bytes(1 << 30), vcpus: 1, guest: Dirty::Stores, outcome }
    }

    fn findings() -> Findings {
        let fast = shape(BudgetName::Fast);
        let post_copy = PeerFigures {
            samples: 3,
            failed: 0,
            total_us: times(3_000_000.0),
            until_landed_us: times(1_500_000.0),
            downtime_us: times(20_000.0),
            copied_bytes: 2 << 30,
            passes: 2,
            page_requests: 1_000,
            guest_work_pct: Figure(20.0),
        };
        Findings {
            cases: vec![
                case(Direction::Decouple, BudgetName::Fast, 50.0),
                case(Direction::Decouple, BudgetName::Default, 15.0),
                case(Direction::Recouple, BudgetName::Fast, 30.0),
                Case {
                    shape: shape(BudgetName::Default),
                    direction: Direction::Recouple,
                    outcome: Outcome::skipped("there is no KVM"),
                },
            ],
            journeys: vec![Journey {
                shape: fast,
                journeys: 5,
                total_us: times(400_000.0),
                until_landed_us: times(200_000.0),
                blackout_us: times(150.0),
                copied_bytes: 2 << 30,
                guest_work_pct: Figure(60.0),
            }],
            peers: vec![
                peer("qemu-pre-copy", Outcome::skipped("it did not converge")),
                peer("qemu-post-copy", Outcome::Measured(post_copy)),
            ],
            round_trips: Vec::new(),
            overhead: vec![OverheadCase {
                shape: fast,
                overhead: Overhead { worker_bytes: 1 << 20, state_bytes: 2 << 20, page_table_bytes: 2 << 20 },
                percent: Figure(0.29),
            }],
        }
    }

    fn trips(verified: u64) -> RoundTrips {
        let figures = TripFigures {
            done: 100,
            verified,
            lost_stores: 100 - verified,
            first_error: (verified < 100).then(|| "vCPU 1: the page at 0x400000 is of the wrong generation".into()),
            pages_written: 1_000_000,
            page_checks: 2_000_000,
            copied_bytes: 200 << 30,
            decouple_us: times(200_000.0),
            handoff_us: times(20_000.0),
            recouple_us: times(300_000.0),
            blackout_us: times(150.0),
            seconds: Figure(75.0),
        };
        RoundTrips { shape: shape(BudgetName::Fast), asked: 100, outcome: Outcome::Measured(figures) }
    }

    #[test]
    fn the_json_has_what_was_promised() {
        let json = serde_json::to_value(Report::new(findings())).expect("a JSON document");
        let first = &json["cases"][0];
        assert_eq!((first["memory_bytes"].as_u64(), first["direction"].as_str()), (Some(1 << 30), Some("decouple")));
        assert_eq!((first["page"].as_str(), first["budget"].as_str()), (Some("2m"), Some("fast")));
        assert_eq!((first["gb_per_s"].as_f64(), first["memcpy_gb_per_s"].as_f64()), (Some(5.0), Some(10.0)));
        assert_eq!((first["guest_speed_pct"].as_f64(), first["lost_stores"].as_u64()), (Some(85.0), Some(0)));
        for (quantile, us) in [("p50", 20.0), ("p99", 60.0), ("max", 180.0)] {
            assert_eq!(first["stall_us"][quantile].as_f64(), Some(us));
        }
        assert_eq!(json["cases"][3]["skipped"], "there is no KVM");
        assert_eq!(json["peers"][0]["skipped"], "it did not converge");
        assert_eq!(json["peers"][1]["guest_work_pct"], 20.0);
        assert_eq!(json["ratios"][0]["peer"], "qemu-post-copy");
        assert_eq!((json["ratios"][0]["total"].as_f64(), json["ratios"][0]["copied"].as_f64()), (Some(7.5), Some(1.0)));
        assert_eq!(json["emulated"], true);
    }

    #[test]
    fn a_lost_store_spoils_the_benchmark_and_a_missed_target_does_not() {
        let mut found = findings();
        assert!(Report::new(findings()).is_good());
        if let Outcome::Measured(figures) = &mut found.cases[0].outcome {
            figures.lost_stores = 1;
            figures.first_error = Some("vCPU 0: the page at 0x400000 is lost".into());
        }
        let spoilt = Report::new(found);
        assert!(!spoilt.is_good());
        assert!(spoilt.to_string().contains("the guest found an error: decouple, 1 GiB"), "{spoilt}");
        let of_trips = |verified| Report::new(Findings { round_trips: vec![trips(verified)], ..Findings::default() });
        assert!(of_trips(100).is_good());
        assert!(!of_trips(99).is_good());
    }

    #[test]
    fn the_report_says_plainly_what_was_met_and_what_was_not() {
        let text = Report::new(findings()).to_string();
        let tables = text.split("\nThis is emulation").next().expect("tables");
        insta::assert_snapshot!(tables, @r"
        Decouple: from the source's DRAM into the pool, while the guest runs.

        MEMORY  PAGES  VCPUS  GUEST   BUDGET   GB/S  MEMCPY  SHARE  SPEED  STALL P50  P99    MAX     MOVER'S MAX  LOST
        1 GiB   2m     1      stores  fast     5.0   10      50 %   85 %   20 µs      60 µs  180 µs  450 µs       0
        1 GiB   2m     1      stores  default  1.5   10      15 %   85 %   20 µs      60 µs  180 µs  450 µs       0

        Recouple: from the pool into the target's DRAM, while the guest runs, right after it has landed.

        MEMORY  PAGES  VCPUS  GUEST   BUDGET  GB/S  MEMCPY  SHARE  SPEED  STALL P50  P99    MAX     MOVER'S MAX  LOST
        1 GiB   2m     1      stores  fast    3.0   10      30 %   85 %   20 µs      60 µs  180 µs  450 µs       0

        The whole way from memory to memory, by one order:

        BY              MEMORY  PAGES  VCPUS  GUEST   MOVES  TAKES    RUNS THERE AFTER  STANDS STILL  COPIED  WORK MEANWHILE
        nil (fast)      1 GiB   2m     1      stores  5      400 ms   200 ms            150 µs        2 GiB   60 %
        qemu-post-copy  1 GiB   4k     1      stores  3      3000 ms  1500 ms           20.0 ms       2 GiB   20 %

        qemu-post-copy : nil (fast, 2m pages), 1 GiB, stores: time 7.5, bytes copied 1.0
        nil itself takes 3 MiB (0.29 %) and 2 MiB of page tables: 1 GiB, 2m pages, 1 vCPU, stores, fast
        skipped: recouple, 1 GiB, 2m pages, 1 vCPU, stores, default: there is no KVM
        skipped: qemu-pre-copy, 1 GiB, stores: it did not converge

        Targets:
          met    decouple, 1 GiB, 2m pages, 1 vCPU, stores, fast: at least 45 % of memcpy's speed: 50.0 %
          met    decouple, 1 GiB, 2m pages, 1 vCPU, stores, fast: no store is lost: 0 lost
          met    decouple, 1 GiB, 2m pages, 1 vCPU, stores, default: the guest keeps at least 80 % of its speed: 85.0 %
          met    decouple, 1 GiB, 2m pages, 1 vCPU, stores, default: no store waits longer than 500 µs for the mover: 450 µs
          met    decouple, 1 GiB, 2m pages, 1 vCPU, stores, default: no store is lost: 0 lost
          MISSED recouple, 1 GiB, 2m pages, 1 vCPU, stores, fast: at least 45 % of memcpy's speed: 30.0 %
          met    recouple, 1 GiB, 2m pages, 1 vCPU, stores, fast: at least 50 % of the guest's speed in the first 100 ms after landing: 70.0 %
          met    recouple, 1 GiB, 2m pages, 1 vCPU, stores, fast: no store is lost: 0 lost
          met    1 GiB, 2m pages, 1 vCPU, stores, fast: nil itself takes less than 0.5 % of the guest's memory: 0.29 %
        ");
    }

    #[test]
    fn a_machine_that_is_busy_otherwise_is_named() {
        let mut found = findings();
        assert!(!Report::new(findings()).to_string().contains("for a core"));
        if let Outcome::Measured(figures) = &mut found.cases[1].outcome {
            figures.core_wait_pct = Figure(40.0);
        }
        assert!(Report::new(found).to_string().contains("up to 40 % of the moves for a core"));
    }

    #[test]
    fn round_trips_are_told_in_a_few_lines() {
        let report = |verified| Report::new(Findings { round_trips: vec![trips(verified)], ..Findings::default() });
        let text = report(99).to_string();
        insta::assert_snapshot!(text.split("\nThis is emulation").next().expect("lines"), @r"
        Round trips, 1 GiB, 2m pages, 1 vCPU, stores, fast:
          100 of 100 made, 99 verified, lost stores: 1, 200 GiB copied in 75 s
          medians: decouple 200 ms, handoff 20.0 ms (it stood still for 150 µs), recouple 300 ms
          the guest found: vCPU 1: the page at 0x400000 is of the wrong generation


        Targets:
          MISSED 1 GiB, 2m pages, 1 vCPU, stores, fast: 100 round trips without a lost store or any other difference: 99 verified, 1 stores lost
        ");
        assert!(report(100).to_string().contains("1000000 pages written, 2000000 page checks"));
    }
}
