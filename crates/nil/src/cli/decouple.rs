//! `nil decouple`: a guest's memory moves from its host's DRAM into the pool while the guest runs.

use super::budget::BudgetArgs;
use super::striping::StripingArgs;
use super::{Output, moving, range};
use anyhow::Result;
use nil_host::{GuestRange, MoveMemory};
use nil_mover::Direction;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil decouple guest
  nil decouple guest --max-stall 100us --bandwidth 1G
  nil decouple guest --range 0x40000000+64M
  nil decouple guest --stripe /dev/dax0.0:2 --stripe /dev/dax1.0
  nil decouple guest --cancel")]
pub(crate) struct Args {
    /// The guest: its name or its id.
    guest: String,
    /// Only this part, from a guest-physical address on; a multiple of 2 MiB. Lifts the hold that `nil recouple --range`
    /// has put on it.
    #[arg(long, value_parser = range::parse, value_name = "ADDRESS+SIZE", conflicts_with = "cancel")]
    range: Option<GuestRange>,
    /// Call off the decoupling that is on: what has moved goes back.
    #[arg(long)]
    cancel: bool,
    #[command(flatten)]
    striping: StripingArgs,
    #[command(flatten)]
    budget: BudgetArgs,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    if args.cancel {
        return moving::cancel(&args.guest, Direction::Decouple, output);
    }
    let striping = args.striping.striping()?;
    let order = |guest| MoveMemory {
        striping,
        range: args.range,
        budget: args.budget.budget(),
        stall_timeout_us: args.budget.stall_timeout_us(),
        ..MoveMemory::all_of(guest, Direction::Decouple)
    };
    moving::run(&args.guest, order, output)
}
