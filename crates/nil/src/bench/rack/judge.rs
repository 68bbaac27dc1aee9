//! What must hold whenever nothing is under way.
//!
//! | of each guest                                       | of the rack                                        |
//! |-----------------------------------------------------|----------------------------------------------------|
//! | one owner, one worker, of that owner, known to it    | no other worker, no other socket                   |
//! | no granule half moved, or on a host it is not on     | no capacity but the guests' states and memories    |
//! | all of its memory and registers are what it wrote    | what is free is what is not theirs                 |
//! | it goes on, and no counter ever goes back            | no agent holds more files or threads than its guests need |
//! | no vCPU of it ever ran twice (it would notice)       | no job is under way, and no more are kept than may be |
//! |                                                     | `Pool::check` finds nothing                        |

use super::vigil::Vigil;
use crate::lab::census::Census;
use crate::lab::fleet::Fleet;
use crate::lab::interrupt;
use crate::lab::resident::Resident;
use crate::lab::soundness::{Fate, misplaced, require_sound};
use anyhow::bail;
use nil_host::{Client, JobFilter};
use nil_pool::Tag;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How long the rack may take to come to rest: moves that nobody waits for come to their end, workers end.
const PATIENCE: Duration = Duration::from_secs(120);
/// The sleep between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Jobs that are over, of which an agent keeps no more; and those whose reports are in its pools.
const JOBS_KEPT: usize = 1000;

/// Judges a rack, again and again.
#[derive(Debug)]
pub(super) struct Judge {
    /// Free bytes of each pool without any guest.
    free: Vec<u64>,
    pub(super) pool_checks: u64,
    pub(super) verifications: u64,
    pub(super) quiet_points: u64,
    /// The most jobs that an agent knew of.
    pub(super) most_jobs: usize,
}

impl Judge {
    /// To be called while there is no guest.
    pub(super) fn appoint(fleet: &Fleet) -> Self {
        let free = fleet.pools().iter().map(|pool| pool.usage().free).collect();
        Self { free, pool_checks: 0, verifications: 0, quiet_points: 0, most_jobs: 0 }
    }

    /// Waits until the rack is at rest, and fails if it does not come to rest, or if anything is not as it must be.
    pub(super) fn judge(&mut self, fleet: &Fleet, guests: &mut [Resident], vigil: &Vigil) -> anyhow::Result<()> {
        self.quiet_points += 1;
        let begun = Instant::now();
        let census = loop {
            interrupt::check()?;
            match self.look(fleet, guests, vigil) {
                Ok(census) => break census,
                Err(_) if begun.elapsed() < PATIENCE => std::thread::sleep(LOOK),
                Err(misfit) => return Err(misfit.context(format!("the rack has not come to rest within {PATIENCE:?}"))),
            }
        };
        let mut words = Vec::new();
        for guest in guests.iter_mut() {
            if let Some(report) = census.report(guest.name().as_str()) {
                guest.look_at(report)?;
            }
            words.push(guest.begin_to_verify()?);
        }
        for (guest, word) in guests.iter_mut().zip(words) {
            guest.await_verified(word)?;
            self.verifications += 1;
        }
        self.check_jobs(fleet)?;
        self.check_pools(fleet)
    }

    /// Fails when an agent knows of more jobs than it may keep.
    fn check_jobs(&mut self, fleet: &Fleet) -> anyhow::Result<()> {
        for host in 0..fleet.hosts().len() {
            let jobs = count_jobs(&mut fleet.call(host)?)?;
            let reports: usize = fleet.pools_of(host).iter().map(|&pool| fleet.pools()[pool].reports().len()).sum();
            let most = JOBS_KEPT + reports;
            self.most_jobs = self.most_jobs.max(jobs);
            if jobs > most {
                bail!("agent {} knows of {jobs} jobs, and may keep {most}", fleet.hosts()[host].name());
            }
        }
        Ok(())
    }

    /// Fails when something is left of the guests, all of which have been stopped.
    pub(super) fn conclude(&mut self, fleet: &Fleet, vigil: &Vigil) -> anyhow::Result<()> {
        interrupt::wait_for("guests that were stopped have left something", PATIENCE, || {
            Ok(self.look(fleet, &[], vigil).is_ok().then_some(()))
        })
        .or_else(|error| self.look(fleet, &[], vigil).map(|_| ()).map_err(|misfit| misfit.context(error)))?;
        self.check_pools(fleet)
    }

    fn check_pools(&mut self, fleet: &Fleet) -> anyhow::Result<()> {
        for pool in fleet.pools() {
            self.pool_checks += 1;
            require_sound(pool)?;
        }
        Ok(())
    }

    /// Looks at everything once; the error is what does not fit, or not yet.
    fn look(&self, fleet: &Fleet, guests: &[Resident], vigil: &Vigil) -> anyhow::Result<Census> {
        let mut census = Census::take(fleet)?;
        let mut homes: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
        for guest in guests {
            let name = guest.name().as_str();
            let owner = census.settle(fleet, guest)?;
            if let Some(odd) = misplaced(&guest.map(), (owner.slot, owner.epoch), Fate::Runs) {
                bail!("guest {name}: {odd}");
            }
            homes.entry(owner.host).or_default().insert(name.to_owned());
        }
        census.require_no_strays(fleet, &homes)?;
        for host in 0..fleet.hosts().len() {
            if let Some(job) = fleet.call(host)?.jobs(&JobFilter::latest(0))?.first() {
                bail!("agent {} has a {} under way: {:?}", fleet.hosts()[host].name(), job.kind, job.progress);
            }
            let at_home = homes.get(&host).map_or(0, BTreeSet::len);
            if let Some(excess) = vigil.excess(fleet, host, at_home)? {
                bail!(excess);
            }
        }
        for pool in 0..fleet.pools().len() {
            self.account_for(fleet, pool, guests)?;
        }
        Ok(census)
    }

    /// Fails when a pool has a capacity that nobody needs, lacks one, or has other than its free bytes free.
    fn account_for(&self, fleet: &Fleet, pool: usize, guests: &[Resident]) -> anyhow::Result<()> {
        let residents: Vec<_> = guests.iter().filter(|guest| guest.pool() == pool).collect();
        let capacities = fleet.pools()[pool].capacities();
        let mut memories: BTreeMap<Tag, &Resident> = BTreeMap::new();
        for guest in &residents {
            memories.insert(guest.control().config()?.memory, guest);
        }
        let mut states = 0;
        for capacity in &capacities {
            if capacity.changed_by.is_some() || capacity.damage.is_some() {
                bail!("pool {pool}: the capacity `{}` is being changed, or damaged", capacity.label);
            }
            match memories.remove(&capacity.tag) {
                None => states += 1,
                Some(guest) if guest.map().summary().pooled == 0 => {
                    bail!("guest {}: all of its memory is local, and it has room in pool {pool} still", guest.name());
                }
                Some(_) => {}
            }
        }
        if let Some(guest) = memories.values().find(|guest| guest.map().summary().pooled > 0) {
            bail!("guest {}: its memory is in pool {pool}, and has no room there", guest.name());
        }
        if states != residents.len() {
            let labels: Vec<&str> = capacities.iter().map(|capacity| capacity.label.as_str()).collect();
            bail!("pool {pool} has {} guests, and {states} capacities for state: {labels:?}", residents.len());
        }
        let used: u64 = capacities.iter().map(|capacity| capacity.bytes).sum();
        let (free, expected) = (fleet.pools()[pool].usage().free, self.free[pool].saturating_sub(used));
        if free != expected {
            bail!("pool {pool} has {free} bytes free, and should have {expected}");
        }
        let usage = fleet.pools()[pool].usage();
        if u64::from(usage.guests) != residents.len() as u64 {
            bail!("pool {pool} has {} guests, and should have {}", usage.guests, residents.len());
        }
        Ok(())
    }
}

/// How many jobs an agent knows of, page by page.
fn count_jobs(agent: &mut Client) -> nil_host::Result<usize> {
    let (mut wanted, mut count) = (JobFilter::latest(JobFilter::MOST), 0);
    loop {
        let page = agent.jobs(&wanted)?;
        count += page.len();
        let over = page.iter().filter(|job| job.is_over());
        match over.clone().next_back() {
            Some(last) if over.count() == usize::from(wanted.past) => wanted.before = Some(last.id),
            Some(_) | None => return Ok(count),
        }
    }
}
