//! What a migration is predicted to take.
//!
//! The figures are those that nil measured (`docs/fabric.md` says where); who has measured its own gives them instead.

use crate::quantity::{Bytes, Duration, Rate};
use crate::routes::Route;
use serde::Serialize;

/// How a guest's memory goes from one device to another at a host between two handoffs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relocation {
    /// Into the host's DRAM first, then into the other pool: two copies, and free DRAM is needed.
    ThroughDram,
    /// Straight from device to device: one copy.
    Direct,
}

/// The figures that predictions are made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CostModel {
    /// The guest stands still this long at a handoff, on memory without latency.
    pub blackout: Duration,
    /// So many accesses to the device lie one after the other in a handoff, on each side.
    pub accesses: u32,
    /// A target builds the guest's machine.
    pub arm: Duration,
    /// And maps a GiB of its memory.
    pub warm_per_gib: Duration,
    /// Memory goes from DRAM into a pool at most this fast.
    pub into_pool: Rate,
    /// Memory goes from a pool into DRAM at most this fast.
    pub out_of_pool: Rate,
    /// How memory goes from pool to pool.
    pub relocation: Relocation,
    /// The part of a link's or a device's bandwidth that copying may take, in percent. The rest is left to guests.
    pub copy_share: u32,
}

impl Default for CostModel {
    /// 150 µs of blackout and 20 ms of arming, 5 ms per GiB; 0.96 GB/s into a pool and 0.29 GB/s out of it, which is
    /// what the mover's default budget allows; half of any bandwidth for copying.
    fn default() -> Self {
        Self {
            blackout: Duration(150),
            accesses: 100,
            arm: Duration(20_000),
            warm_per_gib: Duration(5_000),
            into_pool: Rate(960_000_000),
            out_of_pool: Rate(290_000_000),
            relocation: Relocation::ThroughDram,
            copy_share: 50,
        }
    }
}

/// Where predicted time goes, in microseconds. The guest stands still in `blackout` and `fabric`, and runs in the rest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Cost {
    /// Targets build machines and map memory.
    #[serde(rename = "arm_us")]
    pub arm: Duration,
    /// Handoffs, without the fabric's latency.
    #[serde(rename = "blackout_us")]
    pub blackout: Duration,
    /// The fabric's latency in handoffs.
    #[serde(rename = "fabric_us")]
    pub fabric: Duration,
    /// Memory is copied.
    #[serde(rename = "copy_us")]
    pub copy: Duration,
}

impl Cost {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.arm + self.blackout + self.fabric + self.copy
    }

    /// The time for which the guest stands still.
    #[must_use]
    pub fn stands_still(&self) -> Duration {
        self.blackout + self.fabric
    }
}

impl std::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), |a, b| Self {
            arm: a.arm + b.arm,
            blackout: a.blackout + b.blackout,
            fabric: a.fabric + b.fabric,
            copy: a.copy + b.copy,
        })
    }
}

impl CostModel {
    /// What a host does itself takes this much longer, in thousandths, when its CPUs are busy: the inverse of what is
    /// idle, and ten times at most.
    pub(crate) fn stretch(load: f64) -> u64 {
        let idle = (1.0 - load).clamp(0.1, 1.0);
        // Between 1000 and 10000, since `idle` is between 0.1 and 1.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let per_mille = (1000.0 / idle).round() as u64;
        per_mille
    }

    /// How fast memory goes into a pool over this route.
    pub(crate) fn rate_in(&self, route: Route) -> Rate {
        route.bandwidth.percent(self.copy_share).min(self.into_pool)
    }

    /// How fast memory comes out of a pool over this route.
    pub(crate) fn rate_out(&self, route: Route) -> Rate {
        route.bandwidth.percent(self.copy_share).min(self.out_of_pool)
    }

    /// What the source's side of a handoff over this route adds.
    pub(crate) fn hand(&self, route: Route) -> Cost {
        Cost { fabric: self.latency(route), ..Cost::default() }
    }

    /// What the target's side adds, and all that the handoff costs whoever is at its ends.
    pub(crate) fn take(&self, memory: Bytes, route: Route, stretch: u64) -> Cost {
        Cost {
            arm: self.arming(memory).stretched(stretch),
            blackout: self.blackout,
            fabric: self.latency(route),
            copy: Duration(0),
        }
    }

    /// Memory goes from one device to another over these routes of one host.
    pub(crate) fn relocate(&self, memory: Bytes, from: Route, to: Route, stretch: u64) -> Cost {
        let (out, into) = (self.rate_out(from).time_for(memory), self.rate_in(to).time_for(memory));
        let time = match self.relocation {
            Relocation::ThroughDram => out + into,
            Relocation::Direct => out.max(into),
        };
        Cost { copy: time.stretched(stretch), ..Cost::default() }
    }

    /// Memory goes from DRAM into a device.
    pub(crate) fn decouple(&self, memory: Bytes, to: Route, stretch: u64) -> Cost {
        let time = self.rate_in(to).time_for(memory);
        Cost { copy: time.stretched(stretch), ..Cost::default() }
    }

    /// Memory goes from a device into DRAM.
    pub(crate) fn recouple(&self, memory: Bytes, from: Route, stretch: u64) -> Cost {
        let time = self.rate_out(from).time_for(memory);
        Cost { copy: time.stretched(stretch), ..Cost::default() }
    }

    /// No handoff costs less than this.
    pub(crate) fn least_handoff(&self, memory: Bytes) -> Duration {
        self.arming(memory) + self.blackout
    }

    /// No relocation costs less than this, where no route is wider than `widest`.
    pub(crate) fn least_relocation(&self, memory: Bytes, widest: Rate) -> Duration {
        let route = Route { latency_ns: 0, bandwidth: widest };
        self.relocate(memory, route, route, 1000).copy
    }

    fn arming(&self, memory: Bytes) -> Duration {
        let warm = (u128::from(memory.0) * u128::from(self.warm_per_gib.0)) >> 30;
        self.arm + Duration(u64::try_from(warm).unwrap_or(u64::MAX))
    }

    fn latency(&self, route: Route) -> Duration {
        Duration((u64::from(self.accesses) * route.latency_ns).div_ceil(1000))
    }
}
