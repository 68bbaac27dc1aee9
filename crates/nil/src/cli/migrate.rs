//! `nil migrate`: hand a running guest to another host. Memory that is in DRAM goes through the pool. To a host with which
//! its own shares no pool it goes over others.

use super::Output;
use super::budget::BudgetArgs;
use super::duration::{self, micros, of_micros};
use super::move_report::MoveTable;
use super::moving::{CalledOff, host_of};
use super::progress::Shown;
use super::route;
use super::striping::StripingArgs;
use anyhow::{Context, Result};
use nil_host::{
    Client, GuestName, GuestReport, HostName, Migrate, MigrationOutcome, MigrationReport, Route, RouteOutcome, RunDir,
    Settling, Survey, Verdict,
};
use nil_migrate::HandoffReport;
use nil_mover::{MoveOutcome, MoveReport};
use serde::Serialize;
use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil migrate guest --to B
  nil migrate guest --to B --stay-in-pool --max-stall 100us
  nil migrate guest --to B --deadline 100ms --json
  nil migrate guest --to Z --avoid H --time-limit 60s
  nil migrate guest --to B --stripe /dev/dax0.0:2 --stripe /dev/dax1.0
  nil migrate guest --to B --check
  nil migrate guest --cancel")]
pub(crate) struct Args {
    /// The guest: its name or its id.
    guest: String,
    /// The host that is to run it.
    #[arg(long, value_name = "HOST", required_unless_present = "cancel", conflicts_with = "cancel")]
    to: Option<HostName>,
    /// How long the guest may stand still before its source takes it back.
    #[arg(long, default_value = "1s", value_parser = duration::parse, value_name = "TIME")]
    deadline: Duration,
    /// Call it off if all of it is not over after this time.
    #[arg(long, value_parser = duration::parse_some, value_name = "TIME", conflicts_with = "cancel")]
    time_limit: Option<Duration>,
    /// Leave its memory in the pool when it has moved.
    #[arg(long)]
    stay_in_pool: bool,
    /// Do not pass this host on the way to one that shares no pool with the guest's; may be given several times.
    #[arg(long, value_name = "HOST", conflicts_with = "cancel")]
    avoid: Vec<HostName>,
    /// Call off the migration that is on: the guest runs on where it is, with its memory where it was.
    #[arg(long)]
    cancel: bool,
    /// Move nothing: say whether the target could have the guest, and every reason if it could not.
    #[arg(long, conflicts_with = "cancel")]
    check: bool,
    #[command(flatten)]
    striping: StripingArgs,
    #[command(flatten)]
    budget: BudgetArgs,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    if args.cancel {
        let (guest, state) = cancel(&args.guest)?;
        output.print(&CalledOff { called_off: "migrate".to_owned(), guest, state })?;
        return Ok(ExitCode::SUCCESS);
    }
    let run_dir = RunDir::from_environment();
    let survey = Survey::take(&run_dir)?;
    let guest = survey.guest(&args.guest)?;
    // It may be on another machine: the guest's host knows.
    let to = args.to.clone().context("--to says where to")?;
    let source = survey.host_of(guest)?;
    // Whether the two would do is asked of the two, whatever lies between them.
    if !args.check && !shares_home(&survey, guest, &source, &to) {
        let order = Route {
            guest: guest.name.parse()?,
            to,
            deadline_us: micros(args.deadline),
            settling: if args.stay_in_pool { Settling::StayInPool } else { Settling::Recouple },
            budget: args.budget.budget(),
            stall_timeout_us: args.budget.stall_timeout_us(),
            avoid: args.avoid.clone(),
            time_limit_us: args.time_limit.map(micros),
        };
        let mut shown = Shown::new(output, &format!("nil migrate {} --cancel", order.guest));
        let report = Client::connect(&run_dir.host(&source))?.route(&order, |progress| shown.show(progress))?;
        let arrived = report.outcome == RouteOutcome::Arrived;
        output.print(&route::Report(report))?;
        return Ok(if arrived { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let order = Migrate {
        deadline_us: micros(args.deadline),
        settling: if args.stay_in_pool { Settling::StayInPool } else { Settling::Recouple },
        budget: args.budget.budget(),
        stall_timeout_us: args.budget.stall_timeout_us(),
        striping: args.striping.striping()?,
        time_limit_us: args.time_limit.map(micros),
        ..Migrate::new(guest.name.parse()?, to)
    };
    if args.check {
        let verdict = Client::connect(&run_dir.host(&source))?.check_migration(&order)?;
        let exit = if verdict.compatible { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        output.print(&Checked(verdict))?;
        return Ok(exit);
    }
    let mut shown = Shown::new(output, &format!("nil migrate {} --cancel", order.guest));
    let report = Client::connect(&run_dir.host(&source))?.migrate(&order, |progress| shown.show(progress))?;
    let exit = match report.outcome {
        MigrationOutcome::Moved => ExitCode::SUCCESS,
        MigrationOutcome::TakenBack { .. } | MigrationOutcome::Cancelled { .. } | MigrationOutcome::Stalled { .. } => {
            ExitCode::FAILURE
        }
    };
    output.print(&Report(report))?;
    Ok(exit)
}

/// Calls off what is on, by whichever agent has ordered it.
fn cancel(guest: &str) -> Result<(GuestName, String)> {
    let run_dir = RunDir::from_environment();
    let survey = Survey::take(&run_dir)?;
    // One that is on its way may be where nobody of this machine sees it.
    let name = survey.guest(guest).map_or_else(|_| guest.parse(), |known| known.name.parse());
    if let Ok(name) = name
        && let Some(state) = route::cancel(&survey, &run_dir, &name)
    {
        return Ok((name, state?));
    }
    let (mut host, guest) = host_of(guest)?;
    let state = host.cancel_migration(&guest)?;
    Ok((guest, state))
}

/// Whether the target has joined the pool that is the guest's home. One of this machine whose agent does not answer is taken
/// for such a one: the source says what is wrong with it. So does it for one that nobody here knows: it looks for that.
fn shares_home(survey: &Survey, guest: &GuestReport, source: &HostName, target: &HostName) -> bool {
    let pools = survey.hosts.iter().find(|host| host.name == *source).map(|host| host.pools.as_slice());
    let home = pools.unwrap_or_default().iter().find(|pool| pool.path == guest.pool).map(|pool| pool.id);
    let Some(home) = home else { return true };
    match survey.hosts.iter().find(|host| host.name == *target) {
        Some(near) => near.agent_pid.is_none() || near.pools.iter().any(|pool| pool.id == home),
        None => survey.elsewhere.iter().any(|far| far.name == *target && far.pools.contains(&home)),
    }
}

/// Whether a guest could be moved.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Checked(Verdict);

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.0)
    }
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Report(MigrationReport);

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MigrationReport { guest, from, to, outcome, decouple, handoff, recouple, .. } = &self.0;
        match outcome {
            MigrationOutcome::Moved => write!(f, "{guest} moved from {from} to {to}")?,
            MigrationOutcome::TakenBack { why } => write!(f, "{guest} runs on at {from}, {to} did not get it: {why}")?,
            MigrationOutcome::Cancelled { why } => write!(f, "{guest} runs on at {from}: {why}")?,
            MigrationOutcome::Stalled { why } => write!(f, "{guest} runs on at {from}, it waited in vain: {why}")?,
        }
        match handoff {
            None => writeln!(f)?,
            Some(handoff) => {
                let still = Micros(handoff.blackout_ns);
                writeln!(f, ": it stood still for {still} (epoch {})", handoff.epoch)?;
            }
        }
        write_move(f, "decoupled", decouple.as_ref())?;
        let prepared = of_micros(self.0.prepare_us);
        match handoff {
            None if *outcome == MigrationOutcome::Moved => {
                writeln!(f, "handed over, how fast is not known; prepared in {prepared} while it ran")?;
            }
            None => writeln!(f, "no handoff; prepared in {prepared} while it ran")?,
            Some(handoff) => {
                writeln!(f, "handed over in {}, prepared in {prepared} while it ran", Micros(handoff.blackout_ns))?;
                write_phases(f, handoff)?;
            }
        }
        writeln!(f, "  guest memory copied by the handoff: {} bytes", self.0.copied_bytes)?;
        write_move(f, "recoupled", recouple.as_ref())?;
        for remark in &self.0.remarks {
            writeln!(f, "{remark}")?;
        }
        Ok(())
    }
}

/// The part of a migration that moves memory, if it has one.
fn write_move(f: &mut fmt::Formatter<'_>, done: &str, report: Option<&MoveReport>) -> fmt::Result {
    let Some(report) = report else { return Ok(()) };
    let time = of_micros(report.elapsed_us);
    match &report.outcome {
        MoveOutcome::Done => writeln!(f, "{done} in {time} while it ran")?,
        MoveOutcome::Cancelled => writeln!(f, "partly {done} in {time} while it ran; called off")?,
        MoveOutcome::Stalled(stall) => writeln!(f, "partly {done} in {time} while it ran: {stall}")?,
    }
    write!(f, "{}", MoveTable(report))
}

fn write_phases(f: &mut fmt::Formatter<'_>, handoff: &HandoffReport) -> fmt::Result {
    let phases = &handoff.phases;
    for (phase, ns) in [
        ("kick", phases.kick_ns),
        ("save", phases.save_ns),
        ("publish", phases.publish_ns),
        ("notice", phases.notice_ns),
        ("load", phases.load_ns),
        ("claim", phases.claim_ns),
        ("enter", phases.enter_ns),
    ] {
        writeln!(f, "  {phase:<8} {:>10}", Micros(ns).to_string())?;
    }
    Ok(())
}

/// Nanoseconds, shown as microseconds.
struct Micros(u64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} µs", self.0 / 1000, self.0 % 1000 / 100)
    }
}
