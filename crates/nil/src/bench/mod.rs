//! `nil bench`: what nil can do, measured on this machine.

mod agent;
mod api;
mod capacity;
mod handoff;
mod kills;
mod moving;
mod peers;
mod pool;
mod process;
mod protect;
mod rack;
mod report;
mod takeover;

use crate::cli::Output;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// How long a guest stands still when it changes hosts, by its own clock.
    #[command(after_help = "Examples:
  nil bench handoff
  nil bench handoff --memory 64M,1G,4G --vcpus 1,2 --dirty idle,hot --samples 500
  nil bench handoff --memory 1G --peer qemu --json")]
    Handoff(handoff::Args),
    /// How fast a guest's memory moves between DRAM and pool, and what the guest notices of it.
    #[command(after_help = "Examples:
  nil bench move
  nil bench move --memory 1G,4G --page 2m --budget default --samples 10
  nil bench move --round-trips 100 --memory 1G --page 2m
  nil bench move --memory 1G --peer qemu --json")]
    Move(moving::Args),
    /// What it costs a guest that commits are made of it, to which another host can bring it back.
    #[command(after_help = "Examples:
  nil bench protect
  nil bench protect --memory 1G --dirty 10000@100ms --json
  nil bench protect --dirty 1221@25ms,122@25ms --work stores --time 20s")]
    Protect(protect::Args),
    /// Whether a guest survives kills of its hosts, at random instants of its migrations, whenever it can.
    Kills(kills::Args),
    /// Whether a rack of hosts ever loses a guest, runs one twice, or leaves anything behind, however it is treated.
    Rack(rack::Args),
    /// How long it takes from the death of a host until its guest goes on at another.
    Takeover(takeover::Args),
    /// What an agent costs while its guests rest, and what such a guest costs.
    Agent(agent::Args),
    /// How quickly an agent answers while guests come and go, and whether bad callers harm it, or the others.
    Api(api::Args),
    /// How fast several processes at once add and release capacity in one pool.
    Capacity(capacity::Args),
    /// How long a large pool takes to be made, attached and checked.
    Pool(pool::Args),
    /// How long a process stands still that goes through CRIU with its memory in a pool, and with CRIU alone.
    Process(process::Args),
    /// The program of the process benchmark, which starts it.
    #[command(hide = true, name = process::SUBJECT)]
    ProcessSubject(process::SubjectArgs),
    /// One of the processes of the capacity benchmark, which starts it.
    #[command(hide = true, name = capacity::WORKER)]
    CapacityWorker(capacity::WorkerArgs),
}

/// Runs a benchmark and prints what it found.
pub(crate) fn run(command: &Command, output: Output) -> anyhow::Result<ExitCode> {
    match command {
        Command::Handoff(args) => handoff::run(args, output),
        Command::Move(args) => moving::run(args, output),
        Command::Protect(args) => protect::run(args, output),
        Command::Kills(args) => kills::run(args, output),
        Command::Rack(args) => rack::run(args, output),
        Command::Takeover(args) => takeover::run(args, output),
        Command::Agent(args) => agent::run(args, output),
        Command::Api(args) => api::run(args, output),
        Command::Capacity(args) => capacity::run(args, output),
        Command::Pool(args) => pool::run(args, output),
        Command::Process(args) => process::run(args, output),
        Command::ProcessSubject(args) => process::subject(args),
        Command::CapacityWorker(args) => capacity::worker(args),
    }
}

/// A seed that differs from run to run; the report tells it.
pub(crate) fn seed_of_the_moment() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) ^ now.as_secs()
}
