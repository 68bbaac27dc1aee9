//! `nil tag`: find memory by its tag.

use super::{Output, Table};
use anyhow::Result;
use nil_host::{RunDir, TagPlace, TagSearch};
use nil_pool::{Bytes, Tag};
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

/// Find memory by its tag.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum TagCommand {
    /// Say where the memory with a tag is on this machine: in a pool, on a device, in a file.
    #[command(after_help = "Examples:
  nil tag resolve 6f9619ff-8b86-4d01-b42d-00cf4fc964ff
  nil tag resolve 6f9619ff-8b86-4d01-b42d-00cf4fc964ff --search /mnt/famfs --json")]
    Resolve(ResolveArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct ResolveArgs {
    /// The tag: the UUID of a capacity, of a pool, of a device's dynamic capacity, or in the name of a file.
    tag: Tag,
    /// A directory with pools or with files that are named after tags; it is searched two levels deep. May be given several
    /// times [default: /dev/shm].
    #[arg(long, value_name = "DIR")]
    search: Vec<PathBuf>,
    /// Look at a recorded tree instead of this machine's devices: a directory in which `sys` lies.
    #[arg(long, value_name = "ROOT")]
    sysfs: Option<PathBuf>,
}

pub(crate) fn run(command: TagCommand, output: Output) -> Result<ExitCode> {
    let TagCommand::Resolve(ResolveArgs { tag, search, sysfs }) = command;
    let search = match sysfs {
        // A recorded tree tells of another machine, whose agents are not here.
        Some(root) => TagSearch::of_a_recording(root, search),
        None => TagSearch::of_this_machine(&RunDir::from_environment(), search),
    };
    let place = search.resolve(tag)?;
    output.print(&Resolved { tag, place })?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Serialize)]
struct Resolved {
    tag: Tag,
    #[serde(flatten)]
    place: TagPlace,
}

impl fmt::Display for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tag, place } = self;
        writeln!(f, "{tag} is {place}")?;
        for evidence in &place.evidence {
            writeln!(f, "  by {evidence}")?;
        }
        if place.stretches.len() < 2 && place.stretches.first().is_none_or(|stretch| stretch.offset == 0) {
            return Ok(());
        }
        let mut table = Table::new(["IN", "FROM", "SIZE"]);
        for stretch in &place.stretches {
            let at = format!("{:#x}", stretch.offset);
            table.row([stretch.path.display().to_string(), at, Bytes(stretch.bytes).to_string()]);
        }
        write!(f, "\n{table}")
    }
}
