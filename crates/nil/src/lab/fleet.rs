//! Several hosts on this machine, and several pools, each shared by some of the hosts.
//!
//! ```text
//! pool 0   h0 h1 h2 h3                 8 hosts, 2 pools: two groups, and one host that is in both
//! pool 1            h3 h4 h5 h6 h7
//!
//! pool 0   h0 h1 h2 h3                 8 hosts, 3 pools: each pool is shared by half of the hosts, and each host shares
//! pool 1         h2 h3 h4 h5           one with some others, but not with all
//! pool 2                  h5 h6 h7 h0
//! ```
//!
//! Like a [`Rack`](super::Rack), these are ordinary agents and workers, and all of it goes with the [`Fleet`].

use super::ground::{Ground, Pages};
use super::interrupt;
use super::keeper::{self, HostPlan, Keeper};
use super::memory::Demand;
use super::rack::{check_kvm, host_dir, last_lines};
use anyhow::{Context, bail};
use nil_host::{Client, HostDir, RunDir};
use nil_pool::{Access, CreateOptions, GRANULE, HostSlot, Pool, PoolId};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Room in each pool for its tables.
const TABLES: u64 = 64 << 20;
/// Room for the state of a guest in the pool, beside its memory.
const STATE: u64 = 8 << 20;
/// How long all agents together may take to join their pools.
const PATIENCE: Duration = Duration::from_secs(60);
/// After which time an agent that does not answer is started once more: a child of the dead one that is still being born
/// holds its lock for a moment.
const START_AGAIN: Duration = Duration::from_secs(3);

/// What a fleet is to be built for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FleetPlan {
    pub(crate) hosts: usize,
    pub(crate) pools: usize,
    /// How many guests each pool must have room for.
    pub(crate) guests: u64,
    /// Bytes of memory of each guest.
    pub(crate) memory_bytes: u64,
}

/// Where a fleet's pools lie.
#[derive(Clone, Debug)]
pub(crate) enum Site {
    /// Where nobody else sees them, and whatever happens they go with the fleet.
    Private,
    /// In this directory; they stay there if that is said.
    Directory { path: PathBuf, kept: bool },
}

/// Hosts and pools. The order of the fields is the order of their end.
#[derive(Debug)]
pub(crate) struct Fleet {
    pools: Vec<Pool>,
    hosts: Vec<HostDir>,
    plans: Vec<HostPlan>,
    run_dir: RunDir,
    keeper: Keeper,
    _ground: Ground,
    directory: TempDir,
}

impl FleetPlan {
    /// Which pools each host joins.
    fn hosts(&self) -> Vec<HostPlan> {
        let members = self.members_per_pool();
        // With two hosts there are no groups to join.
        let hop = (self.pools == 2 && self.hosts > 2).then(|| (self.hosts - 1) / 2);
        let joins = |host: usize, pool: usize| {
            if let Some(hop) = hop {
                return if pool == 0 { host <= hop } else { host >= hop };
            }
            let first = pool * self.hosts / self.pools;
            (host + self.hosts - first) % self.hosts < members
        };
        let plan = |host| HostPlan {
            name: format!("h{host}"),
            pools: (0..self.pools).filter(|&pool| joins(host, pool)).collect(),
        };
        (0..self.hosts).map(plan).collect()
    }

    /// Half as many again as it takes for every host to be in one pool, so that pools overlap.
    fn members_per_pool(&self) -> usize {
        match self.pools {
            1 => self.hosts,
            pools => (3 * self.hosts).div_ceil(2 * pools).clamp(2.min(self.hosts), self.hosts),
        }
    }

    /// Bytes of each pool. Room is reserved only when it is used.
    fn pool_bytes(&self) -> u64 {
        (TABLES + self.guests * (self.memory_bytes + STATE)).next_multiple_of(GRANULE)
    }

    fn demand(&self) -> Demand {
        let guests = self.guests * self.memory_bytes;
        Demand { guest: guests, pool: self.pool_bytes() * self.pools as u64, beside: guests }
    }
}

impl Fleet {
    /// Builds a fleet and waits until all hosts are up.
    pub(crate) fn build(plan: &FleetPlan) -> anyhow::Result<Self> {
        Self::build_with(plan, |_| Ok(()))
    }

    /// The same; see [`Fleet::build_at`].
    pub(crate) fn build_with(
        plan: &FleetPlan,
        prepare: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        Self::build_at(plan, &Site::Private, prepare)
    }

    /// The same; `prepare` writes into the fleet's directory what agents are to read besides ([`keeper::host_config`]).
    pub(crate) fn build_at(
        plan: &FleetPlan,
        site: &Site,
        prepare: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let demand = plan.demand();
        demand.check_machine()?;
        check_kvm(Path::new("/dev/kvm"))?;
        let directory = tempfile::Builder::new().prefix("nil-").tempdir().context("cannot make a directory")?;
        let ground = match site {
            Site::Private => Ground::fleeting(directory.path(), demand, Pages::Huge)?,
            Site::Directory { path, kept } => Ground::within(path, directory.path(), demand, *kept)?,
        };
        let ground = ground.shared_by(plan.pools);
        for (number, path) in ground.pools().enumerate() {
            let label = format!("pool {number}");
            drop(Pool::create(
                path,
                &CreateOptions { size: Some(plan.pool_bytes()), label, ..CreateOptions::default() },
            )?);
        }
        prepare(directory.path())?;
        let run_dir = RunDir::at(keeper::run_directory(directory.path()));
        let plans = plan.hosts();
        let hosts = plans.iter().map(|host| host_dir(&run_dir, &host.name)).collect::<anyhow::Result<_>>()?;
        let keeper = Keeper::start(directory.path(), &ground, Pages::Huge, &plans)?;
        let pools = ground.pools().map(|path| Pool::open(path, Access::ReadWrite)).collect::<Result<_, _>>()?;
        let mut fleet = Self { pools, hosts, plans, run_dir, keeper, _ground: ground, directory };
        match fleet.await_hosts() {
            Ok(()) => Ok(fleet),
            Err(error) if error.is::<interrupt::Interrupted>() => Err(error),
            Err(error) => Err(error.context(format!("the hosts did not come up{}", fleet.logs()))),
        }
    }

    /// Where the fleet's files are.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn pools(&self) -> &[Pool] {
        &self.pools
    }

    pub(crate) fn hosts(&self) -> &[HostDir] {
        &self.hosts
    }

    pub(crate) fn run_dir(&self) -> &RunDir {
        &self.run_dir
    }

    /// The pools that a host joins.
    pub(crate) fn pools_of(&self, host: usize) -> &[usize] {
        &self.plans[host].pools
    }

    /// The hosts that join a pool.
    pub(crate) fn members(&self, pool: usize) -> Vec<usize> {
        (0..self.hosts.len()).filter(|&host| self.plans[host].pools.contains(&pool)).collect()
    }

    /// The host with that slot in a pool; `None` while its agent is just coming up again.
    pub(crate) fn host_of_slot(&self, pool: usize, slot: HostSlot) -> Option<usize> {
        let name = self.pools[pool].host(slot)?.name;
        self.hosts.iter().position(|host| host.name().as_str() == name)
    }

    /// Calls the agent of a host.
    pub(crate) fn call(&self, host: usize) -> nil_host::Result<Client> {
        Client::connect(&self.hosts[host])
    }

    /// Has the agent of a host started again, as it was started at first. The earlier one must have ended.
    pub(crate) fn start_again(&self, host: usize) -> anyhow::Result<()> {
        self.keeper.start_again(self.hosts[host].name().as_str())
    }

    /// Has the agent of a host started again, as often as it takes, and waits until it answers and has joined its pools.
    pub(crate) fn bring_up(&self, host: usize) -> anyhow::Result<()> {
        let mut asked: Option<Instant> = None;
        interrupt::wait_for("a restarted agent does not answer", PATIENCE, || {
            if asked.is_none_or(|asked| asked.elapsed() > START_AGAIN) {
                asked = Some(Instant::now());
                self.start_again(host)?;
            }
            Ok(self.is_up(host).then_some(()))
        })
        .with_context(|| format!("agent {}", self.hosts[host].name()))
    }

    /// Whether the agent of a host answers, and has joined its pools.
    pub(crate) fn is_up(&self, host: usize) -> bool {
        let wanted: Vec<PoolId> = self.pools_of(host).iter().map(|&pool| self.pools[pool].id()).collect();
        let joined = self.call(host).and_then(|mut client| client.describe()).map(|report| report.pools);
        joined.is_ok_and(|joined| wanted.iter().all(|id| joined.iter().any(|pool| pool.id == *id)))
    }

    /// The last lines that the agents and their keeper have said, to be shown beneath an error.
    pub(crate) fn logs(&self) -> String {
        let agents = self.hosts.iter().map(|host| keeper::host_log(self.directory.path(), host.name().as_str()));
        let logs: Vec<_> = std::iter::once(self.directory.path().join("keeper.log")).chain(agents).collect();
        last_lines(&logs)
    }

    fn await_hosts(&mut self) -> anyhow::Result<()> {
        for host in 0..self.hosts.len() {
            interrupt::wait_for("a host has not joined its pools", PATIENCE, || {
                if !self.keeper.is_alive() {
                    bail!("the process that looks after the hosts has ended");
                }
                Ok(self.is_up(host).then_some(()))
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools_of_hosts(hosts: usize, pools: usize) -> Vec<Vec<usize>> {
        let plan = FleetPlan { hosts, pools, guests: 1, memory_bytes: 8 << 20 };
        plan.hosts().into_iter().map(|host| host.pools).collect()
    }

    #[test]
    fn pools_overlap_and_nobody_is_in_all_of_them() {
        let hosts = pools_of_hosts(8, 3);
        assert!(hosts.iter().all(|pools| (1..3).contains(&pools.len())), "{hosts:?}");
        for pool in 0..3 {
            assert_eq!(hosts.iter().filter(|pools| pools.contains(&pool)).count(), 4);
            let next = (pool + 1) % 3;
            assert!(hosts.iter().any(|pools| pools.contains(&pool) && pools.contains(&next)), "{hosts:?}");
        }
    }

    #[test]
    fn two_pools_are_those_of_two_groups_with_one_host_in_both() {
        let hosts = pools_of_hosts(8, 2);
        let both: Vec<usize> = (0..8).filter(|&host| hosts[host].len() == 2).collect();
        assert_eq!((both, &hosts[0], &hosts[7]), (vec![3], &vec![0], &vec![1]));
        assert_eq!(pools_of_hosts(3, 2), [vec![0], vec![0, 1], vec![1]]);
        assert_eq!(pools_of_hosts(2, 2), [[0, 1], [0, 1]]);
    }

    #[test]
    fn the_smallest_fleets_have_somewhere_to_go() {
        assert_eq!(pools_of_hosts(2, 1), [[0], [0]]);
        assert_eq!(pools_of_hosts(1, 1), [[0]]);
        assert!(pools_of_hosts(3, 3).iter().all(|pools| pools.len() == 2));
    }
}
