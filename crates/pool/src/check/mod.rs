//! `nil pool check`: finds and names every inconsistency, and mends what can be mended without guessing.
//!
//! The pool may be in use. A peer in the middle of a change looks inconsistent for a moment, so where live hosts are
//! about, only what is found twice is reported. Every repair is a compare-and-swap from the wrong value that was seen.

mod capacities;
mod guests;
mod header;
mod hosts;
mod owners;
mod placement;
mod protection;
mod reports;
mod stripes;
mod tags;

use crate::liveness::Liveness;
use crate::mapping::Access;
use crate::pool::Pool;
use serde::Serialize;
use std::time::Duration;

/// Between two looks at a pool that is in use.
const SECOND_LOOK: Duration = Duration::from_millis(20);
/// A repair may bring to light what it hid; so often the check starts again.
const REPAIR_ROUNDS: usize = 4;

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Note,
    /// Something is wrong that can be mended without guessing.
    Warning,
    /// Something is wrong that cannot be mended without guessing, or loses data.
    Error,
}

/// One thing that the check found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Where it is, such as `capacity c3`.
    pub place: String,
    /// What it is.
    pub what: String,
    /// Whether it was mended.
    pub repaired: bool,
    /// What a person can do about it.
    pub remedy: String,
}

/// All that the check found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct CheckReport {
    /// In the order of the pool's tables.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Whether nothing is wrong (any more); notes do not count.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.iter().all(|finding| finding.repaired || finding.severity == Severity::Note)
    }

    fn has(&self, wanted: &Finding) -> bool {
        self.findings.iter().any(|finding| finding.place == wanted.place && finding.what == wanted.what)
    }
}

impl Pool {
    /// Checks the whole pool; with `repair`, mends what can be mended without guessing.
    #[must_use]
    pub fn check(&self, repair: bool) -> CheckReport {
        let mut report = self.confirmed();
        // It is not a host, and has no turn.
        if !repair || self.access() == Access::ReadOnly || self.require_coherent("mending").is_err() {
            return report;
        }
        let mut repaired: Vec<Finding> = Vec::new();
        for _ in 0..REPAIR_ROUNDS {
            let mut checker = Checker { pool: self, mending: Some(&report), report: CheckReport::default() };
            checker.run();
            let mended: Vec<_> = checker.report.findings.into_iter().filter(|finding| finding.repaired).collect();
            if mended.is_empty() {
                break;
            }
            repaired.extend(mended);
            report = self.confirmed();
        }
        repaired.append(&mut report.findings);
        CheckReport { findings: repaired }
    }

    /// What is found, and found again if somebody may be changing the pool.
    fn confirmed(&self) -> CheckReport {
        let look = || {
            let mut checker = Checker { pool: self, mending: None, report: CheckReport::default() };
            checker.run();
            checker.report
        };
        let mut report = look();
        let in_use = || self.hosts().iter().any(|host| host.liveness != Liveness::Dead);
        if !report.is_clean() && in_use() {
            std::thread::sleep(SECOND_LOOK);
            let second = look();
            report.findings.retain(|finding| second.has(finding));
        }
        report
    }
}

/// One walk through the pool.
struct Checker<'a> {
    pool: &'a Pool,
    /// What may be mended: what a look without mending has confirmed.
    mending: Option<&'a CheckReport>,
    report: CheckReport,
}

/// What is known about a finding before it is decided whether to mend it.
struct Wrong {
    severity: Severity,
    place: String,
    what: String,
    remedy: &'static str,
}

impl Wrong {
    fn note(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self { severity: Severity::Note, place: place.into(), what: what.into(), remedy: "nothing needs to be done" }
    }

    fn mendable(place: impl Into<String>, what: impl Into<String>) -> Self {
        let remedy = "nil pool check --repair mends it";
        Self { severity: Severity::Warning, place: place.into(), what: what.into(), remedy }
    }

    fn error(place: impl Into<String>, what: impl Into<String>, remedy: &'static str) -> Self {
        Self { severity: Severity::Error, place: place.into(), what: what.into(), remedy }
    }
}

impl Checker<'_> {
    fn run(&mut self) {
        self.check_headers();
        self.check_hosts();
        self.check_reports();
        self.check_capacities();
        self.check_owners();
        self.check_tags();
        self.check_guests();
    }

    /// Reports what cannot be mended.
    fn report(&mut self, wrong: Wrong) {
        self.mend(wrong, || false);
    }

    /// Reports something, and mends it if that was asked for and the finding is a confirmed one.
    fn mend(&mut self, wrong: Wrong, mend: impl FnOnce() -> bool) {
        let Wrong { severity, place, what, remedy } = wrong;
        let mut finding = Finding { severity, place, what, repaired: false, remedy: remedy.to_owned() };
        if self.mending.is_some_and(|confirmed| confirmed.has(&finding)) {
            finding.repaired = mend();
        }
        self.report.findings.push(finding);
    }
}
