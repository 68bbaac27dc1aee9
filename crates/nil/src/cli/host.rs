//! `nil host`: be a host, and see which ones there are.

mod cert;
mod config;
mod run;
mod service;

use super::table::Table;
use super::{Output, inspect};
use anyhow::{Context, Result};
use clap::Subcommand;
use nil_host::{HostReport, RunDir, Survey};
use serde::Serialize;
use std::fmt;
use std::io::Write;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Be a host, until Ctrl-C: join pools and run guests. Guests run on when the agent stops.
    #[command(after_help = "Examples:
  nil host run --name A --pool /dev/shm/pool
  nil host run --config /etc/nil/host.toml")]
    Run(run::Args),
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
    /// Check an agent's configuration, or see what one may say.
    #[command(subcommand)]
    Config(config::Command),
    /// Make certificates for a lab, so that hosts and people know each other over the network.
    #[command(subcommand)]
    Cert(cert::Command),
}

pub(crate) fn run(command: Command, output: Output) -> Result<ExitCode> {
    match command {
        Command::Run(args) => run::run(args, output),
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
        Command::Config(command) => config::run(command, output),
        Command::Cert(command) => cert::run(command, output),
    }
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
