//! `nil capacity`: add, release and list tagged capacity.

use super::{Output, Table};
use anyhow::{Context, Result};
use nil_pool::{
    Access, Bytes, CapacityInfo, CapacityRequest, Class, Coherence, GRANULE, HostId, HostIdentity, Membership, Pool,
    Tag,
};
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

/// Add, release and list tagged capacity in a pool.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum CapacityCommand {
    /// Reserve memory in a pool under a tag.
    #[command(after_help = "Examples:
  nil capacity add /dev/shm/pool --class private --size 64M
  nil capacity add /dev/shm/pool --class shared --tag new --size 1G --hosts a,b")]
    Add(AddArgs),
    /// Give a capacity back. One that a guest uses is refused.
    #[command(after_help = "Example:\n  nil capacity release /dev/shm/pool 6f9619ff-8b86-4d01-b42d-00cf4fc964ff")]
    Release(ReleaseArgs),
    /// List a pool's capacities.
    #[command(after_help = "Example:\n  nil capacity list /dev/shm/pool --json")]
    List(ListArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct AddArgs {
    /// The pool.
    pool: PathBuf,
    /// A UUID, or `new` for a random one. Shared capacity must have one.
    #[arg(long)]
    tag: Option<TagChoice>,
    /// `private` for one host at a time, `shared` for several at once.
    #[arg(long)]
    class: Class,
    /// A multiple of 2M, such as 64M or 1G.
    #[arg(long)]
    size: Bytes,
    /// The hosts that may use it, by name or UUID; all if left out.
    #[arg(long, value_delimiter = ',')]
    hosts: Vec<String>,
    /// A few words for people.
    #[arg(long, default_value = "")]
    label: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ReleaseArgs {
    /// The pool.
    pool: PathBuf,
    /// The capacity's tag.
    tag: Tag,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// The pool.
    pool: PathBuf,
}

/// `--tag`: a given tag or a new one.
#[derive(Clone, Copy, Debug)]
enum TagChoice {
    New,
    Given(Tag),
}

impl FromStr for TagChoice {
    type Err = nil_pool::BadUuid;

    fn from_str(text: &str) -> Result<Self, nil_pool::BadUuid> {
        if text == "new" { Ok(Self::New) } else { text.parse().map(Self::Given) }
    }
}

impl CapacityCommand {
    /// Runs the command.
    pub(crate) fn run(self, json: bool) -> Result<ExitCode> {
        let output = if json { Output::Json } else { Output::Text };
        match self {
            Self::Add(args) => add(args, output)?,
            Self::Release(args) => release(&args, output)?,
            Self::List(args) => {
                let pool = Pool::open(&args.pool, Access::ReadOnly)?;
                output.print(&Listing { capacities: lines(&pool) })?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn join(path: &Path) -> Result<Membership> {
    Ok(Pool::open(path, Access::ReadWrite)?.join(&HostIdentity::tool())?)
}

fn add(args: AddArgs, output: Output) -> Result<()> {
    let bytes = args.size.get();
    anyhow::ensure!(
        bytes.is_multiple_of(GRANULE),
        "{} is not a multiple of 2 MiB, in which capacity is given out; take {}",
        args.size,
        Bytes(bytes.checked_next_multiple_of(GRANULE).unwrap_or(bytes / GRANULE * GRANULE)),
    );
    let membership = join(&args.pool)?;
    let access = args.hosts.iter().map(|host| find_host(membership.pool(), host)).collect::<Result<_>>()?;
    let tag = args.tag.map(|choice| match choice {
        TagChoice::New => Tag::random(),
        TagChoice::Given(tag) => tag,
    });
    let request =
        CapacityRequest { tag, class: args.class, coherence: Coherence::Hardware, bytes, access, label: args.label };
    let added = membership.add_capacity(&request)?;
    membership.leave()?;
    output.print(&Added(CapacityLine::from(added)))
}

fn find_host(pool: &Pool, name: &str) -> Result<HostId> {
    let known = pool.find_host(name).map(|host| host.id);
    // A host that has not joined yet can be named by its UUID.
    known
        .or_else(|| name.parse().ok())
        .with_context(|| format!("there is no host '{name}' in this pool; name one that has joined, or give its UUID"))
}

fn release(args: &ReleaseArgs, output: Output) -> Result<()> {
    let membership = join(&args.pool)?;
    membership.release_capacity(args.tag)?;
    membership.leave()?;
    output.print(&Released { released: args.tag })
}

/// One capacity, for people and programs.
#[derive(Debug, Serialize)]
pub(super) struct CapacityLine {
    slot: String,
    tag: Tag,
    class: Class,
    bytes: u64,
    extents: Vec<nil_pool::Extent>,
    hosts: Vec<HostId>,
    label: String,
    used_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<String>,
}

impl From<CapacityInfo> for CapacityLine {
    fn from(info: CapacityInfo) -> Self {
        let CapacityInfo { slot, tag, class, bytes, access, extents, label, user, damage, .. } = info;
        Self { slot: slot.to_string(), tag, class, bytes, extents, hosts: access, label, used_by: user, damage }
    }
}

/// All capacities of a pool.
pub(super) fn lines(pool: &Pool) -> Vec<CapacityLine> {
    pool.capacities().into_iter().map(CapacityLine::from).collect()
}

/// Capacities in columns.
pub(super) fn table(lines: &[CapacityLine]) -> Table<6> {
    let mut table = Table::new(["TAG", "CLASS", "SIZE", "PIECES", "USED BY", "LABEL"]);
    for line in lines {
        let label = line.damage.as_ref().map_or(line.label.clone(), |damage| format!("damaged: {damage}"));
        table.row([
            line.tag.to_string(),
            line.class.to_string(),
            Bytes(line.bytes).to_string(),
            line.extents.len().to_string(),
            line.used_by.clone().unwrap_or_else(|| "-".to_owned()),
            label,
        ]);
    }
    table
}

#[derive(Debug, Serialize)]
struct Listing {
    capacities: Vec<CapacityLine>,
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.capacities.is_empty() {
            return writeln!(f, "no capacity; add some with `nil capacity add POOL --class private --size 64M`");
        }
        write!(f, "{}", table(&self.capacities))
    }
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Added(CapacityLine);

impl fmt::Display for Added {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "added {} of {} capacity, tag {}", Bytes(self.0.bytes), self.0.class, self.0.tag)
    }
}

#[derive(Debug, Serialize)]
struct Released {
    released: Tag,
}

impl fmt::Display for Released {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "released {}", self.released)
    }
}
