//! What must hold after each round, when everything has come to rest.
//!
//! | of each guest | of the fleet |
//! |---|---|
//! | lost, only if its host or worker was struck while there was no commit to go back to; and `nil ps` says so | every agent is up, no job under way |
//! | else it has one owner, which knows it, and one worker, of that owner | no other worker, no other socket |
//! | if it is protected, it can be brought back to a commit again | no checkpoint was resumed twice |
//! | no granule half moved, or on another host | `Pool::check` finds nothing |
//! | all of its memory and registers are what it wrote, and it goes on | what was heard has not been undone |

use super::ears::Ears;
use super::fate::Fate;
use super::watch::Watch;
use crate::lab::census::Census;
use crate::lab::chronicle::Chronicle;
use crate::lab::counters::view_of;
use crate::lab::fleet::Fleet;
use crate::lab::interrupt;
use crate::lab::resident::Resident;
use crate::lab::soundness::{Fate as Kept, misplaced, require_sound};
use anyhow::{Context, bail, ensure};
use nil_host::{
    Client, GuestState, JobFilter, JobKind, JobResult, ProtectionState, Survey, TakeoverOutcome, TakeoverReport,
};
use nil_pool::{GuestId, HostSlot, JobId, Ownership};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How long the fleet may take to come to rest.
const PATIENCE: Duration = Duration::from_secs(90);
/// The sleep between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// How many jobs that are over each agent is asked for after a round.
const JOBS: u16 = 200;

/// Judges a fleet, round after round.
#[derive(Debug)]
pub(super) struct Judge {
    /// Free bytes of the pool without any guest.
    free: u64,
    /// Takeovers that have been counted.
    counted: BTreeSet<JobId>,
    /// Commits from which a guest was resumed by another host.
    resumed: BTreeSet<(GuestId, u64)>,
    pub(super) takeovers: BTreeMap<&'static str, u64>,
    pub(super) lost: u64,
    pub(super) verifications: u64,
    pub(super) pool_checks: u64,
    /// Hosts that were fenced although nobody had struck them.
    pub(super) unasked: u64,
}

/// What the judge needs to know.
pub(super) struct Matter<'a> {
    pub(super) fleet: &'a Fleet,
    pub(super) chronicle: &'a Chronicle,
    pub(super) ears: &'a Ears,
    pub(super) watch: &'a Watch,
    /// What may have become of each guest.
    pub(super) fates: &'a [Fate],
}

/// Everything is at rest.
struct Rest {
    census: Census,
    /// Guests that are lost, and the host with which they were.
    lost: Vec<(usize, HostSlot)>,
}

impl Judge {
    /// To be called while there is no guest.
    pub(super) fn appoint(fleet: &Fleet) -> Self {
        Self {
            free: fleet.pools()[0].usage().free,
            counted: BTreeSet::new(),
            resumed: BTreeSet::new(),
            takeovers: BTreeMap::new(),
            lost: 0,
            verifications: 0,
            pool_checks: 0,
            unasked: 0,
        }
    }

    /// Takeovers after which a guest went on.
    pub(super) fn takeovers(&self) -> u64 {
        ["resumed", "rescued"].into_iter().filter_map(|kind| self.takeovers.get(kind)).sum()
    }

    /// Waits until the fleet is at rest, and fails if it does not come to rest, or if anything is not as it must be. Returns
    /// which guests are lost; they have been stopped.
    pub(super) fn judge(&mut self, matter: &Matter<'_>, guests: &mut [Resident]) -> anyhow::Result<Vec<usize>> {
        let Rest { census, lost } = come_to_rest(matter, guests)?;
        let unasked = matter.watch.calm();
        for slot in &unasked {
            self.unasked += 1;
            matter.chronicle.note(format!("host slot {slot}: was fenced, and nobody had struck it"));
        }
        if let Some(violation) = matter.watch.violation().or_else(|| matter.ears.undone()) {
            bail!(violation);
        }
        self.count_takeovers(matter)?;
        for (index, slot) in &lost {
            self.bury(matter, &guests[*index], matter.fates[*index], unasked.contains(slot))?;
        }
        let lost: Vec<usize> = lost.into_iter().map(|(index, _)| index).collect();
        let mut words = Vec::new();
        for (index, guest) in guests.iter_mut().enumerate().filter(|(index, _)| !lost.contains(index)) {
            let report = census.report(guest.name().as_str()).context("a guest that nobody tells of")?;
            guest.look_again_at(report)?;
            matter.ears.speak_at(index, view_of(report));
            words.push((index, guest.begin_to_verify()?));
        }
        for (index, word) in words {
            guests[index].await_verified(word)?;
            self.verifications += 1;
        }
        self.check_pool(matter.fleet)?;
        Ok(lost)
    }

    fn check_pool(&mut self, fleet: &Fleet) -> anyhow::Result<()> {
        self.pool_checks += 1;
        require_sound(&fleet.pools()[0])
    }

    /// Sees to a guest that is lost: it may be, it is said to be, and it is stopped.
    fn bury(&mut self, matter: &Matter<'_>, guest: &Resident, fate: Fate, unasked: bool) -> anyhow::Result<()> {
        let name = guest.name();
        let word = guest.control().ownership().load()?;
        match fate {
            Fate::MayBeLost => {}
            Fate::Untouched if unasked => {}
            Fate::Untouched => bail!("guest {name}: it is lost ({word}), and nothing was done to it or its host"),
            Fate::MustLive => {
                bail!("guest {name}: it is lost ({word}), and could have gone on from a commit, or as it was frozen")
            }
        }
        let run_dir = matter.fleet.run_dir();
        interrupt::wait_for("a lost guest is not said to be lost", PATIENCE, || {
            let survey = Survey::take(run_dir)?;
            Ok(survey.guest(name.as_str()).is_ok_and(|guest| guest.state == GuestState::Lost).then_some(()))
        })
        .with_context(|| format!("guest {name}"))?;
        let survey = Survey::take(run_dir)?;
        let host = survey.host_of(survey.guest(name.as_str())?)?;
        Client::connect(&run_dir.host(&host))?
            .stop(name)
            .with_context(|| format!("guest {name}: it is lost, and cannot be stopped"))?;
        matter.chronicle.note(format!("guest {name}: is lost, as it may be, and stopped"));
        self.lost += 1;
        Ok(())
    }

    /// Counts what agents say that they have taken over since the last time; no commit may be resumed twice.
    fn count_takeovers(&mut self, matter: &Matter<'_>) -> anyhow::Result<()> {
        for host in 0..matter.fleet.hosts().len() {
            let mut agent = matter.fleet.call(host)?;
            for job in agent.jobs(&JobFilter { past: JOBS, before: None, guest: None })? {
                if job.kind != JobKind::Takeover || !job.is_over() || !self.counted.insert(job.id) {
                    continue;
                }
                // It may have been forgotten since it was listed, or there was nothing to take.
                if let Ok(Some(JobResult::Takeover(report))) = agent.job(job.id).map(|job| job.report) {
                    self.count(matter.chronicle, &report)?;
                }
            }
        }
        Ok(())
    }

    fn count(&mut self, chronicle: &Chronicle, report: &TakeoverReport) -> anyhow::Result<()> {
        let kind = match &report.outcome {
            TakeoverOutcome::Resumed => "resumed",
            TakeoverOutcome::Rescued => "rescued",
            TakeoverOutcome::Lost => "lost",
            TakeoverOutcome::Failed { .. } => "failed",
        };
        *self.takeovers.entry(kind).or_default() += 1;
        let TakeoverReport { guest, from, by, outcome, last_commit, .. } = report;
        chronicle.note(format!("guest {guest}: of host {from}, by host {by}: {outcome}, commit {last_commit:?}"));
        if let (TakeoverOutcome::Resumed, Some(commit)) = (outcome, last_commit) {
            ensure!(
                self.resumed.insert((report.id, *commit)),
                "guest {guest}: commit {commit} was resumed twice, now by host {by}"
            );
        }
        Ok(())
    }

    /// Stops all guests; fails when something is left of them.
    pub(super) fn conclude(&mut self, matter: &Matter<'_>, guests: &[Resident]) -> anyhow::Result<()> {
        guests.iter().try_for_each(|guest| guest.stop(matter.fleet))?;
        let pool = &matter.fleet.pools()[0];
        interrupt::wait_for("guests that were stopped have left something", PATIENCE, || {
            let usage = pool.usage();
            let is_empty = (usage.guests, usage.capacities, usage.free) == (0, 0, self.free);
            Ok((is_empty && look(matter, &[]).is_ok()).then_some(()))
        })
        .with_context(|| {
            let labels: Vec<_> = pool.capacities().into_iter().map(|capacity| capacity.label).collect();
            let rest = look(matter, &[]).err().map(|error| format!("{error:#}")).unwrap_or_default();
            format!("{} bytes are free of {}; capacities {labels:?}; {rest}", pool.usage().free, self.free)
        })?;
        self.check_pool(matter.fleet)
    }
}

fn come_to_rest(matter: &Matter<'_>, guests: &[Resident]) -> anyhow::Result<Rest> {
    let begun = Instant::now();
    loop {
        interrupt::check()?;
        match look(matter, guests) {
            Ok(rest) => return Ok(rest),
            Err(_) if begun.elapsed() < PATIENCE => std::thread::sleep(LOOK),
            Err(misfit) => return Err(misfit.context(format!("the fleet has not come to rest within {PATIENCE:?}"))),
        }
    }
}

/// Looks at everything once; the error is what does not fit, or not yet.
fn look(matter: &Matter<'_>, guests: &[Resident]) -> anyhow::Result<Rest> {
    let fleet = matter.fleet;
    for host in 0..fleet.hosts().len() {
        ensure!(fleet.is_up(host), "agent {} does not answer, or has not joined its pool", fleet.hosts()[host].name());
    }
    let mut census = Census::take(fleet)?;
    let (mut lost, mut homes) = (Vec::new(), BTreeMap::<usize, BTreeSet<String>>::new());
    for (index, guest) in guests.iter().enumerate() {
        let name = guest.name().as_str();
        if let Ownership::Lost { host, .. } = guest.control().ownership().load()? {
            lost.push((index, host));
            continue;
        }
        let owner = census.settle(fleet, guest)?;
        let report = census.report(name).context("nobody tells of it")?;
        let protection = report.protection.as_ref();
        match (guest.control().is_protected(), protection.map(|protection| protection.state)) {
            (true, Some(ProtectionState::Active)) | (false, None) => {}
            (wanted, _) => bail!("guest {name}: it is to be protected: {wanted}; its host says {protection:?}"),
        }
        if let Some(odd) = misplaced(&guest.map(), (owner.slot, owner.epoch), Kept::Runs) {
            bail!("guest {name}: {odd}");
        }
        homes.entry(owner.host).or_default().insert(name.to_owned());
    }
    census.require_no_strays(fleet, &homes)?;
    for (index, host) in fleet.hosts().iter().enumerate() {
        if let Some(job) = fleet.call(index)?.jobs(&JobFilter::latest(0))?.first() {
            bail!("agent {} has a {} under way: {:?}", host.name(), job.kind, job.progress);
        }
    }
    Ok(Rest { census, lost })
}
