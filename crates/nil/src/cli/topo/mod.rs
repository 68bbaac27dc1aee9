//! `nil topo`: which hosts share which memory, and the ways that follow from it.

mod check;
mod generate;
mod path;
mod show;
mod source;

use super::Output;
use anyhow::Result;
use std::process::ExitCode;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Draw a fabric: the living one, or one from a file.
    #[command(after_help = "Examples:
  nil topo show
  nil topo show --file rack.toml --svg rack.svg
  nil topo show --cxl A=a.json --cxl B=b.json --dot")]
    Show(show::Args),
    /// Find the quickest way for a guest from one host to another, over however many hosts between.
    #[command(after_help = "Examples:
  nil topo path A Z --guest-memory 4G --explain
  nil topo path r1h2 r3h5 --file rack.toml --guest-memory 64G --avoid r2h1 --alternatives 3")]
    Path(path::Args),
    /// Tell which hosts can reach each other by reference, and what would split them if it were lost.
    #[command(after_help = "Example:\n  nil topo check --file rack.toml")]
    Check(check::Args),
    /// Make a fabric up: racks of hosts and devices around a switch, each linked to the next.
    #[command(after_help = "Example:\n  nil topo generate --racks 4 --hosts 16 --devices 4 > rack.toml")]
    Generate(generate::Args),
}

pub(crate) fn run(command: &Command, output: Output) -> Result<ExitCode> {
    match command {
        Command::Show(args) => show::run(args, output),
        Command::Path(args) => path::run(args, output),
        Command::Check(args) => check::run(args, output),
        Command::Generate(args) => generate::run(args, output),
    }
}
