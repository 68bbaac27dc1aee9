//! What each thread of the model may do next, and what comes of it.

use crate::world::{Content, Errand, Lander, MACHINE, Owner, PARTS, Plan, Taker, VCPUS, Vcpu, Worker, World, slot_of};
use crate::{Handoffs, Rule};
use nil_migrate::protocol::{
    ArmEvent, Arrival, Event, Handoff, Role, SourceTurn, Tally, TargetTurn, arm_step, source_turn, step, target_turn,
};
use nil_migrate::recovery::{Liveness, Resolution, recover};
use nil_pool::{Epoch, HostSlot, Ownership};

/// One step of one thread; the first number is the host, the second the vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Action {
    /// The host's agent starts a worker that is to take the guest.
    Plan(usize),
    Ready(usize),
    Offer(usize),
    /// The owner's coordinator looks at the words; `true`: its time is over.
    Look(usize, bool),
    /// The owner's coordinator makes the swap that it decided on.
    Swap(usize),
    Stop(usize, usize),
    Save(usize, usize),
    FailToSave(usize, usize),
    SaveMachine(usize, usize),
    Publish(usize, usize),
    Resume(usize, usize),
    Watch(usize, usize),
    Load(usize, usize),
    FailToLoad(usize, usize),
    Abort(usize, usize),
    LoadMachine(usize, usize),
    Commit(usize, usize),
    KillWorker(usize),
    KillHost(usize),
    Return(usize),
    /// The host's agent looks whether something is to be recovered; `true`: it can see the other host's workers.
    Inspect(usize, bool),
    /// The host's agent does what it decided on.
    Rescue(usize),
}

impl Handoffs {
    /// Takes one step, if it can be taken.
    pub(crate) fn take(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Plan(host) => plan(&mut next, host),
            Action::Ready(host) => ready(&mut next, host),
            Action::Offer(host) => self.offer(&mut next, host),
            Action::Look(host, expired) => self.look(&mut next, host, expired),
            Action::Swap(host) => self.swap(&mut next, host),
            Action::Stop(host, vcpu) => stop(&mut next, host, vcpu),
            Action::Save(host, vcpu) => self.save(&mut next, host, vcpu, true),
            Action::FailToSave(host, vcpu) => fail(&mut next).and_then(|()| self.save(&mut next, host, vcpu, false)),
            Action::SaveMachine(host, vcpu) => save_machine(&mut next, host, vcpu),
            Action::Publish(host, vcpu) => publish(&mut next, host, vcpu),
            Action::Resume(host, vcpu) => self.resume(&mut next, host, vcpu),
            Action::Watch(host, vcpu) => watch(&mut next, host, vcpu),
            Action::Load(host, vcpu) => self.load(&mut next, host, vcpu),
            Action::FailToLoad(host, vcpu) => fail(&mut next).and_then(|()| fail_to_load(&mut next, host, vcpu)),
            Action::Abort(host, vcpu) => fail(&mut next).and_then(|()| abort(&mut next, host, vcpu)),
            Action::LoadMachine(host, vcpu) => load_machine(&mut next, host, vcpu),
            Action::Commit(host, vcpu) => self.commit(&mut next, host, vcpu),
            Action::KillWorker(host) => kill_worker(&mut next, host),
            Action::KillHost(host) => kill_host(&mut next, host),
            Action::Return(host) => return_host(&mut next, host),
            Action::Inspect(host, sees_all) => inspect(&mut next, host, sees_all),
            Action::Rescue(host) => self.rescue(&mut next, host),
        }?;
        Some(next)
    }
}

fn spend(budget: &mut u8) -> Option<()> {
    *budget = budget.checked_sub(1)?;
    Some(())
}

fn fail(world: &mut World) -> Option<()> {
    spend(&mut world.budget.failures)
}

// The source.

impl Handoffs {
    fn offer(&self, world: &mut World, host: usize) -> Option<()> {
        let target = slot_of(1 - host);
        let arm = world.arm;
        let owner = world.owner_mut(host)?;
        let handoff = Handoff::new(slot_of(host), target, owner.epoch).ok()?;
        if owner.plan != Plan::None || arm != handoff.armed() {
            return None;
        }
        owner.plan = Plan::AwaitingPoise(handoff);
        if self.rule != Rule::LeaveOldState {
            world.slots[handoff.epoch().slot()] = [Content::Torn; PARTS];
        }
        world.swap(handoff.owned(), handoff.offered()).then_some(())
    }

    fn look(&self, world: &mut World, host: usize, expired: bool) -> Option<()> {
        if expired && self.rule == Rule::NeverGiveUp {
            return None;
        }
        let (word, arm) = (world.word, world.arm);
        let owner = world.owner_mut(host)?;
        if owner.intent.is_some() {
            return None;
        }
        match owner.plan {
            Plan::None => None,
            Plan::AwaitingPoise(handoff) if arm == handoff.poised() => {
                owner.plan = Plan::Settling(handoff);
                owner.tally = Tally::open(handoff.epoch(), crate::world::vcpus());
                world.freezes += 1;
                Some(())
            }
            Plan::AwaitingPoise(handoff) => {
                owner.intent = (expired || arm == handoff.refused()).then_some(Event::Withdraw);
                owner.intent.map(|_| ())
            }
            Plan::Settling(handoff) => {
                let failed = owner.tally.round == handoff.epoch() && owner.tally.failed;
                match source_turn(&handoff, word, arm, failed || expired) {
                    SourceTurn::Wait => return None,
                    SourceTurn::Withdraw => owner.intent = Some(Event::Withdraw),
                    SourceTurn::Cancel => owner.intent = Some(Event::Cancel),
                    SourceTurn::Released => world.hosts[host].worker = Worker::None,
                    SourceTurn::Displaced => world.sins.displaced = true,
                }
                Some(())
            }
        }
    }

    fn swap(&self, world: &mut World, host: usize) -> Option<()> {
        let owner = world.owner_mut(host)?;
        let intent = owner.intent.take()?;
        let (Plan::AwaitingPoise(handoff) | Plan::Settling(handoff)) = owner.plan else { return None };
        let from = if intent == Event::Withdraw { handoff.offered() } else { handoff.frozen() };
        let mut kept = step(from, slot_of(host), intent).expect("the coordinator decides on legal events");
        if self.rule == Rule::KeepTheEpoch {
            kept = handoff.owned();
        }
        let unconditional = self.rule == Rule::CancelWithoutComparing && intent == Event::Cancel;
        if unconditional {
            world.word = kept;
        } else if !world.swap(from, kept) {
            return Some(());
        }
        world.deeds.cancelled |= intent == Event::Cancel;
        let owner = world.owner_mut(host)?;
        owner.epoch = if kept == handoff.kept() { handoff.next_epoch() } else { handoff.epoch() };
        owner.plan = Plan::None;
        owner.tally = Tally::closed(handoff.epoch());
        owner.settled = handoff.epoch();
        Some(())
    }

    fn save(&self, world: &mut World, host: usize, vcpu: usize, well: bool) -> Option<()> {
        let of = world.freezes;
        let owner = world.owner_mut(host)?;
        let Vcpu::Saving(handoff) = owner.vcpus[vcpu] else { return None };
        let round = handoff.epoch();
        let (tally, mut arrival) = owner.tally.arrive(round, well);
        owner.tally = tally;
        if self.rule == Rule::PublishEarly && arrival == Arrival::Early && well {
            arrival = Arrival::LastOfAll;
        }
        owner.vcpus[vcpu] = match arrival {
            Arrival::LastOfAll => Vcpu::SavingMachine(handoff),
            Arrival::Early | Arrival::LastWithFailure | Arrival::TooLate => Vcpu::Parked(handoff),
        };
        if well {
            world.slots[round.slot()][vcpu] = Content::Whole { epoch: round, of };
        }
        if arrival == Arrival::LastOfAll {
            world.slots[round.slot()][MACHINE] = Content::Torn;
        }
        Some(())
    }

    fn resume(&self, world: &mut World, host: usize, vcpu: usize) -> Option<()> {
        let owner = world.owner_mut(host)?;
        let Vcpu::Parked(handoff) = owner.vcpus[vcpu] else { return None };
        let told = owner.settled >= handoff.epoch();
        if !told && self.rule != Rule::RunOnUnasked {
            return None;
        }
        owner.vcpus[vcpu] = Vcpu::Running;
        Some(())
    }
}

fn stop(world: &mut World, host: usize, vcpu: usize) -> Option<()> {
    let owner = world.owner_mut(host)?;
    let (Plan::Settling(handoff), Vcpu::Running) = (owner.plan, owner.vcpus[vcpu]) else { return None };
    if !owner.tally.is_open() || owner.tally.round != handoff.epoch() {
        return None;
    }
    owner.vcpus[vcpu] = Vcpu::Saving(handoff);
    world.slots[handoff.epoch().slot()][vcpu] = Content::Torn;
    Some(())
}

fn save_machine(world: &mut World, host: usize, vcpu: usize) -> Option<()> {
    let of = world.freezes;
    let owner = world.owner_mut(host)?;
    let Vcpu::SavingMachine(handoff) = owner.vcpus[vcpu] else { return None };
    owner.vcpus[vcpu] = Vcpu::Publishing(handoff);
    world.slots[handoff.epoch().slot()][MACHINE] = Content::Whole { epoch: handoff.epoch(), of };
    Some(())
}

fn publish(world: &mut World, host: usize, vcpu: usize) -> Option<()> {
    let owner = world.owner_mut(host)?;
    let Vcpu::Publishing(handoff) = owner.vcpus[vcpu] else { return None };
    owner.vcpus[vcpu] = Vcpu::Parked(handoff);
    let frozen = step(handoff.offered(), slot_of(host), Event::Freeze).expect("a source may freeze what it offered");
    world.swap(handoff.offered(), frozen);
    Some(())
}

// The target, and the worker that thaws at home.

fn plan(world: &mut World, host: usize) -> Option<()> {
    let Ownership::Owned { host: source, epoch } = world.word else { return None };
    let me = slot_of(host);
    if source == me || !world.hosts[host].up || world.hosts[host].worker != Worker::None {
        return None;
    }
    spend(&mut world.budget.plans)?;
    let handoff = Handoff::new(source, me, epoch).ok()?;
    let cleared = arm_step(world.arm, source, epoch, ArmEvent::Clear).ok()?;
    world.arm = arm_step(cleared, me, epoch, ArmEvent::Begin).ok()?;
    world.hosts[host].worker = Worker::Taker(Taker::new(Role::Target, handoff));
    Some(())
}

fn ready(world: &mut World, host: usize) -> Option<()> {
    advance_arm(world, host, ArmEvent::Ready)
}

/// Moves the arm word on for the taker of this host, if it is its to move.
fn advance_arm(world: &mut World, host: usize, event: ArmEvent) -> Option<()> {
    let arm = world.arm;
    let taker = world.taker_mut(host)?;
    if taker.role == Role::Home {
        return None;
    }
    world.arm = arm_step(arm, taker.handoff.target(), taker.handoff.epoch(), event).ok()?;
    Some(())
}

fn watch(world: &mut World, host: usize, vcpu: usize) -> Option<()> {
    let word = world.word;
    let taker = world.taker_mut(host)?;
    if taker.landers[vcpu] != Lander::Waiting {
        return None;
    }
    match target_turn(taker.role, &taker.handoff, word) {
        TargetTurn::Wait => None,
        TargetTurn::Poise if vcpu == 0 => advance_arm(world, host, ArmEvent::Poise),
        TargetTurn::Poise => None,
        TargetTurn::Load => {
            taker.landers[vcpu] = Lander::Loading;
            Some(())
        }
        TargetTurn::TearDown => {
            arrive_without(world, host, vcpu);
            Some(())
        }
    }
}

fn fail_to_load(world: &mut World, host: usize, vcpu: usize) -> Option<()> {
    match world.taker_mut(host)?.landers[vcpu] {
        Lander::Loading => {
            advance_arm(world, host, ArmEvent::Refuse);
            arrive_without(world, host, vcpu);
            Some(())
        }
        // The last thread has arrived already: the landing is over.
        Lander::LoadingMachine => {
            advance_arm(world, host, ArmEvent::Refuse);
            world.hosts[host].worker = Worker::None;
            Some(())
        }
        Lander::Waiting | Lander::Committing | Lander::Arrived => None,
    }
}

fn abort(world: &mut World, host: usize, vcpu: usize) -> Option<()> {
    if world.taker_mut(host)?.landers[vcpu] != Lander::Waiting {
        return None;
    }
    advance_arm(world, host, ArmEvent::Refuse);
    arrive_without(world, host, vcpu);
    Some(())
}

fn arrive_without(world: &mut World, host: usize, vcpu: usize) {
    let taker = world.taker_mut(host).expect("only a taker lands");
    let (tally, arrival) = taker.tally.arrive(taker.handoff.epoch(), false);
    taker.tally = tally;
    taker.landers[vcpu] = Lander::Arrived;
    if arrival == Arrival::LastWithFailure {
        world.hosts[host].worker = Worker::None;
    }
}

impl Handoffs {
    fn load(&self, world: &mut World, host: usize, vcpu: usize) -> Option<()> {
        let slots = world.slots;
        let taker = world.taker_mut(host)?;
        if taker.landers[vcpu] != Lander::Loading {
            return None;
        }
        let round = taker.handoff.epoch();
        taker.loaded[vcpu] = slots[round.slot()][vcpu];
        let (tally, mut arrival) = taker.tally.arrive(round, true);
        taker.tally = tally;
        if self.rule == Rule::ClaimEarly && arrival == Arrival::Early {
            arrival = Arrival::LastOfAll;
        }
        match arrival {
            Arrival::LastOfAll => taker.landers[vcpu] = Lander::LoadingMachine,
            Arrival::Early | Arrival::TooLate => taker.landers[vcpu] = Lander::Arrived,
            Arrival::LastWithFailure => world.hosts[host].worker = Worker::None,
        }
        Some(())
    }

    fn commit(&self, world: &mut World, host: usize, vcpu: usize) -> Option<()> {
        let of = world.freezes;
        let taker = world.taker_mut(host)?.clone();
        if taker.landers[vcpu] != Lander::Committing {
            return None;
        }
        let handoff = taker.handoff;
        let committed = step(handoff.frozen(), taker.role.host(&handoff), taker.role.commit());
        let committed = committed.expect("a role commits by a legal event");
        let unconditional = self.rule == Rule::ClaimWithoutComparing && taker.role == Role::Target;
        if unconditional {
            world.word = committed;
        } else if !world.swap(handoff.frozen(), committed) {
            world.hosts[host].worker = Worker::None;
            world.deeds.late_claim_failed = true;
            return Some(());
        }
        let frozen = Content::Whole { epoch: handoff.epoch(), of };
        world.sins.committed_unwhole |= taker.loaded != [frozen; PARTS];
        world.deeds.thawed_at_home |= taker.role == Role::Home;
        if taker.role == Role::Target {
            world.deeds.claims += 1;
            world.deeds.taken_over |= !world.hosts[1 - host].up;
        }
        world.hosts[host].worker = Worker::Owner(Owner::new(handoff.next_epoch()));
        Some(())
    }
}

fn load_machine(world: &mut World, host: usize, vcpu: usize) -> Option<()> {
    let slots = world.slots;
    let taker = world.taker_mut(host)?;
    if taker.landers[vcpu] != Lander::LoadingMachine {
        return None;
    }
    taker.loaded[MACHINE] = slots[taker.handoff.epoch().slot()][MACHINE];
    taker.landers[vcpu] = Lander::Committing;
    Some(())
}

// Death and recovery.

fn kill_worker(world: &mut World, host: usize) -> Option<()> {
    if world.hosts[host].worker == Worker::None {
        return None;
    }
    world.hosts[host].worker = Worker::None;
    spend(&mut world.budget.crashes)
}

fn kill_host(world: &mut World, host: usize) -> Option<()> {
    let dying = &mut world.hosts[host];
    if !dying.up {
        return None;
    }
    (dying.up, dying.worker, dying.errand) = (false, Worker::None, None);
    spend(&mut world.budget.crashes)
}

fn return_host(world: &mut World, host: usize) -> Option<()> {
    if world.hosts[host].up {
        return None;
    }
    world.hosts[host].up = true;
    spend(&mut world.budget.returns)
}

/// What the agent of host `by` knows of `host`: its own workers, and whether the other host is there.
pub(crate) fn liveness(world: &World, by: usize, sees_all: bool, host: HostSlot) -> Liveness {
    let index = host.index();
    match (&world.hosts[index].worker, world.hosts[index].up) {
        (_, false) => Liveness::Gone,
        (_, true) if index != by && !sees_all => Liveness::Unknown,
        (Worker::None, true) => Liveness::Idle,
        (Worker::Owner(_) | Worker::Taker(_), true) => Liveness::Working,
    }
}

fn inspect(world: &mut World, host: usize, sees_all: bool) -> Option<()> {
    if !world.hosts[host].up || world.hosts[host].errand.is_some() {
        return None;
    }
    let seen = world.word;
    let resolution = recover(seen, |of| liveness(world, host, sees_all, of));
    let me = slot_of(host);
    let mine = match resolution {
        Resolution::SalvageOrBury(_) | Resolution::Bury(_) => true,
        Resolution::TakeBack(by) | Resolution::TakeOver(by) => by == me,
        Resolution::Nothing | Resolution::LeaveTo(_) | Resolution::Stranded { .. } | Resolution::Lost(_) => false,
    };
    let whole = Handoff::of(seen).is_some_and(|handoff| world.is_whole(handoff.epoch()));
    world.hosts[host].errand = mine.then_some(Errand { seen, resolution, whole });
    mine.then_some(())
}

impl Handoffs {
    fn rescue(&self, world: &mut World, host: usize) -> Option<()> {
        let Errand { seen, resolution, whole } = world.hosts[host].errand.take()?;
        match resolution {
            Resolution::Bury(dead) => change(world, seen, host, Event::Bury { dead }),
            Resolution::SalvageOrBury(dead) if whole && self.rule != Rule::BuryWithoutLooking => {
                change(world, seen, host, Event::Salvage { dead });
            }
            Resolution::SalvageOrBury(dead) => change(world, seen, host, Event::Bury { dead }),
            Resolution::TakeBack(_) => start_taker(world, host, Role::Home),
            Resolution::TakeOver(_) => start_taker(world, host, Role::Target),
            Resolution::Nothing | Resolution::LeaveTo(_) | Resolution::Stranded { .. } | Resolution::Lost(_) => {}
        }
        Some(())
    }
}

fn change(world: &mut World, seen: Ownership, host: usize, event: Event) {
    let next = step(seen, slot_of(host), event).expect("recovery asks for legal events");
    let owner_lives = seen.responsible().is_some_and(|of| world.hosts[of.index()].worker != Worker::None);
    let whole = Handoff::of(seen).is_some_and(|handoff| world.is_whole(handoff.epoch()));
    if world.swap(seen, next) {
        world.sins.buried_alive |= matches!(event, Event::Bury { .. }) && (owner_lives || whole);
        world.deeds.salvaged |= matches!(event, Event::Salvage { .. });
    }
}

/// A fresh worker looks at the word itself; what its agent saw may be past.
fn start_taker(world: &mut World, host: usize, role: Role) {
    let Ownership::Frozen { .. } = world.word else { return };
    let Some(handoff) = Handoff::of(world.word) else { return };
    if world.hosts[host].worker == Worker::None && role.host(&handoff) == slot_of(host) {
        world.hosts[host].worker = Worker::Taker(Taker::new(role, handoff));
    }
}

/// Every step that anybody might take.
pub(crate) fn all() -> Vec<Action> {
    let mut actions = Vec::new();
    for host in 0..crate::world::HOSTS {
        actions.extend([
            Action::Plan(host),
            Action::Ready(host),
            Action::Offer(host),
            Action::Look(host, false),
            Action::Look(host, true),
            Action::Swap(host),
            Action::KillWorker(host),
            Action::KillHost(host),
            Action::Return(host),
            Action::Inspect(host, false),
            Action::Inspect(host, true),
            Action::Rescue(host),
        ]);
        for vcpu in 0..VCPUS {
            actions.extend([
                Action::Stop(host, vcpu),
                Action::Save(host, vcpu),
                Action::FailToSave(host, vcpu),
                Action::SaveMachine(host, vcpu),
                Action::Publish(host, vcpu),
                Action::Resume(host, vcpu),
                Action::Watch(host, vcpu),
                Action::Load(host, vcpu),
                Action::FailToLoad(host, vcpu),
                Action::Abort(host, vcpu),
                Action::LoadMachine(host, vcpu),
                Action::Commit(host, vcpu),
            ]);
        }
    }
    actions
}

/// The slot that a vCPU thread of this worker is writing to, if it is.
pub(crate) fn writes_to(owner: &Owner) -> impl Iterator<Item = Epoch> {
    owner.vcpus.iter().filter_map(|vcpu| match vcpu {
        Vcpu::Saving(handoff) | Vcpu::SavingMachine(handoff) => Some(handoff.epoch()),
        Vcpu::Running | Vcpu::Publishing(_) | Vcpu::Parked(_) => None,
    })
}
