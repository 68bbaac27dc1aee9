//! Evening out how far hosts are used, with few moves.
//!
//! As long as it helps, the host that is used most gives a guest to one of those in its namespace that are used least:
//! the guest and the target after whose move the higher of the two is lowest; and of those that are about as good, the
//! target that is nearest, then the guest with least memory. No guest moves twice.

use crate::guest::{Guest, Limits, Memory};
use crate::ledger::busy_millicpus;
use crate::model::HostId;
use crate::plan::{Evenness, Plan};
use crate::planner::Planner;
use crate::schedule::{Order, Schedule, per_mille};
use std::cmp::Reverse;

/// Of so many targets that are used least, one is chosen.
const TARGETS: usize = 8;
/// Of so many hosts that are used most, one gives.
const SOURCES: usize = 16;
/// A move has to make the higher of its two hosts lower by this much at least, in thousandths.
const WORTHWHILE: u64 = 20;

/// When a fabric is even enough.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Balance {
    /// At most so many guests move.
    pub moves: usize,
    /// A host that is used no more than this above the mean of its namespace is left alone, in thousandths.
    pub tolerance: u64,
}

impl Default for Balance {
    /// 32 moves, and 100 thousandths above the mean.
    fn default() -> Self {
        Self { moves: 32, tolerance: 100 }
    }
}

/// A plan, and what it makes of the fabric.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rebalance {
    /// The moves. Those for which there was no way are left, with the reason.
    pub plan: Plan,
    /// How evenly hosts are used now.
    pub before: Evenness,
    /// How evenly when the plan is done.
    pub after: Evenness,
}

/// How far hosts are used, move by move.
struct Use<'a> {
    planner: &'a Planner<'a>,
    millicpus: Vec<u64>,
    dram: Vec<u64>,
}

impl<'a> Use<'a> {
    fn new(planner: &'a Planner<'a>) -> Self {
        let fabric = planner.fabric();
        let millicpus = fabric.host_ids().map(|host| busy_millicpus(fabric, host)).collect();
        let dram = fabric.hosts().iter().map(|host| host.dram.0 - host.dram_free.0).collect();
        Self { planner, millicpus, dram }
    }

    fn of(&self, host: HostId) -> u64 {
        self.would_be(host, self.millicpus[host.index()], self.dram[host.index()])
    }

    fn would_be(&self, host: HostId, millicpus: u64, dram: u64) -> u64 {
        let have = self.planner.fabric().host(host);
        per_mille(millicpus, u64::from(have.cpus) * 1000).max(per_mille(dram, have.dram.0))
    }

    fn with(&self, host: HostId, guest: &Guest) -> u64 {
        self.would_be(host, self.millicpus[host.index()] + guest.millicpus, self.dram[host.index()] + dram(guest))
    }

    fn without(&self, host: HostId, guest: &Guest) -> u64 {
        let left = |all: &[u64], part| all[host.index()].saturating_sub(part);
        self.would_be(host, left(&self.millicpus, guest.millicpus), left(&self.dram, dram(guest)))
    }

    fn shift(&mut self, guest: &Guest, to: HostId) {
        let from = guest.host.index();
        self.millicpus[from] = self.millicpus[from].saturating_sub(guest.millicpus);
        self.dram[from] = self.dram[from].saturating_sub(dram(guest));
        self.millicpus[to.index()] += guest.millicpus;
        self.dram[to.index()] += dram(guest);
    }

    fn all(&self) -> Vec<u64> {
        self.planner.fabric().host_ids().map(|host| self.of(host)).collect()
    }
}

fn dram(guest: &Guest) -> u64 {
    if guest.lies == Memory::Dram { guest.memory.0 } else { 0 }
}

impl Planner<'_> {
    /// A plan by which hosts are used more evenly. All guests that may move are in the list.
    #[must_use]
    pub fn rebalance(&self, guests: &[Guest], balance: Balance, limits: Limits) -> Rebalance {
        let fabric = self.fabric();
        let mut used = Use::new(self);
        let before = Evenness::of(fabric, &used.all());
        let mut staying: Vec<Vec<usize>> = vec![Vec::new(); fabric.hosts().len()];
        for (at, guest) in guests.iter().enumerate() {
            staying[guest.host.index()].push(at);
        }
        let namespaces = self.namespaces();
        let mut orders = Vec::new();
        while orders.len() < balance.moves {
            let mut hottest: Vec<HostId> = fabric.host_ids().filter(|host| !staying[host.index()].is_empty()).collect();
            hottest.sort_by_key(|host| (Reverse(used.of(*host)), *host));
            let best = hottest.into_iter().take(SOURCES).find_map(|from| {
                let space = &namespaces.list()[namespaces.of_host(from)].hosts;
                let mean = space.iter().map(|host| used.of(*host)).sum::<u64>() / space.len() as u64;
                if used.of(from) <= mean + balance.tolerance {
                    return None;
                }
                self.best_move(guests, &staying[from.index()], from, space, &used, limits)
            });
            let Some((guest, to)) = best else { break };
            used.shift(&guests[guest], to);
            staying[guests[guest].host.index()].retain(|at| *at != guest);
            orders.push(Order { guest, to: Some(to) });
        }
        let plan = Schedule::new(self, guests, &[], limits).run(orders);
        let mut made = Use::new(self);
        for one in plan.moves() {
            made.shift(&guests[one.guest], one.path.to);
        }
        Rebalance { before, after: Evenness::of(fabric, &made.all()), plan }
    }

    fn best_move(
        &self,
        guests: &[Guest],
        staying: &[usize],
        from: HostId,
        space: &[HostId],
        used: &Use<'_>,
        limits: Limits,
    ) -> Option<(usize, HostId)> {
        let open = |host: &&HostId| **host != from && !self.fabric().host(**host).cordoned;
        let mut targets: Vec<HostId> = space.iter().filter(open).copied().collect();
        targets.sort_by_key(|host| (used.of(*host), *host));
        targets.truncate(TARGETS);
        let handoffs = self.handoffs_from(from);
        let pairs = staying.iter().flat_map(|guest| targets.iter().map(move |to| (*guest, *to)));
        let judged = pairs.filter_map(|(at, to)| {
            let guest = &guests[at];
            let host = self.fabric().host(to);
            let busy = used.millicpus[to.index()] + guest.millicpus;
            let fits = busy <= u64::from(host.cpus) * 10 * u64::from(limits.cpu_percent.min(100))
                && used.dram[to.index()] + dram(guest) <= host.dram.0;
            let after = used.with(to, guest).max(used.without(from, guest));
            (fits && after + WORTHWHILE <= used.of(from)).then(|| {
                let far = handoffs[to.index()].unwrap_or(u32::MAX);
                ((after / WORTHWHILE, far, guest.memory, after, used.with(to, guest), &guest.name, to), (at, to))
            })
        });
        judged.min_by(|(a, _), (b, _)| a.cmp(b)).map(|(_, pair)| pair)
    }
}
