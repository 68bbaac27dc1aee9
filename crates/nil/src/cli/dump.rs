//! `nil vm dump`: what is left of a guest, for a debugger.

use super::Output;
use anyhow::{Context, Result, bail};
use nil_host::{RunDir, Survey};
use nil_pool::{Access, Bytes, Ownership, Pool};
use nil_vmm::{CoreReport, write_core};
use serde::Serialize;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The guest: its name or its id.
    guest: String,
    /// The ELF core file to write, which gdb and crash can open. It must not be there yet.
    #[arg(long, value_name = "FILE")]
    core: PathBuf,
    /// The pool that has the guest; needed when no agent runs that could be asked.
    #[arg(long, value_name = "PATH")]
    pool: Option<PathBuf>,
}

pub(super) fn run(args: &Args, run_dir: &RunDir, output: Output) -> Result<()> {
    let (path, guest) = match &args.pool {
        Some(pool) => (pool.clone(), args.guest.clone()),
        None => {
            let survey = Survey::take(run_dir)?;
            let guest = survey.guest(&args.guest).context("if its host is dead, say which pool has it, with --pool")?;
            (guest.pool.clone(), guest.id.to_string())
        }
    };
    let report = dump(&path, &guest, &args.core)?;
    output.print(&Dumped { guest: args.guest.clone(), core: args.core.clone(), report })
}

fn dump(pool: &Path, guest: &str, core: &Path) -> Result<CoreReport> {
    let pool = Pool::open(pool, Access::ReadWrite)?;
    let found =
        pool.find_guest(guest).with_context(|| format!("there is no guest {guest} in {}", pool.path().display()))?;
    let word = found.ownership.context("its ownership word is damaged; see `nil pool check`")?;
    if let Ownership::Owned { .. } | Ownership::Offered { .. } = word {
        bail!(
            "guest {guest} is {word}: its host runs it, or nobody has fenced that yet (`nil takeover`); what would be written is no one moment of it"
        );
    }
    // In the name of its last host, which was permitted to have its memory.
    let pool = match word.hosts()[0] {
        Some(host) => pool.on_behalf_of(host)?,
        None => pool,
    };
    let control = pool.guest(found.slot, found.id)?;
    let file = OpenOptions::new().write(true).create_new(true).open(core);
    let file = file.with_context(|| format!("cannot make {}", core.display()))?;
    let mut out = BufWriter::new(file);
    let report = write_core(&control, &mut out)?;
    out.flush().with_context(|| format!("cannot write {}", core.display()))?;
    Ok(report)
}

#[derive(Debug, Serialize)]
struct Dumped {
    guest: String,
    core: PathBuf,
    #[serde(flatten)]
    report: CoreReport,
}

impl fmt::Display for Dumped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CoreReport { memory_bytes, missing_bytes, vcpus, state_epoch } = self.report;
        write!(f, "{}: {} of memory", self.core.display(), Bytes(memory_bytes))?;
        if missing_bytes > 0 {
            write!(f, " ({} died with their host's DRAM)", Bytes(missing_bytes))?;
        }
        match state_epoch {
            Some(epoch) => writeln!(f, ", {vcpus} vCPUs as they last came to the pool, at epoch {epoch}"),
            None => writeln!(f, ", no state of its vCPUs is left"),
        }
    }
}
