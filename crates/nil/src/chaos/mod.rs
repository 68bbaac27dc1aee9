//! `nil chaos`: everything that can happen to hosts happens, by chance, and nothing may come of it that must not.
//!
//! ```text
//! hosts, guests ─▶ round: acts, drawn from the seed, at once ─▶ all hosts up, all at rest ─▶ judge ─▶ boot what is lost ─▶ …
//!                    │                                                                       ▲
//!                    └── all the time: ears (what the outside sees), watch (leases, fences, ownership words) ──┘
//! ```
//!
//! | module   | holds                                                       |
//! |----------|-------------------------------------------------------------|
//! | `plan`   | what is done in a round, drawn from seed and number alone    |
//! | `deeds`  | doing it                                                    |
//! | `fate`   | what may become of a guest whose host was struck             |
//! | `ears`   | what the outside hears of the guests, and tells the others   |
//! | `watch`  | what is looked at all the time                              |
//! | `calm`   | what must hold when everything is at rest                   |
//! | `report` | what it all came to                                         |

mod calm;
mod deeds;
mod ears;
mod fate;
mod plan;
mod report;
mod watch;

use crate::cli::{Output, OutputArg, duration};
use crate::lab::chronicle::Chronicle;
use crate::lab::dice::Dice;
use crate::lab::fleet::{Fleet, FleetPlan, Site};
use crate::lab::frequency::Frequency;
use crate::lab::interrupt::{self, Interrupted};
use crate::lab::keeper;
use crate::lab::lock::lock;
use crate::lab::prey::Prey;
use crate::lab::progress::Progress;
use crate::lab::resident::Resident;
use anyhow::{Context, ensure};
use calm::{Judge, Matter};
use deeds::Stage;
use ears::Ears;
use fate::Fate;
use nil_guest_abi::Options;
use nil_host::{MemoryIn, Takeover};
use nil_pool::{Bytes, GRANULE, LeaseTerms};
use plan::{Mix, Plan, Scope};
use report::{Report, Violation};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use watch::Watch;

/// Rounds that are played unless something else is said.
const ROUNDS: u64 = 20;
/// The smallest guest that has something to verify beside its image.
const SMALLEST_GUEST: u64 = 6 << 20;
/// Room in the pool for the commits of a guest, beside their image.
const COMMITS: u64 = 24 << 20;
/// Turns of a guest's loop after which it counts aloud: some twenty times a second.
const SAY: u64 = 64;
/// After which time without a round's end the run is given up.
const HANG: Duration = Duration::from_secs(300);
/// How often a line tells how things stand, at least.
const TELL: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil chaos
  nil chaos --seed 1 --minutes 10
  nil chaos --seed 7 --rounds 50 --hosts 5 --guests 12 --output pass --json
  nil chaos --mix deaths --lease 20ms --takeovers 1000

A seed does the same again, in the same order, but not at the same instants: how processes are scheduled between two steps is
not repeated.")]
pub(crate) struct Args {
    /// What chance depends on.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Ends after so many minutes.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    minutes: Option<u64>,
    /// Ends after so many rounds; after 20, unless another end is named.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rounds: Option<u64>,
    /// Ends when so many guests have gone on at another host.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    takeovers: Option<u64>,
    /// What chance chooses from.
    #[arg(long, value_enum, default_value = "all")]
    mix: Mix,
    /// Hosts, each a process of this machine.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(3..=16))]
    hosts: u16,
    /// Guests, three in four of them protected at first.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    guests: u16,
    /// What becomes of a protected guest's output before the commit that follows it.
    #[arg(long, default_value = "hold", value_enum, value_name = "RULE")]
    output: OutputArg,
    /// The memory of each guest.
    #[arg(long, default_value = "8M", value_name = "SIZE")]
    memory: Bytes,
    /// How often a host beats.
    #[arg(long, default_value = "50ms", value_parser = duration::parse_some, value_name = "TIME")]
    lease: Duration,
    /// For how long a lease may stand still.
    #[arg(long, default_value = "1500ms", value_parser = duration::parse_some, value_name = "TIME")]
    expiry: Duration,
    /// Where the pool is made; by default where nobody else sees it.
    #[arg(long, value_name = "DIR")]
    pool_dir: Option<PathBuf>,
    /// Leave the pool and the logs in place, in /dev/shm unless a place is named.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let memory = args.memory;
    ensure!(
        memory.get() >= SMALLEST_GUEST && memory.get().is_multiple_of(GRANULE),
        "a guest's memory comes in pieces of 2 MiB, three at least, and {memory} is not; try --memory 8M"
    );
    let terms = terms(args)?;
    let seed = args.seed.unwrap_or_else(crate::bench::seed_of_the_moment);
    interrupt::conclude(output, || campaign(args, terms, seed, output), Report::is_good)
}

fn terms(args: &Args) -> anyhow::Result<LeaseTerms> {
    let interval = u16::try_from(args.lease.as_millis()).context("--lease is at most a minute")?;
    let expiry = u32::try_from(args.expiry.as_millis()).context("--expiry is at most four hours")?;
    Ok(LeaseTerms::new(interval, expiry)?)
}

fn campaign(args: &Args, terms: LeaseTerms, seed: u64, output: Output) -> anyhow::Result<Report> {
    let (rounds, begun) =
        (args.rounds.or((args.minutes.or(args.takeovers)).is_none().then_some(ROUNDS)), Instant::now());
    let goal = args.takeovers.or(rounds).or(args.minutes.map(|minutes| minutes * 60)).unwrap_or(ROUNDS);
    let progress = Progress::new(output, goal);
    progress.doing(format!("seed {seed}: starting {} hosts", args.hosts));
    let plan = FleetPlan {
        hosts: args.hosts.into(),
        pools: 1,
        guests: args.guests.into(),
        memory_bytes: args.memory.get() + COMMITS,
    };
    let fleet = Fleet::build_at(&plan, &site(args), |directory| {
        (0..args.hosts).try_for_each(|host| configure(directory, &format!("h{host}"), terms, Takeover::Auto))
    })?;
    let mut campaign = Campaign {
        fleet: &fleet,
        args,
        terms,
        seed,
        rounds,
        begun,
        frequency: Frequency::measure(),
        guests: Vec::new(),
        judge: Judge::appoint(&fleet),
        ears: &Ears::new(args.guests.into(), args.output.rule()),
        watch: &Watch::new(terms.expiry()),
        chronicle: &Chronicle::begin(),
        fates: Mutex::default(),
        acts: Mutex::default(),
        takeover: Takeover::Auto,
        round: 0,
        boots: 0,
    };
    let played = campaign.play_watched(&progress);
    let violation = match played {
        Ok(()) => None,
        Err(error) if error.is::<Interrupted>() => return Err(error),
        Err(error) => Some(campaign.violation(&error)),
    };
    let kept = args.keep.then(|| keep_logs(&fleet)).transpose()?;
    let report = campaign.report(violation, kept);
    drop(campaign);
    require_nothing_left(fleet, report)
}

/// Ends all processes; none may be left, and no directory.
fn require_nothing_left(fleet: Fleet, mut report: Report) -> anyhow::Result<Report> {
    let (run_dir, hosts, directory) = (fleet.run_dir().clone(), fleet.hosts().to_vec(), fleet.directory().to_owned());
    drop(fleet);
    let processes = hosts.iter().flat_map(Prey::household).count();
    if processes > 0 || directory.exists() {
        let what = format!(
            "{processes} processes of {} are left, and {} is there",
            run_dir.path().display(),
            directory.display()
        );
        let (seed, round) = (report.seed, report.rounds);
        report.violations += 1;
        report.violation_details.push(Violation { seed, round, what, history: String::new(), logs: String::new() });
    }
    Ok(report)
}

fn site(args: &Args) -> Site {
    match &args.pool_dir {
        Some(path) => Site::Directory { path: path.clone(), kept: args.keep },
        None if args.keep => Site::Directory { path: "/dev/shm".into(), kept: true },
        None => Site::Private,
    }
}

/// What the agent of a host is to read when it is started.
fn configure(directory: &Path, host: &str, terms: LeaseTerms, takeover: Takeover) -> anyhow::Result<()> {
    let (interval, expiry, takeover) = (terms.interval_ms(), terms.expiry_ms(), takeover.as_str());
    let config = format!("[lease]\ninterval_ms = {interval}\nexpiry_ms = {expiry}\ntakeover = \"{takeover}\"\n");
    let path = keeper::host_config(directory, host);
    fs::write(&path, config).with_context(|| format!("cannot write {}", path.display()))
}

/// Copies what agents and workers have said to beside the pool; where that is.
fn keep_logs(fleet: &Fleet) -> anyhow::Result<String> {
    let pool = fleet.pools()[0].path();
    let to = pool.with_extension("logs");
    fs::create_dir_all(&to)?;
    for host in fleet.hosts() {
        let agent = keeper::host_log(fleet.directory(), host.name().as_str());
        let workers = fs::read_dir(host.workers()).into_iter().flatten().flatten().map(|entry| entry.path());
        for log in workers.chain([agent]).filter(|path| path.extension().is_some_and(|extension| extension == "log")) {
            let name = format!("{}-{}", host.name(), log.file_name().unwrap_or_default().to_string_lossy());
            fs::copy(&log, to.join(name))?;
        }
    }
    Ok(format!("{} and {}", pool.display(), to.display()))
}

/// A run, as far as it has come.
struct Campaign<'a> {
    fleet: &'a Fleet,
    args: &'a Args,
    terms: LeaseTerms,
    seed: u64,
    /// How many rounds to play, if that is said.
    rounds: Option<u64>,
    begun: Instant,
    frequency: Frequency,
    guests: Vec<Resident>,
    judge: Judge,
    ears: &'a Ears,
    watch: &'a Watch,
    chronicle: &'a Chronicle,
    fates: Mutex<Vec<Fate>>,
    acts: Mutex<BTreeMap<&'static str, u64>>,
    /// What agents do about dead hosts at present.
    takeover: Takeover,
    round: u64,
    boots: u64,
}

/// Lets those who listen, watch and wait come to their end, whatever happens.
struct Closing<'a>(&'a Ears, &'a Watch, &'a AtomicBool);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
        self.1.close();
        self.2.store(true, Ordering::Release);
    }
}

impl<'a> Campaign<'a> {
    fn play_watched(&mut self, progress: &Progress) -> anyhow::Result<()> {
        let (fleet, ears, watch, chronicle, seed) = (self.fleet, self.ears, self.watch, self.chronicle, self.seed);
        let (over, alive) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let _closing = Closing(ears, watch, &over);
            scope.spawn(|| ears.listen(fleet));
            scope.spawn(|| watch.keep(fleet));
            scope.spawn(|| give_up_when_it_hangs(chronicle, seed, &alive, &over));
            self.play(progress, &alive)
        })
    }

    /// The error is a violation, or an interruption.
    fn play(&mut self, progress: &Progress, alive: &AtomicU64) -> anyhow::Result<()> {
        let mut told = Instant::now();
        for guest in 0..usize::from(self.args.guests) {
            interrupt::check()?;
            progress.doing(format!("booting guest g{guest}"));
            let booted = self.boot(guest)?;
            self.guests.push(booted);
        }
        loop {
            alive.fetch_add(1, Ordering::AcqRel);
            self.judge_and_replace()?;
            if self.is_over() {
                break;
            }
            let story = format!(
                "round {}: {} guests have gone on elsewhere, {} were lost",
                self.round,
                self.judge.takeovers(),
                self.judge.lost
            );
            progress.reached(self.reached(), || story.clone());
            if told.elapsed() > TELL {
                told = Instant::now();
                progress.doing(story);
            }
            self.play_round()?;
        }
        progress.doing("stopping every guest");
        let guests = std::mem::take(&mut self.guests);
        for (index, guest) in guests.iter().enumerate() {
            self.watch.remove(guest.id());
            self.ears.speak_at(index, None);
        }
        let fates = Vec::new();
        let matter = self.matter(&fates);
        self.judge.conclude(&matter, &guests)?;
        ensure!(self.ears.heard().lines > 0, "nothing was heard of any guest");
        Ok(())
    }

    fn play_round(&mut self) -> anyhow::Result<()> {
        let scope = Scope { hosts: self.args.hosts.into(), guests: self.args.guests.into(), mix: self.args.mix };
        let plan = Plan::draw(self.seed, self.round, scope);
        self.chronicle.note(format!("round {}: takeover is {}", self.round, plan.takeover.as_str()));
        self.round += 1;
        self.treat_the_dead(plan.takeover)?;
        self.fates = Mutex::new(vec![Fate::default(); self.guests.len()]);
        let stage = Stage {
            fleet: self.fleet,
            guests: &self.guests,
            plan: &plan,
            output: self.args.output.rule(),
            expiry: self.terms.expiry(),
            watch: self.watch,
            chronicle: self.chronicle,
            fates: &self.fates,
            acts: &self.acts,
        };
        stage.play()
    }

    fn matter<'b>(&self, fates: &'b [Fate]) -> Matter<'b>
    where
        'a: 'b,
    {
        Matter { fleet: self.fleet, chronicle: self.chronicle, ears: self.ears, watch: self.watch, fates }
    }

    /// Judges what there is, and boots guests anew that were lost.
    fn judge_and_replace(&mut self) -> anyhow::Result<()> {
        let mut fates = lock(&self.fates).clone();
        fates.resize(self.guests.len(), Fate::default());
        let matter = self.matter(&fates);
        let lost = self.judge.judge(&matter, &mut self.guests)?;
        if lost.is_empty() {
            return Ok(());
        }
        for index in lost {
            self.watch.remove(self.guests[index].id());
            self.ears.end(index);
            self.guests[index] = self.boot(index)?;
        }
        fates.fill(Fate::default());
        let matter = self.matter(&fates);
        let lost = self.judge.judge(&matter, &mut self.guests)?;
        ensure!(lost.is_empty(), "guests are lost that have just been booted: {lost:?}");
        Ok(())
    }

    /// Boots a guest on a host of chance; three in four are protected.
    fn boot(&mut self, index: usize) -> anyhow::Result<Resident> {
        self.boots += 1;
        let mut dice = Dice::of_round(self.seed.rotate_left(32), self.boots);
        let host = dice.below(self.args.hosts.into());
        let host = usize::try_from(host)?;
        let memory_in = dice.pick([(1, MemoryIn::Pool), (1, MemoryIn::Dram)]);
        let (is_protected, interval) = (!dice.once_in(4), plan::interval(&mut dice));
        let (name, memory) = (format!("g{index}"), (self.args.memory.get(), memory_in));
        let options = Options { say: SAY, ..Options::default() };
        let guest = Resident::boot_with(self.fleet, (host, 0), &name, memory, self.frequency, options)?;
        self.chronicle
            .note(format!("guest {name}: is booted on h{host}, memory in {memory_in:?}, protected: {is_protected}"));
        self.ears.begin(index, guest.name(), guest.id(), self.boots);
        self.watch.add(&name, &guest.control());
        if is_protected {
            deeds::protect(self.fleet, &guest, interval, self.args.output.rule())
                .with_context(|| format!("guest {name}"))?;
        }
        Ok(guest)
    }

    /// Has all agents treat dead hosts like this from now on: they are started again, one after the other.
    fn treat_the_dead(&mut self, takeover: Takeover) -> anyhow::Result<()> {
        if takeover == self.takeover {
            return Ok(());
        }
        for (index, host) in self.fleet.hosts().iter().enumerate() {
            // Without guests a host is dead without its agent.
            self.watch.strike(host.name().as_str());
            configure(self.fleet.directory(), host.name().as_str(), self.terms, takeover)?;
            let household = Prey::household(host);
            let agent = household.first().context("a host has no agent")?;
            agent.kill();
            interrupt::wait_for("a killed agent is not dead", HANG, || Ok(agent.is_dead().then_some(())))?;
            self.fleet.bring_up(index)?;
        }
        self.chronicle.note(format!("agents: all were started again with takeover = {}", takeover.as_str()));
        self.takeover = takeover;
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.rounds.is_some_and(|rounds| self.round >= rounds)
            || self.args.takeovers.is_some_and(|takeovers| self.judge.takeovers() >= takeovers)
            || self.args.minutes.is_some_and(|minutes| self.begun.elapsed() >= Duration::from_secs(minutes * 60))
    }

    /// How much of the goal has been reached.
    fn reached(&self) -> u64 {
        match (self.args.takeovers, self.rounds) {
            (Some(_), _) => self.judge.takeovers(),
            (None, Some(_)) => self.round,
            (None, None) => self.begun.elapsed().as_secs(),
        }
    }

    fn violation(&self, error: &anyhow::Error) -> Violation {
        let what = format!("{error:#}");
        let history = self.chronicle.story(&what);
        Violation { seed: self.seed, round: self.round.saturating_sub(1), what, history, logs: self.fleet.logs() }
    }

    fn report(&self, violation: Option<Violation>, kept: Option<String>) -> Report {
        let heard = self.ears.heard();
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let violation_details: Vec<_> = violation.into_iter().collect();
        Report {
            seed: self.seed,
            hosts: self.args.hosts,
            guests: self.args.guests,
            memory_bytes: self.args.memory.get(),
            output: self.args.output.rule(),
            lease_ms: millis(self.terms.interval()),
            expiry_ms: millis(self.terms.expiry()),
            seconds: self.begun.elapsed().as_secs_f64(),
            rounds: self.round,
            acts: lock(&self.acts).clone(),
            takeovers: self.judge.takeovers.clone(),
            lost: self.judge.lost,
            boots: self.boots,
            verifications: self.judge.verifications,
            pool_checks: self.judge.pool_checks,
            lines: heard.lines,
            repeated_lines: heard.repeated,
            unasked_fencings: self.judge.unasked,
            violations: violation_details.len(),
            violation_details,
            kept,
        }
    }
}

/// Ends this process, and with it everything that it has started, when no round ends for too long.
fn give_up_when_it_hangs(chronicle: &Chronicle, seed: u64, alive: &AtomicU64, over: &AtomicBool) {
    let (mut seen, mut since) = (0, Instant::now());
    while !over.load(Ordering::Acquire) {
        let now = alive.load(Ordering::Acquire);
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
        if since.elapsed() > HANG {
            let story = chronicle.story("");
            eprintln!("nil: VIOLATION with seed {seed}: no round has ended for {HANG:?}; what has happened:{story}");
            // Threads that hang would keep us from returning. The keeper clears up behind us.
            std::process::exit(1);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
