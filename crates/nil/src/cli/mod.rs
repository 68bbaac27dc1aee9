//! The command line: what `nil` understands, and which module answers.
//!
//! Every command lives in a module of its own with an `Args` or `Command` type (raw arguments, parsed by clap) and a
//! `run` that validates them, does the work and prints the result through [`Output`].
//!
//! Exit status: 0 done, 1 failed, 2 the command line was wrong.

mod budget;
mod capacity;
mod completions;
mod cordon;
mod cpu;
mod decouple;
mod drain;
mod dump;
pub(crate) mod duration;
mod host;
mod inspect;
mod job;
mod man;
mod migrate;
mod move_report;
mod moving;
mod output;
mod pin;
mod placement;
mod pool;
mod progress;
mod protect;
mod ps;
mod range;
mod rebalance;
mod recouple;
mod rehome;
mod route;
mod striping;
mod table;
mod tag;
mod takeover;
mod top;
mod topo;
mod vm;
mod worker;

pub(crate) use output::Output;
pub(crate) use protect::OutputArg;
pub(crate) use table::Table;

use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

/// Moves running virtual machines between hosts by reference: a handoff copies no memory.
#[derive(Debug, Parser)]
#[command(name = "nil", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "Example, in three terminals:
  nil pool create /dev/shm/pool --size 4G
  nil host run --name A --pool /dev/shm/pool
  nil host run --name B --pool /dev/shm/pool
  nil vm run builtin:demo --pool /dev/shm/pool --host A --memory 1G --name guest
  nil migrate guest --to B")]
struct Cli {
    /// Print one JSON document instead of text.
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// See it: two hosts, one guest, a hundred handoffs, every byte verified.
    Demo(crate::demo::Args),
    /// Measure it.
    #[command(subcommand)]
    Bench(crate::bench::Command),
    /// Tell what this machine can and cannot do, and what to do about it.
    Doctor(crate::doctor::Args),
    /// Break it: hosts die and stand still, guests move and are taken over, and nothing may be lost or undone.
    Chaos(crate::chaos::Args),
    /// Make pools, look at them, check and mend them.
    #[command(subcommand)]
    Pool(pool::PoolCommand),
    /// Add, release and list capacity of a pool.
    #[command(subcommand)]
    Capacity(capacity::CapacityCommand),
    /// Find memory by its tag.
    #[command(subcommand)]
    Tag(tag::TagCommand),
    /// Run a host, and list hosts.
    #[command(subcommand)]
    Host(host::Command),
    /// Look at CPUs, and agree on what guests may be promised of them.
    #[command(subcommand)]
    Cpu(cpu::Command),
    /// Start and stop virtual machines.
    #[command(subcommand, alias = "guest")]
    Vm(vm::Command),
    /// List guests and hosts.
    Ps(ps::Args),
    /// Watch hosts, pools, guests and what moves.
    Top(top::Args),
    /// Move a running guest to another host.
    Migrate(migrate::Args),
    /// See what agents do that takes long, follow it, call it off.
    #[command(subcommand)]
    Job(job::Command),
    /// Have no more guests come to a host.
    Cordon(cordon::Args),
    /// Let guests come to a host again.
    Uncordon(cordon::UncordonArgs),
    /// Empty a host: its guests go to others.
    Drain(drain::Args),
    /// Fence a host that is dead, and take its guests.
    Takeover(takeover::Args),
    /// Have hosts used more evenly.
    Rebalance(rebalance::Args),
    /// Move a running guest's memory from its host's DRAM into the pool.
    Decouple(decouple::Args),
    /// Move a running guest's memory from the pool into its host's DRAM.
    Recouple(recouple::Args),
    /// Move a running guest's home from one pool of its host to another.
    Rehome(rehome::Args),
    /// Make commits of a running guest, to which another host can bring it back.
    Protect(protect::Args),
    /// Make no more commits of a guest.
    Unprotect(protect::UnprotectArgs),
    /// Declare memory of a guest that must not move.
    #[command(subcommand)]
    Pin(pin::Command),
    /// Print what a shell needs to complete this command line.
    Completions(completions::Args),
    /// Write manual pages, one for each command.
    Man(man::Args),
    /// Draw the fabric, find ways through it, and tell what would split it.
    #[command(subcommand)]
    Topo(topo::Command),
    /// Run one guest. Agents start it; it is not meant for people.
    #[command(hide = true)]
    Worker(worker::Args),
    /// Look after the processes of a rack. The demo and the benchmark start it; it is not meant for people.
    #[command(hide = true, name = crate::lab::keeper::SUBCOMMAND)]
    Keeper(crate::lab::keeper::Args),
}

/// Parses the command line, runs the command and turns its result into an exit status.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = if cli.json { Output::Json } else { Output::Text };
    run(cli.command, output).unwrap_or_else(|error| output.failure(&error))
}

fn run(command: Command, output: Output) -> anyhow::Result<ExitCode> {
    match command {
        Command::Demo(args) => crate::demo::run(&args, output),
        Command::Bench(command) => crate::bench::run(&command, output),
        Command::Doctor(args) => crate::doctor::run(&args, output),
        Command::Chaos(args) => crate::chaos::run(&args, output),
        Command::Pool(command) => command.run(output == Output::Json),
        Command::Capacity(command) => command.run(output == Output::Json),
        Command::Tag(command) => tag::run(command, output),
        Command::Host(command) => host::run(command, output),
        Command::Cpu(command) => cpu::run(command, output),
        Command::Vm(command) => vm::run(command, output),
        Command::Ps(args) => ps::run(&args, output),
        Command::Top(args) => top::run(&args, output),
        Command::Migrate(args) => migrate::run(&args, output),
        Command::Job(command) => job::run(command, output),
        Command::Cordon(args) => cordon::cordon(&args, output),
        Command::Uncordon(args) => cordon::uncordon(&args, output),
        Command::Drain(args) => drain::run(&args, output),
        Command::Takeover(args) => takeover::run(&args, output),
        Command::Rebalance(args) => rebalance::run(&args, output),
        Command::Decouple(args) => decouple::run(&args, output),
        Command::Recouple(args) => recouple::run(&args, output),
        Command::Rehome(args) => rehome::run(&args, output),
        Command::Protect(args) => protect::run(&args, output),
        Command::Unprotect(args) => protect::unprotect(&args, output),
        Command::Pin(command) => pin::run(command, output),
        Command::Completions(args) => completions::run(&args, output),
        Command::Man(args) => man::run(&args, output),
        Command::Topo(command) => topo::run(&command, output),
        Command::Worker(args) => worker::run(args),
        Command::Keeper(args) => crate::lab::keeper::run(&args).map(|()| ExitCode::SUCCESS),
    }
}

/// The command line without the commands that are not meant for people.
fn shown_commands() -> clap::Command {
    fn shown(command: clap::Command) -> clap::Command {
        if !command.get_subcommands().any(clap::Command::is_hide_set) {
            return command.mut_subcommands(shown);
        }
        // clap takes no subcommand away: what is needed of the rest makes a new one. It wants names that live for ever.
        let name: &'static str = command.get_name().to_owned().leak();
        let bare = clap::Command::new(name)
            .version(env!("CARGO_PKG_VERSION"))
            .about(command.get_about().cloned().unwrap_or_default())
            .after_help(command.get_after_help().cloned().unwrap_or_default())
            .args(command.get_arguments().cloned());
        let subcommands = command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned();
        bare.subcommands(subcommands.map(shown))
    }
    shown(Cli::command())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example_in_its_help() {
        fn check(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
                let path = format!("{path} {}", sub.get_name());
                if sub.has_subcommands() {
                    check(sub, &path);
                } else {
                    let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                    assert!(help.contains(&path), "`{path} --help` shows no example");
                }
            }
        }
        check(&Cli::command(), "nil");
    }
}
