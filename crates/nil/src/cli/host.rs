//! `nil host`: be a host, and see which ones there are.

mod cert;
mod config;
mod run;
mod service;

use super::table::Table;
use super::{Output, inspect};
use anyhow::{Context, Result};
use clap::Subcommand;
use nil_host::{GuestName, HostReport, HostStanding, KnownHost, LostPool, RunDir, Survey};
use serde::Serialize;
use std::collections::BTreeSet;
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
    /// List the hosts of this machine, and those that share a pool with them.
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
            let Survey { hosts, elsewhere, .. } = Survey::take(&RunDir::from_environment())?;
            output.print(&Hosts { hosts, elsewhere })?;
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
    elsewhere: Vec<KnownHost>,
}

impl fmt::Display for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.hosts.is_empty() {
            return writeln!(f, "no hosts; start one with `nil host run --name A --pool PATH`");
        }
        write!(f, "{}{}", table(&self.hosts, &self.elsewhere), losses(&self.hosts))
    }
}

/// What hosts of this machine have lost, a sentence each.
pub(super) fn losses(hosts: &[HostReport]) -> String {
    let lost = hosts.iter().flat_map(|host| host.lost_pools.iter().map(move |lost| (host, lost)));
    let sentence = |(host, lost): (&HostReport, &LostPool)| {
        let guests: Vec<&str> = lost.guests.iter().map(GuestName::as_str).collect();
        let stopped =
            if guests.is_empty() { String::new() } else { format!("; guests stopped: {}", guests.join(", ")) };
        format!("host {}: {}{stopped}\n", host.name, lost.why)
    };
    lost.map(sentence).collect()
}

/// Hosts in columns: those of this machine, then those that they know of others.
pub(super) fn table(hosts: &[HostReport], elsewhere: &[KnownHost]) -> Table<5> {
    let mut table = Table::new(["HOST", "AGENT", "LEASE", "GUESTS", "POOLS"]);
    let lease = |standing: Option<HostStanding>| standing.map_or_else(|| "-".to_owned(), |it| it.to_string());
    for host in hosts {
        let agent = match (host.agent_pid, &host.silent) {
            (Some(pid), _) => format!("process {pid}"),
            (None, Some(_)) => "does not answer".to_owned(),
            (None, None) => "not running".to_owned(),
        };
        let pools: Vec<String> = host.pools.iter().map(|pool| pool.path.display().to_string()).collect();
        table.row([host.name.to_string(), agent, lease(host.standing), host.guests.to_string(), pools.join(", ")]);
    }
    for host in elsewhere {
        // Where the pool is there, nobody here knows; where it is here, whoever shares it tells.
        let here = hosts.iter().flat_map(|host| &host.pools);
        let paths: BTreeSet<String> =
            here.filter(|pool| host.pools.contains(&pool.id)).map(|pool| pool.path.display().to_string()).collect();
        let agent = host.address.as_ref().map_or_else(|| "elsewhere".to_owned(), |address| format!("at {address}"));
        let pools = paths.into_iter().collect::<Vec<_>>().join(", ");
        table.row([host.name.to_string(), agent, lease(Some(host.standing)), host.guests.to_string(), pools]);
    }
    table
}
