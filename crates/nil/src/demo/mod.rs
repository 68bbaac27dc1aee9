//! `nil demo`: the whole idea in a few seconds, on a machine without any special hardware.
//!
//! A rack of two hosts, one guest that keeps rewriting its memory and checking it, a hundred handoffs to and fro, a last
//! look at every page and register, and a report. It exits with 0 only if nothing differed.

mod dram;
mod report;
mod timeline;

use crate::cli::Output;
use crate::lab::canary::Canary;
use crate::lab::frequency::Frequency;
use crate::lab::interrupt;
use crate::lab::progress::Progress;
use crate::lab::tally::Tally;
use crate::lab::{GuestPlan, PoolFate, Rack, RackPlan, Shuttle};
use anyhow::Context;
use nil_guest_abi::Mode;
use nil_guest_abi::layout::MAX_VCPUS;
use nil_pool::Bytes;
use report::{KeptPool, Report};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil demo
  nil demo --handoffs 1000 --memory 4G --vcpus 2
  nil demo --memory-in dram
  nil demo --keep && nil pool list")]
pub(crate) struct Args {
    /// How often the guest changes hosts: 100 times if nothing is said, 10 times if its memory goes with it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    handoffs: Option<u64>,
    /// The guest's memory.
    #[arg(long, default_value = "256M", value_name = "SIZE")]
    memory: Bytes,
    /// The guest's vCPUs.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_VCPUS)))]
    vcpus: u32,
    /// Where the guest's memory lies between two handoffs: it stays in the pool, or goes along from DRAM to DRAM.
    #[arg(long, default_value = "pool", value_name = "PLACE")]
    memory_in: Place,
    /// Leave the pool in /dev/shm for inspection.
    #[arg(long)]
    keep: bool,
}

/// Where a guest's memory lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Place {
    /// In the DRAM of its host.
    Dram,
    /// In the pool.
    Pool,
}

/// How often the guest changes hosts if nothing is said.
const HANDOFFS: u64 = 100;

/// Runs the demo and prints its report.
pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    match args.memory_in {
        Place::Pool => interrupt::conclude(output, || demonstrate(args, output), Report::is_good),
        Place::Dram => interrupt::conclude(output, || dram::demonstrate(args, output), dram::Report::is_good),
    }
}

fn demonstrate(args: &Args, output: Output) -> anyhow::Result<Report> {
    let pool = if args.keep { PoolFate::Kept } else { PoolFate::Fleeting };
    let plan = RackPlan { pool, ..RackPlan::fleeting(args.memory.get()) };
    plan.check()?;
    let frequency = Frequency::measure();
    let handoffs = args.handoffs.unwrap_or(HANDOFFS);
    let progress = Progress::new(output, handoffs);
    progress.doing("starting hosts A and B");
    let rack = Rack::build(&plan)?;
    progress.doing(format!("booting a guest with {} of memory on A", args.memory));
    let guest = GuestPlan { memory_bytes: args.memory.get(), vcpus: args.vcpus, mode: Mode::Hot };
    let mut shuttle = Shuttle::boot(&rack, &guest, frequency)?;
    let canary = Canary::start(frequency)?;
    let tally = shuttle_to_and_fro(&mut shuttle, handoffs, &progress)?;
    let canary = canary.report(&tally.spans);
    progress.doing("the guest verifies every page and register");
    let verdict = shuttle.verify_all().with_context(|| format!("after {} handoffs", tally.handoffs))?;
    let huge_bytes = shuttle.huge_bytes()?;
    let kept = rack.keeps_pool().then(|| KeptPool { path: rack.pool_path().to_path_buf() });
    if kept.is_none() {
        shuttle.stop()?;
    }
    Ok(Report {
        asked: handoffs,
        memory: args.memory,
        vcpus: args.vcpus,
        tally,
        verdict,
        canary,
        huge_bytes,
        ground: rack.ground(),
        kept,
    })
}

/// Hands the guest over again and again; stops early when the guest has found an error.
fn shuttle_to_and_fro(shuttle: &mut Shuttle<'_>, handoffs: u64, progress: &Progress) -> anyhow::Result<Tally> {
    let mut tally = Tally::new();
    while tally.handoffs < handoffs && shuttle.verdict()?.is_clean() {
        let sample = shuttle.handoff().with_context(|| format!("handoff {} failed", tally.handoffs + 1))?;
        tally.add(&sample);
        progress.reached(tally.handoffs, || match &sample.observed {
            Some(observation) => format!("on {} again after {}", shuttle.host(), observation.blackout().human()),
            None => format!("on {}", shuttle.host()),
        });
    }
    Ok(tally)
}
