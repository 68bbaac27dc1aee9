//! `nil`: moves running guests between hosts by reference. One binary: command line, agent and worker.

#![forbid(unsafe_code)]

use std::process::ExitCode;

mod cli;
mod size;

fn main() -> ExitCode {
    cli::main()
}
