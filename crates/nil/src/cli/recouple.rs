//! `nil recouple`: a guest's memory moves from the pool into its host's DRAM while the guest runs.

use super::budget::BudgetArgs;
use super::{Output, moving, range};
use anyhow::Result;
use nil_host::{GuestRange, MoveMemory};
use nil_mover::Direction;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil recouple guest
  nil recouple guest --node 1 --fast
  nil recouple guest --range 0x40000000+64M --reason \"device driver update\"
  nil recouple guest --cancel")]
pub(crate) struct Args {
    /// The guest: its name or its id.
    guest: String,
    /// Pull back only this part, from a guest-physical address on; a multiple of 2 MiB. It is held in DRAM, and a
    /// migration waits for it, until `nil decouple --range` names the same part.
    #[arg(long, value_parser = range::parse, value_name = "ADDRESS+SIZE", conflicts_with = "cancel")]
    range: Option<GuestRange>,
    /// Why the part is pulled back, for those who wait for it.
    #[arg(long, requires = "range", value_name = "TEXT")]
    reason: Option<String>,
    /// The NUMA node whose memory is to take it.
    #[arg(long, value_name = "N")]
    node: Option<u32>,
    /// Call off the recoupling that is on: what has moved goes back.
    #[arg(long)]
    cancel: bool,
    #[command(flatten)]
    budget: BudgetArgs,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    if args.cancel {
        return moving::cancel(&args.guest, Direction::Recouple, output);
    }
    let order = |guest| MoveMemory {
        range: args.range,
        budget: args.budget.budget(),
        stall_timeout_us: args.budget.stall_timeout_us(),
        node: args.node,
        reason: args.reason.clone(),
        ..MoveMemory::all_of(guest, Direction::Recouple)
    };
    moving::run(&args.guest, order, output)
}
