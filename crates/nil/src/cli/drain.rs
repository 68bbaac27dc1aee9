//! `nil drain`: empty a host.

use super::Output;
use super::cordon::agent_of;
use super::duration::{self, micros, of_micros};
use super::placement::{PlanText, write_departures, write_left};
use super::progress::Shown;
use anyhow::Result;
use nil_host::{Drain, DrainOutcome, DrainReport, PlacementPlan};
use serde::Serialize;
use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil drain A --dry-run
  nil drain A --parallel 8 --deadline 600s
  nil drain A --cancel")]
pub(crate) struct Args {
    /// The host. It is cordoned first, and stays so.
    host: String,
    /// Only say what would go where, and how long that would take.
    #[arg(long, conflicts_with = "cancel")]
    dry_run: bool,
    /// How many guests leave at once.
    #[arg(long, default_value_t = Drain::PARALLEL, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    parallel: u32,
    /// How long it may take. Then it stops, and what has not left stays.
    #[arg(long, value_parser = duration::parse, value_name = "TIME", conflicts_with = "dry_run")]
    deadline: Option<Duration>,
    /// Call off what is on: guests that have left are gone, all others stay. The host stays cordoned.
    #[arg(long)]
    cancel: bool,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let mut agent = agent_of(&args.host)?;
    if args.cancel {
        let state = agent.cancel_drain()?;
        output.print(&CalledOff { host: args.host.clone(), state })?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.dry_run {
        let plan = agent.drain_plan(args.parallel)?;
        let is_whole = plan.left.is_empty();
        output.print(&DryRun { host: args.host.clone(), plan })?;
        return Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let time_limit_us = args.deadline.map(micros);
    let order = Drain { parallel: args.parallel, time_limit_us };
    let mut shown = Shown::new(output, &format!("nil drain {} --cancel", args.host));
    let report = agent.drain(&order, |progress| shown.show(progress))?;
    let is_empty = report.outcome == DrainOutcome::Emptied;
    output.print(&Report(report))?;
    Ok(if is_empty { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Debug, Serialize)]
struct CalledOff {
    host: String,
    state: String,
}

impl fmt::Display for CalledOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "host {}: {}", self.host, self.state)
    }
}

#[derive(Debug, Serialize)]
struct DryRun {
    host: String,
    #[serde(flatten)]
    plan: PlacementPlan,
}

impl fmt::Display for DryRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.plan.moves().next().is_none() && self.plan.left.is_empty() {
            return writeln!(f, "host {} has no guests", self.host);
        }
        write!(f, "{}", PlanText(&self.plan))?;
        write_left(f, &self.plan.left)
    }
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Report(DrainReport);

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DrainReport { host, outcome, departures, left, total_us, predicted_us, .. } = &self.0;
        let (count, took) = (departures.len(), of_micros(*total_us));
        match outcome {
            DrainOutcome::Emptied if count == 0 => writeln!(f, "host {host} has no guests; it is cordoned")?,
            DrainOutcome::Emptied => {
                let predicted = of_micros(*predicted_us);
                writeln!(
                    f,
                    "host {host} is empty: {count} guests left in {took} (predicted {predicted}); it is cordoned"
                )?;
            }
            DrainOutcome::Incomplete => {
                writeln!(f, "host {host} is not empty: {count} guests left in {took}, {} did not", left.len())?;
            }
            DrainOutcome::Cancelled => {
                writeln!(f, "called off after {took}: {count} guests left, {} did not", left.len())?;
            }
            DrainOutcome::TimeUp => {
                writeln!(f, "the time was up after {took}: {count} guests left, {} did not", left.len())?;
            }
        }
        write_departures(f, departures)?;
        write_left(f, left)
    }
}
