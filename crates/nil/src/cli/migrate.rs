//! `nil migrate`: hand a running guest to another host.

use super::Output;
use anyhow::Result;
use nil_host::{Client, HostName, Migrate, MigrationOutcome, MigrationReport, RunDir, Survey};
use serde::Serialize;
use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  nil migrate guest --to B\n  nil migrate guest --to B --deadline 100ms --json")]
pub(crate) struct Args {
    /// The guest: its name or its id.
    guest: String,
    /// The host that is to run it.
    #[arg(long, value_name = "HOST")]
    to: HostName,
    /// How long the guest may stand still before its source takes it back.
    #[arg(long, default_value = "1s", value_parser = parse_duration, value_name = "TIME")]
    deadline: Duration,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let run_dir = RunDir::from_environment();
    let survey = Survey::take(&run_dir)?;
    let guest = survey.guest(&args.guest)?;
    let target = survey.host(args.to.as_str())?;
    let source = survey.host_of(guest)?;
    let order = Migrate {
        guest: guest.name.parse()?,
        to: target.name.clone(),
        deadline_us: u64::try_from(args.deadline.as_micros())?,
    };
    let report =
        Client::connect(&run_dir.host(&source))?.migrate(&order, |progress| output.progress(&progress.step))?;
    let exit = match report.outcome {
        MigrationOutcome::Moved => ExitCode::SUCCESS,
        MigrationOutcome::TakenBack { .. } => ExitCode::FAILURE,
    };
    output.print(&Report(report))?;
    Ok(exit)
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Report(MigrationReport);

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MigrationReport { guest, from, to, outcome, prepare_us, copied_bytes, handoff, .. } = &self.0;
        let micros = |ns: u64| Micros(ns);
        match outcome {
            MigrationOutcome::Moved => write!(f, "{guest} moved from {from} to {to}")?,
            MigrationOutcome::TakenBack { why } => write!(f, "{guest} runs on at {from}, {to} did not get it: {why}")?,
        }
        match handoff {
            None => writeln!(f)?,
            Some(handoff) => {
                let phases = &handoff.phases;
                writeln!(f, ": it stood still for {} (epoch {})", micros(handoff.blackout_ns), handoff.epoch)?;
                for (phase, ns) in [
                    ("kick", phases.kick_ns),
                    ("save", phases.save_ns),
                    ("publish", phases.publish_ns),
                    ("notice", phases.notice_ns),
                    ("load", phases.load_ns),
                    ("claim", phases.claim_ns),
                    ("enter", phases.enter_ns),
                ] {
                    writeln!(f, "  {phase:<8} {:>10}", micros(ns).to_string())?;
                }
            }
        }
        writeln!(f, "  prepared in {:.1} ms while it ran", Duration::from_micros(*prepare_us).as_secs_f64() * 1e3)?;
        writeln!(f, "  guest memory copied: {copied_bytes} bytes")
    }
}

/// Nanoseconds, shown as microseconds.
struct Micros(u64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} µs", self.0 / 1000, self.0 % 1000 / 100)
    }
}

/// A time such as `1s`, `500ms` or `250us`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let malformed = || format!("`{text}` is not a time; write a whole number with s, ms or us, such as 500ms");
    let number: u64 = number.parse().map_err(|_| malformed())?;
    match unit {
        "s" => Ok(Duration::from_secs(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "us" | "µs" => Ok(Duration::from_micros(number)),
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_unit_and_refused_without() {
        assert_eq!(parse_duration("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(parse_duration("250us"), Ok(Duration::from_micros(250)));
        for text in ["", "1", "s", "-1s", "1.5s", "1h", "99999999999999999999s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
