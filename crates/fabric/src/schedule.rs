//! Where guests go, and in which wave.
//!
//! Wave after wave, each guest that waits is given the best host that can be come to with what is free: of those that
//! are reached soonest, the one that is used least. When a wave is full for a guest (its source has enough moves, or a
//! link has no bandwidth left), it waits for the next. When not one guest could be placed in a wave that was empty,
//! those that wait are left, each with the reason.

use crate::cost::Relocation;
use crate::guest::{Guest, Limits, Memory};
use crate::ledger::Ledger;
use crate::model::{DeviceId, HostId};
use crate::namespaces::Namespaces;
use crate::path::{End, Path};
use crate::plan::{Left, Move, Plan, Wave};
use crate::planner::Planner;
use crate::quantity::{Bytes, Duration};
use crate::search::{Bound, Place, Rules, Search, Start};
use std::ops::ControlFlow;

/// Of so many hosts that are reached soonest, one is chosen.
const CONSIDERED: usize = 32;
/// After so many guests for which there was no bandwidth, a wave is full.
const DISAPPOINTMENTS: usize = 32;

/// A guest that is to move.
pub(crate) struct Order {
    /// Its place among the guests.
    pub(crate) guest: usize,
    /// Where to; wherever there is room, if nothing is said.
    pub(crate) to: Option<HostId>,
}

pub(crate) struct Schedule<'a> {
    planner: &'a Planner<'a>,
    guests: &'a [Guest],
    ledger: Ledger<'a>,
    /// Hosts that get no guests and hand none on.
    closed: Vec<bool>,
    namespaces: Namespaces,
}

/// Guests of a wave for which nothing was found; who needs as much and more need not be looked for.
struct Refused {
    host: HostId,
    lies: Memory,
    to: Option<HostId>,
    memory: Bytes,
    millicpus: u64,
}

enum Outcome {
    Placed(Path),
    /// There is a place, but no bandwidth in this wave.
    NoBandwidth,
    NoPlace,
}

impl<'a> Schedule<'a> {
    /// Of hosts that are cordoned, and of those in `emptied`, none gets a guest.
    pub(crate) fn new(planner: &'a Planner<'a>, guests: &'a [Guest], emptied: &[HostId], limits: Limits) -> Self {
        let mut closed: Vec<bool> = planner.fabric().hosts().iter().map(|host| host.cordoned).collect();
        for host in emptied {
            closed[host.index()] = true;
        }
        let ledger = Ledger::new(planner, limits);
        Self { planner, guests, ledger, closed, namespaces: planner.namespaces() }
    }

    /// Plans for all of them, in this order within each wave.
    pub(crate) fn run(mut self, mut waiting: Vec<Order>) -> Plan {
        let mut plan = Plan::default();
        loop {
            let wave = self.wave(&mut waiting);
            if wave.moves.is_empty() {
                break;
            }
            plan.waves.push(wave);
            self.ledger.next_wave();
        }
        plan.left = waiting.iter().map(|order| Left { guest: order.guest, why: self.why(order) }).collect();
        plan
    }

    fn wave(&mut self, waiting: &mut Vec<Order>) -> Wave {
        let mut wave = Wave::default();
        let mut refused: Vec<Refused> = Vec::new();
        let mut disappointments = 0;
        waiting.retain(|order| {
            let guest = &self.guests[order.guest];
            let hopeless = |one: &Refused| {
                (one.host, one.lies, one.to) == (guest.host, guest.lies, order.to)
                    && one.memory <= guest.memory
                    && one.millicpus <= guest.millicpus
            };
            if disappointments == DISAPPOINTMENTS || !self.ledger.is_free(guest.host) || refused.iter().any(hopeless) {
                return true;
            }
            match self.place(guest, order.to) {
                Outcome::Placed(path) => {
                    wave.moves.push(Move { guest: order.guest, path });
                    return false;
                }
                Outcome::NoBandwidth => disappointments += 1,
                Outcome::NoPlace => {
                    let Guest { host, lies, memory, millicpus, .. } = *guest;
                    refused.push(Refused { host, lies, to: order.to, memory, millicpus });
                }
            }
            true
        });
        wave
    }

    fn place(&mut self, guest: &Guest, to: Option<HostId>) -> Outcome {
        let mut paths = self.candidates(guest, to);
        if paths.is_empty() {
            return Outcome::NoPlace;
        }
        paths.sort_by_key(|path| (self.score(guest, path), path.to));
        match paths.into_iter().find(|path| self.ledger.take(guest, path)) {
            Some(path) => Outcome::Placed(path),
            None => Outcome::NoBandwidth,
        }
    }

    /// The ways to the hosts that can be come to soonest.
    fn candidates(&self, guest: &Guest, to: Option<HostId>) -> Vec<Path> {
        let bound = to.map(|to| Bound::to(self.planner, to, guest.memory));
        let rules = Free { schedule: self, guest, to };
        let (planner, end) = (self.planner, guest.end());
        let search = Search { planner, rules: &rules, memory: guest.memory, end, bound: bound.as_ref() };
        let mut paths: Vec<Path> = Vec::new();
        let most = if to.is_some() { 1 } else { CONSIDERED };
        search.run(Start::At { host: guest.host, begin: guest.begin() }, &[], |host, places, _| {
            if paths.iter().all(|path| path.to != host) {
                let places: Vec<Place> = places();
                paths.push(planner.priced(&places, guest.memory, guest.begin(), end));
            }
            if paths.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        paths
    }

    /// The time that it takes, longer by the part to which the target would be used.
    fn score(&self, guest: &Guest, path: &Path) -> Duration {
        let host = self.planner.fabric().host(path.to);
        let dram = if guest.end() == End::Dram { guest.memory.0 } else { 0 };
        let cpu_left = self.ledger.millicpus[path.to.index()].saturating_sub(guest.millicpus);
        let dram_left = self.ledger.dram[path.to.index()].saturating_sub(dram);
        let used = per_mille(cpu_left, u64::from(host.cpus) * 1000).min(per_mille(dram_left, host.dram.0));
        path.time().stretched(2000 - used)
    }

    /// Why there is no place for a guest, when nothing else moves.
    fn why(&self, order: &Order) -> String {
        let guest = &self.guests[order.guest];
        let fabric = self.planner.fabric();
        let source = &fabric.host(guest.host).name;
        let space = &self.namespaces.list()[self.namespaces.of_host(guest.host)];
        let others = space.hosts.iter().filter(|host| **host != guest.host);
        let others: Vec<HostId> = others.copied().filter(|host| order.to.is_none_or(|to| to == *host)).collect();
        if others.is_empty() {
            return match order.to {
                Some(to) => format!("{} shares no memory with {source}", fabric.host(to).name),
                None => format!("no other host shares memory with {source}"),
            };
        }
        let count = |holds: &dyn Fn(HostId) -> bool| others.iter().filter(|host| holds(**host)).count();
        let closed = |host: HostId| self.closed[host.index()];
        let busy = |host: HostId| self.ledger.millicpus[host.index()] < guest.millicpus;
        let full = |host: HostId| guest.end() == End::Dram && self.ledger.dram[host.index()] < guest.memory.0;
        let mut reasons = Vec::new();
        for (number, what) in [
            (count(&closed), "cordoned or being emptied".to_owned()),
            (count(&|host| !closed(host) && busy(host)), format!("without {} free CPUs", cpus(guest.millicpus))),
            (
                count(&|host| !closed(host) && !busy(host) && full(host)),
                format!("without {} of free DRAM", guest.memory),
            ),
        ] {
            if number > 0 {
                reasons.push(format!("{number} {what}"));
            }
        }
        let good = count(&|host| !closed(host) && !busy(host) && !full(host));
        if good > 0 {
            let through = match self.planner.model().relocation {
                Relocation::ThroughDram => ", or no host between has that much free DRAM",
                Relocation::Direct => "",
            };
            reasons.push(format!("{good} that would do, but no device on the way has {} free{through}", guest.memory));
        }
        format!("of {} other hosts that share memory with {source}: {}", others.len(), reasons.join(", "))
    }
}

/// What part of all this is, in thousandths. Of nothing, nothing.
pub(crate) fn per_mille(part: u64, all: u64) -> u64 {
    let part = (u128::from(part) * 1000).checked_div(u128::from(all)).unwrap_or(0);
    u64::try_from(part).unwrap_or(1000).min(1000)
}

fn cpus(millicpus: u64) -> String {
    format!("{}.{}", millicpus / 1000, millicpus % 1000 / 100)
}

/// What is free permits.
struct Free<'a> {
    schedule: &'a Schedule<'a>,
    guest: &'a Guest,
    to: Option<HostId>,
}

impl Rules for Free<'_> {
    fn may_hop(&self, host: HostId) -> bool {
        host != self.guest.host
            && self.to != Some(host)
            && !self.schedule.closed[host.index()]
            && self.schedule.ledger.is_free(host)
    }

    fn may_relocate(&self, host: HostId) -> bool {
        match self.schedule.planner.model().relocation {
            Relocation::Direct => true,
            Relocation::ThroughDram => self.schedule.ledger.dram[host.index()] >= self.guest.memory.0,
        }
    }

    fn may_lie(&self, _: DeviceId) -> bool {
        true
    }

    fn has_room(&self, device: DeviceId) -> bool {
        self.schedule.ledger.room[device.index()] >= self.guest.memory.0
    }

    fn may_end(&self, host: HostId) -> bool {
        let ledger = &self.schedule.ledger;
        host != self.guest.host
            && self.to.is_none_or(|to| to == host)
            && !self.schedule.closed[host.index()]
            && ledger.is_free(host)
            && ledger.millicpus[host.index()] >= self.guest.millicpus
            && (self.guest.end() == End::Device || ledger.dram[host.index()] >= self.guest.memory.0)
    }
}
