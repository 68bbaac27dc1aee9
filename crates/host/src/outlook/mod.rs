//! What is known of the hosts, pools and guests around, and the plans that are made of it: emptying a host, evening hosts
//! out. Pure but for [`Usage`]: it is told, and answers. `nil_fabric` does the planning.

mod usage;

pub(crate) use usage::Usage;

use crate::error::{Error, Result};
use crate::fabric::fabric_of;
use crate::name::{GuestName, HostName};
use crate::order::Rebalance;
use crate::report::{
    GuestReport, GuestState, PlacementPlan, PlannedMove, RebalancePlan, Resources, Stay, Unevenness, Whereabouts,
};
use crate::survey::Survey;
use nil_fabric::{Balance, Bytes, DeviceId, Evenness, Fabric, Guest, HostId, Limits, Memory, Move, Plan, Planner};
use nil_pool::{GuestId, PoolId};
use std::collections::{BTreeMap, BTreeSet};

/// Hosts, pools and guests at one moment.
#[derive(Debug)]
pub(crate) struct Outlook {
    fabric: Fabric,
    guests: Vec<Guest>,
    /// The same guests, as their agents know them.
    known: Vec<Known>,
    /// Guests that do not run, and so do not move.
    idle: Vec<Idle>,
    /// The hosts of this machine: those of others take no orders from here.
    near: BTreeSet<HostId>,
}

#[derive(Clone, Debug)]
struct Known {
    id: GuestId,
    name: GuestName,
    /// The pool that is its home, if that is known.
    home: Option<DeviceId>,
}

/// A guest that does not run.
#[derive(Clone, Debug)]
struct Idle {
    host: HostName,
    stay: Stay,
    passing: Passing,
}

/// Whether a guest that does not run is about to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Passing {
    Yes,
    No,
}

/// What was found out by trying.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lessons {
    /// Guests, and the hosts that did not take them.
    pub(crate) refusals: BTreeMap<GuestId, BTreeSet<HostName>>,
    /// Guests that are not to be planned for any more.
    pub(crate) given_up: BTreeSet<GuestId>,
}

impl Outlook {
    /// What a survey tells.
    ///
    /// # Errors
    /// Two hosts, or a host and a pool, have the same name.
    pub(crate) fn of(survey: &Survey, usage: &Usage) -> Result<Self> {
        let load = |host: &HostName, has: &Resources| {
            let theirs = survey.guests.iter().filter(|guest| guest.host.as_deref() == Some(host.as_str()));
            let millicpus = theirs.map(|guest| usage.of(guest.id)).fold(0, u64::saturating_add);
            // Of no host so much is known that it does not fit.
            f64::from(u32::try_from(millicpus).unwrap_or(u32::MAX)) / 1000.0 / f64::from(has.cpus.max(1))
        };
        let fabric = fabric_of(survey, load).map_err(|error| Error::refused(error.to_string()))?;
        let near = survey.hosts.iter().filter_map(|host| fabric.find_host(host.name.as_str()).ok()).collect();
        let mut outlook = Self { fabric, guests: Vec::new(), known: Vec::new(), idle: Vec::new(), near };
        for report in &survey.guests {
            outlook.add(report, survey, usage);
        }
        Ok(outlook)
    }

    /// Takes a guest in. One whose host or pool nobody knows cannot be planned with.
    fn add(&mut self, report: &GuestReport, survey: &Survey, usage: &Usage) {
        let host = report.host.as_deref().and_then(|name| name.parse::<HostName>().ok());
        let (Some(host), Ok(name)) = (host, report.name.parse::<GuestName>()) else { return };
        let Ok(at) = self.fabric.find_host(host.as_str()) else { return };
        if report.state != GuestState::Running {
            let detail = report.detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default();
            let why = format!("it is {}{detail}", report.state);
            let passing = match report.state {
                GuestState::Starting | GuestState::Migrating | GuestState::Stopping => Passing::Yes,
                GuestState::Running | GuestState::Stopped | GuestState::Lost | GuestState::Unclear => Passing::No,
            };
            self.idle.push(Idle { host, stay: Stay { guest: name, id: report.id, why }, passing });
            return;
        }
        let home = self.device_of(report, survey);
        let lies = match report.memory.as_ref().map(|memory| memory.whereabouts) {
            Some(Whereabouts::Pool | Whereabouts::Both) => home.map(Memory::Device),
            Some(Whereabouts::Dram) | None => Some(Memory::Dram),
        };
        let (Some(lies), Ok(label)) = (lies, name.as_str().parse()) else { return };
        let (memory, millicpus) = (Bytes(report.memory_bytes), usage.of(report.id));
        self.guests.push(Guest { name: label, host: at, memory, lies, millicpus });
        self.known.push(Known { id: report.id, name, home });
    }

    /// The pool that has a guest's record.
    fn device_of(&self, report: &GuestReport, survey: &Survey) -> Option<DeviceId> {
        let mut pools = survey.hosts.iter().flat_map(|host| &host.pools);
        let pool: PoolId = pools.find(|pool| pool.path == report.pool)?.id;
        self.fabric.find_device(&pool.to_string()).ok()
    }

    /// A plan by which a host is emptied, at most `parallel` moves at once, but for the guests that are to be left out.
    ///
    /// # Errors
    /// Nobody knows the host.
    pub(crate) fn drain(&self, host: &HostName, parallel: u32, lessons: &Lessons) -> Result<PlacementPlan> {
        let at = self.fabric.find_host(host.as_str()).map_err(|error| Error::refused(error.to_string()))?;
        let limits = Limits { moves_per_host: parallel, ..Limits::default() };
        let refusals = |index: usize| lessons.refusals.get(&self.known[index].id).filter(|hosts| !hosts.is_empty());
        let leaves =
            |index: &usize| self.guests[*index].host == at && !lessons.given_up.contains(&self.known[*index].id);
        let (refused, others): (Vec<usize>, Vec<usize>) =
            (0..self.guests.len()).filter(leaves).partition(|index| refusals(*index).is_some());
        let planner = Planner::new(&self.fabric);
        let plan = |of: &[usize], closed: &[HostId]| {
            let guests: Vec<Guest> = of.iter().map(|index| self.guests[*index].clone()).collect();
            self.told(&planner.drain(&guests, closed, limits), of)
        };
        let mut whole = plan(&others, &[at]);
        // Each has hosts of its own that it must not go to, so each is planned for alone; their moves come last.
        for index in refused {
            let hosts = refusals(index).into_iter().flatten();
            let closed = hosts.filter_map(|host| self.fabric.find_host(host.as_str()).ok());
            whole.append(plan(&[index], &closed.chain([at]).collect::<Vec<_>>()));
        }
        let idle = self.idle.iter().filter(|idle| idle.host == *host && idle.passing == Passing::No);
        whole.left.extend(idle.map(|idle| idle.stay.clone()));
        Ok(whole)
    }

    /// Guests of a host that do not run yet, or are on their way somewhere already.
    pub(crate) fn busy(&self, host: &HostName) -> Vec<Stay> {
        let idle = self.idle.iter().filter(|idle| idle.host == *host && idle.passing == Passing::Yes);
        idle.map(|idle| idle.stay.clone()).collect()
    }

    /// A plan by which hosts are used more evenly.
    pub(crate) fn rebalance(&self, order: &Rebalance) -> RebalancePlan {
        let limits = Limits { moves_per_host: order.parallel, ..Limits::default() };
        let moves = usize::try_from(order.moves).unwrap_or(usize::MAX);
        let balance = Balance { moves, tolerance: u64::from(order.tolerance_percent) * 10 };
        let of: Vec<usize> = (0..self.guests.len()).filter(|at| self.near.contains(&self.guests[*at].host)).collect();
        let guests: Vec<Guest> = of.iter().map(|at| self.guests[*at].clone()).collect();
        let plan = Planner::new(&self.fabric).rebalance(&guests, balance, limits);
        RebalancePlan {
            plan: self.told(&plan.plan, &of),
            before: self.unevenness(plan.before),
            after: self.unevenness(plan.after),
        }
    }

    /// How evenly hosts are used.
    pub(crate) fn evenness(&self) -> Unevenness {
        let nothing = Balance { moves: 0, ..Balance::default() };
        self.unevenness(Planner::new(&self.fabric).rebalance(&self.guests, nothing, Limits::default()).before)
    }

    /// A plan in the words of agents. `of` are the guests that were planned for.
    fn told(&self, plan: &Plan, of: &[usize]) -> PlacementPlan {
        let known = |index: usize| self.known[of[index]].clone();
        let planner = Planner::new(&self.fabric);
        let planned = |one| self.planned(&planner, one, of);
        let waves = plan.waves.iter().map(|wave| wave.moves.iter().filter_map(planned).collect());
        let left = plan.left.iter().map(|left| {
            let Known { id, name, .. } = known(left.guest);
            Stay { guest: name, id, why: left.why.clone() }
        });
        PlacementPlan {
            waves: waves.collect(),
            left: left.collect(),
            predicted_us: plan.time().0,
            copied_bytes: plan.copied().0,
        }
    }

    fn planned(&self, planner: &Planner<'_>, one: &Move, of: &[usize]) -> Option<PlannedMove> {
        let Known { id, name, home } = self.known[of[one.guest]].clone();
        let host = |id| self.fabric.host(id).name.as_str().parse::<HostName>().ok();
        Some(PlannedMove {
            guest: name,
            id,
            from: host(one.path.from)?,
            to: host(one.path.to)?,
            way: one.path.in_short(&self.fabric),
            handoffs: one.path.handoffs(),
            memory_bytes: one.path.memory.0,
            copied_bytes: one.path.copied().0,
            rehomed: home.is_some_and(|home| planner.route(one.path.to, home).is_none()),
            predicted_us: one.path.time().0,
        })
    }

    fn unevenness(&self, evenness: Evenness) -> Unevenness {
        let Evenness { most, highest, mean, deviation } = evenness;
        let most = most.and_then(|host| self.fabric.host(host).name.as_str().parse().ok());
        Unevenness { most, highest_permille: highest, mean_permille: mean, deviation_permille: deviation }
    }
}

#[cfg(test)]
mod tests;
