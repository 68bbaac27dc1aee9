//! A guest's way from one host to another: what is asked, and what is answered.

use crate::cost::{Copied, Copies, Cost};
use crate::model::{DeviceId, Fabric, HostId, Node};
use crate::quantity::{Bytes, Duration, Rate};

/// Where a guest's memory lies before it moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begin {
    /// In its host's DRAM: it is decoupled first.
    Dram,
    /// On this device.
    Device(DeviceId),
    /// On whichever device suits: for questions about the fabric that are not about one guest.
    AnyDevice,
}

/// Where its memory is to lie afterwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// In the target's DRAM: it is recoupled at last.
    Dram,
    /// On the device over which it came.
    Device,
}

/// A guest that is to move.
#[derive(Clone, Debug)]
pub struct PathRequest {
    /// Where it runs.
    pub from: HostId,
    /// Where it is to run.
    pub to: HostId,
    /// Its memory.
    pub memory: Bytes,
    /// Where that lies now.
    pub begin: Begin,
    /// Where it is to lie.
    pub end: End,
    /// Hosts that it must not pass.
    pub avoid_hosts: Vec<HostId>,
    /// Devices on which it must not lie.
    pub avoid_devices: Vec<DeviceId>,
}

impl PathRequest {
    /// A guest that lies on any device, and stays on one.
    #[must_use]
    pub fn new(from: HostId, to: HostId, memory: Bytes) -> Self {
        let (avoid_hosts, avoid_devices) = (Vec::new(), Vec::new());
        Self { from, to, memory, begin: Begin::AnyDevice, end: End::Device, avoid_hosts, avoid_devices }
    }
}

/// What is done to a guest at one place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Step {
    /// Its memory goes from DRAM into a device.
    Decouple {
        /// The host on which it runs meanwhile.
        at: HostId,
        /// The device.
        into: DeviceId,
    },
    /// It goes from host to host, its memory stays.
    Handoff {
        /// The source.
        from: HostId,
        /// The target.
        to: HostId,
        /// The device on which its memory lies.
        over: DeviceId,
    },
    /// Its memory goes from one device to another.
    Relocate {
        /// The host on which it runs meanwhile.
        at: HostId,
        /// Where the memory lay.
        from: DeviceId,
        /// Where it lies then.
        to: DeviceId,
    },
    /// Its memory goes from a device into DRAM.
    Recouple {
        /// The host on which it runs.
        at: HostId,
        /// The device.
        from: DeviceId,
    },
}

/// A step, with what it is predicted to take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leg {
    /// What is done.
    pub step: Step,
    /// What it takes.
    pub cost: Cost,
    /// The copies that this takes, one after the other. Handoffs copy nothing.
    pub copies: Vec<Copied>,
}

impl Leg {
    /// A step that takes what its copies take.
    pub(crate) fn of_copies(step: Step, copies: Copies) -> Self {
        let cost = Cost { copy: copies.time(), ..Cost::default() };
        Self { step, cost, copies: copies.list() }
    }

    /// How much memory it copies.
    #[must_use]
    pub fn copied(&self) -> Bytes {
        Bytes(self.copies.iter().map(|copy| copy.bytes.0).fold(0, u64::saturating_add))
    }

    /// How fast, at its slowest; none if it copies nothing.
    #[must_use]
    pub fn rate(&self) -> Option<Rate> {
        self.copies.iter().map(|copy| copy.rate).min()
    }
}

/// A way for a guest, with what it is predicted to take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Path {
    /// Where it begins.
    pub from: HostId,
    /// Where it ends.
    pub to: HostId,
    /// The guest's memory.
    pub memory: Bytes,
    /// What is done, one after the other.
    pub legs: Vec<Leg>,
}

impl Path {
    /// Where all the time goes.
    #[must_use]
    pub fn cost(&self) -> Cost {
        self.legs.iter().map(|leg| leg.cost).sum()
    }

    /// The whole time.
    #[must_use]
    pub fn time(&self) -> Duration {
        self.cost().total()
    }

    /// How often it changes host.
    #[must_use]
    pub fn handoffs(&self) -> usize {
        self.legs.iter().filter(|leg| matches!(leg.step, Step::Handoff { .. })).count()
    }

    /// How much memory is copied on the way.
    #[must_use]
    pub fn copied(&self) -> Bytes {
        Bytes(self.legs.iter().map(|leg| leg.copied().0).fold(0, u64::saturating_add))
    }

    /// The hosts between its ends, in order.
    #[must_use]
    pub fn hops(&self) -> Vec<HostId> {
        let targets = self.legs.iter().filter_map(|leg| match leg.step {
            Step::Handoff { to, .. } if to != self.to => Some(to),
            _ => None,
        });
        targets.collect()
    }

    /// The devices on which the memory lies one after the other, from the first handoff on.
    #[must_use]
    pub fn devices(&self) -> Vec<DeviceId> {
        let over = self.legs.iter().filter_map(|leg| match leg.step {
            Step::Handoff { over, .. } => Some(over),
            _ => None,
        });
        over.collect()
    }

    /// The way in one line: `A –P→ B –Q→ C`.
    #[must_use]
    pub fn in_short(&self, fabric: &Fabric) -> String {
        let mut text = fabric.host(self.from).name.to_string();
        for leg in &self.legs {
            if let Step::Handoff { to, over, .. } = leg.step {
                text.push_str(&format!(" –{}→ {}", fabric.device(over).name, fabric.host(to).name));
            }
        }
        text
    }
}

impl Step {
    /// The step as a sentence.
    #[must_use]
    pub fn told(&self, fabric: &Fabric) -> String {
        let host = |id: HostId| fabric.name(Node::Host(id));
        let device = |id: DeviceId| fabric.name(Node::Device(id));
        match *self {
            Self::Decouple { at, into } => format!("decouple at {} into {}", host(at), device(into)),
            Self::Handoff { from, to, over } => format!("hand off {} → {} over {}", host(from), host(to), device(over)),
            Self::Relocate { at, from, to } => {
                format!("relocate at {} from {} to {}", host(at), device(from), device(to))
            }
            Self::Recouple { at, from } => format!("recouple at {} from {}", host(at), device(from)),
        }
    }
}
