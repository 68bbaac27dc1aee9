//! `nil worker`: the process of one guest. Agents start it.

use anyhow::{Context, Result};
use nil_host::{GuestName, HostName, RunDir, WorkerOptions, run_worker};
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
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    super::output::log_to_stderr();
    let options = WorkerOptions {
        host: RunDir::at(args.run_dir).host(&args.host),
        host_slot: HostSlot::new(args.host_slot).context("a host slot has 12 bits")?,
        pool: args.pool,
        companions: args.companion,
        guest_slot: GuestSlot(args.guest_slot),
        guest_id: args.guest_id,
        guest: args.guest,
    };
    run_worker(&options, builtin_image)?;
    Ok(ExitCode::SUCCESS)
}

/// The bytes of a built-in image.
pub(super) fn builtin_image(name: &str) -> Option<Vec<u8>> {
    crate::images::builtin(name).map(<[u8]>::to_vec)
}
