//! `nil worker`: the process of one guest. Agents start it.

mod violation;

use super::output::{LogTo, log_to};
use anyhow::{Context, Result};
use nil_host::{GuestName, HostName, RunDir, SandboxMode, WorkerOptions, WorkerSandbox, run_worker};
use nil_pool::{GuestId, GuestSlot, HostSlot};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run directory.
    #[arg(long)]
    run_dir: PathBuf,
    /// The host that it works for.
    #[arg(long)]
    host: HostName,
    /// That host's slot in the pool.
    #[arg(long)]
    host_slot: u16,
    /// The pool.
    #[arg(long)]
    pool: PathBuf,
    /// Another pool that the host has joined.
    #[arg(long, value_name = "PATH")]
    companion: Vec<PathBuf>,
    /// The guest's name.
    #[arg(long)]
    guest: GuestName,
    /// The guest's slot in the pool.
    #[arg(long)]
    guest_slot: u16,
    /// The guest's identity.
    #[arg(long)]
    guest_id: GuestId,
    /// How it is confined.
    #[arg(long)]
    sandbox: SandboxMode,
    /// What it may read.
    #[arg(long, value_name = "PATH")]
    readable: Vec<PathBuf>,
    /// A control group to enter.
    #[arg(long, value_name = "PATH")]
    cgroup: Vec<PathBuf>,
    /// A limit that could not be set.
    #[arg(long, value_name = "SENTENCE")]
    lacks: Vec<String>,
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    log_to(LogTo::Stderr)?;
    violation::name_if_asked();
    let options = WorkerOptions {
        host: RunDir::at(args.run_dir).host(&args.host),
        host_slot: HostSlot::new(args.host_slot).context("a host slot has 12 bits")?,
        pool: args.pool,
        companions: args.companion,
        guest_slot: GuestSlot(args.guest_slot),
        guest_id: args.guest_id,
        guest: args.guest,
        sandbox: WorkerSandbox { mode: args.sandbox, readable: args.readable, groups: args.cgroup, lacks: args.lacks },
    };
    run_worker(&options, builtin_image)?;
    Ok(ExitCode::SUCCESS)
}

/// The bytes of a built-in image.
pub(super) fn builtin_image(name: &str) -> Option<Vec<u8>> {
    crate::images::builtin(name).map(<[u8]>::to_vec)
}
