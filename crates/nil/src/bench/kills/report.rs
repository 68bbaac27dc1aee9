//! What many kills came to: a table for a person, one JSON document for a program.

use super::judge::{Outcome, Stage};
use super::plan::Victim;
use super::round::Finding;
use crate::cli::Table;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// The result of `nil bench kills`.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Kills that hit.
    pub(super) kills: u64,
    /// How often something happened that never may.
    pub(super) violations: usize,
    pub(super) seed: u64,
    pub(super) memory_bytes: u64,
    pub(super) vcpus: u32,
    /// Rounds in which the victim was gone before it could be killed. They are no kills.
    pub(super) misses: u64,
    pub(super) guests_booted: u64,
    /// Kills that the guest survived.
    pub(super) survived: u64,
    /// Kills of the process that had run the guest, which it survived because its state was whole in the pool.
    pub(super) rescued: u64,
    /// Times that a guest verified all of its memory and registers.
    pub(super) verifications: u64,
    pub(super) pool_checks: u64,
    /// The typical time of an undisturbed migration, in milliseconds: kills are spread over it.
    pub(super) migration_ms: f64,
    pub(super) seconds: f64,
    pub(super) outcomes: Vec<Row>,
    /// Migrations that failed before anybody was killed, with their history. They are no violations.
    pub(super) failed_undisturbed: Vec<String>,
    pub(super) violation_details: Vec<Violation>,
}

/// How often a kill of that victim, with those words, had that outcome.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) victim: Victim,
    pub(super) word_before: Stage,
    pub(super) word_at_death: Stage,
    pub(super) outcome: Outcome,
    pub(super) count: u64,
}

/// Something that never may happen.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Violation {
    pub(super) seed: u64,
    pub(super) round: u64,
    pub(super) what: String,
    pub(super) history: String,
    pub(super) logs: String,
}

/// Counts outcomes.
#[derive(Debug, Default)]
pub(super) struct Counts(BTreeMap<(Victim, Stage, Stage, Outcome), u64>);

impl Counts {
    pub(super) fn add(&mut self, victim: Victim, finding: &Finding) {
        let Finding { before, at_death, outcome, .. } = *finding;
        *self.0.entry((victim, before, at_death, outcome)).or_default() += 1;
    }

    pub(super) fn rows(&self) -> Vec<Row> {
        let row = |(&(victim, word_before, word_at_death, outcome), &count)| Row {
            victim,
            word_before,
            word_at_death,
            outcome,
            count,
        };
        self.0.iter().map(row).collect()
    }
}

impl Report {
    pub(super) fn is_good(&self) -> bool {
        self.violations == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kills, seconds, migration_ms, seed, misses, guests_booted, .. } = self;
        writeln!(
            f,
            "{kills} kills in {seconds:.0} s, at random instants of migrations that take {migration_ms:.0} ms (seed {seed})"
        )?;
        writeln!(
            f,
            "  {} survived by the guest, {} of them only because its state was whole in the pool; {guests_booted} guests \
             booted, {misses} victims gone too early",
            self.survived, self.rescued
        )?;
        writeln!(
            f,
            "  {} checks of the pool, {} verifications of all memory and registers\n",
            self.pool_checks, self.verifications
        )?;
        let mut table = Table::new(["VICTIM", "WORD BEFORE", "WORD AT DEATH", "THE GUEST", "KILLS"]);
        for row in &self.outcomes {
            let Row { victim, word_before, word_at_death, outcome, count } = row;
            table.row([
                victim.to_string(),
                word_before.to_string(),
                word_at_death.to_string(),
                outcome.to_string(),
                count.to_string(),
            ]);
        }
        write!(f, "{table}")?;
        for story in &self.failed_undisturbed {
            writeln!(f, "\na migration failed before anybody was killed, in {story}")?;
        }
        for violation in &self.violation_details {
            let Violation { seed, round, what, history, logs } = violation;
            writeln!(f, "\nVIOLATION in round {round} (seed {seed}): {what}\n  {history}{logs}")?;
        }
        match self.violations {
            0 => writeln!(
                f,
                "\nno violation: never two running, never a corrupt pool, no guest lost whose state was whole"
            ),
            1 => writeln!(f, "\n1 VIOLATION"),
            count => writeln!(f, "\n{count} VIOLATIONS"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::judge::End;
    use super::*;
    use nil_pool::{Epoch, HostSlot};

    fn report(violation_details: Vec<Violation>) -> Report {
        let mut counts = Counts::default();
        let finding = Finding {
            before: Stage::Frozen,
            at_death: Stage::OwnedByTarget,
            outcome: Outcome::RunsAtTarget,
            end: End::Runs { host: HostSlot::new(2).expect("a small slot"), epoch: Epoch(6) },
            rescued: true,
        };
        counts.add(Victim::SourceWorker, &finding);
        counts.add(Victim::SourceWorker, &finding);
        Report {
            kills: 2,
            violations: violation_details.len(),
            seed: 7,
            memory_bytes: 64 << 20,
            vcpus: 1,
            misses: 0,
            guests_booted: 1,
            survived: 2,
            rescued: 2,
            verifications: 2,
            pool_checks: 2,
            migration_ms: 41.5,
            seconds: 1.0,
            outcomes: counts.rows(),
            failed_undisturbed: Vec::new(),
            violation_details,
        }
    }

    #[test]
    fn like_kills_share_a_row() {
        let report = report(Vec::new());
        let json = serde_json::to_value(&report).expect("a document");
        let row = serde_json::json!({
            "victim": "source_worker",
            "word_before": "frozen",
            "word_at_death": "owned_by_target",
            "outcome": "runs_at_target",
            "count": 2,
        });
        assert_eq!((&json["outcomes"], &json["violations"]), (&serde_json::json!([row]), &0.into()));
        assert!(report.is_good() && report.to_string().contains("no violation"));
    }

    #[test]
    fn a_violation_is_told_with_what_repeats_it() {
        let violation =
            Violation { seed: 7, round: 3, what: "two ran".into(), history: "words".into(), logs: "\n  A: log".into() };
        let report = report(vec![violation]);
        assert!(!report.is_good());
        assert!(report.to_string().contains("VIOLATION in round 3 (seed 7): two ran\n  words\n  A: log"));
    }
}
