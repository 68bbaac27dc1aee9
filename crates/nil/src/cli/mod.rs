//! The command line: what `nil` understands, and which module answers.
//!
//! Every command lives in a module of its own with an `Args` or `Command` type (raw arguments, parsed by clap) and a
//! `run` that validates them, does the work and prints the result through [`Output`].
//!
//! Exit status: 0 done, 1 failed, 2 the command line was wrong.

use clap::{Parser, Subcommand};
use std::process::ExitCode;

mod output;

pub(crate) use output::Output;

/// Moves running virtual machines between hosts by reference: their memory stays where it is, in a shared pool.
#[derive(Debug, Parser)]
#[command(name = "nil", version, max_term_width = 100)]
struct Cli {
    /// Print one JSON document instead of text.
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {}

/// Parses the command line, runs the command and turns its result into an exit status.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = if cli.json { Output::Json } else { Output::Text };
    match run(cli.command, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output.failure(&error),
    }
}

fn run(command: Command, _output: Output) -> anyhow::Result<()> {
    match command {}
}
