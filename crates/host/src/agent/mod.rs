//! The agent: one per host, in charge and never in the way.
//!
//! It is a member of the host's pools, starts one worker process per guest and watches over it, and answers over HTTP
//! ([`crate::api`]). Guests do not depend on it: it may be stopped, killed and started again while they run, and takes the
//! workers that it finds as its own.
//!
//! ```text
//! Agent::start   lock → identity → join pools → adopt workers → settle twins → recover what has no worker → listen
//! Agent::run     threads: lease beat, vigil over other hosts, duties, API, one per order, job and worker; until a signal
//! Agent::stop    no new orders → orders in progress end → guests stay (or are stopped) → socket removed
//! ```

mod alone;
mod arming;
mod bandwidth;
mod calling_off;
mod cgroups;
mod compatibility;
mod cordon;
mod draining;
mod duties;
mod events;
mod figures;
mod former;
mod identity;
mod jobs;
mod ledger;
mod listing;
mod loss;
mod migration;
mod moving;
mod neighbours;
mod network;
mod offers;
mod orphans;
mod pace;
mod pinning;
mod pools;
mod protecting;
mod rebalancing;
mod recovery;
mod rehoming;
mod relocating;
mod reports;
mod routing;
mod running;
mod sending;
mod striping;
mod table;
mod target;
mod twins;
mod unclaimed;
mod undertaking;
mod views;
mod vigil;
mod workers;

pub(crate) use arming::Source;
pub(crate) use events::Caught;
pub(crate) use ledger::now_ms;
pub use network::Listening;
pub(crate) use offers::Decision;
pub(crate) use unclaimed::Unclaimed;
pub(crate) use undertaking::Work;

use crate::api::{self, Sockets};
use crate::capabilities::{Machine, Processors};
use crate::config::{Acceptance, LeaseConfig, Listen, PeerConfig, PoolRef, WorkerConfig};
use crate::error::{Error, Result};
use crate::message::FENCED_WORKERS;
use crate::metrics::Counted;
use crate::name::{GuestName, HostName};
use crate::process::Ending;
use crate::report::Takeover;
use crate::run_dir::HostDir;
use crate::wire::{self, Stale};
use alone::Alone;
use bandwidth::Bandwidth;
use cgroups::Groups;
use events::Events;
use identity::{AgentLock, Novelty};
use ledger::Ledger;
use neighbours::Neighbours;
use network::{Doors, Network};
use nil_mover::topology::{Topology, Warning};
use nil_pool::{FENCED_STATUS, GuestId, HostId, LeaseTerms, Membership};
use nil_vmm::CpuModel;
use offers::Offers;
use pace::Measured;
use pools::Pools;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use table::Table;
use vigil::{FenceCommand, Vigil};

/// How long orders in progress may take once the agent is to stop.
const PATIENCE_AT_STOP: Duration = Duration::from_secs(10);

/// What an agent is told when it is started.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The host's directory, which gives its name.
    pub dir: HostDir,
    /// The pools to join.
    pub pools: Vec<PoolRef>,
    /// Directories in which pools may lie that are told by their UUIDs; empty is the usual one.
    pub search: Vec<PathBuf>,
    /// How capacity is taken that is offered to the host.
    pub accept: Acceptance,
    /// Bytes per second that may be used to move guests' memory, all moves together; `None` is no limit.
    pub move_bandwidth: Option<u64>,
    /// Where to answer besides the Unix socket.
    pub listen: Listen,
    /// Where other hosts are, for those that do not say so in a pool.
    pub peers: Vec<PeerConfig>,
    /// The most that guests may be promised of this host's CPUs; `None` is all that they have.
    pub cpu_limit: Option<CpuModel>,
    /// How workers are confined.
    pub workers: WorkerConfig,
    /// How the host beats, and what it does about others that do not.
    pub lease: LeaseConfig,
}

/// What becomes of an agent's guests when it stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestsAtStop {
    /// They run on, and the next agent of that name finds them.
    RunOn,
    /// They are stopped and their memory is freed.
    Stop,
}

/// How an agent left the world behind.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Farewell {
    /// The guests that run on.
    pub running_on: Vec<GuestName>,
    /// The guests that were stopped.
    pub stopped: Vec<GuestName>,
    /// The guests that were to be stopped, and were not.
    pub not_stopped: Vec<NotStopped>,
}

/// A guest that was to be stopped when its agent ended, and runs on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NotStopped {
    /// Its name.
    pub guest: GuestName,
    /// Why it could not be stopped.
    pub why: String,
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    host: Arc<Host>,
    _lock: AgentLock,
}

/// What the agent's threads share.
#[derive(Debug)]
pub(crate) struct Host {
    dir: HostDir,
    id: HostId,
    pools: Pools,
    table: Table,
    ledger: Ledger,
    kept: reports::Kept,
    views: views::Views,
    events: Events,
    counted: Counted,
    network: Network,
    neighbours: Neighbours,
    measured: Measured,
    orders: OrderCount,
    bandwidth: Bandwidth,
    processors: Processors,
    machine: Machine,
    /// Emptying this host.
    drainage: Alone,
    /// Evening hosts out.
    rebalance: Alone,
    offers: Offers,
    routes: routing::Routes,
    /// Held while the capacity of a guest's memory is made or given back.
    placing: Mutex<()>,
    /// Guests whose workers live, as far as we can tell, and have not been understood: they are left alone.
    unadopted: Mutex<BTreeSet<GuestName>>,
    workers: WorkerConfig,
    lease: LeaseTerms,
    takeover: Takeover,
    fence_command: Option<FenceCommand>,
    vigil: Vigil,
    /// Whether peers may judge this host by its lease: every worker of it keeps to the terms.
    announced: AtomicBool,
    groups: Groups,
    /// How the workers of guests that are lost now have ended.
    endings: Mutex<BTreeMap<GuestId, Ending>>,
}

impl Agent {
    /// Becomes the agent of a host: joins its pools, takes the workers of an earlier agent as its own, clears up after
    /// those that died meanwhile, and begins to answer.
    ///
    /// # Errors
    /// Another agent of that name runs, a pool cannot be joined, or the socket cannot be opened.
    pub fn start(options: &AgentOptions) -> Result<Self> {
        let dir = options.dir.clone();
        dir.prepare()?;
        let lock = AgentLock::take(&dir)?;
        let (network, doors) = Network::open(&options.listen, &options.peers, dir.name())?;
        let paths = pools::locate(&options.pools, &dir.run_dir(), &options.search)?;
        let (id, novelty) = identity::load_or_create(&dir, &lock)?;
        let pools = Pools::join(&paths, id, dir.name(), network.address.as_ref()).inspect_err(|_| {
            if novelty == Novelty::New {
                identity::forget(&dir, &lock);
            }
        })?;
        let groups = Groups::find(dir.name(), &options.workers);
        let host = Arc::new(Host {
            dir,
            id,
            pools,
            table: Table::default(),
            ledger: Ledger::default(),
            kept: reports::Kept::default(),
            views: views::Views::default(),
            events: Events::default(),
            counted: Counted::default(),
            network,
            neighbours: Neighbours::default(),
            measured: Measured::default(),
            orders: OrderCount::default(),
            bandwidth: Bandwidth::new(options.move_bandwidth),
            processors: Processors::up_to(options.cpu_limit.clone()),
            machine: Machine::default(),
            drainage: Alone::default(),
            rebalance: Alone::default(),
            offers: Offers::new(options.accept),
            routes: routing::Routes::default(),
            placing: Mutex::default(),
            unadopted: Mutex::default(),
            workers: options.workers.clone(),
            lease: options.lease.terms,
            takeover: options.lease.takeover,
            fence_command: options.lease.fence_command.clone().map(FenceCommand),
            vigil: Vigil::default(),
            announced: AtomicBool::new(false),
            groups,
            endings: Mutex::default(),
        });
        warn_of_onlined_memory();
        host.restore_cordon()?;
        host.spawn("lease", Host::beat)?;
        host.adopt_workers()?;
        host.announce();
        host.settle_twins();
        host.recover_all();
        host.reap_orphan_stripes();
        host.take_up_ways();
        host.spawn("vigil", Host::keep_vigil)?;
        host.spawn("duties", Host::attend)?;
        host.listen(doors)?;
        host.spawn("neighbours", Host::ask_neighbours)?;
        Ok(Self { host, _lock: lock })
    }

    /// Which pools the host has joined, and in which slots, in words.
    #[must_use]
    pub fn introduction(&self) -> String {
        let Listening { tls, plain } = self.host.network.listening;
        let tls = tls.map(|address| format!(", answers at {address}")).unwrap_or_default();
        let plain = plain.map(|address| format!(", and on this machine at {address}")).unwrap_or_default();
        format!("host {} is up on {}{tls}{plain}", self.host.dir.name(), self.host.pools.description())
    }

    /// Where it answers besides its Unix socket.
    #[must_use]
    pub fn listening(&self) -> Listening {
        self.host.network.listening
    }

    /// The guests that were found running.
    #[must_use]
    pub fn guests(&self) -> Vec<GuestName> {
        self.host.table.entries().into_iter().map(|(name, _)| name).collect()
    }

    /// Stops answering and lets go of the pools; the guests run on or not, as told.
    ///
    /// # Errors
    /// The agent's socket cannot be removed. A guest that could not be stopped is named in the farewell.
    pub fn stop(self, guests: GuestsAtStop) -> Result<Farewell> {
        let socket = self.host.dir.agent_socket();
        fs::remove_file(&socket).map_err(|error| Error::io("remove", &socket, error))?;
        if !self.host.orders.close(PATIENCE_AT_STOP) {
            tracing::warn!("some orders are still in progress; they are abandoned");
        }
        let mut farewell = Farewell { running_on: Vec::new(), stopped: Vec::new(), not_stopped: Vec::new() };
        for (name, _) in self.host.table.entries() {
            match guests {
                GuestsAtStop::RunOn => farewell.running_on.push(name),
                GuestsAtStop::Stop => {
                    // One that cannot be stopped keeps none of the others running.
                    match self.host.stop_guest(&name) {
                        Ok(()) => farewell.stopped.push(name),
                        Err(error) => farewell.not_stopped.push(NotStopped { guest: name, why: error.story() }),
                    }
                }
            }
        }
        self.host.pools.leave_where_idle();
        Ok(farewell)
    }
}

impl Host {
    /// Runs `body` on a thread of its own.
    pub(crate) fn spawn(self: &Arc<Self>, name: &str, body: impl FnOnce(&Arc<Self>) + Send + 'static) -> Result<()> {
        let host = Arc::clone(self);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || body(&host))
            .map(|_| ())
            .map_err(|error| Error::io("start", "a thread", error))
    }

    fn beat(self: &Arc<Self>) {
        loop {
            match self.pools.beat() {
                Some(gone) if gone.pool().is_lost() => self.lose_pool(&gone),
                Some(fenced) => self.fall(&fenced),
                None => {}
            }
            std::thread::sleep(self.lease.interval());
        }
    }

    /// Ends, because a peer has declared this host dead: kills whatever might still run a guest of that pool, and leaves
    /// everything else to the next agent, which joins anew.
    fn fall(&self, fenced: &Membership) -> ! {
        let path = fenced.pool().path().display();
        tracing::error!(
            "this host was declared dead in pool {path}, because its lease had stood still; its guests there are not its own \
             any more: killing their workers, and ending. Started again, it joins as a new one"
        );
        for (_, entry) in self.table.entries() {
            if entry.control.pool().id() == fenced.pool().id() {
                entry.worker.kill();
            }
        }
        std::process::exit(FENCED_STATUS);
    }

    /// Says in every pool how this host beats, and that peers may judge it by that, once everything that acts in its name
    /// keeps to it.
    pub(super) fn announce(&self) {
        let keeps = |(_, entry): (GuestName, table::Entry)| entry.versions.worker >= FENCED_WORKERS;
        if self.announced.load(Ordering::Acquire)
            || !self.unadopted().is_empty()
            || !self.table.entries().into_iter().all(keeps)
        {
            return;
        }
        for membership in self.pools.all() {
            let announced = membership.announce_presence().and_then(|()| {
                membership.announce_takeover(self.takeover == Takeover::Auto)?;
                membership.announce_lease(self.lease)
            });
            match announced {
                Ok(terms) if terms != self.lease => tracing::warn!(
                    "the lease in pool {} expires after {} ms, not {}: workers of an earlier agent rely on that",
                    membership.pool().path().display(),
                    terms.expiry_ms(),
                    self.lease.expiry_ms()
                ),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!("peers cannot judge this host by its lease: {error}");
                    return;
                }
            }
        }
        self.announced.store(true, Ordering::Release);
    }

    /// Opens the agent's socket, and answers there and elsewhere. One that lies there was left by an agent that was killed: we hold the lock.
    fn listen(self: &Arc<Self>, doors: Doors) -> Result<()> {
        let (unix, stale) = wire::listen(&self.socket())?;
        if stale == Stale::Removed {
            tracing::info!("removed the socket of an earlier agent that did not end in order");
        }
        let Doors { tls, plain } = doors;
        api::serve(self, Sockets { unix, tls, plain })
    }

    /// The host's name.
    pub(crate) fn name(&self) -> &HostName {
        self.dir.name()
    }

    /// The agent's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.agent_socket()
    }

    /// Begins an order, which is over when what this returns is dropped.
    pub(crate) fn begin_order(&self) -> Result<OrderGuard<'_>> {
        self.orders.begin().ok_or_else(|| Error::Stopping { name: self.dir.name().clone() })
    }
}

/// Shared capacity is never to be the kernel's own memory. Whether a device that is was meant for nil nobody can say.
fn warn_of_onlined_memory() {
    let warnings = Topology::read(Path::new("/")).warnings();
    for warning in warnings.iter().filter(|warning| matches!(warning, Warning::OnlineAsRam { .. })) {
        tracing::warn!("{warning}");
    }
}

/// Counts the orders in progress, so that a stopping agent leaves none half done.
#[derive(Debug, Default)]
struct OrderCount {
    state: Mutex<OrderState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct OrderState {
    closed: bool,
    in_progress: usize,
}

/// An order in progress.
#[derive(Debug)]
pub(crate) struct OrderGuard<'a>(&'a OrderCount);

impl OrderCount {
    /// Begins an order; `None` when the agent is stopping.
    fn begin(&self) -> Option<OrderGuard<'_>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return None;
        }
        state.in_progress += 1;
        Some(OrderGuard(self))
    }

    /// Whether the agent is stopping.
    fn is_closed(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed
    }

    /// Lets no order begin any more, and waits for those in progress. Returns whether all have ended.
    fn close(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.closed = true;
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(state, left, |state| state.in_progress > 0);
        waited.unwrap_or_else(PoisonError::into_inner).0.in_progress == 0
    }
}

impl Drop for OrderGuard<'_> {
    fn drop(&mut self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).in_progress -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopping_agent_waits_for_the_orders_in_progress_and_takes_no_others() {
        let orders = OrderCount::default();
        let order = orders.begin().expect("orders are taken");
        std::thread::scope(|scope| {
            let closing = scope.spawn(|| orders.close(Duration::from_secs(60)));
            while orders.begin().is_some() {
                std::thread::yield_now();
            }
            assert!(!closing.is_finished());
            drop(order);
            assert!(closing.join().expect("no panic"));
        });
    }

    #[test]
    fn an_order_that_does_not_end_is_given_up() {
        let orders = OrderCount::default();
        let _order = orders.begin().expect("orders are taken");
        assert!(!orders.close(Duration::from_millis(1)));
    }
}
