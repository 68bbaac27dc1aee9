//! `nil bench api`: how quickly an agent answers while guests come and go, and whether bad callers harm it, or the others.
//!
//! ```text
//! readers, at a steady rate  ─┐                      quiet phase, then the same with abuse
//! guests that migrate         ├─▶ the agent of h0
//! callers that behave badly  ─┤
//! strangers, by TLS          ─┘
//! ```

mod abuse;
mod caller;
mod readers;
mod report;
mod strangers;

use super::rack::{Stretch, Tally, Vigil};
use super::seed_of_the_moment;
use crate::cli::Output;
use crate::lab::canary::Canary;
use crate::lab::chronicle::Chronicle;
use crate::lab::fleet::{Fleet, FleetPlan};
use crate::lab::frequency::Frequency;
use crate::lab::interrupt;
use crate::lab::lock::lock;
use crate::lab::progress::Progress;
use crate::lab::resident::Resident;
use crate::lab::soundness::require_sound;
use crate::lab::tally::Percent;
use crate::lab::vitals::{Footprint, Vitals};
use abuse::Abuse;
use anyhow::{Context, bail, ensure};
use nil_host::MemoryIn;
use nil_pool::Bytes;
use readers::Seen;
use report::{Besides, Phase, Report};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use strangers::{Door, Stranger};

/// Connections of callers that behave.
const READERS: u16 = 4;
/// Callers at once that say next to nothing.
const SLOW_CALLERS: usize = 40;
/// How long an agent may take to let go of what bad callers have used.
const RECOVERY: Duration = Duration::from_secs(30);
/// The sleep between two looks whether the time is over.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil bench api
  nil bench api --rate 200 --seconds 30 --json")]
pub(crate) struct Args {
    /// Questions per second, of all readers together.
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    rate: u16,
    /// How long each phase lasts, in seconds.
    #[arg(long, default_value_t = 15, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Guests on three hosts.
    #[arg(long, default_value_t = 12, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    guests: u16,
    /// The memory of each guest.
    #[arg(long, default_value = "8M", value_name = "SIZE")]
    memory: Bytes,
}

/// What happens besides reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Company {
    /// Guests migrate.
    Migrations,
    /// Guests migrate, and callers behave badly.
    MigrationsAndAbuse,
}

pub(super) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    interrupt::conclude(output, || measure(args, output), Report::is_good)
}

fn measure(args: &Args, output: Output) -> anyhow::Result<Report> {
    let plan = FleetPlan { hosts: 3, pools: 1, guests: args.guests.into(), memory_bytes: args.memory.get() };
    let progress = Progress::new(output, args.guests.into());
    progress.doing("starting 3 hosts");
    let fleet = Fleet::build_with(&plan, |directory| Door::install(directory, "h0"))?;
    let door = Door::find(fleet.directory(), "h0", &fleet.pools()[0])?;
    let frequency = Frequency::measure();
    let mut guests = Vec::new();
    for number in 0..args.guests {
        let (name, host) = (format!("g{number:02}"), usize::from(number % 3));
        let memory_in = if number % 2 == 0 { MemoryIn::Pool } else { MemoryIn::Dram };
        guests.push(Resident::boot(&fleet, (host, 0), &name, (args.memory.get(), memory_in), frequency)?);
        progress.reached(guests.len() as u64, || format!("guest {name} runs"));
    }
    let agent = fleet.call(0)?.describe()?.agent_pid.context("the agent does not tell its pid")?;
    let before = (Vitals::of(agent)?, Footprint::of(agent)?);
    let rack = Rack { fleet: &fleet, guests: &guests, args, seed: seed_of_the_moment(), agent, door: &door, frequency };
    progress.doing("reading while guests migrate");
    let quiet = rack.phase(Company::Migrations)?;
    progress.doing("reading while callers behave badly");
    let abused = rack.phase(Company::MigrationsAndAbuse)?;
    let held = await_recovery(agent, before.0)?;
    ensure!(fleet.call(0)?.describe()?.agent_pid == Some(agent), "the agent has been started anew");
    let after = Footprint::of(agent)?;
    guests.iter().try_for_each(|guest| guest.stop(&fleet))?;
    require_sound(&fleet.pools()[0])?;
    Ok(Report {
        rate: args.rate,
        guests: args.guests,
        phases: vec![quiet, abused],
        open_files_before: before.0.open_files,
        open_files_after: held.open_files,
        private_bytes_before: before.1.private,
        private_bytes_after: after.private,
    })
}

/// Waits until the agent has let go of the files and threads that bad callers made it hold.
fn await_recovery(agent: u32, before: Vitals) -> anyhow::Result<Vitals> {
    let begun = Instant::now();
    loop {
        interrupt::check()?;
        let now = Vitals::of(agent)?;
        // Guests have come and gone meanwhile, each with a few files and threads.
        if now.open_files <= before.open_files + 64 && now.threads <= before.threads + 64 {
            return Ok(now);
        }
        if begun.elapsed() > RECOVERY {
            bail!(
                "{RECOVERY:?} after the last bad caller the agent holds {now:?}; before the first it held {before:?}"
            );
        }
        std::thread::sleep(LOOK);
    }
}

/// Who calls whom.
struct Rack<'a> {
    fleet: &'a Fleet,
    guests: &'a [Resident],
    args: &'a Args,
    seed: u64,
    /// The process of the agent that is asked.
    agent: u32,
    door: &'a Door,
    frequency: Frequency,
}

impl Rack<'_> {
    /// Reads for a while, in that company.
    fn phase(&self, company: Company) -> anyhow::Result<Phase> {
        let (begun, before) = (Instant::now(), Vitals::of(self.agent)?.cpu);
        let socket = self.fleet.hosts()[0].agent_socket();
        let enough = AtomicBool::new(false);
        let (tally, chronicle, vigil) = (Mutex::new(Tally::default()), Chronicle::begin(), Vigil::default());
        let stretch = Stretch {
            fleet: self.fleet,
            guests: self.guests,
            seed: self.seed,
            orders: u64::MAX,
            kills: 0,
            drains: 0,
            enough: &enough,
            vigil: &vigil,
            chronicle: &chronicle,
            tally: &tally,
        };
        let (refused, strangers) = (Mutex::default(), Mutex::default());
        let canary = Canary::start(self.frequency)?;
        let seen = std::thread::scope(|scope| -> anyhow::Result<Seen> {
            let movers = scope.spawn(|| stretch.play(&Progress::silent()));
            let reader = || {
                let rate = f64::from(self.args.rate) / f64::from(READERS);
                readers::read(&socket, self.guests[0].name().as_str(), rate, &enough)
            };
            let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(reader)).collect();
            let bad: Vec<_> = match company {
                Company::Migrations => Vec::new(),
                Company::MigrationsAndAbuse => {
                    let slow = [Abuse::SlowHead, Abuse::SlowBody].into_iter().cycle().take(SLOW_CALLERS);
                    let abuses = Abuse::ALL.into_iter().chain(slow);
                    let (socket, door) = (&socket, self.door);
                    let (once, call) = (|abuse: Abuse| abuse.once(socket, &enough), |it: Stranger| it.once(door));
                    let mut callers = bad_callers(scope, abuses, once, &enough, &refused);
                    callers.extend(bad_callers(scope, Stranger::ALL, call, &enough, &strangers));
                    callers
                }
            };
            let waited = self.pass(&enough);
            enough.store(true, Ordering::Release);
            let mut seen = Seen::nothing();
            for reader in readers {
                seen.add(&reader.join().map_err(|_| anyhow::anyhow!("a reader panicked"))??);
            }
            for caller in bad {
                caller.join().map_err(|_| anyhow::anyhow!("a bad caller panicked"))??;
            }
            movers.join().map_err(|_| anyhow::anyhow!("who moves guests panicked"))??;
            waited.map(|()| seen)
        })?;
        let used = Vitals::of(self.agent)?.cpu.saturating_sub(before);
        let besides = Besides {
            migrations: lock(&tally).answered(),
            refused: refused.into_inner().unwrap_or_default(),
            strangers: strangers.into_inner().unwrap_or_default(),
            canary: canary.report(&seen.slow),
            agent_cpu_percent: Percent(100.0 * used.as_secs_f64() / begun.elapsed().as_secs_f64()),
        };
        Ok(Phase::of(&seen, besides))
    }

    /// Lets the time of a phase pass, or what is left when somebody has failed.
    fn pass(&self, enough: &AtomicBool) -> anyhow::Result<()> {
        let (begun, time) = (Instant::now(), Duration::from_secs(self.args.seconds));
        while begun.elapsed() < time && !enough.load(Ordering::Acquire) {
            interrupt::check()?;
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// Starts those who behave badly, each in its own way, again and again; `done` counts how often.
fn bad_callers<'scope, Way: Copy + Ord + Send + 'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    ways: impl IntoIterator<Item = Way>,
    once: impl Fn(Way) -> anyhow::Result<()> + Copy + Send + 'scope,
    enough: &'scope AtomicBool,
    done: &'scope Mutex<BTreeMap<Way, u64>>,
) -> Vec<std::thread::ScopedJoinHandle<'scope, anyhow::Result<()>>> {
    let caller = move |way: Way| {
        scope.spawn(move || {
            while !enough.load(Ordering::Acquire) {
                once(way)?;
                *lock(done).entry(way).or_default() += 1;
                // Bad, but no flood: what is measured is the agent, not how the processors are shared.
                std::thread::sleep(LOOK);
            }
            Ok(())
        })
    };
    ways.into_iter().map(caller).collect()
}
