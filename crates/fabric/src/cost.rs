//! What a migration is predicted to take.
//!
//! The figures are those that nil measured (`docs/fabric.md` says where); who has measured its own gives them instead.

use crate::model::Host;
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

/// Whether what hosts have measured counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Measured {
    /// It does, and where nothing was measured the model's figures do.
    Used,
    /// The model's figures do: they are for other moves than those that were measured.
    Ignored,
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
    /// Whether what hosts have measured counts.
    pub measured: Measured,
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
            measured: Measured::Used,
        }
    }
}

impl CostModel {
    /// Of moves that take all the bandwidth that there is: 5.7 GB/s into a pool and 1.7 GB/s out of it.
    #[must_use]
    pub fn fast() -> Self {
        let (into_pool, out_of_pool) = (Rate(5_700_000_000), Rate(1_700_000_000));
        Self { into_pool, out_of_pool, measured: Measured::Ignored, ..Self::default() }
    }

    /// The same, of moves that take no more than this.
    #[must_use]
    pub fn within(self, most: Rate) -> Self {
        let [into_pool, out_of_pool] = [self.into_pool, self.out_of_pool].map(|rate| rate.min(most));
        Self { into_pool, out_of_pool, measured: Measured::Ignored, ..self }
    }
}

/// Which way memory is copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Copying {
    /// From a host's DRAM into a pool.
    IntoPool,
    /// From a pool into a host's DRAM.
    OutOfPool,
}

/// What keeps a copy from being quicker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// It was measured on that host: no quicker.
    Measured,
    /// Nothing was measured there: the figure of the model.
    Assumed,
    /// What copying may take of the narrowest link or device on the route.
    Route,
}

/// A copy of a guest's memory, and what its time is made of: bytes ÷ rate × stretch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Copied {
    /// Which way.
    pub copying: Copying,
    /// How much.
    pub bytes: Bytes,
    /// How fast.
    #[serde(rename = "bytes_per_second")]
    pub rate: Rate,
    /// Why not faster.
    pub limit: Limit,
    /// How much longer it takes because the host's CPUs are busy, in thousandths of the time.
    pub stretch_permille: u64,
    /// What it takes.
    #[serde(rename = "time_us")]
    pub time: Duration,
}

/// The copies of one step, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Copies(Copied, Option<Copied>);

impl Copies {
    pub(crate) fn time(&self) -> Duration {
        self.0.time + self.1.map_or(Duration(0), |second| second.time)
    }

    pub(crate) fn list(self) -> Vec<Copied> {
        [Some(self.0), self.1].into_iter().flatten().collect()
    }
}

/// The pace of one host: how fast it copies memory, and how much longer it takes for everything because it is busy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pace {
    into_pool: (Rate, Limit),
    out_of_pool: (Rate, Limit),
    stretch: u64,
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
    /// What a host does itself takes this much longer, in thousandths, when its CPUs are busy. Kernels share them fairly:
    /// who comes gets what is idle, and half of what is busy. So it is twice as long at most.
    fn stretch(load: f64) -> u64 {
        let had = 1.0 - load.clamp(0.0, 1.0) / 2.0;
        // Between 1000 and 2000, since `had` is between 0.5 and 1.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let per_mille = (1000.0 / had).round() as u64;
        per_mille
    }

    /// The pace of a host: as was measured there, or else as is assumed.
    pub(crate) fn pace(&self, host: &Host) -> Pace {
        let counts = |_: &Rate| self.measured == Measured::Used;
        let known = |measured: Option<Rate>, assumed| match measured.filter(counts) {
            Some(rate) => (rate, Limit::Measured),
            None => (assumed, Limit::Assumed),
        };
        Pace {
            into_pool: known(host.into_pool, self.into_pool),
            out_of_pool: known(host.out_of_pool, self.out_of_pool),
            stretch: Self::stretch(host.load),
        }
    }

    /// No host's pace is better than this.
    pub(crate) fn best(&self, paces: &[Pace]) -> Pace {
        let best = |rates: &mut dyn Iterator<Item = (Rate, Limit)>, assumed| {
            (rates.map(|(rate, _)| rate).max().unwrap_or(assumed), Limit::Assumed)
        };
        Pace {
            into_pool: best(&mut paces.iter().map(|pace| pace.into_pool), self.into_pool),
            out_of_pool: best(&mut paces.iter().map(|pace| pace.out_of_pool), self.out_of_pool),
            stretch: 1000,
        }
    }

    /// Memory is copied over this route.
    fn copied(&self, copying: Copying, bytes: Bytes, route: Route, pace: Pace) -> Copied {
        let share = (route.bandwidth.percent(self.copy_share), Limit::Route);
        let known = match copying {
            Copying::IntoPool => pace.into_pool,
            Copying::OutOfPool => pace.out_of_pool,
        };
        let (rate, limit) = if share.0 < known.0 { share } else { known };
        // What was measured was so although the host was busy.
        let stretch_permille = if limit == Limit::Measured { 1000 } else { pace.stretch };
        let time = rate.time_for(bytes).stretched(stretch_permille);
        Copied { copying, bytes, rate, limit, stretch_permille, time }
    }

    /// What the source's side of a handoff over this route adds.
    pub(crate) fn hand(&self, route: Route) -> Cost {
        Cost { fabric: self.latency(route), ..Cost::default() }
    }

    /// What the target's side adds, and all that the handoff costs whoever is at its ends.
    pub(crate) fn take(&self, memory: Bytes, route: Route, pace: Pace) -> Cost {
        Cost {
            arm: self.arming(memory).stretched(pace.stretch),
            blackout: self.blackout,
            fabric: self.latency(route),
            copy: Duration(0),
        }
    }

    /// Memory goes from one device to another over these routes of one host: the copies that this takes.
    pub(crate) fn relocate(&self, memory: Bytes, from: Route, to: Route, pace: Pace) -> Copies {
        let out = self.copied(Copying::OutOfPool, memory, from, pace);
        let into = self.copied(Copying::IntoPool, memory, to, pace);
        match self.relocation {
            Relocation::ThroughDram => Copies(out, Some(into)),
            Relocation::Direct if out.time > into.time => Copies(out, None),
            Relocation::Direct => Copies(into, None),
        }
    }

    /// Memory goes from DRAM into a device.
    pub(crate) fn decouple(&self, memory: Bytes, to: Route, pace: Pace) -> Copies {
        Copies(self.copied(Copying::IntoPool, memory, to, pace), None)
    }

    /// Memory goes from a device into DRAM.
    pub(crate) fn recouple(&self, memory: Bytes, from: Route, pace: Pace) -> Copies {
        Copies(self.copied(Copying::OutOfPool, memory, from, pace), None)
    }

    /// No handoff costs less than this.
    pub(crate) fn least_handoff(&self, memory: Bytes) -> Duration {
        self.arming(memory) + self.blackout
    }

    /// No relocation costs less than this, where no route is wider than `widest` and no pace better than `best`.
    pub(crate) fn least_relocation(&self, memory: Bytes, widest: Rate, best: Pace) -> Duration {
        let route = Route { latency_ns: 0, bandwidth: widest };
        self.relocate(memory, route, route, best).time()
    }

    fn arming(&self, memory: Bytes) -> Duration {
        let warm = (u128::from(memory.0) * u128::from(self.warm_per_gib.0)) >> 30;
        self.arm + Duration(u64::try_from(warm).unwrap_or(u64::MAX))
    }

    fn latency(&self, route: Route) -> Duration {
        Duration((u64::from(self.accesses) * route.latency_ns).div_ceil(1000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{GIB, host};

    fn copies(change: impl Fn(&mut Host)) -> Vec<Copied> {
        let mut host = host("A");
        change(&mut host);
        let (model, route) = (CostModel::default(), Route { latency_ns: 100, bandwidth: Rate(32 * GIB) });
        model.relocate(Bytes(GIB), route, route, model.pace(&host)).list()
    }

    #[test]
    fn each_copy_takes_its_bytes_by_its_rate_stretched() {
        for load in [0.0, 0.3, 1.0] {
            for measured in [None, Some(Rate(500_000_000)), Some(Rate(900 * GIB))] {
                for copy in copies(|host| (host.load, host.into_pool) = (load, measured)) {
                    let made_of = copy.rate.time_for(copy.bytes).stretched(copy.stretch_permille);
                    assert_eq!(copy.time, made_of, "{copy:?}");
                }
            }
        }
    }

    #[test]
    fn what_was_measured_counts_as_it_is_and_what_is_assumed_is_stretched_by_the_load() {
        let [out, into] = copies(|host| (host.load, host.into_pool) = (0.5, Some(Rate(GIB))))[..] else {
            panic!("memory goes through DRAM")
        };
        assert_eq!((into.limit, into.rate, into.stretch_permille), (Limit::Measured, Rate(GIB), 1000));
        assert_eq!(
            (out.limit, out.rate, out.stretch_permille),
            (Limit::Assumed, CostModel::default().out_of_pool, 1333)
        );
        let wide = copies(|host| host.into_pool = Some(Rate(900 * GIB)));
        assert_eq!((wide[1].limit, wide[1].rate), (Limit::Route, Rate(16 * GIB)));
    }

    #[test]
    fn moves_at_another_pace_than_those_that_were_measured_are_predicted_by_the_model() {
        let mut host = host("A");
        host.into_pool = Some(Rate(7));
        let route = Route { latency_ns: 100, bandwidth: Rate(32 * GIB) };
        let rate = |model: CostModel| model.decouple(Bytes(GIB), route, model.pace(&host)).list()[0].rate;
        assert_eq!((rate(CostModel::default()), rate(CostModel::fast())), (Rate(7), Rate(5_700_000_000)));
        assert_eq!(rate(CostModel::fast().within(Rate(99))), Rate(99));
    }

    #[test]
    fn a_busy_host_takes_twice_as_long_at_most() {
        let stretches = [-1.0, 0.0, 0.5, 1.0, 7.0].map(CostModel::stretch);
        assert_eq!(stretches, [1000, 1000, 1333, 2000, 2000]);
    }
}
