//! Moves: those under way, and those that are over. Jobs tell most of it; of what no agent here has a job for, guests tell.

use nil_host::{GuestReport, GuestState, JobKind, JobOutcome, JobPhase, JobSummary};
use nil_mover::{Direction, MoveProgress};
use serde::Serialize;
use std::collections::VecDeque;
use std::time::Duration;

/// What is being done with a guest's memory, or with the guest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Move {
    pub(crate) guest: String,
    pub(crate) host: Option<String>,
    /// Where it goes, if it leaves its host.
    pub(crate) to: Option<String>,
    pub(crate) step: Step,
    pub(crate) progress: Option<MoveProgress>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Step {
    Preparing,
    Decoupling,
    Recoupling,
    Arming,
    HandingOver,
    Undoing,
    Landed,
}

/// What has been done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Past {
    pub(crate) guest: String,
    pub(crate) from: Option<String>,
    pub(crate) to: Option<String>,
    pub(crate) ending: Ending,
    /// How long the guest stood still.
    pub(crate) blackout_ns: Option<u64>,
    /// Bytes of its memory that were copied.
    pub(crate) copied_bytes: u64,
    /// From the order to the end.
    pub(crate) took_ms: Option<u64>,
    /// Why it ended so, where there is something to say.
    pub(crate) why: Option<String>,
    /// When: since 1970.
    #[serde(skip)]
    pub(crate) at: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ending {
    Moved,
    Decoupled,
    Recoupled,
    Cancelled,
    Stalled,
    TakenBack,
    Failed,
}

/// What is under way: jobs, and what guests do that no job is known for.
pub(super) fn under_way(jobs: &[JobSummary], guests: &[GuestReport]) -> Vec<Move> {
    let mut running: Vec<&JobSummary> = jobs.iter().filter(|job| !job.is_over() && is_one_move(job)).collect();
    running.sort_by_key(|job| (job.created_ms, job.id));
    let mut moves: Vec<Move> = running.into_iter().map(Move::of_job).collect();
    for guest in guests {
        // Several may be on with one guest: a job is known for at least one of them.
        if !moves.iter().any(|known| known.guest == guest.name) {
            moves.extend(Move::of_guest(guest));
        }
    }
    moves
}

/// What is over: jobs, and arrivals that no job is known for. The newest first.
pub(super) fn over(jobs: &[JobSummary], arrivals: &VecDeque<Past>, most: usize) -> Vec<Past> {
    let explains = |job: &JobSummary, arrival: &Past| {
        job.guest.as_ref().map(nil_host::GuestName::as_str) == Some(arrival.guest.as_str())
            && job.to.as_ref().map(nil_host::HostName::as_str) == arrival.to.as_deref()
    };
    let unexplained = arrivals.iter().filter(|arrival| !jobs.iter().any(|job| explains(job, arrival)));
    let mut past: Vec<Past> =
        jobs.iter().filter(|job| is_one_move(job)).filter_map(Past::of_job).chain(unexplained.cloned()).collect();
    past.sort_by(|a, b| (b.at, &b.guest).cmp(&(a.at, &a.guest)));
    past.truncate(most);
    past
}

/// Whether a job is a move of one guest. Drains, rebalancing, and ways over several hosts, consist of such jobs.
fn is_one_move(job: &JobSummary) -> bool {
    job.guest.is_some() && !matches!(job.kind, JobKind::Drain | JobKind::Rebalance | JobKind::Route)
}

fn name_of(job: &JobSummary) -> String {
    job.guest.as_ref().map(ToString::to_string).unwrap_or_default()
}

impl Move {
    fn of_job(job: &JobSummary) -> Self {
        let progress = job.progress.as_ref().and_then(|progress| progress.moving.clone());
        let by_direction = |direction| match direction {
            Direction::Decouple => Step::Decoupling,
            Direction::Recouple => Step::Recoupling,
        };
        let step = match (job.phase, job.kind) {
            (JobPhase::Moving, JobKind::Recouple | JobKind::Settle) => Step::Recoupling,
            (JobPhase::Moving, _) => Step::Decoupling,
            (JobPhase::Preparing | JobPhase::Travelling, _) => Step::Preparing,
            (JobPhase::Arming, _) => Step::Arming,
            (JobPhase::HandingOver | JobPhase::Switching, _) => Step::HandingOver,
            (JobPhase::Undoing, _) => Step::Undoing,
            (JobPhase::Landed | JobPhase::Ended, _) => {
                progress.as_ref().map_or(Step::Landed, |moving| by_direction(moving.direction))
            }
        };
        // Figures of an earlier step are not those of this one.
        let moves = matches!(step, Step::Decoupling | Step::Recoupling | Step::Undoing);
        Self {
            guest: name_of(job),
            host: Some(job.host.to_string()),
            to: job.to.as_ref().map(ToString::to_string),
            step,
            progress: progress.filter(|_| moves),
        }
    }

    fn of_guest(guest: &GuestReport) -> Option<Self> {
        let step = match (&guest.moving, guest.state) {
            (_, GuestState::Migrating) => Step::HandingOver,
            (Some(MoveProgress { direction: Direction::Decouple, .. }), _) => Step::Decoupling,
            (Some(MoveProgress { direction: Direction::Recouple, .. }), _) => Step::Recoupling,
            (None, _) => return None,
        };
        let (guest, host, progress) = (guest.name.clone(), guest.host.clone(), guest.moving.clone());
        Some(Self { guest, host, to: None, step, progress })
    }

    /// Bytes per second.
    pub(crate) fn rate(&self) -> u64 {
        self.progress.as_ref().map_or(0, |progress| progress.bytes_per_s)
    }

    /// How long it will take at this rate; `None` when it does not get on.
    pub(crate) fn left(&self) -> Option<Duration> {
        let progress = self.progress.as_ref().filter(|progress| progress.stall.is_none())?;
        let bytes = progress.total_bytes.saturating_sub(progress.done_bytes);
        bytes.checked_div(progress.bytes_per_s).map(Duration::from_secs)
    }
}

impl Past {
    /// A guest was seen on another host than before, and no more is known of it.
    pub(super) fn arrival(guest: &GuestReport, from: &str, to: &str, at: Duration) -> Self {
        Self {
            guest: guest.name.clone(),
            from: Some(from.to_owned()),
            to: Some(to.to_owned()),
            ending: Ending::Moved,
            blackout_ns: None,
            copied_bytes: 0,
            took_ms: None,
            why: None,
            at,
        }
    }

    fn of_job(job: &JobSummary) -> Option<Self> {
        let ended = job.ended_ms?;
        let ending = match (job.outcome?, job.kind) {
            (JobOutcome::Done, JobKind::Decouple) => Ending::Decoupled,
            (JobOutcome::Done, JobKind::Recouple | JobKind::Settle) => Ending::Recoupled,
            (JobOutcome::Done, _) => Ending::Moved,
            (JobOutcome::Cancelled, _) => Ending::Cancelled,
            (JobOutcome::Stalled, _) => Ending::Stalled,
            (JobOutcome::TakenBack, _) => Ending::TakenBack,
            (JobOutcome::Failed | JobOutcome::Stranded | JobOutcome::Incomplete, _) => Ending::Failed,
        };
        Some(Self {
            guest: name_of(job),
            from: Some(job.host.to_string()),
            to: job.to.as_ref().map(ToString::to_string),
            ending,
            blackout_ns: job.blackout_ns,
            copied_bytes: job.copied_bytes,
            took_ms: Some(ended.saturating_sub(job.created_ms)),
            why: job.why.clone(),
            at: Duration::from_millis(ended),
        })
    }
}
