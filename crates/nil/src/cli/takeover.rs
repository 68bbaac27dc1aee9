//! `nil takeover`: what a dead host had goes on at another.

use super::Output;
use anyhow::{Result, bail};
use nil_host::{Client, HostReport, RunDir, Survey, TakeoverOutcome, TakeoverReport};
use serde::Serialize;
use std::fmt;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil takeover A             fences host A, whose lease has expired, and takes its guests
  nil takeover rover         fences the host of guest rover, and takes that guest
  nil takeover A --by B      the same, on host B

Nothing is taken from a host that beats. Guests without a checkpoint are lost then; their memory is kept.")]
pub(crate) struct Args {
    /// The host, or a guest of it.
    name: String,
    /// The host that is to take over; by default any that shares a pool with it.
    #[arg(long, value_name = "HOST")]
    by: Option<String>,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let run_dir = RunDir::from_environment();
    let survey = Survey::take(&run_dir)?;
    let taker = match &args.by {
        Some(by) => survey.host(by)?,
        None => any_taker(&survey, &args.name)?,
    };
    let taken = Client::connect(&run_dir.host(&taker.name))?.take_over(&args.name)?;
    let failed = taken.iter().any(|report| matches!(report.outcome, TakeoverOutcome::Failed { .. }));
    output.print(&Takeovers { by: taker.name.to_string(), name: args.name.clone(), taken })?;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A host whose agent runs, and that is not the dead one.
fn any_taker<'a>(survey: &'a Survey, name: &str) -> Result<&'a HostReport> {
    let dead = survey.guests.iter().find(|guest| guest.name == name).and_then(|guest| guest.host.as_deref());
    let dead = dead.unwrap_or(name);
    let mut takers = survey.hosts.iter().filter(|host| host.agent_pid.is_some() && host.name.as_str() != dead);
    match takers.next() {
        Some(taker) => Ok(taker),
        None => bail!("no agent runs that could take anything over; start one with `nil host run`"),
    }
}

#[derive(Debug, Serialize)]
struct Takeovers {
    /// The dead host, or its guest.
    name: String,
    by: String,
    taken: Vec<TakeoverReport>,
}

impl fmt::Display for Takeovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.taken.is_empty() {
            return writeln!(f, "{}: nothing was left to take by host {}", self.name, self.by);
        }
        self.taken.iter().try_for_each(|report| write!(f, "{}", Told(report)))
    }
}

/// A takeover in words.
pub(super) struct Told<'a>(pub(super) &'a TakeoverReport);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        writeln!(f, "guest {}, of host {}, by host {}: {}", report.guest, report.from, report.by, report.outcome)?;
        let ms = |us: u64| format!("{}.{:01} ms", us / 1000, us % 1000 / 100);
        let (detected, fenced) = (ms(report.detected_us), ms(report.fenced_us));
        write!(f, "  judged dead {detected} after its last sign of life, fenced in {fenced}")?;
        if let Some(commit) = report.last_commit {
            write!(f, ", {} pages brought back to commit {commit} in {}", report.pages, ms(report.undone_us))?;
        }
        match report.resumed_us {
            Some(resumed) => writeln!(f, "; ran after {}", ms(resumed)),
            None => writeln!(f),
        }
    }
}
