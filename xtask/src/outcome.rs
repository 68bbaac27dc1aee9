//! What became of a step, and the table of all of them.
//!
//! Three outcomes, never merged: passed, skipped (with the reason), failed. A step that passed may still have skipped
//! parts of itself, such as tests that need `/dev/kvm`; those parts are listed beneath it and counted apart.

use anyhow::{Result, bail};
use std::fmt::Write as _;
use std::time::Duration;

/// What became of a step that did not fail.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It ran and found nothing wrong.
    Passed {
        /// What it looked at, in a few words.
        note: String,
        /// Reasons for the parts of it that did not run.
        skipped: Vec<String>,
    },
    /// It did not run.
    Skipped {
        /// Why, and what would make it run.
        reason: String,
    },
}

impl Outcome {
    /// All of it ran and passed.
    pub(crate) fn passed(note: impl Into<String>) -> Self {
        Self::Passed { note: note.into(), skipped: Vec::new() }
    }

    /// Passed when there are no findings; else an error, after each of them was shown.
    pub(crate) fn of_findings(findings: &[String], note: impl Into<String>) -> Result<Self> {
        for finding in findings {
            println!("{finding}");
        }
        match findings {
            [] => Ok(Self::passed(note)),
            [one] => bail!("{one}"),
            [first, rest @ ..] => bail!("{first} (and {} more)", rest.len()),
        }
    }

    /// The same, but for one part that did not run.
    pub(crate) fn without(self, part: impl Into<String>) -> Self {
        match self {
            Self::Passed { note, mut skipped } => {
                skipped.push(part.into());
                Self::Passed { note, skipped }
            }
            Self::Skipped { reason } => Self::Skipped { reason },
        }
    }

    /// None of it ran.
    pub(crate) fn skipped(reason: impl Into<String>) -> Self {
        Self::Skipped { reason: reason.into() }
    }
}

/// One line of the summary.
pub(crate) struct Row {
    pub(crate) step: &'static str,
    pub(crate) took: Duration,
    pub(crate) result: Result<Outcome>,
}

/// The table that stands at the end of a run, and beneath it the reasons of failures that take more than a line.
pub(crate) fn summary(rows: &[Row]) -> String {
    let (mut text, mut beneath) = (String::new(), String::new());
    for row in rows {
        let seconds = row.took.as_secs_f64();
        let (verdict, detail, parts) = match &row.result {
            Ok(Outcome::Passed { note, skipped }) => ("passed", note.clone(), skipped.as_slice()),
            Ok(Outcome::Skipped { reason }) => ("", format!("skipped: {reason}"), [].as_slice()),
            Err(error) => ("FAILED", format!("{error:#}"), [].as_slice()),
        };
        let (first, rest) = detail.split_once('\n').unwrap_or((&detail, ""));
        let line = format!("  {:<10} {seconds:>7.1} s  {verdict:<7} {first}", row.step);
        let _ = writeln!(text, "{}", line.trim_end());
        for part in parts {
            let _ = writeln!(text, "  {:<10} {:>9}  skipped: {part}", "", "");
        }
        if row.result.is_err() && !rest.is_empty() {
            let _ = writeln!(beneath, "\n── {} failed ──\n{rest}", row.step);
        }
    }
    text += &beneath;
    let count = |wanted: fn(&Result<Outcome>) -> bool| rows.iter().filter(|row| wanted(&row.result)).count();
    let total: Duration = rows.iter().map(|row| row.took).sum();
    let _ = write!(
        text,
        "\n  {} passed, {} skipped, {} failed in {:.0} s",
        count(|result| matches!(result, Ok(Outcome::Passed { .. }))),
        count(|result| matches!(result, Ok(Outcome::Skipped { .. }))),
        count(Result::is_err),
        total.as_secs_f64(),
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: &'static str, result: Result<Outcome>) -> Row {
        Row { step, took: Duration::from_millis(1500), result }
    }

    #[test]
    fn what_was_skipped_is_not_counted_as_passed() {
        let table = summary(&[
            row("fmt", Ok(Outcome::passed("3 workspaces"))),
            row("deny", Ok(Outcome::skipped("no network"))),
            row("clippy", Err(anyhow::anyhow!("cargo clippy: exit status: 101"))),
        ]);
        assert!(table.contains("1 passed, 1 skipped, 1 failed"), "{table}");
        assert!(table.contains("skipped: no network"), "{table}");
        assert!(table.contains("FAILED  cargo clippy"), "{table}");
    }

    #[test]
    fn a_long_reason_stands_beneath_the_table() {
        let table = summary(&[row("nextest", Err(anyhow::anyhow!("1 test failed: sums\nsums.rs:3: 1 < 2")))]);
        assert!(table.contains("FAILED  1 test failed: sums\n"), "{table}");
        assert!(table.contains("── nextest failed ──\nsums.rs:3: 1 < 2"), "{table}");
    }

    #[test]
    fn skipped_parts_of_a_passed_step_are_shown_beneath_it() {
        let outcome = Outcome::Passed { note: "9 tests".into(), skipped: vec!["no /dev/kvm (2 tests)".into()] };
        let table = summary(&[row("nextest", Ok(outcome))]);
        assert!(table.contains("skipped: no /dev/kvm (2 tests)"), "{table}");
    }
}
