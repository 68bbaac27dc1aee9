//! `nil doctor`: what this machine can do for nil, what it cannot, and the cure.
//!
//! Every check looks at one thing, changes nothing, and comes to one [`Finding`].

mod memory;
mod processors;
mod programs;
mod rights;

use crate::cli::{Output, Table};
use anyhow::Result;
use serde::Serialize;
use std::fmt;
use std::path::Path;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil doctor
  nil doctor --json | jq '.findings[] | select(.verdict != \"good\")'

The exit status is 1 if this machine cannot run and move virtual machines.")]
pub(crate) struct Args {}

/// What a check came to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Finding {
    /// What was looked at.
    about: &'static str,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What it means for nil, if it is not as one would have it.
    means: Option<String>,
    /// What a person can do about it.
    cure: Option<String>,
}

/// How a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// As nil would have it.
    Good,
    /// Something that most can do without is not there.
    Absent,
    /// nil works, and something works less well.
    Limited,
    /// nil runs no virtual machines, or moves none.
    Fatal,
}

impl Finding {
    fn good(about: &'static str, found: impl Into<String>) -> Self {
        Self { about, verdict: Verdict::Good, found: found.into(), means: None, cure: None }
    }

    fn absent(about: &'static str, found: impl Into<String>) -> Self {
        Self { verdict: Verdict::Absent, ..Self::good(about, found) }
    }

    fn limited(about: &'static str, found: impl Into<String>) -> Self {
        Self { verdict: Verdict::Limited, ..Self::good(about, found) }
    }

    fn fatal(about: &'static str, found: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fatal, ..Self::good(about, found) }
    }

    fn meaning(self, means: impl Into<String>) -> Self {
        Self { means: Some(means.into()), ..self }
    }

    fn cured_by(self, cure: impl Into<String>) -> Self {
        Self { cure: Some(cure.into()), ..self }
    }
}

pub(crate) fn run(_args: &Args, output: Output) -> Result<ExitCode> {
    let root = Path::new("/");
    let findings = [processors::check(), memory::check(root), rights::check(root), programs::check()].concat();
    let diagnosis = Diagnosis { runs_vms: findings.iter().all(|it| it.verdict != Verdict::Fatal), findings };
    output.print(&diagnosis)?;
    Ok(if diagnosis.runs_vms { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Debug, Serialize)]
struct Diagnosis {
    /// Whether this machine can run and move virtual machines.
    runs_vms: bool,
    findings: Vec<Finding>,
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(["", "WHAT", "FOUND"]);
        for finding in &self.findings {
            table.row([finding.verdict.to_string(), finding.about.to_owned(), finding.found.clone()]);
        }
        write!(f, "{table}")?;
        for finding in self.findings.iter().filter(|it| it.means.is_some() || it.cure.is_some()) {
            writeln!(f, "\n{}: {}", finding.about, finding.found)?;
            finding.means.iter().try_for_each(|means| writeln!(f, "  {means}"))?;
            finding.cure.iter().try_for_each(|cure| writeln!(f, "  cure: {cure}"))?;
        }
        let can = if self.runs_vms { "can" } else { "cannot" };
        writeln!(f, "\nThis machine {can} run and move virtual machines.")
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Good => "good",
            Self::Absent => "absent",
            Self::Limited => "limited",
            Self::Fatal => "fatal",
        })
    }
}

/// What stands in a file below `root`, without the space around it; `None` where there is none, or it may not be read.
fn text(root: &Path, path: &str) -> Option<String> {
    std::fs::read_to_string(root.join(path)).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_reads_what_is_wrong_what_it_means_and_what_to_do() {
        let findings = vec![
            Finding::good("KVM", "16 vCPUs"),
            Finding::limited("huge pages", "never").meaning("It is slow.").cured_by("echo madvise"),
        ];
        let text = Diagnosis { runs_vms: true, findings }.to_string();
        insta::assert_snapshot!(text, @r"
                 WHAT        FOUND
        good     KVM         16 vCPUs
        limited  huge pages  never

        huge pages: never
          It is slow.
          cure: echo madvise

        This machine can run and move virtual machines.
        ");
    }
}
