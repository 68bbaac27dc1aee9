//! `nil cordon`, `nil uncordon`: whether a host takes guests.

use super::Output;
use anyhow::Result;
use nil_host::{Client, CordonReport, RunDir, Survey};
use serde::Serialize;
use std::fmt;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  nil cordon A")]
pub(crate) struct Args {
    /// The host.
    host: String,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  nil uncordon A")]
pub(crate) struct UncordonArgs {
    /// The host.
    host: String,
}

pub(crate) fn cordon(args: &Args, output: Output) -> Result<ExitCode> {
    let report = agent_of(&args.host)?.cordon()?;
    output.print(&Report(report))?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn uncordon(args: &UncordonArgs, output: Output) -> Result<ExitCode> {
    let report = agent_of(&args.host)?.uncordon()?;
    output.print(&Report(report))?;
    Ok(ExitCode::SUCCESS)
}

/// Calls the agent of a host of this run directory.
pub(super) fn agent_of(host: &str) -> Result<Client> {
    let run_dir = RunDir::from_environment();
    let name = Survey::take(&run_dir)?.host(host)?.name.clone();
    Ok(Client::connect(&run_dir.host(&name))?)
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Report(CordonReport);

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CordonReport { host, cordoned } = &self.0;
        if *cordoned {
            writeln!(f, "host {host} is cordoned: no more guests come to it; those that it has stay")
        } else {
            writeln!(f, "host {host} takes guests")
        }
    }
}
