//! `nil rehome`: a guest's home moves from one pool of its host to another, while the guest runs.

use super::Output;
use super::budget::BudgetArgs;
use super::duration::of_micros;
use super::move_report::MoveTable;
use super::moving::{CalledOff, host_of};
use super::progress::Shown;
use anyhow::{Context, Result, bail};
use nil_host::{Rehome, RehomingOutcome, RehomingReport};
use nil_mover::{MoveOutcome, MoveReport};
use nil_pool::{Access, Pool, PoolId};
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil rehome guest --pool /dev/shm/other.pool
  nil rehome guest --pool /dev/shm/other.pool --fast --json
  nil rehome guest --cancel")]
pub(crate) struct Args {
    /// The guest: its name or its id.
    guest: String,
    /// The pool that is to be its home: a file or device. Its host must be a member.
    #[arg(long, value_name = "PATH", required_unless_present = "cancel", conflicts_with = "cancel")]
    pool: Option<PathBuf>,
    /// Call off the rehoming that is on: its home and its memory stay where they were.
    #[arg(long)]
    cancel: bool,
    #[command(flatten)]
    budget: BudgetArgs,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let (mut host, guest) = host_of(&args.guest)?;
    if args.cancel {
        let state = host.cancel_rehoming(&guest)?;
        output.print(&CalledOff { called_off: "rehome".to_owned(), guest, state })?;
        return Ok(ExitCode::SUCCESS);
    }
    let order = Rehome {
        guest,
        pool: pool_at(args.pool.as_ref().context("--pool says where to")?)?,
        budget: args.budget.budget(),
        stall_timeout_us: args.budget.stall_timeout_us(),
        time_limit_us: None,
    };
    let mut shown = Shown::new(output, &format!("nil rehome {} --cancel", order.guest));
    let report = host.rehome(&order, |progress| shown.show(progress))?;
    let done = report.outcome == RehomingOutcome::Rehomed;
    output.print(&Report(report))?;
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Which pool that is.
fn pool_at(path: &Path) -> Result<PoolId> {
    if !path.exists() {
        bail!("there is no pool at {}", path.display());
    }
    Ok(Pool::open(path, Access::ReadOnly)?.id())
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Report(RehomingReport);

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RehomingReport { guest, host, from, to, outcome, recouple, switched_ns, epoch, decouple, remarks, .. } =
            &self.0;
        let (from, to, time) = (from.display(), to.display(), of_micros(self.0.total_us));
        match outcome {
            RehomingOutcome::Rehomed => {
                writeln!(f, "{guest} on {host}: its home is {to} now, after {time}; it was {from}")?;
            }
            RehomingOutcome::Cancelled { why } => {
                writeln!(f, "{guest} on {host}: its home is {from} still: {why}")?;
            }
            RehomingOutcome::Stalled { why } => {
                writeln!(f, "{guest} on {host}: its home is {from} still, it waited in vain: {why}")?;
            }
        }
        write_move(f, "from the old pool into DRAM", recouple.as_ref())?;
        if let (Some(ns), Some(epoch)) = (switched_ns, epoch) {
            writeln!(f, "switched in {}.{} µs while it ran (epoch {epoch})", ns / 1000, ns % 1000 / 100)?;
        }
        write_move(f, "from DRAM into the new pool", decouple.as_ref())?;
        for remark in remarks {
            writeln!(f, "{remark}")?;
        }
        Ok(())
    }
}

fn write_move(f: &mut fmt::Formatter<'_>, way: &str, report: Option<&MoveReport>) -> fmt::Result {
    let Some(report) = report else { return Ok(()) };
    let time = of_micros(report.elapsed_us);
    match &report.outcome {
        MoveOutcome::Done => writeln!(f, "{way} in {time} while it ran")?,
        MoveOutcome::Cancelled => writeln!(f, "partly {way} in {time} while it ran; called off")?,
        MoveOutcome::Stalled(stall) => writeln!(f, "partly {way} in {time} while it ran: {stall}")?,
    }
    write!(f, "{}", MoveTable(report))
}
