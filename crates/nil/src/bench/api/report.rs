//! What came of it: text for a person, one JSON document for a program.

use super::abuse::Abuse;
use super::readers::{QUESTIONS, Seen};
use crate::cli::Table;
use crate::lab::figures::{Figures, Microseconds, Samples};
use crate::lab::tally::Percent;
use nil_pool::Bytes;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// The result of `nil bench api`.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Questions per second.
    pub(super) rate: u16,
    pub(super) guests: u16,
    /// Without and with callers that behave badly.
    pub(super) phases: Vec<Phase>,
    pub(super) open_files_before: usize,
    pub(super) open_files_after: usize,
    pub(super) private_bytes_before: u64,
    pub(super) private_bytes_after: u64,
}

/// A while of reading.
#[derive(Debug, Serialize)]
pub(super) struct Phase {
    /// Answers.
    pub(super) answers: u64,
    /// Questions that came late because the caller itself had no processor.
    pub(super) late: u64,
    /// Migrations meanwhile.
    pub(super) migrations: u64,
    /// How long answers took, of all questions, in microseconds.
    pub(super) all_us: Option<Figures>,
    /// The same by question.
    pub(super) by_question_us: BTreeMap<&'static str, Figures>,
    /// Processor time of the agent, for this and for the migrations, of one core.
    pub(super) agent_cpu_percent: Percent,
    /// What was refused, how often.
    pub(super) refused: BTreeMap<Abuse, u64>,
}

impl Phase {
    pub(super) fn of(seen: &Seen, migrations: u64, refused: BTreeMap<Abuse, u64>, agent_cpu_percent: Percent) -> Self {
        let mut all = Samples::new();
        seen.times.iter().for_each(|times| all.add(times));
        let figures = QUESTIONS.into_iter().zip(&seen.times);
        Self {
            answers: all.count(),
            late: seen.late,
            migrations,
            all_us: all.figures(),
            by_question_us: figures.filter_map(|(question, times)| Some((question, times.figures()?))).collect(),
            agent_cpu_percent,
            refused,
        }
    }
}

impl Report {
    /// Whether every kind of abuse was seen, and refused. What is not refused ends the run.
    pub(super) fn is_good(&self) -> bool {
        self.phases.iter().all(|phase| phase.answers > 0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} questions per second to an agent among 3, with {} guests that migrate\n",
            self.rate, self.guests
        )?;
        let mut table = Table::new(["QUESTION", "COMPANY", "P50", "P90", "P99", "AT MOST"]);
        for (phase, company) in self.phases.iter().zip(["migrations", "and abuse"]) {
            let all = phase.all_us.map(|figures| ("all", figures));
            let rows = phase.by_question_us.iter().map(|(question, figures)| (*question, *figures)).chain(all);
            for (question, Figures { p50, p90, p99, max }) in rows {
                let [p50, p90, p99, max] = [p50, p90, p99, max].map(Microseconds::human);
                table.row([question.to_owned(), company.to_owned(), p50, p90, p99, max]);
            }
        }
        writeln!(f, "{table}")?;
        for (phase, company) in self.phases.iter().zip(["migrations", "and abuse"]) {
            writeln!(
                f,
                "{company}: {} answers, {} migrations meanwhile, {:.1} % of a core for the agent; {} questions were asked \
                 late, for want of a processor",
                phase.answers, phase.migrations, phase.agent_cpu_percent.0, phase.late
            )?;
            let refused: Vec<String> =
                phase.refused.iter().map(|(abuse, count)| format!("{count} × {abuse}")).collect();
            if !refused.is_empty() {
                writeln!(f, "refused: {}", refused.join(", "))?;
            }
        }
        writeln!(
            f,
            "the agent: {} files open before, {} after; {} of memory before, {} after",
            self.open_files_before,
            self.open_files_after,
            Bytes(self.private_bytes_before),
            Bytes(self.private_bytes_after)
        )
    }
}
