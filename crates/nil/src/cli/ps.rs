//! `nil ps`: guests, and the hosts below them.

use super::{Output, host, table::Table};
use anyhow::Result;
use nil_host::{GuestReport, MemoryReport, RunDir, Survey};
use nil_pool::Bytes;
use serde::Serialize;
use std::fmt;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  nil ps\n  nil ps --json")]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args, output: Output) -> Result<ExitCode> {
    let survey = Survey::take(&RunDir::from_environment())?;
    output.print(&Listing(survey))?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Listing(Survey);

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Survey { guests, hosts } = &self.0;
        if hosts.is_empty() {
            return writeln!(f, "no guests and no hosts; start a host with `nil host run --name A --pool PATH`");
        }
        if guests.is_empty() {
            writeln!(f, "no guests; start one with `nil vm run IMAGE --pool PATH --name NAME`")?;
        } else {
            write!(f, "{}", guest_table(guests))?;
        }
        for guest in guests {
            if let Some(detail) = &guest.detail {
                writeln!(f, "{}: {detail}", guest.name)?;
            }
        }
        write!(f, "\n{}", host::table(hosts))
    }
}

fn guest_table(guests: &[GuestReport]) -> Table<9> {
    let mut table = Table::new(["GUEST", "KIND", "HOST", "STATE", "MEMORY", "MEMORY IN", "VCPUS", "EPOCH", "UPTIME"]);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for guest in guests {
        table.row([
            guest.name.clone(),
            format!("{:?}", guest.kind).to_lowercase(),
            or_dash(guest.host.clone()),
            guest.state.to_string(),
            Bytes(guest.memory_bytes).to_string(),
            or_dash(guest.memory.as_ref().map(whereabouts)),
            guest.vcpus.to_string(),
            or_dash(guest.epoch.map(|epoch| epoch.to_string())),
            or_dash(guest.uptime_s.map(age)),
        ]);
    }
    table
}

/// Where a guest's memory is, and how much keeps it there.
fn whereabouts(memory: &MemoryReport) -> String {
    let count = |number: usize, thing: &str| match number {
        0 => String::new(),
        1 => format!(", 1 {thing}"),
        _ => format!(", {number} {thing}s"),
    };
    format!("{memory}{}{}", count(memory.pins, "pin"), count(memory.holds, "hold"))
}

/// A number of seconds in its two largest units.
pub(super) fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m {}s", seconds % 60),
        3600..86400 => format!("{hours}h {}m", minutes % 60),
        86400.. => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_shown_in_their_two_largest_units() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (61, "1m 1s"), (3660, "1h 1m"), (90_000, "1d 1h")] {
            assert_eq!(age(seconds), text);
        }
    }
}
