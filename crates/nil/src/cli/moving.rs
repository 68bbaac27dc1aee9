//! What `nil decouple` and `nil recouple` have in common: finding the guest's host, showing how far it is, the report.

use super::move_report::MoveTable;
use super::progress::Shown;
use super::{Output, Table};
use anyhow::Result;
use nil_host::{Client, GuestName, MemoryMoved, MoveMemory, RunDir, Survey};
use nil_mover::{Direction, MoveOutcome};
use serde::Serialize;
use std::fmt;
use std::process::ExitCode;

/// Moves the memory of a guest, and shows how.
pub(super) fn run(guest: &str, order: impl FnOnce(GuestName) -> MoveMemory, output: Output) -> Result<ExitCode> {
    let (mut host, guest) = host_of(guest)?;
    let order = order(guest);
    let verb = order.direction.verb();
    let mut shown = Shown::new(output, &format!("nil {verb} {} --cancel", order.guest));
    let moved = host.move_memory(&order, |progress| shown.show(progress))?;
    let done = moved.moved.as_ref().is_none_or(|report| report.outcome == MoveOutcome::Done);
    output.print(&Report(moved))?;
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Calls a move off, and waits until everything is where it was.
pub(super) fn cancel(guest: &str, direction: Direction, output: Output) -> Result<ExitCode> {
    let (mut host, guest) = host_of(guest)?;
    let state = host.cancel_move(&guest, direction)?;
    output.print(&CalledOff { called_off: direction.verb().to_owned(), guest, state })?;
    Ok(ExitCode::SUCCESS)
}

/// The agent that is responsible for a guest, and the guest's name there.
pub(super) fn host_of(guest: &str) -> Result<(Client, GuestName)> {
    let run_dir = RunDir::from_environment();
    let survey = Survey::take(&run_dir)?;
    let guest = survey.guest(guest)?;
    let host = survey.host_of(guest)?;
    Ok((Client::connect(&run_dir.host(&host))?, guest.name.parse()?))
}

/// Something was called off.
#[derive(Debug, Serialize)]
pub(super) struct CalledOff {
    pub(super) called_off: String,
    pub(super) guest: GuestName,
    pub(super) state: String,
}

impl fmt::Display for CalledOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} called off: {}", self.called_off, self.state)
    }
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Report(MemoryMoved);

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MemoryMoved { guest, host, moved, moved_back, memory, remarks } = &self.0;
        if let Some(moved) = moved {
            let how = match &moved.outcome {
                MoveOutcome::Done => format!("{guest} on {host}: {}d", moved.direction.verb()),
                MoveOutcome::Cancelled => format!("{guest} on {host}: called off; what had moved went back"),
                MoveOutcome::Stalled(stall) => {
                    format!("{guest} on {host}: waited in vain, what had moved went back: {stall}")
                }
            };
            writeln!(f, "{how}")?;
            write!(f, "{}", MoveTable(moved))?;
        }
        if let Some(back) = moved_back {
            writeln!(f, "moved back:")?;
            write!(f, "{}", MoveTable(back))?;
        }
        for remark in remarks {
            writeln!(f, "{remark}")?;
        }
        writeln!(f, "memory of {guest} is in: {memory}")
    }
}

/// Two columns, indented: names and values.
pub(super) fn facts(f: &mut fmt::Formatter<'_>, facts: Vec<(&str, String)>) -> fmt::Result {
    let mut rows = facts.into_iter();
    let Some((name, value)) = rows.next() else { return Ok(()) };
    let mut table = Table::new(["", name, &value]);
    for (name, value) in rows {
        table.row([String::new(), name.to_owned(), value]);
    }
    write!(f, "{table}")
}
