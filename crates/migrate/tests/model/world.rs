//! The state of the model: a pool with one guest, two hosts, and what each of their threads is about to do.
//!
//! Everything that the hosts decide is decided by `nil_migrate::protocol` and `nil_migrate::recovery`; the model adds
//! only where each thread stands. A thread that decides on a word and then swaps it does so in two steps, so that
//! everybody else may act in between.

use nil_migrate::protocol::{Event, Handoff, Role, Tally};
use nil_migrate::recovery::Resolution;
use nil_pool::{Arm, Epoch, HostSlot, Ownership};

pub(crate) const HOSTS: usize = 2;
pub(crate) const VCPUS: usize = 2;
/// The machine's index among the parts, after the vCPUs.
pub(crate) const MACHINE: usize = VCPUS;
pub(crate) const PARTS: usize = VCPUS + 1;

pub(crate) fn slot_of(host: usize) -> HostSlot {
    u16::try_from(host).ok().and_then(HostSlot::new).expect("a small slot")
}

pub(crate) fn vcpus() -> u16 {
    u16::try_from(VCPUS).expect("few vCPUs")
}

/// What lies in one area of a state slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Content {
    Nothing,
    /// Somebody writes it, or died while writing.
    Torn,
    /// `of`: which freeze of the guest's life it belongs to. (Known to the model only.)
    Whole {
        epoch: Epoch,
        of: u8,
    },
}

/// Where a vCPU thread of the guest's owner stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Vcpu {
    Running,
    Saving(Handoff),
    SavingMachine(Handoff),
    Publishing(Handoff),
    Parked(Handoff),
}

/// Where the coordinator of the guest's owner stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Plan {
    None,
    AwaitingPoise(Handoff),
    Settling(Handoff),
}

/// A worker that runs the guest.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Owner {
    pub(crate) epoch: Epoch,
    pub(crate) plan: Plan,
    /// The swap that the coordinator has decided on: withdraw or cancel.
    pub(crate) intent: Option<Event>,
    pub(crate) tally: Tally,
    /// The last round that was taken back.
    pub(crate) settled: Epoch,
    pub(crate) vcpus: [Vcpu; VCPUS],
}

impl Owner {
    pub(crate) fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            plan: Plan::None,
            intent: None,
            tally: Tally::closed(epoch),
            settled: Epoch(0),
            vcpus: [Vcpu::Running; VCPUS],
        }
    }
}

/// Where a vCPU thread that lands stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Lander {
    Waiting,
    Loading,
    LoadingMachine,
    Committing,
    /// Arrived at the barrier.
    Arrived,
}

/// A worker that means to take the guest.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Taker {
    pub(crate) role: Role,
    pub(crate) handoff: Handoff,
    pub(crate) tally: Tally,
    pub(crate) landers: [Lander; VCPUS],
    /// What each part has loaded.
    pub(crate) loaded: [Content; PARTS],
}

impl Taker {
    pub(crate) fn new(role: Role, handoff: Handoff) -> Self {
        Self {
            role,
            handoff,
            tally: Tally::open(handoff.epoch(), vcpus()),
            landers: [Lander::Waiting; VCPUS],
            loaded: [Content::Nothing; PARTS],
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Worker {
    None,
    Owner(Owner),
    Taker(Taker),
}

/// What an agent has decided on when it looked, and not yet done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Errand {
    pub(crate) seen: Ownership,
    pub(crate) resolution: Resolution,
    /// Whether every part was whole in the slot of the word.
    pub(crate) whole: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Host {
    pub(crate) up: bool,
    pub(crate) worker: Worker,
    pub(crate) errand: Option<Errand>,
}

/// How much may still go wrong, and be tried.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Budget {
    /// Handoffs that are begun.
    pub(crate) plans: u8,
    /// Workers or hosts that die.
    pub(crate) crashes: u8,
    /// Parts that cannot be saved or loaded, and landings that are aborted.
    pub(crate) failures: u8,
    /// Hosts that come back.
    pub(crate) returns: u8,
}

/// What must not have happened. (Known to the model only.)
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Sins {
    /// A worker became owner with parts that are not the frozen guest's.
    pub(crate) committed_unwhole: bool,
    /// The guest was recorded as lost though its owner lived or its state was whole.
    pub(crate) buried_alive: bool,
    /// A living worker lost its guest to recovery.
    pub(crate) displaced: bool,
}

/// What has happened, to show that the search reaches it. (Known to the model only.)
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Deeds {
    pub(crate) claims: u8,
    pub(crate) cancelled: bool,
    pub(crate) salvaged: bool,
    pub(crate) thawed_at_home: bool,
    pub(crate) taken_over: bool,
    pub(crate) late_claim_failed: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct World {
    pub(crate) word: Ownership,
    pub(crate) arm: Arm,
    pub(crate) slots: [[Content; PARTS]; 2],
    pub(crate) hosts: [Host; HOSTS],
    pub(crate) budget: Budget,
    /// How often the guest has been stopped to be frozen.
    pub(crate) freezes: u8,
    pub(crate) sins: Sins,
    pub(crate) deeds: Deeds,
}

impl World {
    /// Host 0 has booted the guest: its boot state lies in slot 0 as epoch 0. In slot 1 lies what an earlier guest in the
    /// same memory left there when it was at epoch 1.
    pub(crate) fn booted(budget: Budget) -> Self {
        let boot = [Content::Whole { epoch: Epoch(0), of: 0 }; PARTS];
        let left = [Content::Whole { epoch: Epoch(1), of: u8::MAX }; PARTS];
        let host = |worker| Host { up: true, worker, errand: None };
        Self {
            word: Ownership::Owned { host: slot_of(0), epoch: Epoch(1) },
            arm: Arm::Idle,
            slots: [boot, left],
            hosts: [host(Worker::Owner(Owner::new(Epoch(1)))), host(Worker::None)],
            budget,
            freezes: 0,
            sins: Sins::default(),
            deeds: Deeds::default(),
        }
    }

    /// A compare-and-swap on the ownership word.
    pub(crate) fn swap(&mut self, from: Ownership, to: Ownership) -> bool {
        let swapped = self.word == from;
        if swapped {
            self.word = to;
        }
        swapped
    }

    pub(crate) fn owner(&self, host: usize) -> Option<&Owner> {
        match &self.hosts[host].worker {
            Worker::Owner(owner) => Some(owner),
            Worker::None | Worker::Taker(_) => None,
        }
    }

    pub(crate) fn owner_mut(&mut self, host: usize) -> Option<&mut Owner> {
        match &mut self.hosts[host].worker {
            Worker::Owner(owner) => Some(owner),
            Worker::None | Worker::Taker(_) => None,
        }
    }

    pub(crate) fn taker_mut(&mut self, host: usize) -> Option<&mut Taker> {
        match &mut self.hosts[host].worker {
            Worker::Taker(taker) => Some(taker),
            Worker::None | Worker::Owner(_) => None,
        }
    }

    /// Whether a vCPU of the guest runs on this host.
    pub(crate) fn runs_on(&self, host: usize) -> bool {
        self.owner(host).is_some_and(|owner| owner.vcpus.contains(&Vcpu::Running))
    }

    /// Whether every part lies whole in the slot of `epoch`.
    pub(crate) fn is_whole(&self, epoch: Epoch) -> bool {
        let whole = |content: &Content| matches!(content, Content::Whole { epoch: of, .. } if *of == epoch);
        self.slots[epoch.slot()].iter().all(whole)
    }
}
