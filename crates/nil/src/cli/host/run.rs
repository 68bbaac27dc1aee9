//! `nil host run`: be a host.

use super::service;
use crate::cli::Output;
use crate::cli::cpu;
use crate::cli::output::{LogTo, log_to};
use anyhow::{Context, Result, bail};
use nil_host::{
    Acceptance, Agent, AgentOptions, Farewell, GuestName, GuestsAtStop, HostConfig, HostName, LeaseConfig, Listen,
    LogConfig, NotStopped, PeerConfig, PoolRef, RunDir, SandboxMode, Takeover, WorkerConfig,
};
use nil_pool::{Bytes, LeaseTerms};
use nil_vmm::CpuModel;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

/// What a shell reports for a process that Ctrl-C has killed.
const INTERRUPTED: i32 = 130;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A configuration; what the other options say overrules it. `nil host config example` shows one.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The host's name. An agent that is started again under its name finds its guests again.
    #[arg(long, required_unless_present = "config")]
    name: Option<HostName>,
    /// A pool to join: the path of a file or device that `nil pool create` has formatted, or the pool's UUID. May be given
    /// several times.
    #[arg(long = "pool", required_unless_present = "config", value_name = "PATH|UUID")]
    pools: Vec<PoolRef>,
    /// How capacity is taken that is offered to this host: always, or ask (a person answers, by `nil capacity accept`).
    #[arg(long, value_name = "HOW")]
    accept: Option<Acceptance>,
    /// Stop all guests when the agent stops, and free their memory.
    #[arg(long)]
    stop_guests: bool,
    /// Move no more than so many bytes of guests' memory per second, all guests together. Moves share it fairly.
    #[arg(long, value_name = "SIZE")]
    move_bandwidth: Option<Bytes>,
    /// Offer guests no more of the CPU than this model has: `x86-64-v1` to `x86-64-v4`, or a file of `nil cpu baseline`.
    #[arg(long, value_name = "MODEL")]
    cpu_limit: Option<String>,
    /// How the processes that run guests are confined: on (as far as this machine can), required (wholly, or not started) or off.
    #[arg(long, value_name = "MODE")]
    sandbox: Option<SandboxMode>,
    /// Say in every pool that this host lives, once in so many milliseconds.
    #[arg(long, value_name = "MS")]
    lease_interval: Option<u16>,
    /// Let other hosts take this one for dead when it has not said so for this many milliseconds: at least three intervals.
    #[arg(long, value_name = "MS")]
    lease_expiry: Option<u32>,
    /// What to do about other hosts that may be taken for dead: auto (fence them and take their guests), ask (say so, and wait
    /// for `nil takeover`) or never.
    #[arg(long, value_name = "MODE")]
    takeover: Option<Takeover>,
    /// Run this program, and wait for it to succeed, before anything is taken from a host: it takes the host's access to
    /// memory away. It finds NIL_FENCE_HOST and the like in its environment.
    #[arg(long, value_name = "PROGRAM")]
    fence_command: Option<PathBuf>,
}

/// The command line and the configuration together.
struct Settings {
    name: HostName,
    pools: Vec<PoolRef>,
    search: Vec<PathBuf>,
    accept: Acceptance,
    move_bandwidth: Option<u64>,
    cpu_limit: Option<CpuModel>,
    workers: WorkerConfig,
    lease: LeaseConfig,
    listen: Listen,
    peers: Vec<PeerConfig>,
    log: LogConfig,
    at_stop: GuestsAtStop,
}

impl Settings {
    fn options(self) -> AgentOptions {
        AgentOptions {
            dir: RunDir::from_environment().host(&self.name),
            pools: self.pools,
            search: self.search,
            accept: self.accept,
            move_bandwidth: self.move_bandwidth,
            listen: self.listen,
            peers: self.peers,
            cpu_limit: self.cpu_limit,
            workers: self.workers,
            lease: self.lease,
        }
    }

    fn of(args: Args) -> Result<Self> {
        let config = args.config.as_deref().map(HostConfig::read).transpose()?.unwrap_or_default();
        let name = args.name.or(config.name).context("the configuration has no `name`; add one, or give --name")?;
        let pools = if args.pools.is_empty() { config.pools } else { args.pools };
        if pools.is_empty() {
            bail!("the configuration has no `pools`; add one, or give --pool");
        }
        let terms = match (args.lease_interval, args.lease_expiry) {
            (None, None) => config.lease.terms,
            (interval, None) => LeaseTerms::with_defaults(interval, None)?,
            (None, expiry) => LeaseTerms::with_defaults(Some(config.lease.terms.interval_ms()), expiry)
                .or_else(|_| LeaseTerms::with_defaults(None, expiry))?,
            (interval, expiry) => LeaseTerms::with_defaults(interval, expiry)?,
        };
        let lease = LeaseConfig {
            terms,
            takeover: args.takeover.unwrap_or(config.lease.takeover),
            fence_command: args.fence_command.or(config.lease.fence_command),
        };
        Ok(Self {
            name,
            pools,
            search: config.search,
            accept: args.accept.or(config.accept).unwrap_or_default(),
            lease,
            move_bandwidth: args.move_bandwidth.map(Bytes::get).or(config.move_bandwidth),
            workers: WorkerConfig { sandbox: args.sandbox.unwrap_or(config.worker.sandbox), ..config.worker },
            cpu_limit: args.cpu_limit.or(config.cpu_limit).as_deref().map(cpu::limit).transpose()?,
            listen: config.listen,
            peers: config.peers,
            log: config.log,
            at_stop: if args.stop_guests { GuestsAtStop::Stop } else { GuestsAtStop::RunOn },
        })
    }
}

pub(crate) fn run(args: Args, output: Output) -> Result<ExitCode> {
    let settings = Settings::of(args)?;
    log_to(LogTo::Configured(settings.log))?;
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot wait for Ctrl-C")?;
    let (name, at_stop) = (settings.name.clone(), settings.at_stop);
    let agent = Agent::start(&settings.options())?;
    output.print(&Up { host: name.clone(), introduction: agent.introduction(), guests: agent.guests() })?;
    service::tell(&format!("READY=1\nSTATUS={}", agent.introduction()));

    signals.forever().next();
    service::tell("STOPPING=1");
    output.progress("stopping; Ctrl-C again to stop at once");
    std::thread::spawn(move || {
        signals.forever().next();
        std::process::exit(INTERRUPTED);
    });
    let farewell = agent.stop(at_stop)?;
    let exit = if farewell.not_stopped.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    output.print(&Down { host: name, farewell })?;
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
