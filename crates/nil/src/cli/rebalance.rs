//! `nil rebalance`: have hosts used more evenly.

use super::Output;
use super::cordon::agent_of;
use super::duration::{self, micros, of_micros};
use super::placement::{PlanText, write_departures, write_left};
use super::progress::Shown;
use anyhow::{Context, Result, bail};
use nil_host::{
    Client, JobFilter, JobKind, JobSummary, PATIENCE_WITH_AGENTS, Rebalance, RebalanceOutcome, RebalancePlan,
    RebalanceReport, RunDir, Unevenness,
};
use serde::Serialize;
use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil rebalance --dry-run
  nil rebalance --moves 8 --parallel 2 --deadline 600s
  nil rebalance --cancel")]
pub(crate) struct Args {
    /// Only say what would go where, and what it would be good for.
    #[arg(long, conflicts_with = "cancel")]
    dry_run: bool,
    /// Move so many guests at most.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    moves: u32,
    /// Leave hosts alone that are used no more than this above the mean of their neighbours, in percent.
    #[arg(long, default_value_t = 10, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=100))]
    tolerance: u32,
    /// How many guests leave, or come to, one host at once.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    parallel: u32,
    /// How long it may take. Then it stops, and what has not moved stays.
    #[arg(long, value_parser = duration::parse, value_name = "TIME", conflicts_with = "dry_run")]
    deadline: Option<Duration>,
    /// The host whose agent does it; the first one that runs if left out.
    #[arg(long)]
    host: Option<String>,
    /// Call off what is on: guests that have moved stay where they are now, all others where they are.
    #[arg(long)]
    cancel: bool,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    if args.cancel {
        let mut agent = busy_agent(args.host.as_deref())?;
        let state = agent.cancel_rebalance()?;
        output.print(&CalledOff { host: agent.host().to_string(), state })?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut agent = match &args.host {
        Some(host) => agent_of(host)?,
        None => agents()?.next().context("no agent runs; start one with `nil host run --name A --pool PATH`")?,
    };
    let Args { moves, tolerance, parallel, .. } = *args;
    let time_limit_us = args.deadline.map(micros);
    let order = Rebalance { moves, tolerance_percent: tolerance, parallel, time_limit_us };
    if args.dry_run {
        output.print(&DryRun(agent.rebalance_plan(&order)?))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut shown = Shown::new(output, "nil rebalance --cancel");
    let report = agent.rebalance(&order, |progress| shown.show(progress))?;
    let is_done = report.outcome == RebalanceOutcome::Done;
    output.print(&Report(report))?;
    Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The agents of this machine that run.
fn agents() -> Result<impl Iterator<Item = Client>> {
    Ok(RunDir::from_environment().hosts()?.into_iter().filter_map(|host| Client::connect(&host).ok()))
}

/// The agent that is evening hosts out: the one that is named, or the first one that does.
fn busy_agent(host: Option<&str>) -> Result<Client> {
    if let Some(host) = host {
        return agent_of(host);
    }
    let is_on = |job: &JobSummary| job.kind == JobKind::Rebalance && !job.is_over();
    for mut agent in agents()? {
        let jobs = agent.within(PATIENCE_WITH_AGENTS, |agent| agent.jobs(&JobFilter::latest(0)))?;
        if jobs.iter().any(is_on) {
            return Ok(agent);
        }
    }
    bail!("no agent is evening hosts out")
}

#[derive(Debug, Serialize)]
struct CalledOff {
    host: String,
    state: String,
}

impl fmt::Display for CalledOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "called off at host {}: {}", self.host, self.state)
    }
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct DryRun(RebalancePlan);

impl fmt::Display for DryRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RebalancePlan { plan, before, after } = &self.0;
        if plan.waves.is_empty() && plan.left.is_empty() {
            return writeln!(f, "the hosts are used evenly enough: {}", Text(before));
        }
        write!(f, "{}", PlanText(plan))?;
        write_left(f, &plan.left)?;
        writeln!(f, "before: {}", Text(before))?;
        writeln!(f, "after:  {}", Text(after))
    }
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Report(RebalanceReport);

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RebalanceReport { outcome, before, planned: _, after, moved, left, predicted_us, total_us } = &self.0;
        if *outcome == RebalanceOutcome::Done && moved.is_empty() {
            return writeln!(f, "the hosts are used evenly enough: {}", Text(before));
        }
        let (count, took) = (moved.len(), of_micros(*total_us));
        match outcome {
            RebalanceOutcome::Done => {
                writeln!(f, "{count} guests moved in {took} (predicted {})", of_micros(*predicted_us))?;
            }
            RebalanceOutcome::Incomplete => writeln!(f, "{count} guests moved in {took}, {} did not", left.len())?,
            RebalanceOutcome::Cancelled => {
                writeln!(f, "called off after {took}: {count} guests moved, {} did not", left.len())?;
            }
            RebalanceOutcome::TimeUp => {
                writeln!(f, "the time was up after {took}: {count} guests moved, {} did not", left.len())?;
            }
        }
        write_departures(f, moved)?;
        write_left(f, left)?;
        writeln!(f, "before: {}", Text(before))?;
        writeln!(f, "after:  {}", Text(after))
    }
}

/// How evenly hosts are used.
struct Text<'a>(&'a Unevenness);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unevenness { most, highest_permille, mean_permille, deviation_permille } = self.0;
        let percent = |permille: &u64| format!("{}.{} %", permille / 10, permille % 10);
        if let Some(most) = most {
            write!(f, "{most} is used most, {}; ", percent(highest_permille))?;
        }
        write!(f, "mean {}, standard deviation {}", percent(mean_permille), percent(deviation_permille))
    }
}
