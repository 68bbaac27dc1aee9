//! `nil pool`: make pools, look at them, check them, find them.

use super::{Output, Table};
use anyhow::Result;
use nil_pool::{
    Access, Bytes, CheckReport, Coherence, CreateOptions, Finding, HostInfo, Liveness, Pool, Severity, Usage,
};
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Where pools usually lie.
const USUAL_PLACES: [&str; 4] = ["/dev/shm", "/dev/hugepages", "/mnt", "/dev"];
/// How deep directories are searched.
const DEPTH: usize = 2;

/// Make, inspect, check and find pools.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum PoolCommand {
    /// Format a file or device as a pool.
    #[command(after_help = "Examples:
  nil pool create /dev/shm/pool --size 4G
  nil pool create /dev/dax0.0 --label rack-3")]
    Create(CreateArgs),
    /// Show what is in a pool: sizes, hosts, capacities, guests.
    #[command(after_help = "Example:\n  nil pool inspect /dev/shm/pool")]
    Inspect(InspectArgs),
    /// Find every inconsistency in a pool; exit with 1 if something is wrong.
    #[command(after_help = "Examples:
  nil pool check /dev/shm/pool
  nil pool check /dev/shm/pool --repair
  nil pool check /dev/shm/pool --pool /dev/dax0.0 --pool /dev/dax1.0")]
    Check(CheckArgs),
    /// Find pools.
    #[command(after_help = "Examples:\n  nil pool list\n  nil pool list /srv/pools /dev/dax0.0")]
    List(ListArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    /// A file (made if it is not there) or a /dev/dax device.
    path: PathBuf,
    /// Size of a new file, a multiple of 2M such as 64M, 4G or 1T. What is there already has its own.
    #[arg(long)]
    size: Option<Bytes>,
    /// Overwrite what is there. All of it is lost.
    #[arg(long)]
    force: bool,
    /// A few words for people.
    #[arg(long, default_value = "")]
    label: String,
    /// How the caches of its hosts agree: hardware, or software, where nil writes back and drops lines by itself.
    #[arg(long, default_value_t = Coherence::Hardware)]
    coherence: Coherence,
}

#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// The pool.
    path: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// The pool.
    path: PathBuf,
    /// Mend what can be mended without guessing.
    #[arg(long)]
    repair: bool,
    /// Another pool that capacities are striped over; it is looked at only for its parts of them.
    #[arg(long, value_name = "PATH")]
    pool: Vec<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Directories, files and devices to look at [default: /dev/shm /dev/hugepages /mnt /dev/dax*].
    places: Vec<PathBuf>,
}

impl PoolCommand {
    /// Runs the command; the exit status is 1 when a check found something that is (still) wrong.
    pub(crate) fn run(self, json: bool) -> Result<ExitCode> {
        let output = if json { Output::Json } else { Output::Text };
        match self {
            Self::Create(args) => create(args, output),
            Self::Inspect(args) => inspect(&args, output),
            Self::Check(args) => check(&args, output),
            Self::List(args) => list(args, output),
        }
    }
}

fn create(args: CreateArgs, output: Output) -> Result<ExitCode> {
    let CreateArgs { path, size, force, label, coherence } = args;
    let options = CreateOptions { size: size.map(Bytes::get), force, label, coherence };
    let pool = Pool::create(&path, &options)?;
    output.print(&Summary::of(&pool))?;
    Ok(ExitCode::SUCCESS)
}

fn inspect(args: &InspectArgs, output: Output) -> Result<ExitCode> {
    let pool = Pool::open(&args.path, Access::ReadOnly)?;
    output.print(&Inspection::of(&pool))?;
    Ok(ExitCode::SUCCESS)
}

fn check(args: &CheckArgs, output: Output) -> Result<ExitCode> {
    let access = if args.repair { Access::ReadWrite } else { Access::ReadOnly };
    let pool = Pool::open(&args.path, access)?;
    for other in &args.pool {
        pool.add_companion(&Pool::open(other, Access::ReadOnly)?);
    }
    anyhow::ensure!(
        !args.repair || pool.coherence() == Coherence::Hardware,
        "{} has software coherence, where only its hosts change its tables: leave --repair out, and let a host that has \
         died come back or be fenced",
        args.path.display()
    );
    let report = pool.check(args.repair);
    let clean = report.is_clean();
    output.print(&Checked { clean, report })?;
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn list(args: ListArgs, output: Output) -> Result<ExitCode> {
    let usual = args.places.is_empty();
    let places = if usual { USUAL_PLACES.map(PathBuf::from).to_vec() } else { args.places };
    let mut pools = Vec::new();
    for place in &places {
        if !usual && !place.exists() {
            anyhow::bail!("there is no {}", place.display());
        }
        // Of /dev itself only the dax devices are looked at.
        let depth = if usual && place == Path::new("/dev") { 1 } else { DEPTH };
        find_pools(place, depth, &mut pools);
    }
    pools.sort_by(|a: &Summary, b| a.path.cmp(&b.path));
    pools.dedup_by(|a, b| a.path == b.path);
    output.print(&Found { pools })?;
    Ok(ExitCode::SUCCESS)
}

/// Collects the pools at `place` and, when it is a directory, below it. What cannot be read is no pool of ours.
fn find_pools(place: &Path, depth: usize, pools: &mut Vec<Summary>) {
    let Ok(metadata) = place.metadata() else { return };
    if !metadata.is_dir() {
        pools.extend(Pool::open(place, Access::ReadOnly).ok().map(|pool| Summary::of(&pool)));
        return;
    }
    let Ok(entries) = place.read_dir() else { return };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        let dax = entry.file_name().to_string_lossy().starts_with("dax");
        if (kind.is_dir() && depth > 1) || (kind.is_file() && place != Path::new("/dev")) || (!kind.is_dir() && dax) {
            find_pools(&entry.path(), depth - 1, pools);
        }
    }
}

/// One pool in a few words.
#[derive(Debug, Serialize)]
struct Summary {
    path: PathBuf,
    id: nil_pool::PoolId,
    label: String,
    version: u32,
    #[serde(flatten)]
    usage: Usage,
}

impl Summary {
    fn of(pool: &Pool) -> Self {
        let header = pool.header();
        Self {
            path: pool.path().to_owned(),
            id: pool.id(),
            label: header.label,
            version: header.version,
            usage: pool.usage(),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Usage { total, tables, free, hosts, capacities, guests, .. } = self.usage;
        writeln!(f, "pool {} at {}", self.id, self.path.display())?;
        if !self.label.is_empty() {
            writeln!(f, "  label   {}", self.label)?;
        }
        writeln!(f, "  size    {}, {} free, {} tables", Bytes(total), Bytes(free), Bytes(tables))?;
        writeln!(f, "  holds   {hosts} hosts, {capacities} capacities, {guests} guests")
    }
}

#[derive(Debug, Serialize)]
struct Found {
    pools: Vec<Summary>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pools.is_empty() {
            return writeln!(f, "no pools found; make one with `nil pool create /dev/shm/pool --size 4G`");
        }
        let mut table = Table::new(["PATH", "POOL", "SIZE", "FREE", "GUESTS", "LABEL"]);
        for pool in &self.pools {
            let size = |bytes| Bytes(bytes).to_string();
            table.row([
                pool.path.display().to_string(),
                pool.id.to_string(),
                size(pool.usage.total),
                size(pool.usage.free),
                pool.usage.guests.to_string(),
                pool.label.clone(),
            ]);
        }
        write!(f, "{table}")
    }
}

/// All that is in a pool.
#[derive(Debug, Serialize)]
struct Inspection {
    #[serde(flatten)]
    summary: Summary,
    created_ns: u64,
    compat: u64,
    ro_compat: u64,
    incompat: u64,
    host_list: Vec<HostLine>,
    capacity_list: Vec<super::capacity::CapacityLine>,
    guest_list: Vec<GuestLine>,
}

#[derive(Debug, Serialize)]
struct HostLine {
    slot: String,
    name: String,
    id: nil_pool::HostId,
    kind: nil_pool::HostKind,
    incarnation: u64,
    lease: u64,
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<nil_pool::HostAddress>,
    cordoned: bool,
    liveness: Liveness,
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<String>,
}

#[derive(Debug, Serialize)]
struct GuestLine {
    slot: String,
    name: String,
    id: nil_pool::GuestId,
    memory_bytes: u64,
    vcpus: u32,
    ownership: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<String>,
}

impl Inspection {
    fn of(pool: &Pool) -> Self {
        let header = pool.header();
        Self {
            summary: Summary::of(pool),
            created_ns: header.created,
            compat: header.compat,
            ro_compat: header.ro_compat,
            incompat: header.incompat,
            host_list: pool.hosts().into_iter().map(HostLine::from).collect(),
            capacity_list: super::capacity::lines(pool),
            guest_list: pool.guests().into_iter().map(GuestLine::from).collect(),
        }
    }
}

impl From<HostInfo> for HostLine {
    fn from(host: HostInfo) -> Self {
        let HostInfo { slot, name, id, kind, incarnation, lease, pid, address, cordoned, liveness, damage, .. } = host;
        Self { slot: slot.to_string(), name, id, kind, incarnation, lease, pid, address, cordoned, liveness, damage }
    }
}

impl From<nil_pool::GuestInfo> for GuestLine {
    fn from(guest: nil_pool::GuestInfo) -> Self {
        let ownership = guest.ownership.map_or_else(|| "damaged".to_owned(), |ownership| ownership.to_string());
        let nil_pool::GuestInfo { slot, name, id, memory_bytes, vcpus, damage, .. } = guest;
        Self { slot: slot.to_string(), name, id, memory_bytes, vcpus, ownership, damage }
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.summary)?;
        let or =
            |text: &str, damage: &Option<String>| damage.as_ref().map_or(text.to_owned(), |d| format!("damaged: {d}"));
        if !self.host_list.is_empty() {
            let mut table = Table::new(["HOST", "NAME", "KIND", "PID", "LEASE", "ADDRESS", "STATE"]);
            for host in &self.host_list {
                let cordoned = if host.cordoned { ", cordoned" } else { "" };
                table.row([
                    host.slot.clone(),
                    host.name.clone(),
                    format!("{:?}", host.kind).to_lowercase(),
                    host.pid.to_string(),
                    host.lease.to_string(),
                    host.address.as_ref().map_or("-".to_owned(), ToString::to_string),
                    or(&(format!("{:?}", host.liveness).to_lowercase() + cordoned), &host.damage),
                ]);
            }
            write!(f, "\n{table}")?;
        }
        if !self.capacity_list.is_empty() {
            write!(f, "\n{}", super::capacity::table(&self.capacity_list))?;
        }
        if !self.guest_list.is_empty() {
            let mut table = Table::new(["GUEST", "NAME", "MEMORY", "VCPUS", "STATE"]);
            for guest in &self.guest_list {
                table.row([
                    guest.slot.clone(),
                    guest.name.clone(),
                    Bytes(guest.memory_bytes).to_string(),
                    guest.vcpus.to_string(),
                    or(&guest.ownership, &guest.damage),
                ]);
            }
            write!(f, "\n{table}")?;
        }
        Ok(())
    }
}

#[derive(Debug, Serialize)]
struct Checked {
    clean: bool,
    #[serde(flatten)]
    report: CheckReport,
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { severity, place, what, repaired, remedy } in &self.report.findings {
            let severity = match severity {
                Severity::Note => "note",
                Severity::Warning => "warning",
                Severity::Error => "ERROR",
            };
            writeln!(f, "{severity}: {place}: {what}")?;
            writeln!(f, "    {}", if *repaired { "repaired" } else { remedy })?;
        }
        writeln!(f, "{}", if self.clean { "the pool is sound" } else { "the pool is NOT sound" })
    }
}
