//! What each thread of the model may do next, and what comes of it.

mod death;
mod source;
mod target;

pub(crate) use death::liveness;
pub(crate) use source::writes_to;

use crate::Handoffs;
use crate::world::{HOSTS, VCPUS, World};
use death::{inspect, kill_host, kill_worker, return_host};
use source::{publish, save_machine, stop};
use target::{abort, fail_to_load, load_machine, plan, ready, watch};

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

/// Every step that anybody might take.
pub(crate) fn all() -> Vec<Action> {
    let mut actions = Vec::new();
    for host in 0..HOSTS {
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
