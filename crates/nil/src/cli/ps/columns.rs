//! The columns that `nil ps` can show of a guest.

use super::age;
use crate::cli::table::write_aligned;
use clap::ValueEnum;
use nil_host::{GuestReport, MemoryReport, ProtectionReport};
use nil_pool::Bytes;
use std::fmt;
use std::str::FromStr;

/// Something about a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Column {
    Name,
    Kind,
    Host,
    State,
    Memory,
    MemoryIn,
    Vcpus,
    Cpu,
    Epoch,
    Uptime,
    Pool,
    Worker,
    Sandbox,
    Protection,
    Moving,
    Id,
    Detail,
}

/// Which columns are shown.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) enum Choice {
    /// Those that fit a terminal.
    #[default]
    Usual,
    /// All of them.
    Wide,
    /// These, and nothing else.
    These(Vec<Column>),
}

/// What of a guest is shown when nothing is asked for.
const USUAL: &[Column] = &[
    Column::Name,
    Column::Kind,
    Column::Host,
    Column::State,
    Column::Memory,
    Column::MemoryIn,
    Column::Vcpus,
    Column::Epoch,
    Column::Uptime,
];

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "wide" {
            return Ok(Self::Wide);
        }
        let column = |name: &str| {
            Column::from_str(name.trim(), true)
                .map_err(|_| format!("there is no column `{}`; there are: wide, {}", name.trim(), names().join(", ")))
        };
        text.split(',').map(column).collect::<Result<_, _>>().map(Self::These)
    }
}

impl Choice {
    pub(super) fn columns(&self) -> &[Column] {
        match self {
            Self::Usual => USUAL,
            Self::Wide => Column::value_variants(),
            Self::These(columns) => columns,
        }
    }
}

impl Column {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn heading(self) -> String {
        match self {
            Self::Name => "GUEST".to_owned(),
            other => other.name().to_uppercase().replace('-', " "),
        }
    }

    fn of(self, guest: &GuestReport) -> String {
        let text = match self {
            Self::Name => Some(guest.name.clone()),
            Self::Kind => Some(format!("{:?}", guest.kind).to_lowercase()),
            Self::Host => guest.host.clone(),
            Self::State => Some(guest.state.to_string()),
            Self::Memory => Some(Bytes(guest.memory_bytes).to_string()),
            Self::MemoryIn => guest.memory.as_ref().map(whereabouts),
            Self::Vcpus => Some(guest.vcpus.to_string()),
            Self::Cpu => guest.cpu_model.as_ref().map(ToString::to_string),
            Self::Epoch => guest.epoch.map(|epoch| epoch.to_string()),
            Self::Uptime => guest.uptime_s.map(age),
            Self::Pool => Some(guest.pool.display().to_string()),
            Self::Worker => guest.worker_pid.map(|pid| pid.to_string()),
            Self::Sandbox => guest.sandbox.as_ref().map(ToString::to_string),
            Self::Protection => guest.protection.as_ref().map(ProtectionReport::brief),
            Self::Moving => guest.moving.as_ref().map(|moving| format!("{}/s", Bytes(moving.bytes_per_s))),
            Self::Id => Some(guest.id.to_string()),
            Self::Detail => guest.detail.clone(),
        };
        text.unwrap_or_else(|| "-".to_owned())
    }
}

/// The guests in columns.
pub(super) fn write_guests(f: &mut fmt::Formatter<'_>, guests: &[GuestReport], choice: &Choice) -> fmt::Result {
    let columns = choice.columns();
    let heading = columns.iter().map(|column| column.heading()).collect();
    let rows = guests.iter().map(|guest| columns.iter().map(|column| column.of(guest)).collect());
    let rows: Vec<Vec<String>> = std::iter::once(heading).chain(rows).collect();
    write_aligned(f, &rows)
}

/// What to say of the option.
pub(super) fn help() -> String {
    format!(
        "Which columns to show of guests: `wide` for all, or their names with commas between. JSON has everything \
         anyway.\n\nThere are: {}",
        names().join(", ")
    )
}

fn names() -> Vec<String> {
    Column::value_variants().iter().map(|column| column.name()).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_named_by_their_names_and_an_unknown_one_is_answered_with_those_that_there_are() {
        assert_eq!("wide".parse(), Ok(Choice::Wide));
        assert_eq!("name, memory-in".parse(), Ok(Choice::These(vec![Column::Name, Column::MemoryIn])));
        let error = "name,size".parse::<Choice>().expect_err("no such column");
        assert!(error.contains("`size`") && error.contains("memory-in, vcpus"), "{error}");
        assert!("".parse::<Choice>().is_err());
    }
}
