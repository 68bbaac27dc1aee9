//! `nil bench takeover`: a host is killed, and its guest goes on at another from its last checkpoint.
//!
//! ```text
//! h0 runs the guest, protected ── SIGKILL of its agent and workers ── h1: judges, fences, brings back, runs ── verified ──┐
//!  ▲                                                                                                                     │
//!  └──────────────── h1 is killed in its turn ── … ── protected at h1 ── h0's agent started again ◀───────────────────────┘
//! ```
//!
//! A host that is *killed* is dead for sure: the kernel says that nothing is left of it. One that is *stopped* (SIGSTOP) is still
//! there, like one on another machine, and nothing but its lease tells that it does not run: so it expires.
//!
//! A takeover is measured from the signal to the guest's first instruction, which is stamped by the vCPU that executes it: both
//! by the TSC of this machine. The guest verifies its memory after each.

use crate::cli::{Output, Table, duration};
use crate::lab::canary::Canary;
use crate::lab::counters::view_of;
use crate::lab::figures::{Figures, Samples};
use crate::lab::fleet::{Fleet, FleetPlan};
use crate::lab::frequency::Frequency;
use crate::lab::interrupt;
use crate::lab::keeper;
use crate::lab::observe::Observer;
use crate::lab::progress::Progress;
use crate::lab::soundness::{require_clean, require_sound};
use anyhow::{Context, ensure};
use nil_guest_abi::layout::MAX_VCPUS;
use nil_guest_abi::{Mode, Options, Program};
use nil_host::{
    GuestName, GuestReport, ImageSource, JobFilter, JobKind, JobResult, MemoryIn, ProtectGuest, RunVm, TakeoverOutcome,
    TakeoverReport,
};
use nil_migrate::tsc;
use nil_pool::{Bytes, GuestControl, OutputRule, Ownership, Stamp};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Serialize, Serializer};
use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many intervals a lease that is measured may stand still.
const INTERVALS: u32 = 3;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil bench takeover
  nil bench takeover --lease 10ms,100ms --samples 100 --json
  nil bench takeover --ends stopped --moment any       nothing but the lease tells")]
pub(crate) struct Args {
    /// Intervals of the hosts' leases; the expiry is three of them.
    #[arg(long, default_value = "10ms,100ms", value_delimiter = ',', value_parser = duration::parse_some, value_name = "TIMES")]
    lease: Vec<Duration>,
    /// Takeovers for each.
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Memory of the guest.
    #[arg(long, default_value = "256M", value_name = "SIZE")]
    memory: Bytes,
    /// Its vCPUs.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_VCPUS)))]
    vcpus: u32,
    /// Pages that the guest stores into again and again.
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    pages: u64,
    /// How hosts end, separated by commas.
    #[arg(long, value_enum, default_value = "killed,stopped", value_delimiter = ',', value_name = "HOW")]
    ends: Vec<End>,
    /// When they do.
    #[arg(long, value_enum, default_value_t = Moment::Commit, value_name = "WHEN")]
    moment: Moment,
    /// How long from one checkpoint to the next.
    #[arg(long, default_value = "100ms", value_parser = duration::parse_some, value_name = "TIME")]
    protect: Duration,
}

/// How a host ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum End {
    /// Its processes are gone, and the kernel says so.
    Killed,
    /// Its processes are there and do not run: only its lease tells.
    Stopped,
}

impl End {
    fn signal(self) -> Signal {
        match self {
            Self::Killed => Signal::KILL,
            Self::Stopped => Signal::STOP,
        }
    }
}

/// When a host ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Moment {
    /// Right after a checkpoint, when the most has to be brought back.
    Commit,
    /// At any moment between two.
    Any,
}

/// The result of `nil bench takeover`.
#[derive(Debug, Serialize)]
struct Report {
    memory_bytes: u64,
    vcpus: u32,
    cases: Vec<Case>,
}

/// Takeovers with one interval of the lease, from hosts that end in one way.
#[derive(Debug, Serialize)]
struct Case {
    lease_ms: u64,
    end: End,
    takeovers: u64,
    /// From the signal to the first instruction.
    takeover_ms: Option<Spread>,
    /// From the last sign of life to the judgement, in the median.
    detect_ms: Millis,
    /// For memory and state to be brought back, in the median, and at most.
    undo_ms: Millis,
    undo_max_ms: Millis,
    /// Pages that were brought back, in the median.
    undo_pages: u64,
    /// Takeovers during which this machine was paused by whatever is beneath it.
    disturbed: usize,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Spread {
    p50: Millis,
    p99: Millis,
    max: Millis,
}

/// Milliseconds, told with a tenth.
#[derive(Clone, Copy, Debug, Default)]
struct Millis(f64);

impl Serialize for Millis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64((self.0 * 10.0).round() / 10.0)
    }
}

impl Spread {
    fn of(figures: Figures) -> Self {
        let ms = |us: f64| Millis(us / 1000.0);
        Self { p50: ms(figures.p50.0), p99: ms(figures.p99.0), max: ms(figures.max.0) }
    }
}

pub(super) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    interrupt::conclude(output, || measure(args, output), |_| true)
}

fn measure(args: &Args, output: Output) -> anyhow::Result<Report> {
    let ways = args.lease.iter().flat_map(|lease| args.ends.iter().map(|end| (*lease, *end)));
    let cases = ways.map(|(lease, end)| case(args, lease, end, output)).collect::<anyhow::Result<_>>()?;
    Ok(Report { memory_bytes: args.memory.get(), vcpus: args.vcpus, cases })
}

fn case(args: &Args, lease: Duration, end: End, output: Output) -> anyhow::Result<Case> {
    let frequency = Frequency::measure();
    let progress = Progress::new(output, args.samples.into());
    progress.doing(format!("starting two hosts with a lease of {lease:?}"));
    // Beside the guest's memory, a checkpoint has an image of it and two logs.
    let plan = FleetPlan { hosts: 2, pools: 1, guests: 4, memory_bytes: args.memory.get() };
    let fleet = Fleet::build_with(&plan, |directory| configure(directory, lease))?;
    let guest = boot(args, &fleet, frequency)?;
    let canary = Canary::start(frequency)?;
    let (mut takeovers, mut detected, mut undone) = (Samples::new(), Samples::new(), Samples::new());
    let (mut pages, mut spans) = (Vec::new(), Vec::new());
    let mut victim = 0;
    for number in 0..args.samples {
        protect(args, &fleet, victim, &guest)?;
        let moment = || match args.moment {
            Moment::Commit => await_commit(&guest.control),
            Moment::Any => {
                std::thread::sleep(args.protect * (number * 37 % 100 + 100) / 100);
                Ok(())
            }
        };
        let taken = take(&fleet, (victim, end), &guest, frequency, moment)?;
        verify(&fleet, 1 - victim, &guest, args.memory.get(), frequency)?;
        takeovers.record(frequency.nanoseconds(taken.resumed - taken.killed));
        detected.record(taken.report.detected_us * 1000);
        undone.record(taken.report.undone_us * 1000);
        pages.push(taken.report.pages);
        spans.push(crate::lab::canary::Span { begin: taken.killed, end: taken.resumed });
        fleet.start_again(victim)?;
        interrupt::wait_for("the killed host's agent has not come up again", PATIENCE, || {
            Ok(fleet.is_up(victim).then_some(()))
        })?;
        victim = 1 - victim;
        progress.reached(u64::from(number) + 1, || format!("taken over {} times", number + 1));
    }
    fleet.call(victim)?.stop(&guest.name)?;
    require_sound(&fleet.pools()[0])?;
    pages.sort_unstable();
    let median = |samples: &Samples| Millis(samples.median().map_or(0.0, |us| us.0 / 1000.0));
    let pauses = canary.pauses();
    Ok(Case {
        lease_ms: u64::try_from(lease.as_millis()).unwrap_or(u64::MAX),
        end,
        takeovers: takeovers.count(),
        takeover_ms: takeovers.figures().map(Spread::of),
        detect_ms: median(&detected),
        undo_ms: median(&undone),
        undo_max_ms: Millis(undone.figures().map_or(0.0, |figures| figures.max.0 / 1000.0)),
        undo_pages: pages.get(pages.len() / 2).copied().unwrap_or(0),
        disturbed: spans.iter().filter(|span| pauses.iter().any(|pause| pause.overlaps(**span))).count(),
    })
}

/// Tells both hosts how to beat, before they are started.
fn configure(directory: &Path, lease: Duration) -> anyhow::Result<()> {
    let interval = u16::try_from(lease.as_millis()).context("a lease's interval is at most a minute")?;
    let expiry = u32::from(interval) * INTERVALS;
    let config = format!("[lease]\ninterval_ms = {interval}\nexpiry_ms = {expiry}\ntakeover = \"auto\"\n");
    ["h0", "h1"].iter().try_for_each(|host| Ok(std::fs::write(keeper::host_config(directory, host), &config)?))
}

/// The guest under test.
struct Subject {
    name: GuestName,
    control: GuestControl,
}

fn boot(args: &Args, fleet: &Fleet, frequency: Frequency) -> anyhow::Result<Subject> {
    let name: GuestName = "g".parse()?;
    let options =
        Options { mode: Mode::Hot, workset: args.pages * 4096, tsc_khz: frequency.khz(), ..Options::default() };
    let order = RunVm {
        name: name.clone(),
        pool: fleet.pools()[0].id(),
        memory_bytes: args.memory.get(),
        memory_in: MemoryIn::Dram,
        vcpus: args.vcpus,
        image: ImageSource::Builtin(Program::Pages.name().into()),
        command_line: options.to_string(),
        hosts: Vec::new(),
        cpu: None,
    };
    let id = fleet.call(0)?.run_vm(&order)?.id;
    let info = fleet.pools()[0].find_guest(&id.to_string()).context("the guest is not in the pool")?;
    let control = fleet.pools()[0].guest(info.slot, id)?;
    let mut observer = observer(fleet, 0, &name, args.memory.get(), frequency)?;
    observer.await_running()?;
    Ok(Subject { name, control })
}

fn report_of(fleet: &Fleet, host: usize, name: &GuestName) -> anyhow::Result<Option<GuestReport>> {
    Ok(fleet.call(host)?.ps()?.into_iter().find(|guest| guest.name == name.as_str()))
}

fn observer(
    fleet: &Fleet,
    host: usize,
    name: &GuestName,
    memory: u64,
    frequency: Frequency,
) -> anyhow::Result<Observer> {
    let view = interrupt::wait_for("the agent has not said where it has the guest", PATIENCE, || {
        Ok(report_of(fleet, host, name)?.as_ref().and_then(view_of))
    })?;
    Ok(Observer::through(view, memory, frequency))
}

/// Has checkpoints made of the guest, and waits for the first.
fn protect(args: &Args, fleet: &Fleet, host: usize, guest: &Subject) -> anyhow::Result<()> {
    let interval_us = u64::try_from(args.protect.as_micros())?;
    let order = ProtectGuest { guest: guest.name.clone(), interval_us, output: OutputRule::Pass, log_bytes: None };
    fleet.call(host)?.protect(&order).context("the guest could not be protected")?;
    let owner =
        fleet.pools()[0].find_host(fleet.hosts()[host].name().as_str()).context("the host is not in the pool")?.slot;
    interrupt::wait_for("there is no checkpoint", PATIENCE, || {
        Ok(guest.control.last_commit(owner)?.filter(|commit| commit.number > 2).map(|_| ()))
    })
}

/// Waits for the next checkpoint.
fn await_commit(control: &GuestControl) -> anyhow::Result<()> {
    let protection = control.protection()?.context("the guest is not protected")?;
    let (before, deadline) = (protection.standing()?, Instant::now() + PATIENCE);
    while protection.standing()? == before {
        ensure!(Instant::now() < deadline, "there is no further checkpoint");
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// A takeover.
struct Taken {
    /// By the TSC.
    killed: u64,
    resumed: u64,
    report: TakeoverReport,
}

/// Ends everything of a host when that moment has come, and waits until the other runs the guest.
fn take(
    fleet: &Fleet,
    (victim, end): (usize, End),
    guest: &Subject,
    frequency: Frequency,
    moment: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Taken> {
    let agent = fleet.call(victim)?.describe()?.agent_pid.context("the agent does not tell its pid")?;
    let worker =
        report_of(fleet, victim, &guest.name)?.and_then(|guest| guest.worker_pid).context("the guest has no worker")?;
    let pid = |pid: i32| Pid::from_raw(pid).context("no pid");
    let (agent, worker) = (pid(i32::try_from(agent)?)?, pid(worker)?);
    let earlier: Vec<_> = takeovers(fleet, 1 - victim)?;
    moment()?;
    let killed = tsc::now();
    // The agent first: it would see to a worker that has ended alone.
    kill_process(agent, end.signal())?;
    kill_process(worker, end.signal())?;
    // The word alone is looked at meanwhile: whatever else was asked would take CPU time from the takeover.
    let slot = fleet.pools()[0].find_host(fleet.hosts()[1 - victim].name().as_str()).context("no taker")?.slot;
    interrupt::wait_for("the guest does not run at the other host", PATIENCE, || {
        Ok(matches!(guest.control.ownership().load()?, Ownership::Owned { host, .. } if host == slot).then_some(()))
    })?;
    let report = interrupt::wait_for("the takeover has no report", PATIENCE, || {
        Ok(takeovers(fleet, 1 - victim)?.into_iter().find(|report| !earlier.contains(report)))
    })?;
    ensure!(report.outcome == TakeoverOutcome::Resumed, "guest {}: {}", guest.name, report.outcome);
    // The lease of one that was killed may expire before the kernel is through with its processes.
    ensure!(end == End::Killed || !report.sure, "the host was stopped, and taken for dead for sure");
    if end == End::Stopped {
        kill_process(worker, Signal::KILL)?;
        kill_process(agent, Signal::KILL)?;
    }
    let resumed = guest.control.timeline().get(Stamp::Entered);
    ensure!(resumed > killed, "the guest's first instruction is not stamped");
    ensure!(frequency.nanoseconds(resumed - killed) < 60_000_000_000, "the stamp is not of this takeover");
    Ok(Taken { killed, resumed, report })
}

/// The reports of takeovers that a host has made.
fn takeovers(fleet: &Fleet, host: usize) -> anyhow::Result<Vec<TakeoverReport>> {
    let mut agent = fleet.call(host)?;
    let jobs = agent.jobs(&JobFilter { past: 1000, before: None, guest: None })?;
    let over = jobs.into_iter().filter(|job| job.kind == JobKind::Takeover && job.is_over());
    let ids: Vec<_> = over.map(|job| job.id).collect();
    let mut reports = Vec::new();
    for id in ids {
        if let Some(JobResult::Takeover(report)) = agent.job(id)?.report {
            reports.push(*report);
        }
    }
    Ok(reports)
}

/// Has the guest verify everything that it has, where it runs now.
fn verify(fleet: &Fleet, host: usize, guest: &Subject, memory: u64, frequency: Frequency) -> anyhow::Result<()> {
    require_clean(&observer(fleet, host, &guest.name, memory, frequency)?.verify_all()?)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "a guest with {} of memory and {} vCPU, whose host ends, goes on at another from its last checkpoint:",
            Bytes(self.memory_bytes),
            self.vcpus
        )?;
        let mut table =
            Table::new(["LEASE", "HOST", "TAKEOVERS", "P50", "P99", "MAX", "DETECTED", "UNDONE", "PAGES", "DISTURBED"]);
        for case in &self.cases {
            let ms = |value: Millis| format!("{:.1} ms", value.0);
            let spread =
                |pick: fn(Spread) -> Millis| case.takeover_ms.map_or("-".to_owned(), |spread| ms(pick(spread)));
            table.row([
                format!("{} ms", case.lease_ms),
                match case.end {
                    End::Killed => "killed",
                    End::Stopped => "stopped",
                }
                .to_owned(),
                case.takeovers.to_string(),
                spread(|spread| spread.p50),
                spread(|spread| spread.p99),
                spread(|spread| spread.max),
                ms(case.detect_ms),
                ms(case.undo_ms),
                case.undo_pages.to_string(),
                case.disturbed.to_string(),
            ]);
        }
        write!(f, "{table}")
    }
}
