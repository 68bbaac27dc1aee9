//! What there is now.

use crate::report::{GuestReport, GuestState, HostStanding, JobKind, PoolReport, ProtectionState};
use nil_mover::Direction;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// A number that may be a fraction.
type Real = Gauge<f64, AtomicU64>;

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfBuild {
    version: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfState {
    state: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfStanding {
    standing: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfPlace {
    place: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfPool {
    pool: String,
    path: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfDirection {
    direction: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

/// A host as it is when somebody asks.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    pub(crate) host: String,
    /// Its own guests, not those of others.
    pub(crate) guests: Vec<GuestReport>,
    pub(crate) pools: Vec<PoolReport>,
    /// How long ago it has said in its pools that it lives.
    pub(crate) lease_age: Duration,
    /// The jobs that are under way.
    pub(crate) jobs: Vec<JobKind>,
    /// What the leases of the other hosts in its pools say.
    pub(crate) peers: Vec<HostStanding>,
}

impl Picture {
    pub(super) fn register(&self, registry: &mut Registry) {
        let build = Family::<OfBuild, Gauge>::default();
        build.get_or_create(&OfBuild { version: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register("build_info", "The version that runs; always 1", build);
        let lease = Real::default();
        lease.set(self.lease_age.as_secs_f64());
        registry.register("lease_age_seconds", "How long ago the host has renewed its lease in its pools", lease);
        let peers = Family::<OfStanding, Gauge>::default();
        for standing in HostStanding::ALL {
            let these = self.peers.iter().filter(|peer| **peer == standing).count();
            peers.get_or_create(&OfStanding { standing: standing.word() }).set(whole(these));
        }
        registry.register("peers", "Other hosts in this host's pools, by what it sees of their leases", peers);
        self.register_guests(registry);
        self.register_protections(registry);
        self.register_pools(registry);
        let jobs = Family::<OfKind, Gauge>::default();
        for kind in JobKind::ALL {
            let running = self.jobs.iter().filter(|running| **running == kind).count();
            jobs.get_or_create(&OfKind { kind: kind.word() }).set(whole(running));
        }
        registry.register("jobs_running", "Jobs that are under way", jobs);
    }

    fn register_guests(&self, registry: &mut Registry) {
        let (guests, memory, speed) = (
            Family::<OfState, Gauge>::default(),
            Family::<OfPlace, Real>::default(),
            Family::<OfDirection, Real>::default(),
        );
        for state in GuestState::ALL {
            let these = self.guests.iter().filter(|guest| guest.state == state).count();
            guests.get_or_create(&OfState { state: state.word() }).set(whole(these));
        }
        let (mut pooled, mut local) = (0_u64, 0_u64);
        for guest in &self.guests {
            let there = guest.memory.as_ref().map_or(0, |memory| memory.pooled_bytes).min(guest.memory_bytes);
            pooled = pooled.saturating_add(there);
            local = local.saturating_add(guest.memory_bytes - there);
        }
        memory.get_or_create(&OfPlace { place: "pool" }).set(real(pooled));
        memory.get_or_create(&OfPlace { place: "dram" }).set(real(local));
        for direction in [Direction::Decouple, Direction::Recouple] {
            let moving = self.guests.iter().filter_map(|guest| guest.moving.as_ref());
            let these = moving.filter(|moving| moving.direction == direction);
            let sum = these.fold(0, |sum: u64, moving| sum.saturating_add(moving.bytes_per_s));
            speed.get_or_create(&OfDirection { direction: direction.verb() }).set(real(sum));
        }
        registry.register("guests", "Guests of this host, by what they are doing", guests);
        registry.register("guest_memory_bytes", "Memory of this host's guests, by where it is", memory);
        registry.register("moving_bytes_per_second", "How fast memory of this host's guests moves now", speed);
    }

    fn register_protections(&self, registry: &mut Registry) {
        let (protections, standstill) = (Family::<OfState, Gauge>::default(), Real::default());
        let protected = || self.guests.iter().filter_map(|guest| guest.protection.as_ref());
        for state in ProtectionState::ALL {
            let these = protected().filter(|protection| protection.state == state).count();
            protections.get_or_create(&OfState { state: state.word() }).set(whole(these));
        }
        let longest = protected().filter_map(|protection| protection.standstill_us).max().unwrap_or(0);
        standstill.set(Duration::from_micros(longest).as_secs_f64());
        registry.register("protections", "Protected guests of this host, by what that is good for now", protections);
        registry.register(
            "commit_standstill_seconds",
            "The longest that a protected guest of this host stood still for a commit in the last second",
            standstill,
        );
    }

    fn register_pools(&self, registry: &mut Registry) {
        let (free, used) = (Family::<OfPool, Real>::default(), Family::<OfPool, Real>::default());
        for pool in &self.pools {
            let labels = OfPool { pool: pool.id.to_string(), path: pool.path.display().to_string() };
            free.get_or_create(&labels).set(real(pool.free_bytes));
            used.get_or_create(&labels).set(real(pool.total_bytes.saturating_sub(pool.free_bytes)));
        }
        registry.register("pool_free_bytes", "Bytes of a pool that can be allocated", free);
        registry.register("pool_used_bytes", "Bytes of a pool that are allocated", used);
    }

    /// One of everything.
    #[cfg(test)]
    pub(super) fn of_everything() -> Self {
        let pool = serde_json::json!({
            "id": "6e696c00-0000-4000-8000-000000000001", "path": "/dev/shm/pool", "slot": 0,
            "free_bytes": 1 << 30, "total_bytes": 1_u64 << 31
        });
        Self {
            host: "A".to_owned(),
            guests: Vec::new(),
            pools: vec![serde_json::from_value(pool).expect("a pool's report")],
            lease_age: Duration::from_millis(40),
            jobs: vec![JobKind::Migration],
            peers: vec![HostStanding::Suspect],
        }
    }
}

fn whole(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[allow(clippy::cast_precision_loss, reason = "a figure to look at: above 2⁵³ bytes the last ones do not matter")]
fn real(bytes: u64) -> f64 {
    bytes as f64
}
