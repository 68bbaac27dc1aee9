//! What the benchmark of moves found: data for one JSON document. [`super::text`] lays it out for a person.

use super::super::report::{Dirty, Outcome};
use super::target::Target;
use crate::lab::figures::{Figures, Microseconds};
use crate::lab::ground::Pages;
use crate::lab::overhead::Overhead;
use crate::lab::surroundings;
use nil_mover::{Budget, Direction, Pace};
use nil_pool::Bytes;
use serde::{Serialize, Serializer};
use std::fmt;

/// A guest that is moved, and how.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub(super) struct Shape {
    #[serde(rename = "memory_bytes")]
    pub(super) memory: Bytes,
    pub(super) page: Page,
    pub(super) vcpus: u32,
    pub(super) guest: Dirty,
    pub(super) budget: BudgetName,
}

/// The pages on both sides.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, clap::ValueEnum)]
pub(super) enum Page {
    /// 2 MiB where the kernel has them.
    #[serde(rename = "2m")]
    #[value(name = "2m")]
    Huge,
    /// 4 KiB.
    #[serde(rename = "4k")]
    #[value(name = "4k")]
    Small,
}

/// What a move may cost the guest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum BudgetName {
    /// Whatever it takes: all the bandwidth that there is.
    Fast,
    /// What `nil migrate` allows if nothing else is said.
    Default,
}

/// One shape, moved one way.
#[derive(Debug, Serialize)]
pub(super) struct Case {
    #[serde(flatten)]
    pub(super) shape: Shape,
    pub(super) direction: Direction,
    #[serde(flatten)]
    pub(super) outcome: Outcome<CaseFigures>,
}

/// What many moves of one shape, one way, came to. Medians where nothing else is said.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct CaseFigures {
    pub(super) moves: u64,
    pub(super) gb_per_s: Figure,
    pub(super) memcpy_gb_per_s: Figure,
    /// The share of `memcpy`'s speed that was reached.
    pub(super) memcpy_pct: Figure,
    /// The guest's work during the move, as a share of what it does undisturbed in its host's DRAM.
    pub(super) guest_speed_pct: Figure,
    /// Recoupling only: its work in the first 100 ms after it has landed, as such a share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first_100ms_speed_pct: Option<Figure>,
    /// What the guest noted itself: its pauses during the moves, without those during which the machine stood still.
    pub(super) stall_us: Option<Figures>,
    /// How many these are.
    pub(super) stalls: u64,
    /// The longest pause of all, whatever made it.
    pub(super) longest_pause_us: Microseconds,
    /// Pauses that the guest's ring has lost before they could be read.
    pub(super) pauses_missed: u64,
    /// The share of the moves' time that each vCPU waited for a core, because something else ran there.
    pub(super) core_wait_pct: Figure,
    /// What the mover says of its own.
    pub(super) mover: MoverFigures,
    /// Stores of the guest that were not there when it looked. What it found after the whole journeys and in its last
    /// verification counts as recoupling's.
    pub(super) lost_stores: u64,
    /// The first thing that the guest found amiss, in whichever direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first_error: Option<String>,
    pub(super) machine: MachinePauses,
}

/// Times at which the machine itself stood still during the moves, or a core of it, as the canary saw it.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub(super) struct MachinePauses {
    pub(super) pauses: u64,
    pub(super) longest_us: Microseconds,
    /// The guest's pauses that fell into one of them.
    pub(super) coinciding_stalls: u64,
}

/// What the mover measured of its own moves.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(super) struct MoverFigures {
    /// The largest of the moves' medians, 99th percentiles and maxima.
    pub(super) stall_us: MoverStalls,
    pub(super) slowdown_pct: Figure,
    pub(super) smallest_chunk_bytes: u64,
    pub(super) largest_chunk_bytes: u64,
    /// Of one move, as everything below.
    pub(super) copied_bytes: u64,
    pub(super) zero_bytes: u64,
    pub(super) untouched_bytes: u64,
    pub(super) huge_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub(super) struct MoverStalls {
    pub(super) p50: u64,
    pub(super) p99: u64,
    pub(super) max: u64,
}

/// A guest's way from DRAM to DRAM by one order, as `nil migrate` gives it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Journey {
    #[serde(flatten)]
    pub(super) shape: Shape,
    pub(super) journeys: u64,
    /// From the order to the end.
    pub(super) total_us: Figures,
    /// Until the guest ran on the target.
    pub(super) until_landed_us: Figures,
    /// How long it stood still for the handoff, by the hosts' account.
    pub(super) blackout_us: Figures,
    /// Bytes copied, both ways together.
    pub(super) copied_bytes: u64,
    /// The guest's work from the order to the end, as a share of what it does undisturbed in the same time.
    pub(super) guest_work_pct: Figure,
}

/// What nil itself takes for a guest.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(super) struct OverheadCase {
    #[serde(flatten)]
    pub(super) shape: Shape,
    #[serde(flatten)]
    pub(super) overhead: Overhead,
    /// Of the guest's memory, page tables not counted.
    pub(super) percent: Figure,
}

/// Round trips with every byte verified.
#[derive(Debug, Serialize)]
pub(super) struct RoundTrips {
    #[serde(flatten)]
    pub(super) shape: Shape,
    pub(super) asked: u64,
    #[serde(flatten)]
    pub(super) outcome: Outcome<TripFigures>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct TripFigures {
    /// Round trips made: decouple, handoff, recouple, on to the other host.
    pub(super) done: u64,
    /// Of these, with everything verified and no difference found.
    pub(super) verified: u64,
    pub(super) lost_stores: u64,
    pub(super) first_error: Option<String>,
    pub(super) pages_written: u64,
    pub(super) page_checks: u64,
    /// Bytes copied, both ways together, over all trips.
    pub(super) copied_bytes: u64,
    pub(super) decouple_us: Figures,
    pub(super) handoff_us: Figures,
    pub(super) recouple_us: Figures,
    /// How long it stood still for the handoffs, by the hosts' account.
    pub(super) blackout_us: Figures,
    pub(super) seconds: Figure,
}

/// The same guest, moved by something else.
#[derive(Debug, Serialize)]
pub(super) struct Peer {
    pub(super) name: &'static str,
    #[serde(rename = "memory_bytes")]
    pub(super) memory: Bytes,
    pub(super) vcpus: u32,
    pub(super) guest: Dirty,
    #[serde(flatten)]
    pub(super) outcome: Outcome<PeerFigures>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct PeerFigures {
    pub(super) samples: u64,
    /// Migrations that came to nothing.
    pub(super) failed: u64,
    /// From the order to the end, by the peer's account.
    pub(super) total_us: Figures,
    /// Until the guest ran at the destination.
    pub(super) until_landed_us: Figures,
    /// From the source's last instruction to the destination's first, as the peer stamps them.
    pub(super) downtime_us: Figures,
    /// The most bytes that one migration has sent, by the peer's account.
    pub(super) copied_bytes: u64,
    /// The most passes over the memory.
    pub(super) passes: u64,
    /// The most pages that the guest had to wait for at the destination.
    pub(super) page_requests: u64,
    /// The guest's work from the order to the end, as a share of what it does undisturbed in the same time.
    pub(super) guest_work_pct: Figure,
}

/// Everything that the benchmark found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) cases: Vec<Case>,
    pub(super) journeys: Vec<Journey>,
    pub(super) peers: Vec<Peer>,
    pub(super) round_trips: Vec<RoundTrips>,
    pub(super) overhead: Vec<OverheadCase>,
    pub(super) targets: Vec<Target>,
    pub(super) ratios: Vec<Ratio>,
    pub(super) emulated: bool,
    pub(super) limits: Vec<String>,
}

/// A peer beside nil, for the same guest in the same run.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Ratio {
    pub(super) peer: &'static str,
    /// What nil moved.
    #[serde(flatten)]
    pub(super) shape: Shape,
    /// How many times as long the peer takes: the quotient of the medians.
    pub(super) total: Figure,
    /// How many times as many bytes it copies.
    pub(super) copied: Figure,
}

/// What was measured, before it is judged.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) cases: Vec<Case>,
    pub(super) journeys: Vec<Journey>,
    pub(super) peers: Vec<Peer>,
    pub(super) round_trips: Vec<RoundTrips>,
    pub(super) overhead: Vec<OverheadCase>,
}

/// A number that is printed with two digits.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug, Default)]
pub(super) struct Figure(pub(super) f64);

impl Report {
    pub(super) fn new(found: Findings) -> Self {
        let targets = super::target::judge(&found);
        let Findings { cases, journeys, peers, round_trips, overhead } = found;
        let ratios = ratios(&journeys, &peers);
        let limits = surroundings::sentences();
        Self { cases, journeys, peers, round_trips, overhead, targets, ratios, emulated: true, limits }
    }

    /// Whether no store was lost and every round trip was verified. (A target that is missed is said, and no failure: it
    /// may be the machine's.)
    pub(super) fn is_good(&self) -> bool {
        let case = |case: &Case| case.outcome.figures().is_none_or(|found| found.lost_stores == 0);
        let trips = |trips: &RoundTrips| {
            trips.outcome.figures().is_some_and(|found| found.verified == trips.asked && found.lost_stores == 0)
        };
        self.cases.iter().all(case) && self.round_trips.iter().all(trips)
    }
}

/// Every peer beside every journey of the same guest.
#[expect(clippy::cast_precision_loss, reason = "a quotient with three digits")]
fn ratios(journeys: &[Journey], peers: &[Peer]) -> Vec<Ratio> {
    let mut ratios = Vec::new();
    for Peer { name, memory, vcpus, guest, outcome } in peers {
        let Some(theirs) = outcome.figures() else { continue };
        let same = |ours: &&Journey| {
            let Shape { memory: of, vcpus: on, guest: like, .. } = ours.shape;
            (of, on, like) == (*memory, *vcpus, *guest)
        };
        ratios.extend(journeys.iter().filter(same).map(|ours| Ratio {
            peer: name,
            shape: ours.shape,
            total: Figure(theirs.total_us.p50.0 / ours.total_us.p50.0),
            copied: Figure(theirs.copied_bytes as f64 / ours.copied_bytes.max(1) as f64),
        }));
    }
    ratios
}

impl Page {
    pub(super) fn pages(self) -> Pages {
        match self {
            Self::Huge => Pages::Huge,
            Self::Small => Pages::Small,
        }
    }
}

impl BudgetName {
    pub(super) fn budget(self) -> Budget {
        match self {
            Self::Fast => Budget { pace: Pace::Fast, bandwidth: None },
            Self::Default => Budget::default(),
        }
    }
}

impl Figure {
    /// The median; of an even number the upper one.
    pub(super) fn median(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().map(Self)
    }
}

impl Serialize for Figure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64((self.0 * 100.0).round() / 100.0)
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            large if large.abs() >= 10.0 => write!(f, "{large:.0}"),
            middle if middle.abs() >= 1.0 => write!(f, "{middle:.1}"),
            small => write!(f, "{small:.2}"),
        }
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Huge => "2m",
            Self::Small => "4k",
        })
    }
}

impl fmt::Display for BudgetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fast => "fast",
            Self::Default => "default",
        })
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory, page, vcpus, guest, budget } = self;
        let plural = if *vcpus == 1 { "" } else { "s" };
        write!(f, "{memory}, {page} pages, {vcpus} vCPU{plural}, {guest}, {budget}")
    }
}
