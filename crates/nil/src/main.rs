//! `nil`: moves running guests between hosts by reference. One binary: command line, agent and worker.

#![deny(unsafe_code)]

use std::process::ExitCode;

mod bench;
mod chaos;
mod cli;
mod demo;
mod doctor;
mod images;
mod lab;

fn main() -> ExitCode {
    cli::main()
}
