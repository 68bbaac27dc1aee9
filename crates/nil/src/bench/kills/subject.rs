//! The guest that all of this is about: booted, watched from outside, and stopped.

use super::plan::Journey;
use super::prey;
use crate::lab::frequency::Frequency;
use crate::lab::observe::Observer;
use crate::lab::verdict::Verdict;
use crate::lab::{GuestPlan, Rack, Side, interrupt};
use anyhow::{Context, bail, ensure};
use nil_guest_abi::{Options, Program};
use nil_host::{Client, Error, GuestName, GuestReport, HostDir, ImageSource, MemoryIn, Migrate, MigrationReport, RunVm};
use nil_pool::{GuestControl, HostSlot, Ownership};
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a guest may stand frozen before its source takes it back.
const DEADLINE: Duration = Duration::from_millis(500);
/// How long what a stopped guest had may take to be free again.
const PATIENCE_WITH_STOP: Duration = Duration::from_secs(20);
/// How long the name of a guest that has gone may stay taken.
const PATIENCE_WITH_NAME: Duration = Duration::from_secs(5);

/// A guest under test.
#[derive(Debug)]
pub(super) struct Subject {
    name: GuestName,
    control: GuestControl,
    observer: Observer,
}

/// A migration that was ordered, on a thread of its own.
pub(super) type Order = JoinHandle<nil_host::Result<MigrationReport>>;

/// What only ever grows in a guest, per vCPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Counters(Vec<[u64; 5]>);

impl Subject {
    /// Boots a guest and waits until it has filled its memory and runs.
    pub(super) fn boot(rack: &Rack, side: Side, plan: &GuestPlan, frequency: Frequency) -> anyhow::Result<Self> {
        let name: GuestName = "guest".parse()?;
        let options = Options { mode: plan.mode, tsc_khz: frequency.khz(), ..Options::default() };
        let order = RunVm {
            name: name.clone(),
            pool: rack.pool().id(),
            memory_bytes: plan.memory_bytes,
            memory_in: MemoryIn::Pool,
            vcpus: plan.vcpus,
            image: ImageSource::Builtin(Program::Demo.name().into()),
            command_line: options.to_string(),
        };
        let report = run_when_free(rack, side, &order).context("a guest could not be started")?;
        let info = rack.pool().find_guest(&report.id.to_string()).context("the guest is not in the pool")?;
        let control = rack.pool().guest(info.slot, report.id)?;
        let mut observer = Observer::attach(&control, frequency)?;
        observer.await_running().context("the guest does not run")?;
        Ok(Self { name, control, observer })
    }

    pub(super) fn control(&self) -> &GuestControl {
        &self.control
    }

    /// The migration to the other host, as it stands before it begins.
    pub(super) fn journey(&self, rack: &Rack) -> anyhow::Result<Journey> {
        let word = self.control.ownership().load()?;
        let Ownership::Owned { host: source, epoch } = word else { bail!("the guest is {word}, not owned") };
        let from = side_of(rack, source)?;
        let target = slot_of(rack, from.other())?;
        Ok(Journey { from, source, target, epoch })
    }

    /// Orders the guest's migration to the other host.
    pub(super) fn order_migration(&self, rack: &Rack, from: Side) -> anyhow::Result<Order> {
        let source: HostDir = rack.host(from).clone();
        let to = rack.host(from.other()).name().clone();
        let deadline_us = u64::try_from(DEADLINE.as_micros())?;
        let order = Migrate { deadline_us, ..Migrate::new(self.name.clone(), to) };
        let order = move || Client::connect(&source)?.migrate(&order, |_| {});
        Ok(std::thread::Builder::new().name("order".into()).spawn(order)?)
    }

    /// What the agent of a host says of the guest; `None` while nobody answers.
    pub(super) fn report(&self, rack: &Rack, side: Side) -> Option<GuestReport> {
        let guests = rack.call(side).ok()?.ps().ok()?;
        guests.into_iter().find(|guest| guest.id == self.control.id())
    }

    pub(super) fn counters(&self) -> anyhow::Result<Counters> {
        let read = |vcpu: &nil_guest_abi::VcpuBlock| {
            [&vcpu.counter, &vcpu.last_tsc, &vcpu.tickets, &vcpu.private_tickets, &vcpu.pages_written]
                .map(|counter| counter.load(Ordering::Acquire))
        };
        Ok(Counters(self.observer.block()?.vcpus().map(read).collect()))
    }

    /// What the guest has found so far.
    pub(super) fn verdict(&self) -> anyhow::Result<Verdict> {
        self.observer.verdict()
    }

    /// Has the guest verify every page and register.
    pub(super) fn verify_all(&self) -> anyhow::Result<Verdict> {
        self.observer.verify_all()
    }

    /// Stops the guest at its host, and waits until everything that it had is free.
    pub(super) fn stop(self, rack: &Rack, side: Side, free: u64) -> anyhow::Result<()> {
        rack.call(side)?.stop(&self.name).context("the guest could not be stopped")?;
        drop(self);
        let gone = || {
            let usage = rack.pool().usage();
            Ok((usage.guests == 0 && usage.free == free && prey::workers(rack).is_empty()).then_some(()))
        };
        interrupt::wait_for("a stopped guest has left something", PATIENCE_WITH_STOP, gone).with_context(|| {
            let usage = rack.pool().usage();
            format!("{} guests, {} bytes free of {free}, workers {:?}", usage.guests, usage.free, prey::workers(rack))
        })
    }
}

/// Starts the guest as soon as its name is free: the agent of a target notices a moment after us that the last guest of
/// that name did not come.
fn run_when_free(rack: &Rack, side: Side, order: &RunVm) -> anyhow::Result<GuestReport> {
    let begun = Instant::now();
    loop {
        interrupt::check()?;
        match rack.call(side)?.run_vm(order) {
            Err(Error::Refused(why)) if why.contains("has a guest named") && begun.elapsed() < PATIENCE_WITH_NAME => {
                std::thread::sleep(Duration::from_millis(1));
            }
            other => return Ok(other?),
        }
    }
}

impl Counters {
    /// Whether every vCPU has gone on since.
    pub(super) fn have_moved_since(&self, earlier: &Self) -> bool {
        self.0.len() == earlier.0.len() && self.0.iter().zip(&earlier.0).all(|(now, then)| now[0] > then[0])
    }

    /// Fails when anything has gone backwards since.
    pub(super) fn check_since(&self, earlier: &Self) -> anyhow::Result<()> {
        let forwards = self.0.iter().flatten().zip(earlier.0.iter().flatten()).all(|(now, then)| now >= then);
        ensure!(
            forwards && self.0.len() == earlier.0.len(),
            "the guest's counters went backwards, from {:?} to {:?}",
            earlier.0,
            self.0
        );
        Ok(())
    }
}

/// The side with that slot in the pool.
pub(super) fn side_of(rack: &Rack, slot: HostSlot) -> anyhow::Result<Side> {
    for side in [Side::A, Side::B] {
        if slot_of(rack, side)? == slot {
            return Ok(side);
        }
    }
    bail!("{slot} is none of the two hosts")
}

fn slot_of(rack: &Rack, side: Side) -> anyhow::Result<HostSlot> {
    let name = rack.host(side).name();
    rack.pool()
        .find_host(name.as_str())
        .map(|host| host.slot)
        .with_context(|| format!("host {name} is not in the pool"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_vcpu_that_stands_still_is_enough_for_a_guest_not_to_go_on() {
        let earlier = Counters(vec![[1, 5, 5, 5, 5], [1, 5, 5, 5, 5]]);
        let half = Counters(vec![[2, 6, 5, 5, 5], [1, 5, 5, 5, 5]]);
        assert!(!half.have_moved_since(&earlier));
        half.check_since(&earlier).expect("nothing went backwards");
    }

    #[test]
    fn any_counter_that_goes_backwards_is_found() {
        let earlier = Counters(vec![[1, 5, 5, 5, 5]]);
        let later = Counters(vec![[2, 6, 6, 4, 6]]);
        assert!(later.check_since(&earlier).is_err());
    }
}
