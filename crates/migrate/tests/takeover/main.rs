//! Leases, fencing and takeover, checked exhaustively: a host that runs a guest, and two peers that judge it, fence it, bring
//! the guest back to its checkpoint and run it. Anybody may be paused between any two steps for as long as it likes, die, and
//! wake up late; clocks run up to twice as fast as each other.
//!
//! What is assumed of a host's kernel is one sentence ([`world::World::tick`]): a thread that runs a guest, or writes to one, is
//! interrupted by its timer within an interval of the lease, and goes on by looking whether it still may. It is the same for
//! a process that was stopped meanwhile, because the timer is the kernel's. [`Rule::KernelStops`] takes the assumption away
//! (a machine that is paused as a whole), and the checker finds what then happens; [`Rule::KernelStopsBehindFence`] shows that a
//! fence command closes the gap.
//!
//! A checker that finds nothing may be blind. So each check of the protocol is also left out on purpose, and the checker
//! has to find out: the list of [`Rule`]s is the list of checks that the guarantee rests on.
#![cfg(not(loom))]

mod world;

use stateright::{Checker, HasDiscoveries, Model, Property};
use world::{Action, World, actions};

/// Which check of the protocol is left out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Rule {
    /// None: the protocol as it is.
    Kept,
    /// A process does not look whether its host has been fenced.
    DoNotLook,
    /// A process does not look again before it enters the guest anew.
    EnterUnchecked,
    /// A process looks first, and beats afterwards.
    LookThenBeat,
    /// A fencer does not look at the lease again after it has declared the host dead.
    DoNotReread,
    /// A fencer that sees that the host has beaten after all does not wait for it to stop.
    DoNotWait,
    /// A lease expires within less time than its host needs to stop.
    ExpireEarly,
    /// Nothing interrupts a thread in the guest: no timer.
    NoTimer,
    /// The kernel of a host stands still, with a vCPU in the guest, and goes on later.
    KernelStops,
    /// The same, and a fence command takes the host's access to memory away.
    KernelStopsBehindFence,
    /// Guests are taken from a host that has been declared dead, before it is known to have stopped.
    TakeFromDeclared,
    /// Guests are taken from a host whose lease has expired, without fencing it.
    TakeFromExpired,
    /// A taker writes the word, whatever it is by now.
    TakeWithoutComparing,
    /// A taker publishes the guest before it has brought all of it back.
    RaiseEarly,
    /// Nobody goes on with what a fencer has begun that died.
    LeaveHalfFenced,
    /// Nobody takes a guest from a taker that died.
    LeaveHalfTaken,
    /// Leases never expire.
    NeverExpire,
}

struct Takeovers {
    rule: Rule,
    deaths: u8,
}

const ONE_RUNNER: &str = "the guest runs on one host at most";
const ONE_WRITER: &str = "one host at most writes to the guest's memory";
const FENCED_IS_STILL: &str = "whoever has been fenced runs nothing and writes nothing";
const WHOLE: &str = "a guest goes on only with the whole checkpoint";
const SETTLED: &str = "while a host is left that could take it, the guest does not stay dead";

impl Model for Takeovers {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::running(self.deaths)]
    }

    fn actions(&self, world: &World, found: &mut Vec<Action>) {
        found.extend(actions().filter(|action| world.take(*action, self.rule).is_some_and(|next| next != *world)));
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        world.take(action, self.rule)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_RUNNER, |_, world: &World| world.runners() <= 1),
            Property::always(ONE_WRITER, |_, world: &World| world.writers() <= 1),
            Property::always(FENCED_IS_STILL, |_, world: &World| !world.a_fenced_host_writes()),
            Property::always(WHOLE, |_, world: &World| !world.sins.claimed_unwhole),
            Property::always(SETTLED, |model: &Self, world: &World| !model.is_quiet(world) || world.is_settled()),
            Property::sometimes("a fenced host wakes up and stops", |model: &Self, world: &World| {
                world.has_stopped(model.deaths)
            }),
            Property::sometimes("a fencer sees that the host has beaten", |_, world: &World| world.must_wait()),
            Property::sometimes("a guest is taken and runs", |_, world: &World| world.runs_on(1)),
            Property::sometimes("a guest is taken from its taker and runs", |_, world: &World| {
                world.runs_on(2) && world.has_replaced_a_taker()
            }),
            Property::sometimes("a fencer is replaced", |_, world: &World| world.has_replaced_a_fencer()),
            Property::sometimes("a compare-and-swap comes too late", |_, world: &World| world.is_late()),
        ]
    }
}

impl Takeovers {
    fn is_quiet(&self, world: &World) -> bool {
        actions().all(|action| world.take(action, self.rule).is_none_or(|next| next == *world))
    }
}

fn search(rule: Rule, deaths: u8, until: HasDiscoveries) -> impl Checker<Takeovers> {
    let checker = Takeovers { rule, deaths }.checker().threads(2).finish_when(until).spawn_bfs().join();
    println!("{rule:?}, {deaths} deaths: {} states, depth {}", checker.unique_state_count(), checker.max_depth());
    checker
}

fn assert_found(rule: Rule, property: &'static str) {
    let checker = search(rule, 2, HasDiscoveries::AnyOf([property].into()));
    assert!(checker.discovery(property).is_some(), "{rule:?} breaks \"{property}\", and the checker does not see it");
}

#[test]
fn the_model_of_takeovers_holds() {
    search(Rule::Kept, 2, HasDiscoveries::All).assert_properties();
}

#[test]
fn the_model_holds_where_a_kernel_may_stop_behind_a_fence_command() {
    let checker = search(Rule::KernelStopsBehindFence, 1, HasDiscoveries::AnyFailures);
    for property in [ONE_RUNNER, ONE_WRITER, FENCED_IS_STILL, WHOLE, SETTLED] {
        checker.assert_no_discovery(property);
    }
}

/// Every mutation, and what it breaks.
macro_rules! found {
    ($($name:ident: $rule:ident breaks $property:ident;)*) => {
        $(#[test] fn $name() { assert_found(Rule::$rule, $property); })*
    };
}

found! {
    the_model_finds_a_process_that_does_not_look: DoNotLook breaks FENCED_IS_STILL;
    the_model_finds_an_entry_without_a_check: EnterUnchecked breaks FENCED_IS_STILL;
    the_model_finds_a_process_that_looks_before_it_beats: LookThenBeat breaks FENCED_IS_STILL;
    the_model_finds_a_fencer_that_does_not_look_again: DoNotReread breaks FENCED_IS_STILL;
    the_model_finds_a_fencer_that_does_not_wait: DoNotWait breaks FENCED_IS_STILL;
    the_model_finds_an_expiry_that_is_too_short: ExpireEarly breaks FENCED_IS_STILL;
    the_model_finds_a_guest_that_nothing_interrupts: NoTimer breaks FENCED_IS_STILL;
    the_model_finds_what_a_machine_that_is_paused_as_a_whole_may_do: KernelStops breaks FENCED_IS_STILL;
    the_model_finds_a_taker_that_does_not_await_the_fence: TakeFromDeclared breaks ONE_WRITER;
    the_model_finds_a_taker_that_does_not_fence: TakeFromExpired breaks ONE_WRITER;
    the_model_finds_a_taker_that_does_not_compare: TakeWithoutComparing breaks ONE_WRITER;
    the_model_finds_a_guest_that_is_raised_too_early: RaiseEarly breaks WHOLE;
    the_model_finds_a_fencing_that_nobody_finishes: LeaveHalfFenced breaks SETTLED;
    the_model_finds_a_takeover_that_nobody_finishes: LeaveHalfTaken breaks SETTLED;
    the_model_finds_a_lease_that_never_expires: NeverExpire breaks SETTLED;
}
