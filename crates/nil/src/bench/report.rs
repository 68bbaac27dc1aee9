//! What the handoff benchmark found: a table for a person, one JSON document for a program.

use crate::cli::Table;
use crate::lab::canary::CanaryReport;
use crate::lab::figures::{Figures, Microseconds};
use crate::lab::phases::PhaseMedians;
use crate::lab::surroundings;
use crate::lab::tally::Percent;
use nil_guest_abi::Mode;
use nil_pool::Bytes;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// What a guest of the benchmark is like.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub(super) struct Shape {
    #[serde(rename = "memory_bytes")]
    pub(super) memory: Bytes,
    pub(super) vcpus: u32,
    pub(super) dirty: Dirty,
}

/// What the guest does with its memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Dirty {
    /// It leaves it alone.
    Idle,
    /// It verifies and rewrites all of it without pause.
    Hot,
    /// It stores one word into every page without pause, each checked before it is replaced: the worst case.
    Stores,
}

impl Dirty {
    /// What the guest is told.
    pub(super) fn mode(self) -> Mode {
        match self {
            Self::Idle => Mode::Idle,
            Self::Hot => Mode::Hot,
            Self::Stores => Mode::Stores,
        }
    }
}

/// One shape of guest, handed over by nil.
#[derive(Debug, Serialize)]
pub(super) struct Case {
    #[serde(flatten)]
    pub(super) shape: Shape,
    #[serde(flatten)]
    pub(super) outcome: Outcome<CaseFigures>,
}

/// One shape of guest, moved by something else.
#[derive(Debug, Serialize)]
pub(super) struct Peer {
    pub(super) name: &'static str,
    #[serde(flatten)]
    pub(super) shape: Shape,
    #[serde(flatten)]
    pub(super) outcome: Outcome<PeerFigures>,
}

/// Figures, or why there are none.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Outcome<T> {
    Measured(T),
    Skipped { skipped: String },
}

#[derive(Debug, Serialize)]
pub(super) struct CaseFigures {
    pub(super) handoffs: u64,
    pub(super) unobserved: u64,
    pub(super) verified: bool,
    pub(super) blackout_us: Figures,
    pub(super) phases_us: Option<PhaseMedians>,
    pub(super) copied_bytes: u64,
    pub(super) lost_first_ms_pct: Option<Percent>,
    pub(super) state_bytes: u64,
    pub(super) huge_page_bytes: u64,
    pub(super) canary: CanaryReport,
}

#[derive(Debug, Serialize)]
pub(super) struct PeerFigures {
    pub(super) samples: u64,
    pub(super) unobserved: u64,
    /// Migrations that came to nothing.
    pub(super) failed: u64,
    pub(super) blackout_us: Figures,
    /// From the order to the end, by the peer's account.
    pub(super) total_us: Figures,
    /// The most bytes that the peer has sent in one migration, by its own account.
    pub(super) copied_bytes: u64,
    pub(super) canary: CanaryReport,
}

/// Everything that the benchmark found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) cases: Vec<Case>,
    pub(super) peers: Vec<Peer>,
    ratios: Ratios,
    pool: String,
    limits: Vec<String>,
}

/// Medians of blackouts, divided by each other.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Ratios {
    /// How many times longer the peer's is, for the same guest in the same run.
    #[serde(flatten)]
    peers: BTreeMap<&'static str, Vec<PeerRatio>>,
    /// nil's own with the most memory to that with the least, for otherwise equal guests; the worst of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    most_to_least_memory: Option<f64>,
}

#[derive(Debug, PartialEq, Serialize)]
struct PeerRatio {
    #[serde(flatten)]
    shape: Shape,
    p50: f64,
}

impl Report {
    pub(super) fn new(cases: Vec<Case>, peers: Vec<Peer>, pool: String) -> Self {
        let ratios = Ratios::of(&cases, &peers);
        Self { cases, peers, ratios, pool, limits: surroundings::sentences() }
    }

    /// Whether no guest found a difference, and nothing was copied.
    pub(super) fn is_good(&self) -> bool {
        self.cases
            .iter()
            .filter_map(|case| case.outcome.figures())
            .all(|found| found.verified && found.copied_bytes == 0)
    }
}

impl<T> Outcome<T> {
    pub(super) fn figures(&self) -> Option<&T> {
        match self {
            Self::Measured(figures) => Some(figures),
            Self::Skipped { .. } => None,
        }
    }

    /// Why there are no figures.
    pub(super) fn reason(&self) -> Option<&str> {
        match self {
            Self::Measured(_) => None,
            Self::Skipped { skipped } => Some(skipped),
        }
    }

    pub(super) fn skipped(reason: impl fmt::Display) -> Self {
        Self::Skipped { skipped: reason.to_string() }
    }
}

impl Ratios {
    fn of(cases: &[Case], peers: &[Peer]) -> Self {
        let p50 = |case: &Case| case.outcome.figures().map(|figures| figures.blackout_us.p50.0);
        let mut ratios = Self::default();
        for peer in peers {
            let ours = cases.iter().find(|case| case.shape == peer.shape).and_then(p50);
            if let (Some(ours), Some(theirs)) = (ours, peer.outcome.figures()) {
                let ratio = PeerRatio { shape: peer.shape, p50: theirs.blackout_us.p50.0 / ours };
                ratios.peers.entry(peer.name).or_default().push(ratio);
            }
        }
        let by_memory = cases.iter().filter_map(|case| {
            let like = |other: &&Case| {
                (other.shape.vcpus, other.shape.dirty) == (case.shape.vcpus, case.shape.dirty) && p50(other).is_some()
            };
            let least = cases.iter().filter(like).min_by_key(|other| other.shape.memory)?;
            let most = cases.iter().filter(like).max_by_key(|other| other.shape.memory)?;
            (least.shape.memory < most.shape.memory).then(|| Some(p50(most)? / p50(least)?))?
        });
        ratios.most_to_least_memory = by_memory.reduce(f64::max);
        ratios
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.case_table().fmt(f)?;
        self.skipped(f)?;
        if !self.peers.is_empty() {
            writeln!(f, "\nThe same guest image, moved by others and measured by the guest in the same way:\n")?;
            self.peer_table().fmt(f)?;
        }
        if let Some(ratio) = self.ratios.most_to_least_memory {
            writeln!(f, "\nMedian blackout with the most memory : with the least = {ratio:.2}")?;
        }
        writeln!(f, "\nTimes are the guest's own. pool: {}", self.pool)?;
        self.limits.iter().try_for_each(|sentence| writeln!(f, "{sentence}"))
    }
}

impl Report {
    fn case_table(&self) -> Table<11> {
        let mut table = Table::new([
            "MEMORY",
            "VCPUS",
            "GUEST",
            "HANDOFFS",
            "P50",
            "P90",
            "P99",
            "MAX",
            "LOST 1ST MS",
            "COPIED",
            "PAUSES (COINCIDING)",
        ]);
        for Case { shape, outcome } in &self.cases {
            let Some(found) = outcome.figures() else { continue };
            let [p50, p90, p99, max] = columns(&found.blackout_us);
            let lost = found.lost_first_ms_pct.map_or_else(|| "?".into(), |Percent(lost)| format!("{lost:.1} %"));
            table.row([
                shape.memory.to_string(),
                shape.vcpus.to_string(),
                shape.dirty.to_string(),
                handoffs(found),
                p50,
                p90,
                p99,
                max,
                lost,
                Bytes(found.copied_bytes).to_string(),
                format!("{} ({})", found.canary.pauses, found.canary.coinciding_handoffs),
            ]);
        }
        table
    }

    fn peer_table(&self) -> Table<11> {
        let mut table = Table::new([
            "PEER",
            "MEMORY",
            "VCPUS",
            "GUEST",
            "MOVES",
            "P50",
            "P90",
            "MAX",
            "P50 : NIL'S",
            "TAKES",
            "COPIED",
        ]);
        for Peer { name, shape, outcome } in &self.peers {
            let Some(found) = outcome.figures() else { continue };
            let [p50, p90, _, max] = columns(&found.blackout_us);
            let same = |ratio: &&PeerRatio| ratio.shape == *shape;
            let ratio = self.ratios.peers.get(name).and_then(|ratios| ratios.iter().find(same));
            table.row([
                (*name).to_owned(),
                shape.memory.to_string(),
                shape.vcpus.to_string(),
                shape.dirty.to_string(),
                found.samples.to_string(),
                p50,
                p90,
                max,
                ratio.map_or_else(|| "?".into(), |ratio| format!("{:.0}", ratio.p50)),
                found.total_us.p50.human(),
                Bytes(found.copied_bytes).to_string(),
            ]);
        }
        table
    }

    fn skipped(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Case { shape, outcome } in &self.cases {
            if let Outcome::Skipped { skipped } = outcome {
                writeln!(f, "skipped: nil, {shape}: {skipped}")?;
            }
        }
        for Peer { name, shape, outcome } in &self.peers {
            if let Outcome::Skipped { skipped } = outcome {
                writeln!(f, "skipped: {name}, {shape}: {skipped}")?;
            }
        }
        Ok(())
    }
}

fn columns(figures: &Figures) -> [String; 4] {
    [figures.p50, figures.p90, figures.p99, figures.max].map(Microseconds::human)
}

fn handoffs(found: &CaseFigures) -> String {
    match (found.verified, found.unobserved) {
        (false, _) => format!("{} DIFFERENCES", found.handoffs),
        (true, 0) => found.handoffs.to_string(),
        (true, unobserved) => format!("{} ({unobserved} unobserved)", found.handoffs),
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.vcpus == 1 { "" } else { "s" };
        write!(f, "{}, {} vCPU{plural}, {}", self.memory, self.vcpus, self.dirty)
    }
}

impl fmt::Display for Dirty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.mode().name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANARY: CanaryReport =
        CanaryReport { pauses: 3, longest_us: Microseconds(900.0), coinciding_handoffs: 1, real_time: true };

    fn shape(memory: u64, vcpus: u32) -> Shape {
        Shape { memory: Bytes(memory), vcpus, dirty: Dirty::Hot }
    }

    fn figures(p50: f64) -> Figures {
        let [p90, p99, max] = [1.5, 3.0, 9.0].map(|factor| Microseconds(p50 * factor));
        Figures { p50: Microseconds(p50), p90, p99, max }
    }

    fn case(shape: Shape, p50: f64) -> Case {
        let outcome = Outcome::Measured(CaseFigures {
            handoffs: 500,
            unobserved: 0,
            verified: true,
            blackout_us: figures(p50),
            phases_us: None,
            copied_bytes: 0,
            lost_first_ms_pct: Some(Percent(1.25)),
            state_bytes: 6_000,
            huge_page_bytes: 64 << 20,
            canary: CANARY,
        });
        Case { shape, outcome }
    }

    fn peer(name: &'static str, shape: Shape, p50: f64) -> Peer {
        let outcome = Outcome::Measured(PeerFigures {
            samples: 10,
            unobserved: 0,
            failed: 0,
            blackout_us: figures(p50),
            total_us: figures(p50 * 4.0),
            copied_bytes: 4096,
            canary: CANARY,
        });
        Peer { name, shape, outcome }
    }

    fn report() -> Report {
        let (small, large) = (shape(64 << 20, 1), shape(4 << 30, 1));
        let skipped = Peer { name: "qemu-pre-copy", shape: large, outcome: Outcome::skipped("there is no QEMU here") };
        Report::new(
            vec![case(small, 100.0), case(large, 110.0)],
            vec![peer("qemu-by-reference", small, 20_000.0), skipped],
            "a private tmpfs".into(),
        )
    }

    #[test]
    fn the_json_has_what_was_promised() {
        let json = serde_json::to_value(report()).expect("a JSON document");
        assert_eq!(json["cases"][1]["memory_bytes"], 4_u64 << 30);
        assert_eq!(json["cases"][0]["dirty"], "hot");
        assert_eq!(json["cases"][0]["blackout_us"]["p99"], 300.0);
        assert_eq!(json["cases"][0]["lost_first_ms_pct"], 1.25);
        assert_eq!(json["peers"][0]["name"], "qemu-by-reference");
        assert_eq!(json["peers"][0]["blackout_us"]["p50"], 20_000.0);
        assert_eq!(json["peers"][1]["skipped"], "there is no QEMU here");
        assert_eq!(json["ratios"]["qemu-by-reference"][0]["p50"], 200.0);
        assert_eq!(json["ratios"]["most_to_least_memory"], 1.1);
    }

    #[test]
    fn a_peer_is_compared_with_the_same_guest_only() {
        let cases = [case(shape(64 << 20, 1), 100.0)];
        let peers = [peer("qemu-by-reference", shape(64 << 20, 2), 20_000.0)];
        assert_eq!(Ratios::of(&cases, &peers), Ratios::default());
    }

    #[test]
    fn a_difference_in_one_guest_spoils_the_benchmark() {
        let mut report = report();
        assert!(report.is_good());
        if let Outcome::Measured(figures) = &mut report.cases[1].outcome {
            figures.verified = false;
        }
        assert!(!report.is_good());
    }

    #[test]
    fn the_tables_show_what_was_measured_and_what_was_not() {
        let text = report().to_string();
        let tables = text.split("\nTimes are").next().expect("tables");
        insta::assert_snapshot!(tables, @r"
        MEMORY  VCPUS  GUEST  HANDOFFS  P50     P90     P99     MAX     LOST 1ST MS  COPIED  PAUSES (COINCIDING)
        64 MiB  1      hot    500       100 µs  150 µs  300 µs  900 µs  1.2 %        0 B     3 (1)
        4 GiB   1      hot    500       110 µs  165 µs  330 µs  990 µs  1.2 %        0 B     3 (1)
        skipped: qemu-pre-copy, 4 GiB, 1 vCPU, hot: there is no QEMU here

        The same guest image, moved by others and measured by the guest in the same way:

        PEER               MEMORY  VCPUS  GUEST  MOVES  P50      P90      MAX     P50 : NIL'S  TAKES    COPIED
        qemu-by-reference  64 MiB  1      hot    10     20.0 ms  30.0 ms  180 ms  200          80.0 ms  4 KiB

        Median blackout with the most memory : with the least = 1.10
        ");
    }
}
