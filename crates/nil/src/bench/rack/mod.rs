//! `nil bench rack`: a rack on one machine, tried hard. Does it ever lose a guest, run one twice, or leave anything behind?
//!
//! ```text
//! hosts, pools and guests ─▶ stretch: orders from several lanes, each drawn from the seed; an agent killed now and then
//!                              │
//!                              ▼
//!                            quiet point: all orders over, all agents up ─▶ judge ─▶ next stretch … ─▶ stop all ─▶ judge
//! ```
//!
//! | module      | holds                                                          |
//! |-------------|----------------------------------------------------------------|
//! | `reaper`    | the kills                                                      |
//! | `drainer`   | the hosts that are emptied                                     |
//! | `stretch`   | many orders at once, from quiet point to quiet point           |
//! | `judge`     | what must hold at a quiet point                                |
//! | `vigil`     | what agents cost and hold                                      |
//! | `report`    | what it all came to                                            |

mod drainer;
mod judge;
mod reaper;
mod report;
mod stretch;
mod vigil;

pub(super) use stretch::{Stretch, Tally};
pub(super) use vigil::Vigil;

use super::seed_of_the_moment;
use crate::cli::Output;
use crate::lab::chronicle::Chronicle;
use crate::lab::dice::Dice;
use crate::lab::fleet::{Fleet, FleetPlan};
use crate::lab::frequency::Frequency;
use crate::lab::interrupt::{self, Interrupted};
use crate::lab::lock::lock;
use crate::lab::progress::Progress;
use crate::lab::resident::Resident;
use anyhow::{Context, ensure};
use judge::Judge;
use nil_host::MemoryIn;
use nil_pool::{Bytes, GRANULE};
use report::{Report, Violation};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Orders between two quiet points.
const STRETCH: u64 = 50;
/// The smallest guest that has something to verify beside its image.
const SMALLEST_GUEST: u64 = 6 << 20;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil bench rack
  nil bench rack --hosts 8 --guests 64 --migrations 1000 --agent-kills 20 --drains 10
  nil bench rack --hosts 3 --guests 6 --migrations 20 --agent-kills 2 --seed 7 --json")]
pub(crate) struct Args {
    /// Hosts, each a process of this machine.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=64))]
    hosts: u16,
    /// Pools. Two join two groups of hosts at one host that is in both; of more, each is shared by half of the hosts. One in
    /// four guests goes to a host that does not share its pool, over others.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=8))]
    pools: u16,
    /// Guests, half of them with their memory in DRAM at first.
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    guests: u16,
    /// Migrations that the agents have carried out, or taken back, when the run ends.
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    migrations: u64,
    /// How often an agent is killed and started again.
    #[arg(long, default_value_t = 4, value_name = "N")]
    agent_kills: u64,
    /// How often a host is emptied.
    #[arg(long, default_value_t = 4, value_name = "N")]
    drains: u64,
    /// What chance depends on; the same seed draws the same orders and kills, but not their instants.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// The memory of each guest.
    #[arg(long, default_value = "8M", value_name = "SIZE")]
    memory: Bytes,
}

pub(super) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let memory = args.memory;
    ensure!(
        memory.get() >= SMALLEST_GUEST && memory.get().is_multiple_of(GRANULE),
        "a guest's memory comes in pieces of 2 MiB, three at least, and {memory} is not; try --memory 8M"
    );
    let pools_fit = args.pools == 1 || args.pools <= args.hosts;
    ensure!(pools_fit, "{} pools cannot overlap among {} hosts; try fewer with --pools", args.pools, args.hosts);
    let seed = args.seed.unwrap_or_else(seed_of_the_moment);
    interrupt::conclude(output, || campaign(args, seed, output), Report::is_good)
}

fn campaign(args: &Args, seed: u64, output: Output) -> anyhow::Result<Report> {
    let begun = Instant::now();
    let progress = Progress::new(output, args.migrations);
    progress.doing(format!("starting {} hosts", args.hosts));
    let plan = FleetPlan {
        hosts: args.hosts.into(),
        pools: args.pools.into(),
        guests: args.guests.into(),
        memory_bytes: args.memory.get(),
    };
    let fleet = Fleet::build(&plan)?;
    let mut campaign = Campaign::begin(&fleet, args, seed)?;
    let played = campaign.play(&progress);
    let mut violations = Vec::new();
    if let Err(error) = played {
        if error.is::<Interrupted>() {
            return Err(error);
        }
        let what = format!("{error:#}");
        let history = campaign.chronicle.story(&what);
        violations.push(Violation { seed, what, history, logs: fleet.logs() });
    }
    Ok(campaign.report(begun.elapsed(), violations))
}

/// A run, as far as it has come.
struct Campaign<'a> {
    fleet: &'a Fleet,
    args: &'a Args,
    seed: u64,
    guests: Vec<Resident>,
    judge: Judge,
    vigil: Vigil,
    chronicle: Chronicle,
    tally: Mutex<Tally>,
}

impl<'a> Campaign<'a> {
    /// Looks at the hosts while they have no guests.
    fn begin(fleet: &'a Fleet, args: &'a Args, seed: u64) -> anyhow::Result<Self> {
        let vigil = Vigil::default();
        vigil.begin(fleet)?;
        Ok(Self {
            fleet,
            args,
            seed,
            guests: Vec::new(),
            judge: Judge::appoint(fleet),
            vigil,
            chronicle: Chronicle::begin(),
            tally: Mutex::default(),
        })
    }

    /// The error is a violation, or an interruption.
    fn play(&mut self, progress: &Progress) -> anyhow::Result<()> {
        self.boot(progress)?;
        self.judge.judge(self.fleet, &mut self.guests, &self.vigil)?;
        loop {
            let answered = lock(&self.tally).answered();
            let left = self.args.migrations.saturating_sub(answered);
            if left == 0 {
                break;
            }
            self.ensure_progress()?;
            let orders = left.min(STRETCH);
            let (killed, drained) = {
                let tally = lock(&self.tally);
                (tally.kills, tally.drains.values().sum())
            };
            let kills = self.due(self.args.agent_kills, killed, orders);
            let drains = self.due(self.args.drains, drained, orders);
            let stretch = Stretch {
                fleet: self.fleet,
                guests: &self.guests,
                seed: self.seed,
                orders,
                kills,
                drains,
                enough: &AtomicBool::new(false),
                vigil: &self.vigil,
                chronicle: &self.chronicle,
                tally: &self.tally,
            };
            stretch.play(progress)?;
            progress.doing("verifying every guest");
            self.judge.judge(self.fleet, &mut self.guests, &self.vigil)?;
        }
        progress.doing("stopping every guest");
        self.guests.iter().try_for_each(|guest| guest.stop(self.fleet))?;
        self.guests.clear();
        self.judge.conclude(self.fleet, &self.vigil)
    }

    /// How much of what is to be done so often in the whole run is due while that many more orders are carried out.
    fn due(&self, in_all: u64, done: u64, orders: u64) -> u64 {
        let answered = lock(&self.tally).answered() + orders;
        let due = u128::from(in_all) * u128::from(answered) / u128::from(self.args.migrations.max(1));
        u64::try_from(due).unwrap_or(u64::MAX).saturating_sub(done)
    }

    /// Fails when orders are refused all the time.
    fn ensure_progress(&self) -> anyhow::Result<()> {
        let tally = lock(&self.tally);
        ensure!(
            tally.failed() <= 100 + tally.answered(),
            "most orders fail: {}",
            tally.undisturbed_failures.last().map_or("", String::as_str)
        );
        Ok(())
    }

    /// Boots the guests, each on a host and in a pool of chance, half of them in DRAM.
    fn boot(&mut self, progress: &Progress) -> anyhow::Result<()> {
        let frequency = Frequency::measure();
        for number in 0..self.args.guests {
            interrupt::check()?;
            let name = format!("g{number:02}");
            progress.doing(format!("booting guest {name}"));
            let mut dice = Dice::of_round(self.seed, u64::MAX - u64::from(number));
            let pool = dice.below(self.fleet.pools().len() as u64);
            let pool = usize::try_from(pool)?;
            let host = *dice.choose(&self.fleet.members(pool)).context("a pool has no host")?;
            let memory_in = if number % 2 == 0 { MemoryIn::Pool } else { MemoryIn::Dram };
            let memory = (self.args.memory.get(), memory_in);
            self.chronicle.note(format!("guest {name}: boots on h{host}, in pool {pool}, memory in {memory_in:?}"));
            self.guests.push(Resident::boot(self.fleet, (host, pool), &name, memory, frequency)?);
        }
        Ok(())
    }
}
