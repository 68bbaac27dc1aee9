//! The handoff protocol, checked exhaustively: two hosts, a guest with two vCPUs, every interleaving of their threads, a
//! death or a timeout at every step, and recovery from it by either agent.
//!
//! The search is finite and without cycles (every step either brings a handoff further or spends a budget), so that
//! "every state in which nothing more can happen is settled" says: everything is settled eventually.
//!
//! A checker that finds nothing may be blind. So each of the protocol's rules is also broken on purpose
//! ([`Rule`]), and the checker has to find out.
#![cfg(not(loom))]

mod steps;
mod world;

use nil_migrate::recovery::{Resolution, recover};
use nil_pool::Ownership;
use stateright::{Checker, HasDiscoveries, Model, Property};
use steps::{Action, liveness, writes_to};
use world::{Budget, HOSTS, Plan, Vcpu, Worker, World};

/// Which rule of the protocol is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    /// None: the protocol as it is.
    Kept,
    /// The first vCPU thread that has saved its part publishes.
    PublishEarly,
    /// The first vCPU thread that has loaded its part claims.
    ClaimEarly,
    /// The source writes its cancel whatever the word is by now.
    CancelWithoutComparing,
    /// The target writes its claim whatever the word is by now.
    ClaimWithoutComparing,
    /// A cancel or withdrawal does not count the epoch up.
    KeepTheEpoch,
    /// A vCPU thread that has frozen runs on without waiting for the outcome.
    RunOnUnasked,
    /// The source waits for its target for ever.
    NeverGiveUp,
    /// A source offers without making the old state in its slot unreadable.
    LeaveOldState,
    /// Recovery does not look whether the state of a dead source is whole.
    BuryWithoutLooking,
}

struct Handoffs {
    rule: Rule,
    budget: Budget,
}

const ONE_RUNNER: &str = "the guest runs on one host at most";
const RUNNER_OWNS: &str = "whoever runs the guest owns it";
const WHOLE_COMMIT: &str = "only the whole frozen guest is committed";
const QUIET_SLOT: &str = "nobody writes to a slot that may be claimed from";
const NOT_BURIED_ALIVE: &str = "no guest is lost whose owner lives or whose state is whole";
const NOT_DISPLACED: &str = "recovery takes no guest from a living worker";
const RESOLVABLE: &str = "recovery knows what to do, and somebody is there to do it";
const SETTLED: &str = "every guest is settled in the end";

impl Model for Handoffs {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::booted(self.budget)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        actions.extend(steps::all().into_iter().filter(|&action| self.take(world, action).is_some()));
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        self.take(world, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_RUNNER, |_, world: &World| runners(world) <= 1),
            Property::always(RUNNER_OWNS, |_, world: &World| every_runner_owns(world)),
            Property::always(WHOLE_COMMIT, |_, world: &World| !world.sins.committed_unwhole),
            Property::always(QUIET_SLOT, |_, world: &World| the_frozen_slot_is_quiet(world)),
            Property::always(NOT_BURIED_ALIVE, |_, world: &World| !world.sins.buried_alive),
            Property::always(NOT_DISPLACED, |_, world: &World| !world.sins.displaced),
            Property::always(RESOLVABLE, |_, world: &World| is_resolvable(world)),
            Property::always(SETTLED, |model: &Self, world: &World| !model.is_quiet(world) || is_settled(world)),
            Property::sometimes("a guest goes there and back", |_, world: &World| world.deeds.claims >= 2),
            Property::sometimes("a cancel wins", |_, world: &World| world.deeds.cancelled),
            Property::sometimes("a late claim fails", |_, world: &World| world.deeds.late_claim_failed),
            Property::sometimes("a guest is salvaged", |_, world: &World| world.deeds.salvaged),
            Property::sometimes("a guest is thawed at home", |_, world: &World| world.deeds.thawed_at_home),
            Property::sometimes("a guest is claimed from a dead host", |_, world: &World| world.deeds.taken_over),
            Property::sometimes("a guest is lost", |_, world: &World| matches!(world.word, Ownership::Lost { .. })),
        ]
    }
}

impl Handoffs {
    fn is_quiet(&self, world: &World) -> bool {
        steps::all().into_iter().all(|action| self.take(world, action).is_none())
    }
}

fn owns(world: &World, host: usize) -> bool {
    let at = world.owner(host).map(|owner| owner.epoch);
    match world.word {
        Ownership::Owned { host: owner, epoch } | Ownership::Offered { source: owner, epoch, .. } => {
            owner.index() == host && at == Some(epoch)
        }
        Ownership::Vacant | Ownership::Frozen { .. } | Ownership::Lost { .. } | Ownership::Taken { .. } => false,
    }
}

fn runners(world: &World) -> usize {
    (0..HOSTS).filter(|&host| world.runs_on(host)).count()
}

fn every_runner_owns(world: &World) -> bool {
    (0..HOSTS).all(|host| !world.runs_on(host) || owns(world, host))
}

fn the_frozen_slot_is_quiet(world: &World) -> bool {
    let Ownership::Frozen { epoch, .. } = world.word else { return true };
    let mut written = (0..HOSTS).filter_map(|host| world.owner(host)).flat_map(writes_to);
    written.all(|written| written.slot() != epoch.slot())
}

/// Whether whoever knows everything would find a way on, and whoever has to go it.
fn is_resolvable(world: &World) -> bool {
    let works = |host: usize| world.hosts[host].up && world.hosts[host].worker != Worker::None;
    match recover(world.word, |host| liveness(world, 0, true, host)) {
        Resolution::Nothing => world.word.responsible().is_some_and(|host| owns(world, host.index())),
        Resolution::LeaveTo(host) => works(host.index()),
        Resolution::SalvageOrBury(dead) | Resolution::Bury(dead) => !works(dead.index()),
        Resolution::TakeBack(by) | Resolution::TakeOver(by) => world.hosts[by.index()].up && !works(by.index()),
        Resolution::Stranded { source, target } => {
            let whole = matches!(world.word, Ownership::Frozen { epoch, .. } if world.is_whole(epoch));
            whole && !world.hosts[source.index()].up && !world.hosts[target.index()].up
        }
        // No host takes guests in this model; tests/takeover has that.
        Resolution::BringBack(_) | Resolution::Retake(_) => false,
        Resolution::Lost(host) => !works(host.index()) || world.owner(host.index()).is_none(),
    }
}

/// Whether the guest is where it should be when nothing more happens.
fn is_settled(world: &World) -> bool {
    let everybody_is_gone = world.hosts.iter().all(|host| !host.up);
    match world.word {
        Ownership::Owned { host, .. } => {
            let runs = world
                .owner(host.index())
                .is_some_and(|owner| owner.plan == Plan::None && owner.vcpus.iter().all(|&vcpu| vcpu == Vcpu::Running));
            everybody_is_gone || runs && owns(world, host.index())
        }
        Ownership::Offered { .. } | Ownership::Frozen { .. } => everybody_is_gone,
        Ownership::Lost { .. } => true,
        Ownership::Vacant | Ownership::Taken { .. } => false,
    }
}

/// Searches everything (or until what is looked for is found), prints how much that was, and returns the checker.
fn search(rule: Rule, budget: Budget, until: HasDiscoveries) -> impl Checker<Handoffs> {
    let checker = Handoffs { rule, budget }.checker().threads(2).finish_when(until).spawn_bfs().join();
    println!("{rule:?}, {budget:?}: {} states, depth {}", checker.unique_state_count(), checker.max_depth());
    checker
}

fn assert_found(rule: Rule, budget: Budget, property: &'static str) {
    let checker = search(rule, budget, HasDiscoveries::AnyOf([property].into()));
    assert!(checker.discovery(property).is_some(), "{rule:?} breaks \"{property}\", and the checker does not see it");
}

const SMALL: Budget = Budget { plans: 1, crashes: 1, failures: 1, returns: 0 };

#[test]
fn the_model_of_the_protocol_holds() {
    let budget = Budget { plans: 2, crashes: 2, failures: 1, returns: 1 };
    search(Rule::Kept, budget, HasDiscoveries::All).assert_properties();
}

#[test]
#[ignore = "eight million states: minutes, and gigabytes of memory"]
fn the_model_of_the_protocol_holds_when_more_goes_wrong() {
    let budget = Budget { plans: 3, crashes: 2, failures: 2, returns: 1 };
    search(Rule::Kept, budget, HasDiscoveries::All).assert_properties();
}

#[test]
fn the_model_finds_a_publication_before_the_last_part_is_saved() {
    assert_found(Rule::PublishEarly, SMALL, WHOLE_COMMIT);
}

#[test]
fn the_model_finds_a_claim_before_the_last_part_is_loaded() {
    assert_found(Rule::ClaimEarly, SMALL, WHOLE_COMMIT);
}

#[test]
fn the_model_finds_a_cancel_that_does_not_compare() {
    assert_found(Rule::CancelWithoutComparing, SMALL, ONE_RUNNER);
}

#[test]
fn the_model_finds_a_claim_that_does_not_compare() {
    assert_found(Rule::ClaimWithoutComparing, SMALL, ONE_RUNNER);
}

#[test]
fn the_model_finds_an_epoch_that_is_used_twice() {
    assert_found(Rule::KeepTheEpoch, Budget { plans: 2, ..SMALL }, WHOLE_COMMIT);
}

#[test]
fn the_model_finds_a_vcpu_that_runs_on_unasked() {
    assert_found(Rule::RunOnUnasked, SMALL, RUNNER_OWNS);
}

#[test]
fn the_model_finds_a_source_that_never_gives_up() {
    assert_found(Rule::NeverGiveUp, SMALL, SETTLED);
}

#[test]
fn the_model_finds_a_burial_without_looking() {
    assert_found(Rule::BuryWithoutLooking, SMALL, NOT_BURIED_ALIVE);
}

#[test]
fn the_model_finds_the_state_of_an_earlier_guest_that_was_not_forgotten() {
    assert_found(Rule::LeaveOldState, SMALL, WHOLE_COMMIT);
}
