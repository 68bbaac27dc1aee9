//! What came of it: text for a person, one JSON document for a program.

use super::abuse::Abuse;
use super::readers::{QUESTIONS, Seen};
use super::strangers::Stranger;
use crate::cli::Table;
use crate::lab::canary::CanaryReport;
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
    /// How much of that was the agent's, from the whole of the question to the beginning of its answer, as it says itself.
    pub(super) server_us: BTreeMap<&'static str, Figures>,
    /// How much later than they were due questions were asked: how long whoever wakes up here waits for a processor.
    pub(super) lateness_us: Option<Figures>,
    /// Answers that took longer than 5 ms.
    pub(super) slow: usize,
    /// What the host-pause canary saw; the handoffs that it counts are slow answers here.
    pub(super) canary: CanaryReport,
    /// Processor time of the agent, for this and for the migrations, of one core.
    pub(super) agent_cpu_percent: Percent,
    /// What was refused, how often.
    pub(super) refused: BTreeMap<Abuse, u64>,
    /// Who called by TLS, how often, and was treated as it should.
    pub(super) strangers: BTreeMap<Stranger, u64>,
}

/// What happened besides reading.
#[derive(Debug)]
pub(super) struct Besides {
    pub(super) migrations: u64,
    pub(super) refused: BTreeMap<Abuse, u64>,
    pub(super) strangers: BTreeMap<Stranger, u64>,
    pub(super) canary: CanaryReport,
    pub(super) agent_cpu_percent: Percent,
}

impl Phase {
    pub(super) fn of(seen: &Seen, besides: Besides) -> Self {
        let Besides { migrations, refused, strangers, canary, agent_cpu_percent } = besides;
        let mut all = Samples::new();
        seen.times.iter().for_each(|times| all.add(times));
        let by_question = |samples: &[Samples; 4]| {
            let figures = QUESTIONS.into_iter().zip(samples);
            figures.filter_map(|(question, times)| Some((question, times.figures()?))).collect()
        };
        Self {
            answers: all.count(),
            late: seen.late,
            migrations,
            all_us: all.figures(),
            by_question_us: by_question(&seen.times),
            server_us: by_question(&seen.server),
            lateness_us: seen.lateness.figures(),
            slow: seen.slow.len(),
            canary,
            agent_cpu_percent,
            refused,
            strangers,
        }
    }
}

impl Report {
    /// Whether every kind of abuse was seen, and refused. What is not refused ends the run.
    pub(super) fn is_good(&self) -> bool {
        let tried_everything =
            |phase: &Phase| phase.refused.len() == Abuse::ALL.len() && phase.strangers.len() == Stranger::ALL.len();
        self.phases.iter().all(|phase| phase.answers > 0) && self.phases.last().is_some_and(tried_everything)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} questions per second to an agent among 3, with {} guests that migrate\n",
            self.rate, self.guests
        )?;
        let mut table = Table::new(["QUESTION", "COMPANY", "P50", "P90", "P99", "AT MOST", "AGENT P50", "AGENT P99"]);
        for (phase, company) in self.phases.iter().zip(["migrations", "and abuse"]) {
            let all = phase.all_us.map(|figures| ("all", figures));
            let late = phase.lateness_us.map(|figures| ("(to get a processor)", figures));
            let rows = phase.by_question_us.iter().map(|(question, figures)| (*question, *figures));
            for (question, Figures { p50, p90, p99, max }) in rows.chain(all).chain(late) {
                let [p50, p90, p99, max] = [p50, p90, p99, max].map(Microseconds::human);
                let server =
                    phase.server_us.get(question).map(|server| [server.p50, server.p99].map(Microseconds::human));
                let [agent_p50, agent_p99] = server.unwrap_or_default();
                table.row([question.to_owned(), company.to_owned(), p50, p90, p99, max, agent_p50, agent_p99]);
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
            let CanaryReport { pauses, longest_us, coinciding_handoffs, real_time } = &phase.canary;
            let priority = if *real_time { "" } else { ", as seen without real-time priority" };
            writeln!(
                f,
                "{} answers took longer than 5 ms, {coinciding_handoffs} of them while the machine stood still: {pauses} pauses{priority}, \
                 the longest {}",
                phase.slow,
                longest_us.human()
            )?;
            let refused = phase.refused.iter().map(|(abuse, count)| format!("{count} × {abuse}"));
            let strangers = phase.strangers.iter().map(|(stranger, count)| format!("{count} × {stranger}"));
            let refused: Vec<String> = refused.chain(strangers).collect();
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
