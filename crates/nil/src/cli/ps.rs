//! `nil ps`: guests, and the hosts below them.

mod columns;

use super::{Output, host};
use anyhow::Result;
use columns::{Choice, Column};
use nil_host::{RunDir, Survey};
use serde::Serialize;
use std::fmt;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil ps
  nil ps -o wide
  nil ps -o name,host,memory-in,worker
  nil ps --json")]
pub(crate) struct Args {
    /// Which columns to show of guests: `wide` for all, or their names with commas between. JSON has everything anyway.
    #[arg(short = 'o', long, value_name = "COLUMNS", long_help = columns::help())]
    output: Option<Choice>,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let survey = Survey::take(&RunDir::from_environment())?;
    output.print(&Listing { survey, choice: args.output.clone().unwrap_or_default() })?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Serialize)]
struct Listing {
    #[serde(flatten)]
    survey: Survey,
    #[serde(skip)]
    choice: Choice,
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Survey { guests, hosts, elsewhere } = &self.survey;
        if hosts.is_empty() {
            return writeln!(f, "no guests and no hosts; start a host with `nil host run --name A --pool PATH`");
        }
        if guests.is_empty() {
            writeln!(f, "no guests; start one with `nil vm run IMAGE --pool PATH --name NAME`")?;
        } else {
            columns::write_guests(f, guests, &self.choice)?;
        }
        if matches!(self.choice, Choice::These(_)) {
            return Ok(());
        }
        for guest in guests {
            if let Some(protection) = &guest.protection {
                writeln!(f, "{}: protection {protection}", guest.name)?;
            }
        }
        if !self.choice.columns().contains(&Column::Detail) {
            for guest in guests {
                if let Some(detail) = &guest.detail {
                    writeln!(f, "{}: {detail}", guest.name)?;
                }
            }
        }
        write!(f, "\n{}{}", host::table(hosts, elsewhere), host::losses(hosts))
    }
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
    use crate::cli::top::scene;

    fn listing(columns: Option<&str>) -> String {
        let choice = columns.map(|columns| columns.parse().expect("known columns")).unwrap_or_default();
        Listing { survey: scene::rack().survey, choice }.to_string()
    }

    #[test]
    fn ages_are_shown_in_their_two_largest_units() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (61, "1m 1s"), (3660, "1h 1m"), (90_000, "1d 1h")] {
            assert_eq!(age(seconds), text);
        }
    }

    #[test]
    fn without_a_choice_guests_stand_above_their_details_and_the_hosts() {
        insta::assert_snapshot!(listing(None));
    }

    #[test]
    fn wide_shows_every_column() {
        insta::assert_snapshot!(listing(Some("wide")));
    }

    #[test]
    fn chosen_columns_are_all_that_is_shown_in_the_order_in_which_they_were_named() {
        insta::assert_snapshot!(listing(Some("host,name,moving")), @r"
        HOST  GUEST    MOVING
        C     lost     -
        C     pinned   0 B/s
        A     roamer   768 MiB/s
        A     rover    -
        B     settler  256 MiB/s
        ");
    }

    #[test]
    fn programs_are_told_of_guests_and_hosts_whatever_the_columns() {
        let listing = Listing { survey: scene::rack().survey, choice: "name".parse().expect("a column") };
        let told = serde_json::to_value(listing).expect("JSON");
        assert_eq!(
            (told["guests"].as_array().map(Vec::len), told["hosts"].as_array().map(Vec::len)),
            (Some(5), Some(3))
        );
    }
}
