//! What is free where, now and in the wave that is being planned.
//!
//! A move holds everything on its way from the beginning of its wave to the end: room on each device that it is brought
//! to, DRAM at each host where it passes through it, CPUs and DRAM at its target. What it leaves behind is free only when
//! its wave is done. So at no moment is more taken than there is, in whatever order the moves of a wave come to pass.

use crate::cost::Relocation;
use crate::guest::{Guest, Limits, Memory};
use crate::model::{DeviceId, Fabric, HostId, LinkId};
use crate::path::{Path, Step};
use crate::planner::Planner;
use std::collections::BTreeMap;

/// What is free.
pub(crate) struct Ledger<'a> {
    planner: &'a Planner<'a>,
    limits: Limits,
    pub(crate) dram: Vec<u64>,
    pub(crate) millicpus: Vec<u64>,
    pub(crate) room: Vec<u64>,
    /// Of the wave: moves that a host has to do with, and bandwidth that is left.
    moves: Vec<u32>,
    links: Vec<u64>,
    devices: Vec<u64>,
    /// To be freed at the end of the wave.
    dram_due: Vec<(HostId, u64)>,
    millicpus_due: Vec<(HostId, u64)>,
    room_due: Vec<(DeviceId, u64)>,
}

/// Bandwidth that a move takes, at its busiest.
#[derive(Default)]
struct Bandwidth {
    links: BTreeMap<LinkId, u64>,
    devices: BTreeMap<DeviceId, u64>,
}

impl<'a> Ledger<'a> {
    pub(crate) fn new(planner: &'a Planner<'a>, limits: Limits) -> Self {
        let fabric = planner.fabric();
        let mut ledger = Self {
            planner,
            limits,
            dram: fabric.hosts().iter().map(|host| host.dram_free.0).collect(),
            millicpus: fabric.host_ids().map(|host| free_millicpus(fabric, host, limits)).collect(),
            room: fabric.devices().iter().map(|device| device.free.0).collect(),
            moves: Vec::new(),
            links: Vec::new(),
            devices: Vec::new(),
            dram_due: Vec::new(),
            millicpus_due: Vec::new(),
            room_due: Vec::new(),
        };
        ledger.next_wave();
        ledger
    }

    /// The wave is done: what its moves have left behind is free, and all bandwidth.
    pub(crate) fn next_wave(&mut self) {
        let (fabric, share) = (self.planner.fabric(), self.planner.model().copy_share);
        self.moves = vec![0; fabric.hosts().len()];
        self.links = fabric.links().iter().map(|link| link.bandwidth.percent(share).0).collect();
        self.devices = fabric.devices().iter().map(|device| device.bandwidth.percent(share).0).collect();
        for (host, bytes) in self.dram_due.drain(..) {
            self.dram[host.index()] += bytes;
        }
        for (host, millicpus) in self.millicpus_due.drain(..) {
            self.millicpus[host.index()] += millicpus;
        }
        for (device, bytes) in self.room_due.drain(..) {
            self.room[device.index()] += bytes;
        }
    }

    /// Whether a host may have to do with one more move of this wave.
    pub(crate) fn is_free(&self, host: HostId) -> bool {
        self.moves[host.index()] < self.limits.moves_per_host
    }

    /// Takes all that a move needs, if there is the bandwidth for it. That there is the rest was asked before.
    pub(crate) fn take(&mut self, guest: &Guest, path: &Path) -> bool {
        let bandwidth = self.bandwidth(path);
        let fits = bandwidth.links.iter().all(|(link, rate)| self.links[link.index()] >= *rate)
            && bandwidth.devices.iter().all(|(device, rate)| self.devices[device.index()] >= *rate);
        if !fits {
            return false;
        }
        for (link, rate) in bandwidth.links {
            self.links[link.index()] -= rate;
        }
        for (device, rate) in bandwidth.devices {
            self.devices[device.index()] -= rate;
        }
        for host in [path.from, path.to].into_iter().chain(path.hops()) {
            self.moves[host.index()] += 1;
        }
        self.hold(guest, path);
        true
    }

    /// Takes memory and CPUs, and notes what is to be given back when the wave is done.
    fn hold(&mut self, guest: &Guest, path: &Path) {
        let bytes = guest.memory.0;
        self.millicpus[path.to.index()] -= guest.millicpus;
        self.millicpus_due.push((path.from, guest.millicpus));
        let mut lies = guest.lies;
        for leg in &path.legs {
            match leg.step {
                Step::Handoff { .. } => {}
                Step::Decouple { into, .. } => {
                    self.room[into.index()] -= bytes;
                    lies = Memory::Device(into);
                }
                Step::Relocate { at, from, to } => {
                    self.room[to.index()] -= bytes;
                    self.room_due.push((from, bytes));
                    if self.planner.model().relocation == Relocation::ThroughDram {
                        self.dram[at.index()] -= bytes;
                        self.dram_due.push((at, bytes));
                    }
                    lies = Memory::Device(to);
                }
                Step::Recouple { at, from } => {
                    self.dram[at.index()] -= bytes;
                    self.room_due.push((from, bytes));
                    lies = Memory::Dram;
                }
            }
        }
        if guest.lies == Memory::Dram {
            self.dram_due.push((path.from, bytes));
        }
        debug_assert_eq!(lies == Memory::Dram, guest.lies == Memory::Dram, "memory lies where it is to lie");
    }

    fn bandwidth(&self, path: &Path) -> Bandwidth {
        let mut bandwidth = Bandwidth::default();
        let mut note = |host: HostId, device: DeviceId, rate: u64| {
            let most = bandwidth.devices.entry(device).or_default();
            *most = rate.max(*most);
            for link in self.planner.links(host, device) {
                let most = bandwidth.links.entry(link).or_default();
                *most = rate.max(*most);
            }
        };
        for leg in &path.legs {
            let rate = leg.rate().map_or(0, |rate| rate.0);
            match leg.step {
                Step::Handoff { .. } => {}
                Step::Decouple { at, into: device } | Step::Recouple { at, from: device } => note(at, device, rate),
                Step::Relocate { at, from, to } => {
                    note(at, from, rate);
                    note(at, to, rate);
                }
            }
        }
        bandwidth
    }
}

/// Thousandths of CPUs that guests may still have.
fn free_millicpus(fabric: &Fabric, host: HostId, limits: Limits) -> u64 {
    let most = u64::from(fabric.host(host).cpus) * 10 * u64::from(limits.cpu_percent.min(100));
    most.saturating_sub(busy_millicpus(fabric, host))
}

/// Thousandths of CPUs that are busy.
pub(crate) fn busy_millicpus(fabric: &Fabric, host: HostId) -> u64 {
    let host = fabric.host(host);
    // At most 1000 times 65536, since the load is between 0 and 1.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let busy = (host.load * f64::from(host.cpus) * 1000.0).round() as u64;
    busy
}
