//! `nil job`: what agents do that takes long, whoever ordered it.

use super::duration::of_micros;
use super::progress::Shown;
use super::takeover::Told;
use super::{Output, Table};
use anyhow::Result;
use clap::Subcommand;
use nil_host::{
    Client, Error, GuestName, HostName, JobFilter, JobOutcome, JobPhase, JobReport, JobResult, JobSummary,
    PATIENCE_WITH_AGENTS, RunDir,
};
use nil_pool::JobId;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the jobs of this machine's hosts, the newest first, and the migrations whose reports are in their pools.
    #[command(after_help = "Examples:\n  nil job list --guest guest\n  nil job list --past 10")]
    List {
        /// Those of this guest alone.
        #[arg(long, value_name = "NAME")]
        guest: Option<GuestName>,
        /// How many of each host's jobs that are over, at most.
        #[arg(long, value_name = "N", default_value_t = JobFilter::PAST, value_parser = clap::value_parser!(u16).range(0..=i64::from(JobFilter::MOST)))]
        past: u16,
    },
    /// Show how far a job is, or how it ended.
    #[command(after_help = "Example:\n  nil job show 6f9619ff-8b86-4d01-b42d-00c04fc964ff")]
    Show {
        /// The job's number, as `nil job list` shows it.
        job: JobId,
    },
    /// Follow a job to its end. Ctrl-C lets it go on.
    #[command(after_help = "Example:\n  nil job follow 6f9619ff-8b86-4d01-b42d-00c04fc964ff")]
    Follow {
        /// The job's number, as `nil job list` shows it.
        job: JobId,
    },
    /// Call a job off, and wait until everything is as it was.
    #[command(after_help = "Example:\n  nil job cancel 6f9619ff-8b86-4d01-b42d-00c04fc964ff")]
    Cancel {
        /// The job's number, as `nil job list` shows it.
        job: JobId,
    },
}

pub(crate) fn run(command: Command, output: Output) -> Result<ExitCode> {
    let run_dir = RunDir::from_environment();
    match command {
        Command::List { guest, past } => {
            let wanted = JobFilter { guest, ..JobFilter::latest(past) };
            output.print(&all(&run_dir, &wanted)?)?;
        }
        Command::Show { job } => output.print(&Details(find(&run_dir, job)?.1))?,
        Command::Follow { job } => return follow(&run_dir, job, output),
        Command::Cancel { job } => {
            let state = find(&run_dir, job)?.0.cancel_job(job)?;
            output.print(&Cancelled { cancelled: job, state })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn follow(run_dir: &RunDir, job: JobId, output: Output) -> Result<ExitCode> {
    let (mut agent, mut report) = find(run_dir, job)?;
    let mut shown = Shown::new(output, &format!("nil job cancel {job}"));
    if !report.is_over() {
        report = agent.follow(job, &mut |progress| shown.show(progress))?;
    }
    let is_done = report.outcome == Some(JobOutcome::Done);
    output.print(&Details(report))?;
    Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The agents that run.
fn agents(run_dir: &RunDir) -> Result<Vec<Client>> {
    Ok(run_dir.hosts()?.iter().filter_map(|host| Client::connect(host).ok()).collect())
}

/// The jobs that the agents know and that are wanted. Several know of a job whose report is in a pool.
fn all(run_dir: &RunDir, wanted: &JobFilter) -> Result<Jobs> {
    let (mut jobs, mut silent) = (BTreeMap::new(), Vec::new());
    for mut agent in agents(run_dir)? {
        match agent.within(PATIENCE_WITH_AGENTS, |agent| agent.jobs(wanted)) {
            Ok(known) => {
                for job in known {
                    jobs.entry(job.id).or_insert(job);
                }
            }
            Err(Error::NoAnswer { .. }) => silent.push(agent.host().clone()),
            Err(error) => return Err(error.into()),
        }
    }
    let mut jobs: Vec<JobSummary> = jobs.into_values().collect();
    jobs.sort_by_key(|job| std::cmp::Reverse(job.created_ms));
    Ok(Jobs { jobs, silent })
}

/// A job, and an agent that knows it: that which does it, if it is not over.
fn find(run_dir: &RunDir, id: JobId) -> Result<(Client, JobReport)> {
    let mut unknown = Error::Unknown(format!("there is no job {id}; `nil job list` shows those that there are"));
    for mut agent in agents(run_dir)? {
        match agent.within(PATIENCE_WITH_AGENTS, |agent| agent.job(id)) {
            Ok(report) => return Ok((agent, report)),
            Err(Error::Refused(_)) => {}
            Err(error) => unknown = error,
        }
    }
    Err(unknown.into())
}

#[derive(Debug, Serialize)]
struct Jobs {
    jobs: Vec<JobSummary>,
    /// Hosts whose agents live and do not answer: of their jobs only reports in pools are known.
    silent: Vec<HostName>,
}

impl fmt::Display for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for host in &self.silent {
            writeln!(f, "the agent of host {host} does not answer; what it does is not listed")?;
        }
        if self.jobs.is_empty() {
            return writeln!(f, "no jobs");
        }
        let mut table = Table::new(["JOB", "KIND", "GUEST", "HOST", "TO", "STATE", "TIME"]);
        for job in &self.jobs {
            let to = job.to.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
            let guest = job.guest.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
            table.row([
                job.id.to_string(),
                job.kind.to_string(),
                guest,
                job.host.to_string(),
                to,
                state(job.outcome, job.phase).to_owned(),
                time(job.created_ms, job.ended_ms),
            ]);
        }
        write!(f, "{table}")
    }
}

/// How a job ended, or how far it is, in a word.
fn state(outcome: Option<JobOutcome>, phase: JobPhase) -> &'static str {
    match (outcome, phase) {
        (Some(JobOutcome::Done), _) => "done",
        (Some(JobOutcome::Cancelled), _) => "cancelled",
        (Some(JobOutcome::Stalled), _) => "stalled",
        (Some(JobOutcome::TakenBack), _) => "taken back",
        (Some(JobOutcome::Stranded), _) => "stranded",
        (Some(JobOutcome::Failed), _) => "failed",
        (Some(JobOutcome::Incomplete), _) => "incomplete",
        (None, JobPhase::Preparing) => "preparing",
        (None, JobPhase::Moving) => "moving memory",
        (None, JobPhase::Arming) => "arming",
        (None, JobPhase::HandingOver) => "handing over",
        (None, JobPhase::Switching) => "switching",
        (None, JobPhase::Travelling) => "travelling",
        (None, JobPhase::Undoing) => "undoing",
        (None, JobPhase::Landed) => "landed",
        (None, JobPhase::Ended) => "ended",
    }
}

/// How long a job that is over has taken.
fn time(created_ms: u64, ended_ms: Option<u64>) -> String {
    let took = ended_ms.map(|ended| ended.saturating_sub(created_ms));
    took.map_or_else(|| "-".to_owned(), |ms| of_micros(ms.saturating_mul(1000)))
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Details(JobReport);

impl fmt::Display for Details {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let job = &self.0;
        let to = job.to.as_ref().map(|to| format!(" to {to}")).unwrap_or_default();
        let guest = job.guest.as_ref().map(|guest| format!(" of guest {guest}")).unwrap_or_default();
        writeln!(f, "{}{guest} on host {}{to}: {}", job.kind, job.host, state(job.outcome, job.phase))?;
        if let Some(progress) = job.progress.as_ref().filter(|_| !job.is_over()) {
            writeln!(f, "  {}", progress.step)?;
        }
        if job.is_over() {
            writeln!(f, "  it took {}", time(job.created_ms, job.ended_ms))?;
        }
        if let Some(failure) = &job.failure {
            writeln!(f, "  {}", failure.detail)?;
        }
        match &job.report {
            Some(JobResult::Migration(report)) => {
                if let Some(handoff) = &report.handoff {
                    writeln!(f, "  the guest stood still for {}", of_micros(handoff.blackout_ns / 1000))?;
                }
                report.remarks.iter().try_for_each(|remark| writeln!(f, "  {remark}"))
            }
            Some(JobResult::Memory(moved)) => {
                writeln!(f, "  memory of {} is in: {}", moved.guest, moved.memory)?;
                moved.remarks.iter().try_for_each(|remark| writeln!(f, "  {remark}"))
            }
            Some(JobResult::Rehoming(report)) => {
                writeln!(f, "  from pool {} to pool {}", report.from.display(), report.to.display())?;
                report.remarks.iter().try_for_each(|remark| writeln!(f, "  {remark}"))
            }
            Some(JobResult::Route(report)) => {
                report.plans.iter().try_for_each(|plan| writeln!(f, "  way: {plan}"))?;
                writeln!(
                    f,
                    "  the guest stood still for {}, {} of its memory were copied",
                    of_micros(report.blackout_ns / 1000),
                    nil_pool::Bytes(report.copied_bytes)
                )?;
                report.remarks.iter().try_for_each(|remark| writeln!(f, "  {remark}"))
            }
            Some(JobResult::Drained(report)) => {
                writeln!(f, "  {} guests have left", report.departures.len())?;
                report.left.iter().try_for_each(|stay| writeln!(f, "  guest {} stays: {}", stay.guest, stay.why))
            }
            Some(JobResult::Rebalanced(report)) => {
                writeln!(f, "  {} guests have moved", report.moved.len())?;
                report.left.iter().try_for_each(|stay| writeln!(f, "  guest {} stays: {}", stay.guest, stay.why))
            }
            Some(JobResult::Takeover(report)) => write!(f, "  {}", Told(report)),
            Some(JobResult::Settled(_)) | None => Ok(()),
        }
    }
}

#[derive(Debug, Serialize)]
struct Cancelled {
    cancelled: JobId,
    state: String,
}

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "job {} called off: {}", self.cancelled, self.state)
    }
}
