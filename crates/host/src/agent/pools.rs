//! The pools that a host has joined.

use crate::capabilities::Placement;
use crate::config::PoolRef;
use crate::error::{Error, Result, story};
use crate::name::HostName;
use crate::report::{LostPool, PoolReport};
use crate::run_dir::RunDir;
use crate::tags::TagSearch;
use nil_pool::{Access, HostAddress, HostId, HostIdentity, HostKind, Membership, Pool, PoolId};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The host's memberships.
#[derive(Debug)]
pub(super) struct Pools {
    host: HostName,
    joined: Mutex<Vec<Arc<Membership>>>,
    /// Pools whose memory is no more.
    lost: Mutex<Vec<LostPool>>,
    /// When the host's lease was renewed everywhere.
    renewed: Mutex<Instant>,
}

impl Pools {
    /// Joins every pool, each once however often it is named.
    pub(super) fn join(paths: &[PathBuf], id: HostId, host: &HostName, address: Option<&HostAddress>) -> Result<Self> {
        let identity = HostIdentity { id, name: host.to_string(), kind: HostKind::Agent, address: address.cloned() };
        let mut joined: Vec<Arc<Membership>> = Vec::new();
        for path in paths {
            match join_one(path, &identity, &joined) {
                Ok(membership) => joined.extend(membership.map(Arc::new)),
                Err(error) => {
                    leave_all(joined);
                    return Err(error);
                }
            }
        }
        introduce(&joined);
        let (joined, renewed) = (Mutex::new(joined), Mutex::new(Instant::now()));
        Ok(Self { host: host.clone(), joined, lost: Mutex::default(), renewed })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Membership>>> {
        self.joined.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All memberships.
    pub(super) fn all(&self) -> Vec<Arc<Membership>> {
        self.lock().clone()
    }

    /// The membership in one pool.
    pub(super) fn get(&self, id: PoolId) -> Result<Arc<Membership>> {
        let all = self.all();
        all.into_iter().find(|membership| membership.pool().id() == id).ok_or_else(|| not_a_member(&self.host, id))
    }

    /// Where the pools are, except this one.
    pub(super) fn paths_beside(&self, id: PoolId) -> Vec<PathBuf> {
        let all = self.all();
        let others = all.iter().map(|membership| membership.pool()).filter(|pool| pool.id() != id);
        others.map(|pool| pool.path().to_path_buf()).collect()
    }

    /// Forgets a pool that is no more: there is nothing in it that could be left in order. False when it is forgotten already.
    pub(super) fn lose(&self, pool: PoolId) -> bool {
        let mut joined = self.lock();
        let before = joined.len();
        joined.retain(|membership| membership.pool().id() != pool);
        joined.len() < before
    }

    /// Keeps what is known of a pool that is no more.
    pub(super) fn remember(&self, lost: LostPool) {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).push(lost);
    }

    /// Those that are no more.
    pub(super) fn lost(&self) -> Vec<LostPool> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Renews the host's lease everywhere. Returns a membership in which a peer has declared this host dead, or that is in a
    /// pool that is no more, if there is one.
    pub(super) fn beat(&self) -> Option<Arc<Membership>> {
        let all = self.all();
        for membership in &all {
            membership.beat();
        }
        *self.renewed() = Instant::now();
        all.into_iter().find(|membership| membership.is_fenced() || membership.pool().is_lost())
    }

    /// How long ago that was.
    pub(super) fn lease_age(&self) -> Duration {
        self.renewed().elapsed()
    }

    fn renewed(&self) -> MutexGuard<'_, Instant> {
        self.renewed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves every pool in which the host is responsible for no guest. In the others its slot stays: guests that run on
    /// do so in its name.
    pub(super) fn leave_where_idle(&self) {
        leave_all(std::mem::take(&mut *self.lock()));
    }

    /// What the host says of its pools.
    pub(super) fn reports(&self) -> Vec<PoolReport> {
        let report = |membership: &Arc<Membership>| {
            let pool = membership.pool();
            let usage = pool.usage();
            PoolReport {
                id: pool.id(),
                path: pool.path().to_path_buf(),
                slot: slot_number(membership.slot()),
                free_bytes: usage.free,
                total_bytes: usage.total.saturating_sub(usage.tables),
            }
        };
        self.all().iter().map(report).collect()
    }

    /// Whether the host takes guests: not while it is cordoned in any of its pools.
    pub(super) fn placement(&self) -> Placement {
        let cordoned = |membership: &Arc<Membership>| membership.pool().is_cordoned(membership.slot());
        if self.all().iter().any(cordoned) { Placement::Cordoned } else { Placement::Open }
    }

    /// "pool PATH (slot 0)", for each.
    pub(super) fn description(&self) -> String {
        let describe = |membership: &Arc<Membership>| {
            format!("pool {} (slot {})", membership.pool().path().display(), membership.slot().index())
        };
        self.all().iter().map(describe).collect::<Vec<_>>().join(" and ")
    }
}

/// Where the pools are. What is told by its UUID is looked for, in these directories too.
pub(super) fn locate(pools: &[PoolRef], run_dir: &RunDir, directories: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut search = None;
    let locate = |pool: &PoolRef| match pool {
        PoolRef::Path(path) => Ok(path.clone()),
        PoolRef::Id(id) => {
            let here = || TagSearch::of_this_machine(run_dir, directories.to_vec());
            search.get_or_insert_with(here).pool(*id)
        }
    };
    pools.iter().map(locate).collect()
}

/// Joins a pool; `None` when it has been joined already.
fn join_one(path: &Path, identity: &HostIdentity, joined: &[Arc<Membership>]) -> Result<Option<Membership>> {
    // Workers open it by the same path from another directory.
    let path = path.canonicalize().map_err(|error| Error::io("find the pool", path, error))?;
    let pool = Pool::open(&path, Access::ReadWrite)?;
    if joined.iter().any(|membership| membership.pool().id() == pool.id()) {
        return Ok(None);
    }
    Ok(Some(pool.join(identity)?))
}

/// Has every pool find stripes of its capacities in all the others.
fn introduce(joined: &[Arc<Membership>]) {
    for membership in joined {
        joined.iter().for_each(|other| membership.pool().add_companion(other.pool()));
    }
}

fn leave_all(joined: Vec<Arc<Membership>>) {
    for membership in joined {
        let path = membership.pool().path().to_path_buf();
        let Some(membership) = Arc::into_inner(membership) else { continue };
        match membership.leave() {
            Ok(()) | Err(nil_pool::Error::HostHoldsGuest { .. }) => {}
            Err(error) => tracing::warn!("cannot leave pool {}: {}", path.display(), story(&error)),
        }
    }
}

/// What to say of a host that should have joined a pool.
pub(super) fn not_a_member(host: &HostName, pool: PoolId) -> Error {
    Error::refused(format!(
        "host {host} is not a member of pool {pool}; start its agent with --pool and that pool's path as well"
    ))
}

/// What to call the host that has a slot, also when it has left.
pub(super) fn name_or_slot(pool: &Pool, slot: nil_pool::HostSlot) -> String {
    pool.host_name(slot).unwrap_or_else(|| slot.to_string())
}

/// A host slot as it travels in messages.
pub(super) fn slot_number(slot: nil_pool::HostSlot) -> u16 {
    u16::try_from(slot.index()).expect("a host slot has 12 bits")
}
