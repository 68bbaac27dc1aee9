//! What nil sets out to reach, and whether it was reached: plain sentences, none of which decides the exit status but
//! those about lost stores, which [`Report::is_good`](super::report::Report::is_good) looks at itself.

use super::report::{BudgetName, Case, CaseFigures, Findings, Page, RoundTrips};
use nil_mover::Direction;
use serde::Serialize;
use std::fmt;

/// The least share of `memcpy`'s speed that a move with all the bandwidth there is must reach, in percent.
const FAST_HUGE_PCT: f64 = 45.0;
/// The same with 4 KiB pages.
const FAST_SMALL_PCT: f64 = 20.0;
/// The least share of its speed that a guest must keep under the default budget, in percent.
const PACED_SPEED_PCT: f64 = 80.0;
/// The longest that a store may wait for the mover under the default budget.
const PACED_STALL_US: u64 = 500;
/// The least share of its speed that a guest must have in the first 100 ms after it has landed, in percent.
const LANDING_SPEED_PCT: f64 = 50.0;
/// The most that nil may take for a guest, in percent of the guest's memory.
const OVERHEAD_PCT: f64 = 0.5;

/// Something that is to be reached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Target {
    /// Of what.
    pub(super) case: String,
    /// What.
    pub(super) wanted: String,
    /// What was found.
    pub(super) found: String,
    pub(super) met: bool,
}

/// Holds the findings against every target that they say something about.
pub(super) fn judge(found: &Findings) -> Vec<Target> {
    let mut targets = Vec::new();
    for case in &found.cases {
        if let Some(figures) = case.outcome.figures() {
            judge_case(case, figures, &mut targets);
        }
    }
    for case in &found.overhead {
        targets.push(Target {
            case: case.shape.to_string(),
            wanted: format!("nil itself takes less than {OVERHEAD_PCT} % of the guest's memory"),
            found: format!("{:.2} %", case.percent.0),
            met: case.percent.0 < OVERHEAD_PCT,
        });
    }
    targets.extend(found.round_trips.iter().filter_map(judge_trips));
    targets
}

fn judge_case(case: &Case, figures: &CaseFigures, targets: &mut Vec<Target>) {
    let mut add = |wanted: String, found: String, met: bool| {
        targets.push(Target { case: format!("{}, {}", case.direction.verb(), case.shape), wanted, found, met });
    };
    match case.shape.budget {
        BudgetName::Fast => {
            let least = match case.shape.page {
                Page::Huge => FAST_HUGE_PCT,
                Page::Small => FAST_SMALL_PCT,
            };
            let reached = figures.memcpy_pct;
            add(format!("at least {least} % of memcpy's speed"), format!("{:.1} %", reached.0), reached.0 >= least);
        }
        BudgetName::Default => {
            let speed = figures.guest_speed_pct;
            add(
                format!("the guest keeps at least {PACED_SPEED_PCT} % of its speed"),
                format!("{:.1} %", speed.0),
                speed.0 >= PACED_SPEED_PCT,
            );
            let longest = figures.mover.stall_us.max;
            add(
                format!("no store waits longer than {PACED_STALL_US} µs for the mover"),
                format!("{longest} µs"),
                longest <= PACED_STALL_US,
            );
        }
    }
    if let (Direction::Recouple, Some(speed)) = (case.direction, figures.first_100ms_speed_pct) {
        add(
            format!("at least {LANDING_SPEED_PCT} % of the guest's speed in the first 100 ms after landing"),
            format!("{:.1} %", speed.0),
            speed.0 >= LANDING_SPEED_PCT,
        );
    }
    add("no store is lost".into(), format!("{} lost", figures.lost_stores), figures.lost_stores == 0);
}

fn judge_trips(trips: &RoundTrips) -> Option<Target> {
    let found = trips.outcome.figures()?;
    Some(Target {
        case: trips.shape.to_string(),
        wanted: format!("{} round trips without a lost store or any other difference", trips.asked),
        found: format!("{} verified, {} stores lost", found.verified, found.lost_stores),
        met: found.verified == trips.asked && found.lost_stores == 0,
    })
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { case, wanted, found, met } = self;
        write!(f, "{} {case}: {wanted}: {found}", if *met { "met   " } else { "MISSED" })
    }
}
