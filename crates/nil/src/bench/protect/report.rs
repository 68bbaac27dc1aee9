//! What was found.

use crate::lab::canary::CanaryReport;
use crate::lab::figures::Figures;
use nil_pool::Bytes;
use serde::Serialize;
use std::fmt;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) cases: Vec<Case>,
}

/// A guest that was protected.
#[derive(Debug, Serialize)]
pub(super) struct Case {
    pub(super) memory_bytes: u64,
    pub(super) vcpus: u32,
    pub(super) interval_ms: f64,
    pub(super) workset_pages: u64,
    /// Pages of a commit, in the median.
    pub(super) pages: u64,
    /// Pages that were copied while the guest stood still, in the median.
    pub(super) late_pages: u64,
    /// Copies that were made while it ran, in the median.
    pub(super) early_copies: u64,
    pub(super) commits: usize,
    pub(super) commits_per_s: f64,
    pub(super) dirty_mb_per_s: f64,
    pub(super) overruns: u64,
    /// From the kick until the vCPUs ran on.
    pub(super) standstill_us: Option<Figures>,
    /// From the kick until all vCPUs had stopped.
    pub(super) stop_us: Option<Figures>,
    /// From the kick until the commit stood.
    pub(super) commit_us: Option<Figures>,
    pub(super) turns_per_s: f64,
    /// The guest's speed, to what it does unprotected.
    pub(super) speed_pct: f64,
    /// What the guest found wrong with its memory.
    pub(super) errors: u64,
    pub(super) restore: Restoring,
    /// Pauses of the machine meanwhile.
    pub(super) canary: Option<CanaryReport>,
}

/// Bringing the guest back at the end.
#[derive(Debug, Serialize)]
pub(super) struct Restoring {
    /// Pages of the redo log that were looked at.
    pub(super) pages: u64,
    /// Pages that had to be written.
    pub(super) written: u64,
    pub(super) ms: f64,
}

impl Report {
    pub(super) fn is_good(&self) -> bool {
        self.cases.iter().all(|case| case.errors == 0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cases.iter().try_for_each(|case| write!(f, "{case}"))
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vcpus, pages, late_pages, early_copies, commits_per_s, dirty_mb_per_s, restore, .. } = self;
        let memory = Bytes(self.memory_bytes);
        writeln!(
            f,
            "{memory}, {vcpus} vCPU, every {:.0} ms: {pages} pages a commit, {commits_per_s:.1} commits/s, {dirty_mb_per_s:.0} MB/s",
            self.interval_ms
        )?;
        for (what, figures) in [
            ("stands still", &self.standstill_us),
            ("of that until it stops", &self.stop_us),
            ("committed after", &self.commit_us),
        ] {
            if let Some(Figures { p50, p99, max, .. }) = figures {
                writeln!(f, "  {what}: p50 {}, p99 {}, longest {}", p50.human(), p99.human(), max.human())?;
            }
        }
        writeln!(f, "  copied while it ran: {early_copies} pages, while it stood still: {late_pages}")?;
        writeln!(f, "  speed: {:.1} % of what it does unprotected; errors: {}", self.speed_pct, self.errors)?;
        if self.overruns > 0 {
            writeln!(f, "  epochs that did not fit into a commit: {}", self.overruns)?;
        }
        let Restoring { pages, written, ms } = restore;
        writeln!(f, "  brought back in {ms:.1} ms: {pages} pages looked at, {written} written")?;
        if let Some(CanaryReport { pauses, longest_us, .. }) = &self.canary {
            writeln!(f, "  the machine paused {pauses} times meanwhile, at most {}", longest_us.human())?;
        }
        Ok(())
    }
}
