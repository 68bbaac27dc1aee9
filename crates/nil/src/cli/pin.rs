//! `nil pin`: declare memory of a guest that must not move, see what is declared, take it back.

use super::moving::host_of;
use super::range::parse_address;
use super::{Output, Table};
use anyhow::Result;
use clap::{Args, Subcommand};
use nil_host::{GuestName, GuestRange, PinMemory, PinReport};
use nil_pool::Bytes;
use serde::Serialize;
use std::fmt;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Declare memory pinned: it stays where it is. In DRAM, a migration waits for it; in the pool, it does not come into
    /// DRAM, and goes along to other hosts.
    #[command(
        after_help = "Example:\n  nil pin add guest --at 0x40000000 --size 64K --owner vfio-pci --reason \"DMA ring\""
    )]
    Add(AddArgs),
    /// List what is pinned, and the parts that were pulled back and are held.
    #[command(after_help = "Example:\n  nil pin list guest")]
    List {
        /// The guest: its name or its id.
        guest: String,
    },
    /// End a pin.
    #[command(after_help = "Example:\n  nil pin release guest p0.1")]
    Release {
        /// The guest: its name or its id.
        guest: String,
        /// The pin, as `nil pin list` shows it.
        pin: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// The guest: its name or its id.
    guest: String,
    /// The guest-physical address of its first byte.
    #[arg(long, value_parser = parse_address, value_name = "ADDRESS")]
    at: u64,
    /// How much.
    #[arg(long)]
    size: Bytes,
    /// Who needs it where it is.
    #[arg(long, value_name = "TEXT")]
    owner: String,
    /// What for.
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

pub(crate) fn run(command: Command, output: Output) -> Result<ExitCode> {
    match command {
        Command::Add(args) => {
            let (mut host, guest) = host_of(&args.guest)?;
            let range = GuestRange { address: args.at, bytes: args.size.get() };
            let pin = host.pin(&PinMemory { guest, range, owner: args.owner, reason: args.reason })?;
            output.print(&Pinned { pin })?;
        }
        Command::List { guest } => {
            let (mut host, guest) = host_of(&guest)?;
            let pins = host.pins(&guest)?;
            output.print(&Pins { guest, pins })?;
        }
        Command::Release { guest, pin } => {
            let (mut host, guest) = host_of(&guest)?;
            host.release_pin(&guest, &pin)?;
            output.print(&Released { guest, released: pin })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Serialize)]
struct Pinned {
    pin: PinReport,
}

impl fmt::Display for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.pin.id)
    }
}

#[derive(Debug, Serialize)]
struct Pins {
    guest: GuestName,
    pins: Vec<PinReport>,
}

impl fmt::Display for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pins.is_empty() {
            return writeln!(f, "nothing of guest {}'s memory is pinned", self.guest);
        }
        let mut table = Table::new(["PIN", "MEMORY", "HOST", "OWNER", "REASON"]);
        for PinReport { id, range, owner, reason, host } in &self.pins {
            let host = host.clone().unwrap_or_else(|| "-".to_owned());
            table.row([id.clone(), range.to_string(), host, owner.clone(), reason.clone()]);
        }
        write!(f, "{table}")
    }
}

#[derive(Debug, Serialize)]
struct Released {
    guest: GuestName,
    released: String,
}

impl fmt::Display for Released {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pin {} of guest {} is released", self.released, self.guest)
    }
}
