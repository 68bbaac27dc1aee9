//! What a run came to: text for a person, one JSON document for a program.

use crate::cli::Table;
use nil_pool::{Bytes, OutputRule};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// The result of `nil chaos`.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) seed: u64,
    pub(super) hosts: u16,
    pub(super) guests: u16,
    pub(super) memory_bytes: u64,
    /// What becomes of output before the commit that follows it.
    pub(super) output: OutputRule,
    pub(super) lease_ms: u64,
    pub(super) expiry_ms: u64,
    pub(super) seconds: f64,
    pub(super) rounds: u64,
    /// What was done, by kinds.
    pub(super) acts: BTreeMap<&'static str, u64>,
    /// Guests of fenced hosts, by what has become of them.
    pub(super) takeovers: BTreeMap<&'static str, u64>,
    /// Guests that were lost, as they may be.
    pub(super) lost: u64,
    pub(super) boots: u64,
    /// Times that a guest verified all of its memory and registers.
    pub(super) verifications: u64,
    pub(super) pool_checks: u64,
    /// Numbers that guests were heard to say; and those of them that were heard before, where that is allowed.
    pub(super) lines: u64,
    pub(super) repeated_lines: u64,
    /// Hosts that were fenced because the machine was too slow for their leases.
    pub(super) unasked_fencings: u64,
    pub(super) violations: usize,
    pub(super) violation_details: Vec<Violation>,
    /// Where the pool and the logs are, if they were to be kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kept: Option<String>,
}

/// Something that never may happen.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Violation {
    pub(super) seed: u64,
    pub(super) round: u64,
    pub(super) what: String,
    /// The latest events, numbered, and all of what is in question.
    pub(super) history: String,
    pub(super) logs: String,
}

impl Report {
    pub(super) fn is_good(&self) -> bool {
        self.violations == 0
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, round, what, history, logs } = self;
        writeln!(f, "VIOLATION in round {round} of seed {seed}: {what}")?;
        writeln!(f, "what has happened:{history}")?;
        writeln!(f, "what the agents say:{logs}")?;
        writeln!(f, "`--seed {seed}` does the same again, but not at the same instants")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |count: u64| if count == 1 { "" } else { "s" };
        writeln!(
            f,
            "{} hosts, {} guests of {}, seed {}: {} round{} in {:.0} s",
            self.hosts,
            self.guests,
            Bytes(self.memory_bytes),
            self.seed,
            self.rounds,
            plural(self.rounds),
            self.seconds
        )?;
        let mut table = Table::new(["DONE", "TIMES"]);
        for (act, times) in &self.acts {
            table.row([act.replace('_', " "), times.to_string()]);
        }
        write!(f, "{table}")?;
        let taken: Vec<String> = self.takeovers.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let taken = if taken.is_empty() { "none".to_owned() } else { taken.join(", ") };
        writeln!(f, "guests of dead hosts: {taken}; {} lost as they may be, {} boots", self.lost, self.boots)?;
        let repeated = if self.repeated_lines > 0 {
            format!(", {} of them again after they had been undone", self.repeated_lines)
        } else {
            String::new()
        };
        let output = match self.output {
            OutputRule::Hold => "held",
            OutputRule::Pass => "passed on at once",
        };
        writeln!(
            f,
            "{} numbers heard{repeated} (output is {}), {} verifications, {} checks of the pool",
            self.lines, output, self.verifications, self.pool_checks
        )?;
        if self.unasked_fencings > 0 {
            writeln!(
                f,
                "{} host{} fenced without being struck: this machine was too slow for an expiry of {} ms",
                self.unasked_fencings,
                plural(self.unasked_fencings),
                self.expiry_ms
            )?;
        }
        if let Some(kept) = &self.kept {
            writeln!(f, "kept: {kept}")?;
        }
        self.violation_details.iter().try_for_each(|violation| write!(f, "{violation}"))?;
        match self.violations {
            0 => writeln!(f, "no violation"),
            count => writeln!(f, "{count} violation{}", plural(count as u64)),
        }
    }
}
