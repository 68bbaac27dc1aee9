//! `nil host`: be a host, and see which ones there are.

use super::cpu;
use super::table::Table;
use super::{Output, inspect};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use nil_host::{
    Agent, AgentOptions, Farewell, GuestName, GuestsAtStop, HostName, HostReport, Listen, NotStopped, RunDir, Survey,
};
use nil_pool::Bytes;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// What a shell reports for a process that Ctrl-C has killed.
const INTERRUPTED: i32 = 130;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Be a host, until Ctrl-C: join pools and run guests. Guests run on when the agent stops.
    #[command(after_help = "Example:\n  nil host run --name A --pool /dev/shm/pool")]
    Run(RunArgs),
    /// List the hosts of this machine.
    #[command(after_help = "Example:\n  nil host list")]
    List,
    /// Show the memory of this machine, and what nil can use it for.
    #[command(after_help = "Examples:
  nil host inspect
  nil host inspect --pool /dev/shm/pool --json")]
    Inspect(inspect::Args),
    /// Print the description of the agents' HTTP API, in OpenAPI.
    #[command(after_help = "Example:\n  nil host openapi > docs/api/openapi.json")]
    Openapi,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The host's name. An agent that is started again under its name finds its guests again.
    #[arg(long)]
    name: HostName,
    /// A pool to join: a file or device that `nil pool create` has formatted. May be given several times.
    #[arg(long = "pool", required = true, value_name = "PATH")]
    pools: Vec<PathBuf>,
    /// Stop all guests when the agent stops, and free their memory.
    #[arg(long)]
    stop_guests: bool,
    /// Move no more than so many bytes of guests' memory per second, all guests together. Moves share it fairly.
    #[arg(long, value_name = "SIZE")]
    move_bandwidth: Option<Bytes>,
    /// Offer guests no more of the CPU than this model has: `x86-64-v1` to `x86-64-v4`, or a file of `nil cpu baseline`.
    #[arg(long, value_name = "MODEL")]
    cpu_limit: Option<String>,
}

pub(crate) fn run(command: Command, output: Output) -> Result<ExitCode> {
    match command {
        Command::Run(args) => run_agent(&args, output),
        Command::List => {
            let hosts = Survey::take(&RunDir::from_environment())?.hosts;
            output.print(&Hosts { hosts })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Inspect(args) => inspect::run(&args, output),
        Command::Openapi => {
            // It is JSON in any case.
            std::io::stdout().write_all(nil_host::description().as_bytes()).context("cannot print the description")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run_agent(args: &RunArgs, output: Output) -> Result<ExitCode> {
    super::output::log_to_stderr();
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot wait for Ctrl-C")?;
    let dir = RunDir::from_environment().host(&args.name);
    let agent = Agent::start(&AgentOptions {
        dir,
        pools: args.pools.clone(),
        move_bandwidth: args.move_bandwidth.map(Bytes::get),
        listen: Listen::default(),
        peers: Vec::new(),
        cpu_limit: args.cpu_limit.as_deref().map(cpu::limit).transpose()?,
    })?;
    output.print(&Up { host: args.name.clone(), introduction: agent.introduction(), guests: agent.guests() })?;

    signals.forever().next();
    output.progress("stopping; Ctrl-C again to stop at once");
    std::thread::spawn(move || {
        signals.forever().next();
        std::process::exit(INTERRUPTED);
    });
    let fate = if args.stop_guests { GuestsAtStop::Stop } else { GuestsAtStop::RunOn };
    let farewell = agent.stop(fate)?;
    let exit = if farewell.not_stopped.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    output.print(&Down { host: args.name.clone(), farewell })?;
    Ok(exit)
}

/// The agent is ready.
#[derive(Debug, Serialize)]
struct Up {
    host: HostName,
    introduction: String,
    guests: Vec<GuestName>,
}

impl fmt::Display for Up {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.introduction)?;
        if !self.guests.is_empty() {
            writeln!(f, "its guests have run on: {}", names(&self.guests))?;
        }
        writeln!(f, "Ctrl-C stops it")
    }
}

/// The agent has stopped.
#[derive(Debug, Serialize)]
struct Down {
    host: HostName,
    #[serde(flatten)]
    farewell: Farewell,
}

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, farewell } = self;
        if !farewell.stopped.is_empty() {
            writeln!(f, "stopped its guests: {}", names(&farewell.stopped))?;
        }
        for NotStopped { guest, why } in &farewell.not_stopped {
            writeln!(f, "guest {guest} could not be stopped: {why}")?;
        }
        if !farewell.running_on.is_empty() {
            writeln!(f, "its guests run on: {}", names(&farewell.running_on))?;
            writeln!(f, "start host {host} again to take them back, or with --stop-guests to stop them when it ends")?;
        }
        writeln!(f, "host {host} has stopped")
    }
}

fn names(guests: &[GuestName]) -> String {
    guests.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A list of hosts.
#[derive(Debug, Serialize)]
struct Hosts {
    hosts: Vec<HostReport>,
}

impl fmt::Display for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.hosts.is_empty() {
            return writeln!(f, "no hosts; start one with `nil host run --name A --pool PATH`");
        }
        write!(f, "{}", table(&self.hosts))
    }
}

/// Hosts in columns.
pub(super) fn table(hosts: &[HostReport]) -> Table<4> {
    let mut table = Table::new(["HOST", "AGENT", "GUESTS", "POOLS"]);
    for host in hosts {
        let agent = match (host.agent_pid, &host.silent) {
            (Some(pid), _) => format!("process {pid}"),
            (None, Some(_)) => "does not answer".to_owned(),
            (None, None) => "not running".to_owned(),
        };
        let pools: Vec<String> = host.pools.iter().map(|pool| pool.path.display().to_string()).collect();
        table.row([host.name.to_string(), agent, host.guests.to_string(), pools.join(", ")]);
    }
    table
}
