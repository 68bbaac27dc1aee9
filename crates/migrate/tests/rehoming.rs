//! Moving a guest's home, checked exhaustively: an agent and a worker of one host, every interleaving of their steps, the
//! death of either or both at every step, and what the next agent does, by `rehoming::judge` itself.
//!
//! The pool's two ways to race over a record are in it word by word: a publication (word, then a look at the slot) against
//! a destruction (slot, then the word).
//!
//! A checker that finds nothing may be blind. So each rule is also broken on purpose ([`Rule`]), and it has to find out.
#![cfg(not(loom))]

use nil_migrate::rehoming::{Record, Verdict, Which, judge};
use nil_pool::{Epoch, HostSlot, Ownership};
use stateright::{Checker, HasDiscoveries, Model, Property};

/// Which rule is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    /// None: the protocol as it is.
    Kept,
    /// A record is destroyed whatever its word is by now.
    DestroyWithoutComparing,
    /// A fresh agent destroys the earlier record as soon as the later one is published, whatever the worker refers to.
    DoNotWait,
    /// The publication does not look whether the record is still there.
    PublishWithoutLooking,
    /// The twin is published at the epoch of the first.
    KeepTheEpoch,
    /// A fresh agent leaves twins alone.
    LeaveTwins,
}

/// The slot of a record in its pool's guest table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Slot {
    Free,
    Live,
    Unmaking,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Home {
    slot: Slot,
    word: Ownership,
}

/// What the worker is at.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Worker {
    /// It runs the guest, and refers to this record.
    Refers(Which),
    /// It has written the twin's word.
    Wrote,
    /// It has seen that the twin is there still, and is about to refer to it.
    Published,
    Dead,
}

/// What the agent is at.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Agent {
    Idle,
    /// The twin is made, and some memory may be in DRAM.
    Twinned,
    /// The worker has been told to switch.
    Ordered,
    /// It gives up: the twin, as long as it is Vacant, is to go.
    GivingUp,
    /// It is destroying a record; the word that it compares with, and whether it has marked the slot.
    Destroying {
        which: Which,
        word: Ownership,
        marked: bool,
    },
    Dead,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    homes: [Home; 2],
    worker: Worker,
    agent: Agent,
    /// An order to switch that the worker has not taken yet. It outlives its agent.
    order: bool,
    /// What the agent has last heard the worker refer to.
    heard: Option<Which>,
    rehomings: u8,
    deaths: u8,
    /// A living worker's record was destroyed under it, or the guest runs by a record that does not count.
    sin: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Action {
    Begin,
    Order,
    GiveUp,
    Discard,
    WorkerTakes,
    WorkerLooks,
    WorkerSwitches,
    Hear,
    Clear,
    Mark,
    Compare,
    Judge,
    Restart,
    AgentDies,
    WorkerDies,
}

const ALL: [Action; 15] = [
    Action::Begin,
    Action::Order,
    Action::GiveUp,
    Action::Discard,
    Action::WorkerTakes,
    Action::WorkerLooks,
    Action::WorkerSwitches,
    Action::Hear,
    Action::Clear,
    Action::Mark,
    Action::Compare,
    Action::Judge,
    Action::Restart,
    Action::AgentDies,
    Action::WorkerDies,
];

struct Rehoming {
    rule: Rule,
    deaths: u8,
}

fn host() -> HostSlot {
    HostSlot::new(0).expect("a slot")
}

fn owned(epoch: u32) -> Ownership {
    Ownership::Owned { host: host(), epoch: Epoch(epoch) }
}

fn index(which: Which) -> usize {
    match which {
        Which::First => 0,
        Which::Second => 1,
    }
}

fn opposite(which: Which) -> Which {
    match which {
        Which::First => Which::Second,
        Which::Second => Which::First,
    }
}

impl World {
    /// The record of which the worker is at the other one.
    fn target(&self, from: Which) -> &Home {
        &self.homes[index(opposite(from))]
    }

    fn epoch(&self, which: Which) -> u32 {
        match self.homes[index(which)].word {
            Ownership::Owned { epoch, .. } => epoch.0,
            _ => 0,
        }
    }

    fn runs_by(&self) -> Option<Which> {
        // Until it has switched it refers to the one that was.
        match self.worker {
            Worker::Refers(which) => Some(which),
            Worker::Wrote | Worker::Published => self.heard_before_switch(),
            Worker::Dead => None,
        }
    }

    fn heard_before_switch(&self) -> Option<Which> {
        // The worker writes to the record with the later epoch; it refers to the other.
        let (one, other) = (self.epoch(Which::First), self.epoch(Which::Second));
        Some(if one > other { Which::Second } else { Which::First })
    }

    fn records(&self) -> usize {
        self.homes.iter().filter(|home| home.slot != Slot::Free).count()
    }
}

impl Rehoming {
    /// What the step leads to, if it can be taken.
    fn take(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Begin => {
                let (Agent::Idle, Some(at), 1) = (world.agent, world.heard, world.records()) else { return None };
                if world.rehomings == 0 || !matches!(world.worker, Worker::Refers(_)) {
                    return None;
                }
                next.rehomings -= 1;
                next.homes[index(opposite(at))] = Home { slot: Slot::Live, word: Ownership::Vacant };
                next.agent = Agent::Twinned;
            }
            Action::Order if world.agent == Agent::Twinned => {
                next.agent = Agent::Ordered;
                next.order = true;
            }
            // The memory cannot be moved, or the answer does not come.
            Action::GiveUp if matches!(world.agent, Agent::Twinned | Agent::Ordered) => next.agent = Agent::GivingUp,
            Action::Discard if world.agent == Agent::GivingUp => {
                let twin = opposite(world.heard?);
                next.agent = match world.homes[index(twin)].word {
                    word @ Ownership::Vacant => Agent::Destroying { which: twin, word, marked: false },
                    _ => Agent::Idle,
                };
            }
            Action::WorkerTakes => {
                let (Worker::Refers(from), true) = (world.worker, world.order) else { return None };
                next.order = false;
                let twin = *world.target(from);
                // The word can be written whatever has become of the slot.
                if twin.word == Ownership::Vacant {
                    let later = if self.rule == Rule::KeepTheEpoch { 0 } else { 1 };
                    next.homes[index(opposite(from))].word = owned(world.epoch(from) + later);
                    next.worker =
                        if self.rule == Rule::PublishWithoutLooking { Worker::Published } else { Worker::Wrote };
                }
            }
            Action::WorkerLooks if world.worker == Worker::Wrote => {
                let from = world.heard_before_switch()?;
                if world.target(from).slot == Slot::Live {
                    next.worker = Worker::Published;
                } else {
                    next.homes[index(opposite(from))].word = Ownership::Vacant;
                    next.worker = Worker::Refers(from);
                }
            }
            Action::WorkerSwitches if world.worker == Worker::Published => {
                next.worker = Worker::Refers(opposite(world.heard_before_switch()?));
            }
            Action::Hear => {
                let Worker::Refers(at) = world.worker else { return None };
                if world.agent == Agent::Dead || world.heard == Some(at) {
                    return None;
                }
                next.heard = Some(at);
            }
            // The job hears that the worker has switched: the record that was goes.
            Action::Clear if world.agent == Agent::Ordered => {
                let at = world.heard?;
                let former = opposite(at);
                let Ownership::Owned { .. } = world.homes[index(former)].word else { return None };
                if world.epoch(at) <= world.epoch(former) {
                    return None;
                }
                let word = world.homes[index(former)].word;
                next.agent = Agent::Destroying { which: former, word, marked: false };
            }
            Action::Mark => {
                let Agent::Destroying { which, mut word, marked: false } = world.agent else { return None };
                if self.rule == Rule::DestroyWithoutComparing {
                    word = world.homes[index(which)].word;
                }
                let home = &mut next.homes[index(which)];
                next.agent = if home.slot == Slot::Live {
                    home.slot = Slot::Unmaking;
                    Agent::Destroying { which, word, marked: true }
                } else {
                    Agent::Idle
                };
            }
            Action::Compare => {
                let Agent::Destroying { which, word, marked: true } = world.agent else { return None };
                let home = &mut next.homes[index(which)];
                if home.word == word {
                    next.sin |= world.runs_by() == Some(which) && word != Ownership::Vacant;
                    *home = Home { slot: Slot::Free, word: Ownership::Vacant };
                } else {
                    home.slot = Slot::Live;
                }
                next.agent = Agent::Idle;
            }
            Action::Judge => {
                if world.agent != Agent::Idle || world.records() < 2 || self.rule == Rule::LeaveTwins {
                    return None;
                }
                let records = world.homes.map(|home| Record { word: home.word, host: host() });
                let worker = if world.worker == Worker::Dead { None } else { world.heard };
                let blind = self.rule == Rule::DoNotWait;
                let Verdict::Discard(which) = judge(records[0], records[1], if blind { None } else { worker }) else {
                    return None;
                };
                let word = world.homes[index(which)].word;
                next.agent = Agent::Destroying { which, word, marked: false };
            }
            Action::Restart if world.agent == Agent::Dead => {
                // The pool's recovery settles what was being destroyed.
                for home in &mut next.homes {
                    if home.slot == Slot::Unmaking {
                        home.slot = if home.word == Ownership::Vacant { Slot::Free } else { Slot::Live };
                    }
                }
                next.agent = Agent::Idle;
                next.heard = match world.worker {
                    Worker::Refers(at) => Some(at),
                    Worker::Wrote | Worker::Published => world.heard_before_switch(),
                    Worker::Dead => None,
                };
            }
            Action::AgentDies if world.agent != Agent::Dead && world.deaths > 0 => {
                next.deaths -= 1;
                next.agent = Agent::Dead;
            }
            Action::WorkerDies if world.worker != Worker::Dead && world.deaths > 0 => {
                next.deaths -= 1;
                next.worker = Worker::Dead;
                next.order = false;
            }
            Action::Order
            | Action::GiveUp
            | Action::Discard
            | Action::WorkerLooks
            | Action::WorkerSwitches
            | Action::Clear
            | Action::Restart
            | Action::AgentDies
            | Action::WorkerDies => return None,
        }
        Some(next)
    }
}

const KEEPS_ITS_RECORD: &str = "no record is destroyed to which a living worker refers";
const RUNS_OWNED: &str = "a running guest's record names its host";
const COUNTABLE: &str = "of two records that have an owner the later one is the one that is switched to";
const SETTLED: &str = "in the end there is one record, and a living worker refers to it";

impl Model for Rehoming {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let homes = [Home { slot: Slot::Live, word: owned(1) }, Home { slot: Slot::Free, word: Ownership::Vacant }];
        let (worker, agent, heard) = (Worker::Refers(Which::First), Agent::Idle, Some(Which::First));
        let (order, rehomings, deaths, sin) = (false, 2, self.deaths, false);
        vec![World { homes, worker, agent, order, heard, rehomings, deaths, sin }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        actions.extend(ALL.into_iter().filter(|&action| self.take(world, action).is_some()));
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        self.take(world, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(KEEPS_ITS_RECORD, |_, world: &World| !world.sin),
            Property::always(RUNS_OWNED, |_, world: &World| match world.worker {
                Worker::Refers(at) => matches!(world.homes[index(at)].word, Ownership::Owned { .. }),
                Worker::Wrote | Worker::Published | Worker::Dead => true,
            }),
            Property::always(COUNTABLE, |_, world: &World| {
                let (one, other) = (world.epoch(Which::First), world.epoch(Which::Second));
                one != other || one == 0
            }),
            Property::always(SETTLED, |model: &Self, world: &World| {
                let mut actions = Vec::new();
                model.actions(world, &mut actions);
                // Deaths and new rehomings are nobody's duty, and nothing depends on a successor that does not come.
                actions.retain(|action| !matches!(action, Action::AgentDies | Action::WorkerDies | Action::Begin));
                let may_go_on = !actions.is_empty();
                may_go_on
                    || world.records() == 1
                        && match world.worker {
                            Worker::Refers(at) => world.homes[index(at)].slot == Slot::Live,
                            Worker::Wrote | Worker::Published => false,
                            Worker::Dead => true,
                        }
            }),
        ]
    }
}

fn checked(rule: Rule, deaths: u8) -> impl Checker<Rehoming> {
    Rehoming { rule, deaths }.checker().spawn_bfs().join()
}

#[test]
fn a_guest_whose_home_moves_has_one_record_that_counts_whoever_dies() {
    let checked = checked(Rule::Kept, 3);
    println!("{} states", checked.unique_state_count());
    assert!(checked.unique_state_count() > 500, "{}", checked.unique_state_count());
    checked.assert_properties();
}

#[test]
fn every_rule_is_needed() {
    for (rule, broken) in [
        (Rule::DestroyWithoutComparing, KEEPS_ITS_RECORD),
        (Rule::DoNotWait, KEEPS_ITS_RECORD),
        (Rule::PublishWithoutLooking, RUNS_OWNED),
        (Rule::KeepTheEpoch, COUNTABLE),
        (Rule::LeaveTwins, SETTLED),
    ] {
        let finish = HasDiscoveries::AllOf([broken].into());
        let checked = Rehoming { rule, deaths: 2 }.checker().finish_when(finish).spawn_bfs().join();
        assert!(checked.discovery(broken).is_some(), "{rule:?} is broken, and nobody noticed");
    }
}
