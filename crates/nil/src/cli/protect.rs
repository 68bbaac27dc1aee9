//! `nil protect`, `nil unprotect`: commits of a running guest, to which another host can bring it back.

use super::moving::host_of;
use super::{Output, duration};
use anyhow::Result;
use nil_host::{GuestName, GuestReport, ProtectGuest};
use nil_pool::{Bytes, OutputRule};
use serde::Serialize;
use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil protect guest
  nil protect guest --interval 10ms --output hold
  nil unprotect guest

What it costs is measured by `nil bench protect`.")]
pub(crate) struct Args {
    /// The guest: its name or its id. It runs in its host's DRAM; if it is in the pool, it comes there.
    guest: String,
    /// How long from one commit to the next: what the guest does in that time is undone when its host dies.
    #[arg(long, default_value = "25ms", value_parser = duration::parse_some, value_name = "TIME")]
    interval: Duration,
    /// What becomes of its output before the commit that follows it.
    #[arg(long, value_enum, default_value_t = OutputArg::Pass, value_name = "RULE")]
    output: OutputArg,
    /// Room for what one interval changes, twice this much; an eighth of the guest's memory, if left out, and 64M at least.
    #[arg(long, value_name = "SIZE")]
    log: Option<Bytes>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  nil unprotect guest")]
pub(crate) struct UnprotectArgs {
    /// The guest: its name or its id.
    guest: String,
}

/// What becomes of output before the commit that follows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum OutputArg {
    /// It goes out at once; after a takeover the guest may say it again, or otherwise.
    Pass,
    /// It is held until then: the outside never sees what is undone.
    Hold,
}

impl OutputArg {
    pub(crate) fn rule(self) -> OutputRule {
        match self {
            Self::Pass => OutputRule::Pass,
            Self::Hold => OutputRule::Hold,
        }
    }
}

pub(crate) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let (mut host, guest) = host_of(&args.guest)?;
    let log_bytes = args.log.map(Bytes::get);
    output.print(&Protected(host.protect(&order(guest, args.interval, args.output, log_bytes))?))?;
    Ok(ExitCode::SUCCESS)
}

/// The order to protect a guest.
pub(crate) fn order(guest: GuestName, interval: Duration, output: OutputArg, log_bytes: Option<u64>) -> ProtectGuest {
    let interval_us = duration::micros(interval);
    ProtectGuest { guest, interval_us, output: output.rule(), log_bytes }
}

pub(crate) fn unprotect(args: &UnprotectArgs, output: Output) -> Result<ExitCode> {
    let (mut host, guest) = host_of(&args.guest)?;
    host.unprotect(&guest)?;
    output.print(&Unprotected { unprotected: guest })?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Protected(GuestReport);

impl fmt::Display for Protected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GuestReport { name, .. } = &self.0;
        writeln!(f, "guest {name} is protected as soon as its memory has been copied; `nil ps` shows how that goes")
    }
}

#[derive(Debug, Serialize)]
struct Unprotected {
    unprotected: GuestName,
}

impl fmt::Display for Unprotected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "guest {} is not protected any more", self.unprotected)
    }
}
