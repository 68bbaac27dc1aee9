//! `nil capacity`: add, release and list tagged capacity.

mod answering;
pub(super) mod stripes;

use super::{Output, Table, duration};
use answering::AnswerArgs;
use anyhow::{Context, Result};
use nil_pool::{
    AbsentPools, Access, Answer, Bytes, CapacityInfo, CapacityRequest, Class, Coherence, Composition, Error, GRANULE,
    HostId, Membership, Pool, Stripe, Tag, Whole,
};
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;
use stripes::StripeChoice;

/// Add, release and list tagged capacity in a pool.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum CapacityCommand {
    /// Reserve memory in a pool under a tag.
    #[command(after_help = "Examples:
  nil capacity add /dev/shm/pool --class private --size 64M
  nil capacity add /dev/shm/pool --class shared --tag new --size 1G --hosts a,b
  nil capacity add /dev/shm/pool --class shared --tag new --size 8G --stripe /dev/dax0.0:2 --stripe /dev/dax1.0")]
    Add(AddArgs),
    /// Give a capacity back. One that hosts or guests use is refused, asked for, or taken away.
    #[command(after_help = "Examples:
  nil capacity release /dev/shm/pool 6f9619ff-8b86-4d01-b42d-00cf4fc964ff
  nil capacity release /dev/dax0.0 6f9619ff-8b86-4d01-b42d-00cf4fc964ff --ask
  nil capacity release /dev/dax0.0 6f9619ff-8b86-4d01-b42d-00cf4fc964ff --force
  nil capacity release /dev/shm/pool 6f9619ff-8b86-4d01-b42d-00cf4fc964ff --pool /dev/dax0.0 --pool /dev/dax1.0")]
    Release(ReleaseArgs),
    /// Have a host accept capacity that is offered to it, where its agent is told to ask.
    #[command(after_help = "Example:\n  nil capacity accept 6f9619ff-8b86-4d01-b42d-00cf4fc964ff --host A")]
    Accept(AnswerArgs),
    /// Have a host refuse capacity that is offered to it. It may be accepted later.
    #[command(after_help = "Example:\n  nil capacity refuse 6f9619ff-8b86-4d01-b42d-00cf4fc964ff --host A")]
    Refuse(AnswerArgs),
    /// Show one capacity, and what each host has answered to the offer of it.
    #[command(after_help = "Example:\n  nil capacity show /dev/shm/pool 6f9619ff-8b86-4d01-b42d-00cf4fc964ff")]
    Show(ShowArgs),
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
    /// How the caches of its hosts agree: by `hardware`, which guests need, or by `software`.
    #[arg(long, default_value = "hardware")]
    coherence: Coherence,
    /// A multiple of 2M, such as 64M or 1G.
    #[arg(long)]
    size: Bytes,
    /// A pool over which to spread it, given once for each. In every round it takes its weight times the granularity;
    /// let the weights be as the bandwidths. POOL keeps the record, and takes a part only if it is named here, too.
    #[arg(long, value_name = "PATH[:WEIGHT]")]
    stripe: Vec<StripeChoice>,
    /// How much a stripe of weight 1 takes in every round: a multiple of 2M.
    #[arg(long, default_value = "2M", requires = "stripe")]
    granularity: Bytes,
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
    #[arg(value_name = "POOL")]
    home: PathBuf,
    /// The capacity's tag.
    tag: Tag,
    /// If it is used, ask for it: agents move guests out and let go of it, and the last one releases it.
    #[arg(long, conflicts_with = "withdraw")]
    ask: bool,
    /// Take it away from whoever uses it. A guest that has its memory there is stopped first, for good.
    #[arg(long, conflicts_with_all = ["withdraw", "ask"])]
    force: bool,
    /// How long the host of such a guest may take to answer.
    #[arg(long, default_value = "10s", requires = "force", value_parser = duration::parse)]
    patience: Duration,
    /// Take back that it was asked for.
    #[arg(long)]
    withdraw: bool,
    /// Another pool that the capacity is striped over, or that has what this is a stripe of.
    #[arg(long, value_name = "PATH")]
    pool: Vec<PathBuf>,
    /// Take pools that it needs and that were not given for gone for good.
    #[arg(long)]
    without_absent: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
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
            Self::Accept(args) => answering::accept(&args, output)?,
            Self::Refuse(args) => answering::refuse(&args, output)?,
            Self::Show(args) => {
                let pool = Pool::open(&args.pool, Access::ReadOnly)?;
                let found = pool.find_capacity(args.tag).ok_or(Error::NoCapacity { tag: args.tag })?;
                output.print(&Shown(CapacityLine::of(&pool, found)))?;
            }
            Self::List(args) => {
                let pool = Pool::open(&args.pool, Access::ReadOnly)?;
                output.print(&Listing { capacities: lines(&pool) })?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn add(args: AddArgs, output: Output) -> Result<()> {
    let bytes = args.size.get();
    anyhow::ensure!(
        bytes.is_multiple_of(GRANULE),
        "{} is not a multiple of 2 MiB, in which capacity is given out; take {}",
        args.size,
        Bytes(bytes.checked_next_multiple_of(GRANULE).unwrap_or(bytes / GRANULE * GRANULE)),
    );
    let membership = stripes::join(&args.pool)?;
    let access = args.hosts.iter().map(|host| find_host(membership.pool(), host)).collect::<Result<_>>()?;
    let tag = args.tag.map(|choice| match choice {
        TagChoice::New => Tag::random(),
        TagChoice::Given(tag) => tag,
    });
    let AddArgs { class, coherence, label, .. } = args;
    let request = CapacityRequest { tag, class, coherence, bytes, access, label };
    let added = if args.stripe.is_empty() {
        membership.add_capacity(&request)?
    } else {
        let (others, stripe) = stripes::plan(&membership, &args.stripe, args.granularity.get())?;
        let added = membership.add_striped_capacity(&request, &stripe, &others.iter().collect::<Vec<_>>())?;
        stripes::leave(others)?;
        added
    };
    let line = CapacityLine::of(membership.pool(), added);
    membership.leave()?;
    output.print(&Added(line))
}

fn find_host(pool: &Pool, name: &str) -> Result<HostId> {
    let known = pool.find_host(name).map(|host| host.id);
    // A host that has not joined yet can be named by its UUID.
    known
        .or_else(|| name.parse().ok())
        .with_context(|| format!("there is no host '{name}' in this pool; name one that has joined, or give its UUID"))
}

fn release(args: &ReleaseArgs, output: Output) -> Result<()> {
    let membership = stripes::join(&args.home)?;
    let others = stripes::join_others(&membership, args.pool.iter())?;
    let outcome = release_or_ask(args, &membership, &others.iter().collect::<Vec<_>>())?;
    stripes::leave(others)?;
    membership.leave()?;
    output.print(&outcome)
}

fn release_or_ask(args: &ReleaseArgs, membership: &Membership, others: &[&Membership]) -> Result<ReleaseOutcome> {
    let tag = args.tag;
    if args.withdraw {
        membership.withdraw_release(tag)?;
        return Ok(ReleaseOutcome::Withdrawn { withdrawn: tag });
    }
    let absent = if args.without_absent { AbsentPools::TakeAsGone } else { AbsentPools::Refuse };
    if args.force {
        let taken = membership.force_release(tag, others, absent, args.patience)?;
        return Ok(ReleaseOutcome::Taken { taken: tag, from: taken.guest });
    }
    match membership.release_capacity_with(tag, others, absent) {
        Ok(()) => Ok(ReleaseOutcome::Released { released: tag }),
        // Only memory can be moved out of the way.
        Err(Error::CapacityInUse { guest, .. }) if !is_memory_of(membership.pool(), &guest, tag) => anyhow::bail!(
            "capacity {tag} has the state of guest '{guest}', which cannot be elsewhere while the guest lives; `nil vm \
             stop {guest}` gives it back"
        ),
        Err(Error::CapacityInUse { guest, .. }) if args.ask => {
            membership.ask_release(tag)?;
            Ok(ReleaseOutcome::Asked { asked: tag, used_by: Some(guest) })
        }
        Err(Error::CapacityInUse { guest, .. }) => anyhow::bail!(
            "capacity {tag} has memory of guest '{guest}'; with --ask the agent of the guest's host moves it out, and \
             releases it"
        ),
        Err(Error::CapacityAccepted { hosts, .. }) if args.ask => {
            membership.ask_release(tag)?;
            Ok(ReleaseOutcome::AskedOf { asked: tag, held_by: hosts })
        }
        // A stripe is asked for, and the whole is released.
        Err(Error::LegInUse { .. } | Error::WholeNotAtHand { .. }) if args.ask => {
            membership.ask_release(tag)?;
            Ok(ReleaseOutcome::Asked { asked: tag, used_by: None })
        }
        Err(refused) => Err(refused.into()),
    }
}

/// Whether a capacity that a guest uses is that of its memory.
fn is_memory_of(pool: &Pool, guest: &str, tag: Tag) -> bool {
    pool.guests().iter().any(|found| found.name == guest && found.memory == tag)
}

/// One capacity, for people and programs.
#[derive(Debug, Serialize)]
pub(super) struct CapacityLine {
    slot: String,
    tag: Tag,
    class: Class,
    coherence: Coherence,
    bytes: u64,
    extents: Vec<nil_pool::Extent>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stripe: Option<Stripe>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stripe_of: Option<Whole>,
    hosts: Vec<HostId>,
    access: Vec<AccessLine>,
    label: String,
    used_by: Option<String>,
    release_asked: bool,
    /// The host that takes it away from the guest that uses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    demanded_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<String>,
}

/// A host on the access list, and what it has answered.
#[derive(Debug, Serialize)]
struct AccessLine {
    host: HostId,
    /// Its name; `None` when it is not in the pool.
    name: Option<String>,
    answer: Answer,
}

impl CapacityLine {
    fn of(pool: &Pool, info: CapacityInfo) -> Self {
        let named = |id: HostId| pool.find_host(&id.to_string()).map(|host| host.name);
        let answered = info.access.iter().zip(&info.answers);
        let line = |(host, answer): (&HostId, &Answer)| AccessLine { host: *host, name: named(*host), answer: *answer };
        let listed = answered.map(line).collect();
        let demanded_by = info.demanded.as_ref().and_then(|demanded| pool.host(demanded.by)).map(|host| host.name);
        let CapacityInfo { slot, tag, class, coherence, bytes, access, extents, label, damage, release_asked, .. } =
            info;
        let (stripe, stripe_of) = match info.composition {
            Composition::Plain => (None, None),
            Composition::LegOf(whole) => (None, Some(whole)),
            Composition::Striped(stripe) => (Some(stripe), None),
        };
        Self {
            slot: slot.to_string(),
            tag,
            class,
            coherence,
            bytes,
            extents,
            stripe,
            stripe_of,
            hosts: access,
            access: listed,
            label,
            used_by: info.user,
            release_asked,
            demanded_by,
            damage,
        }
    }
}

impl CapacityLine {
    /// Whose it may be, and how many of them have accepted.
    fn access(&self) -> String {
        let count = |answer| self.access.iter().filter(|line| line.answer == answer).count();
        match (self.access.len(), count(Answer::Offered)) {
            (0, _) => "all".to_owned(),
            (listed, 0) => format!("{} of {listed}", count(Answer::Accepted)),
            (listed, open) => format!("{} of {listed} ({open} open)", count(Answer::Accepted)),
        }
    }

    /// How many pieces it lies in.
    fn pieces(&self) -> String {
        match &self.stripe {
            Some(stripe) if stripe.legs.len() == 1 => "1 stripe".to_owned(),
            Some(stripe) => format!("{} stripes", stripe.legs.len()),
            None => self.extents.len().to_string(),
        }
    }

    /// What needs it.
    fn user(&self) -> String {
        let user = match (&self.used_by, self.stripe_of) {
            (Some(guest), _) => guest.clone(),
            (None, Some(whole)) => format!("stripe of {}", whole.tag),
            (None, None) => "-".to_owned(),
        };
        match (&self.demanded_by, self.release_asked) {
            (Some(_), _) => format!("{user} (being taken away)"),
            (None, true) => format!("{user} (asked for)"),
            (None, false) => user,
        }
    }
}

/// All capacities of a pool.
pub(super) fn lines(pool: &Pool) -> Vec<CapacityLine> {
    pool.capacities().into_iter().map(|info| CapacityLine::of(pool, info)).collect()
}

/// Capacities in columns.
pub(super) fn table(lines: &[CapacityLine]) -> Table<8> {
    let mut table = Table::new(["TAG", "CLASS", "COHERENCE", "SIZE", "PIECES", "HOSTS", "USED BY", "LABEL"]);
    for line in lines {
        let label = line.damage.as_ref().map_or(line.label.clone(), |damage| format!("damaged: {damage}"));
        table.row([
            line.tag.to_string(),
            line.class.to_string(),
            line.coherence.to_string(),
            Bytes(line.bytes).to_string(),
            line.pieces(),
            line.access(),
            line.user(),
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

/// One capacity by itself.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Shown(CapacityLine);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(line) = self;
        write!(f, "{}", table(std::slice::from_ref(line)))?;
        if line.access.is_empty() {
            return writeln!(f, "\nevery host may use it, and none is asked");
        }
        let mut hosts = Table::new(["HOST", "UUID", "ANSWER"]);
        for AccessLine { host, name, answer } in &line.access {
            let name = name.clone().unwrap_or_else(|| "(not in the pool)".to_owned());
            hosts.row([name, host.to_string(), answer.to_string()]);
        }
        write!(f, "\n{hosts}")?;
        let open = line.access.iter().filter(|line| line.answer == Answer::Offered);
        for name in open.filter_map(|line| line.name.as_ref()) {
            writeln!(
                f,
                "{name} has not answered; `nil capacity accept {} --host {name}`, or `refuse`, does",
                line.tag
            )?;
        }
        Ok(())
    }
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Added(CapacityLine);

impl fmt::Display for Added {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(added) = self;
        write!(f, "added {} of {} capacity, tag {}", Bytes(added.bytes), added.class, added.tag)?;
        if let Some(stripe) = &added.stripe {
            write!(f, ", over {} pools", stripe.legs.len())?;
        }
        match added.access.len() {
            0 => writeln!(f),
            1 => writeln!(f, "; it is offered to 1 host"),
            hosts => writeln!(f, "; it is offered to {hosts} hosts"),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum ReleaseOutcome {
    Released { released: Tag },
    Asked { asked: Tag, used_by: Option<String> },
    AskedOf { asked: Tag, held_by: String },
    Taken { taken: Tag, from: Option<String> },
    Withdrawn { withdrawn: Tag },
}

impl fmt::Display for ReleaseOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Released { released } => writeln!(f, "released {released}"),
            Self::Asked { asked, used_by: Some(guest) } => writeln!(f, "asked for {asked}, which guest '{guest}' uses"),
            Self::Asked { asked, used_by: None } => {
                writeln!(f, "asked for {asked}, which is a stripe of another capacity")
            }
            Self::AskedOf { asked, held_by } => {
                writeln!(f, "asked for {asked}; it is released when {held_by} have let go of it")
            }
            Self::Taken { taken, from: Some(guest) } => {
                writeln!(f, "released {taken}; guest '{guest}', which had its memory there, was stopped and is lost")
            }
            Self::Taken { taken, from: None } => writeln!(f, "released {taken}; no guest had memory there"),
            Self::Withdrawn { withdrawn } => writeln!(f, "{withdrawn} is no longer asked for"),
        }
    }
}
