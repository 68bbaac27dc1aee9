//! What many kills came to: a table for a person, one JSON document for a program.

use super::journey::{Errand, Phase};
use super::judge::{End, Outcome, Stage};
use super::plan::{During, Plan, Victim};
use super::round::Finding;
use crate::cli::Table;
use nil_host::MemoryIn;
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
    pub(super) memory_in: MemoryIn,
    pub(super) during: During,
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
    /// Times that a guest was decoupled, handed over and recoupled to show that it still can be.
    pub(super) drills: u64,
    /// The typical time of each undisturbed errand, in milliseconds: kills are spread over it.
    pub(super) typical_ms: BTreeMap<Errand, f64>,
    pub(super) seconds: f64,
    pub(super) phases: Vec<PhaseRow>,
    pub(super) outcomes: Vec<Row>,
    pub(super) losses: Vec<Loss>,
    /// Errands that failed before anybody was killed, with their history. They are no violations.
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

/// How often a kill hit that phase of an errand, and what became of the guest.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PhaseRow {
    pub(super) errand: Errand,
    pub(super) phase: Phase,
    pub(super) kills: u64,
    pub(super) survived: u64,
    pub(super) lost: u64,
}

/// A guest that was lost, as it may be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Loss {
    pub(super) round: u64,
    pub(super) errand: Errand,
    pub(super) phase: Phase,
    pub(super) victim: Victim,
    pub(super) why: String,
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
pub(super) struct Counts {
    outcomes: BTreeMap<(Victim, Stage, Stage, Outcome), u64>,
    /// Survived and lost.
    phases: BTreeMap<(Errand, Phase), [u64; 2]>,
}

impl Counts {
    pub(super) fn add(&mut self, plan: &Plan, finding: &Finding) {
        let Finding { phase, before, at_death, outcome, .. } = *finding;
        *self.outcomes.entry((plan.victim, before, at_death, outcome)).or_default() += 1;
        let [survived, lost] = self.phases.entry((plan.errand, phase)).or_default();
        *if outcome == Outcome::Lost { lost } else { survived } += 1;
    }

    pub(super) fn outcomes(&self) -> Vec<Row> {
        let row = |(&(victim, word_before, word_at_death, outcome), &count)| Row {
            victim,
            word_before,
            word_at_death,
            outcome,
            count,
        };
        self.outcomes.iter().map(row).collect()
    }

    pub(super) fn phases(&self) -> Vec<PhaseRow> {
        let row = |(&(errand, phase), &[survived, lost]): (&(Errand, Phase), &[u64; 2])| PhaseRow {
            errand,
            phase,
            kills: survived + lost,
            survived,
            lost,
        };
        self.phases.iter().map(row).collect()
    }
}

impl Loss {
    pub(super) fn of(round: u64, plan: &Plan, finding: &Finding) -> Self {
        let Finding { phase, at_death, end, away, .. } = finding;
        let owner = match end {
            End::Lost { host, epoch } | End::Runs { host, epoch } => format!("host {host}, epoch {epoch}"),
        };
        let why = format!(
            "its owner's worker ({owner}) was killed while it ran the guest: {at_death} by the word, {away} granules not in the \
             pool"
        );
        Self { round, errand: plan.errand, phase: *phase, victim: plan.victim, why }
    }
}

impl Report {
    pub(super) fn is_good(&self) -> bool {
        self.violations == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kills, seconds, seed, misses, guests_booted, .. } = self;
        let home = if self.memory_in == MemoryIn::Dram { "DRAM" } else { "the pool" };
        let times: Vec<String> = self.typical_ms.iter().map(|(errand, ms)| format!("{errand} {ms:.0} ms")).collect();
        writeln!(
            f,
            "{kills} kills in {seconds:.0} s of a guest whose memory is in {home}, at random instants of what takes: {} \
             (seed {seed})",
            times.join(", ")
        )?;
        writeln!(
            f,
            "  {} survived by the guest, {} of them only because its state was whole in the pool; {guests_booted} guests \
             booted, {misses} victims gone too early",
            self.survived, self.rescued
        )?;
        writeln!(
            f,
            "  {} checks of the pool, {} verifications of all memory and registers, {} drills (decouple, handoff, recouple) \
             afterwards\n",
            self.pool_checks, self.verifications, self.drills
        )?;
        let mut table = Table::new(["ERRAND", "PHASE", "KILLS", "SURVIVED", "LOST"]);
        for PhaseRow { errand, phase, kills, survived, lost } in &self.phases {
            table.row([
                errand.to_string(),
                phase.to_string(),
                kills.to_string(),
                survived.to_string(),
                lost.to_string(),
            ]);
        }
        writeln!(f, "{table}")?;
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
            writeln!(f, "\nan errand failed before anybody was killed, in {story}")?;
        }
        for violation in &self.violation_details {
            let Violation { seed, round, what, history, logs } = violation;
            writeln!(f, "\nVIOLATION in round {round} (seed {seed}): {what}\n  {history}{logs}")?;
        }
        match self.violations {
            0 => writeln!(
                f,
                "\nno violation: never two running, never a corrupt pool, nothing leaked, no guest lost but with its owner's \
                 worker"
            ),
            1 => writeln!(f, "\n1 VIOLATION"),
            count => writeln!(f, "\n{count} VIOLATIONS"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::Scope;
    use super::*;
    use crate::lab::dice::Dice;
    use nil_pool::{Epoch, HostSlot};

    fn plan() -> Plan {
        let scope = Scope { memory_in: MemoryIn::Pool, during: During::Handoff };
        Plan { victim: Victim::SourceWorker, ..Plan::draw(&mut Dice::of_round(1, 1), scope) }
    }

    fn finding() -> Finding {
        Finding {
            phase: Phase::Handoff,
            before: Stage::Frozen,
            at_death: Stage::OwnedByTarget,
            outcome: Outcome::RunsAtTarget,
            end: End::Runs { host: HostSlot::new(2).expect("a small slot"), epoch: Epoch(6) },
            complete: true,
            rescued: true,
            away: 0,
        }
    }

    fn report(violation_details: Vec<Violation>) -> Report {
        let mut counts = Counts::default();
        for _ in 0..2 {
            counts.add(&plan(), &finding());
        }
        Report {
            kills: 2,
            violations: violation_details.len(),
            seed: 7,
            memory_bytes: 64 << 20,
            memory_in: MemoryIn::Pool,
            during: During::Handoff,
            vcpus: 1,
            misses: 0,
            guests_booted: 1,
            survived: 2,
            rescued: 2,
            verifications: 2,
            pool_checks: 2,
            drills: 0,
            typical_ms: BTreeMap::from([(Errand::Migration, 41.5)]),
            seconds: 1.0,
            phases: counts.phases(),
            outcomes: counts.outcomes(),
            losses: Vec::new(),
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
    fn kills_are_counted_by_the_phase_that_they_hit() {
        let json = serde_json::to_value(report(Vec::new())).expect("a document");
        let row = serde_json::json!({"errand": "migration", "phase": "handoff", "kills": 2, "survived": 2, "lost": 0});
        assert_eq!(json["phases"], serde_json::json!([row]));
        assert_eq!((&json["memory_in"], &json["typical_ms"]["migration"]), (&"pool".into(), &41.5.into()));
    }

    #[test]
    fn a_loss_is_told_with_whoever_died() {
        let host = HostSlot::new(1).expect("a small slot");
        let end = End::Lost { host, epoch: Epoch(5) };
        let lost = Finding { end, at_death: Stage::OwnedBySource, outcome: Outcome::Lost, away: 12, ..finding() };
        let loss = Loss::of(9, &plan(), &lost);
        assert_eq!((loss.round, loss.victim), (9, Victim::SourceWorker));
        assert!(loss.why.contains("owned by source") && loss.why.contains("12 granules"), "{}", loss.why);
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
