//! `nil bench`: what nil can do, measured on this machine.

mod handoff;
mod report;

use crate::cli::Output;
use std::process::ExitCode;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// How long a guest stands still when it changes hosts, by its own clock.
    #[command(after_help = "Examples:
  nil bench handoff
  nil bench handoff --memory 64M,1G,4G --vcpus 1,2 --dirty idle,hot --samples 500
  nil bench handoff --memory 1G --peer qemu --json")]
    Handoff(handoff::Args),
}

/// Runs a benchmark and prints what it found.
pub(crate) fn run(command: &Command, output: Output) -> anyhow::Result<ExitCode> {
    match command {
        Command::Handoff(args) => handoff::run(args, output),
    }
}
