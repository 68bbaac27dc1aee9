//! `nil bench agent`: what an agent costs while nothing is to be done, and what a guest at rest costs.

use crate::cli::{Output, Table};
use crate::lab::fleet::{Fleet, FleetPlan};
use crate::lab::frequency::Frequency;
use crate::lab::interrupt;
use crate::lab::prey;
use crate::lab::progress::Progress;
use crate::lab::resident::Resident;
use crate::lab::soundness::require_sound;
use crate::lab::tally::Percent;
use crate::lab::vitals::{Footprint, Vitals, cpu_by_thread};
use anyhow::Context;
use nil_host::MemoryIn;
use nil_pool::Bytes;
use serde::Serialize;
use std::fmt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long the host is left alone after its last guest has begun to run.
const CALM: Duration = Duration::from_secs(3);
/// The sleep between two looks whether the time is over.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil bench agent
  nil bench agent --guests 64 --seconds 30 --json")]
pub(crate) struct Args {
    /// Guests that rest on the host.
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=512))]
    guests: u16,
    /// How long the host is watched, in seconds.
    #[arg(long, default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// The memory of each guest.
    #[arg(long, default_value = "8M", value_name = "SIZE")]
    memory: Bytes,
}

/// The result of `nil bench agent`.
#[derive(Debug, Serialize)]
struct Report {
    guests: u16,
    memory_bytes: u64,
    seconds: f64,
    /// Of one core.
    agent_cpu_percent: Percent,
    /// The same by the names of the agent's threads, those that use most first.
    threads: Vec<ThreadRow>,
    agent_open_files: usize,
    agent_threads: u64,
    /// Memory of the agent that nobody else uses, without any guest and with all of them.
    agent_private_bytes_idle: u64,
    agent_private_bytes: u64,
    /// Of one core, of one guest's worker, on average.
    worker_cpu_percent: Percent,
    /// Memory of one guest's worker that nobody else uses, on average. A guest's memory in a pool is not in it.
    worker_private_bytes: u64,
}

#[derive(Debug, Serialize)]
struct ThreadRow {
    name: String,
    cpu_percent: Percent,
}

pub(super) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    interrupt::conclude(output, || measure(args, output), |_| true)
}

fn measure(args: &Args, output: Output) -> anyhow::Result<Report> {
    let plan = FleetPlan { hosts: 1, pools: 1, guests: args.guests.into(), memory_bytes: args.memory.get() };
    let progress = Progress::new(output, args.guests.into());
    progress.doing("starting a host");
    let fleet = Fleet::build(&plan)?;
    let agent = fleet.call(0)?.describe()?.agent_pid.context("the agent does not tell its pid")?;
    let idle = Footprint::of(agent)?;
    let frequency = Frequency::measure();
    let mut guests = Vec::new();
    for number in 0..args.guests {
        let (name, memory) = (format!("g{number:02}"), (args.memory.get(), MemoryIn::Pool));
        guests.push(Resident::boot(&fleet, (0, 0), &name, memory, frequency)?);
        progress.reached(guests.len() as u64, || format!("guest {name} runs"));
    }
    progress.doing(format!("watching the host for {} s", args.seconds));
    pass(CALM)?;
    let workers: Vec<u32> =
        prey::workers(fleet.run_dir()).iter().filter_map(|worker| u32::try_from(worker.pid).ok()).collect();
    let (begun, before, threads_before) = (Instant::now(), Vitals::of(agent)?, cpu_by_thread(agent)?);
    let workers_before = cpu_of(&workers)?;
    pass(Duration::from_secs(args.seconds))?;
    let (took, after, threads_after) = (begun.elapsed(), Vitals::of(agent)?, cpu_by_thread(agent)?);
    let share = |time: Duration| Percent(100.0 * time.as_secs_f64() / took.as_secs_f64());
    let mut threads: Vec<(String, Duration)> = threads_after
        .into_iter()
        .map(|(name, time)| (time.saturating_sub(threads_before.get(&name).copied().unwrap_or_default()), name))
        .map(|(time, name)| (name, time))
        .collect();
    threads.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
    let per_worker = u32::from(args.guests).max(1);
    let private = workers.iter().map(|pid| Ok(Footprint::of(*pid)?.private)).sum::<anyhow::Result<u64>>()?;
    let report = Report {
        guests: args.guests,
        memory_bytes: args.memory.get(),
        seconds: took.as_secs_f64(),
        agent_cpu_percent: share(after.cpu.saturating_sub(before.cpu)),
        threads: threads.into_iter().map(|(name, time)| ThreadRow { name, cpu_percent: share(time) }).collect(),
        agent_open_files: after.open_files,
        agent_threads: after.threads,
        agent_private_bytes_idle: idle.private,
        agent_private_bytes: Footprint::of(agent)?.private,
        worker_cpu_percent: share(cpu_of(&workers)?.saturating_sub(workers_before) / per_worker),
        worker_private_bytes: private / u64::from(per_worker),
    };
    guests.iter().try_for_each(|guest| guest.stop(&fleet))?;
    require_sound(&fleet.pools()[0])?;
    Ok(report)
}

fn cpu_of(workers: &[u32]) -> anyhow::Result<Duration> {
    workers.iter().map(|pid| Ok(Vitals::of(*pid)?.cpu)).sum()
}

/// Lets time pass.
fn pass(time: Duration) -> anyhow::Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < time {
        interrupt::check()?;
        std::thread::sleep(LOOK.min(time));
    }
    Ok(())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { guests, seconds, .. } = self;
        writeln!(
            f,
            "an agent with {guests} resting guests of {}, watched for {seconds:.0} s\n",
            Bytes(self.memory_bytes)
        )?;
        let mut table = Table::new(["THREADS", "CPU"]);
        for ThreadRow { name, cpu_percent: Percent(percent) } in &self.threads {
            table.row([name.clone(), format!("{percent:.3} %")]);
        }
        table.row(["all".into(), format!("{:.2} % of a core", self.agent_cpu_percent.0)]);
        writeln!(f, "{table}")?;
        writeln!(
            f,
            "agent:  {} of memory ({} without guests), {} threads, {} files open",
            Bytes(self.agent_private_bytes),
            Bytes(self.agent_private_bytes_idle),
            self.agent_threads,
            self.agent_open_files
        )?;
        writeln!(
            f,
            "worker: {} of memory, {:.2} % of a core, each",
            Bytes(self.worker_private_bytes),
            self.worker_cpu_percent.0
        )
    }
}
