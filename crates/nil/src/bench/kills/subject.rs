//! The guest that all of this is about: booted, watched from outside, ordered about, and stopped.
//!
//! It is watched through the process that runs it: at no other place all of its memory is to be seen, wherever that lies.

use super::journey::{Errand, Journey};
use super::trail::{GuestWords, Spread};
use crate::lab::counters::{Counters, await_running, view_of};
use crate::lab::frequency::Frequency;
use crate::lab::observe::Observer;
use crate::lab::prey;
use crate::lab::verdict::Verdict;
use crate::lab::view::View;
use crate::lab::{GuestPlan, Rack, Side, interrupt};
use anyhow::{Context, bail};
use nil_guest_abi::{Options, Program};
use nil_host::{
    Client, Error, GuestName, GuestReport, HostDir, ImageSource, MemoryIn, MemoryMoved, Migrate, MigrationReport,
    MoveMemory, RunVm,
};
use nil_mover::{Budget, Pace};
use nil_pool::{GuestControl, HostSlot, Ownership};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a guest may stand frozen before its source takes it back.
const DEADLINE: Duration = Duration::from_millis(500);
/// How long what a stopped guest had may take to be free again.
const PATIENCE_WITH_STOP: Duration = Duration::from_secs(20);
/// How long the name of a guest that has gone may stay taken.
const PATIENCE_WITH_NAME: Duration = Duration::from_secs(5);
/// How long a host may take to be listed in the pool again.
const PATIENCE_WITH_LISTING: Duration = Duration::from_secs(5);
/// How long an agent may take to say which process runs the guest, and where that has its memory.
const ARRIVAL: Duration = Duration::from_secs(5);

/// A guest under test.
#[derive(Debug)]
pub(super) struct Subject {
    name: GuestName,
    control: GuestControl,
    words: GuestWords,
    observer: Observer,
    /// Where its memory lies while nothing is done with it.
    home: MemoryIn,
}

/// The answer to an order.
#[derive(Debug)]
pub(super) enum Answer {
    Migrated(Box<MigrationReport>),
    Moved(Box<MemoryMoved>),
}

/// An order that was given, on a thread of its own: its answer, and how long that took.
pub(super) type Order = JoinHandle<(nil_host::Result<Answer>, Duration)>;

impl Subject {
    /// Boots a guest and waits until it has filled its memory and runs.
    pub(super) fn boot(
        rack: &Rack,
        side: Side,
        (plan, home): (&GuestPlan, MemoryIn),
        frequency: Frequency,
    ) -> anyhow::Result<Self> {
        let name: GuestName = "guest".parse()?;
        let options = Options { mode: plan.mode, tsc_khz: frequency.khz(), ..Options::default() };
        let order = RunVm {
            name: name.clone(),
            pool: rack.pool().id(),
            memory_bytes: plan.memory_bytes,
            memory_in: home,
            vcpus: plan.vcpus,
            image: ImageSource::Builtin(Program::Demo.name().into()),
            command_line: options.to_string(),
            hosts: Vec::new(),
            cpu: None,
        };
        let report = run_when_free(rack, side, &order).context("a guest could not be started")?;
        let info = rack.pool().find_guest(&report.id.to_string()).context("the guest is not in the pool")?;
        let control = rack.pool().guest(info.slot, report.id)?;
        let observer = Observer::through(await_home(rack, side, &control)?, plan.memory_bytes, frequency);
        await_running(&observer)?;
        let words = GuestWords::of(&control)?;
        Ok(Self { name, control, words, observer, home })
    }

    pub(super) fn control(&self) -> &GuestControl {
        &self.control
    }

    pub(super) fn words(&self) -> &GuestWords {
        &self.words
    }

    pub(super) fn home(&self) -> MemoryIn {
        self.home
    }

    /// The side that runs it.
    pub(super) fn side(&self, rack: &Rack) -> anyhow::Result<Side> {
        let word = self.control.ownership().load()?;
        let Ownership::Owned { host, .. } = word else { bail!("the guest is {word}, not owned") };
        side_of(rack, host)
    }

    /// An errand, as things stand before it begins.
    pub(super) fn journey(&self, rack: &Rack, errand: Errand) -> anyhow::Result<Journey> {
        let word = self.control.ownership().load()?;
        let Ownership::Owned { host: source, epoch } = word else { bail!("the guest is {word}, not owned") };
        let from = side_of(rack, source)?;
        let target = slot_of(rack, from.other())?;
        let memory_in = if self.words.now()?.spread() == Spread::Pool { MemoryIn::Pool } else { MemoryIn::Dram };
        Ok(Journey { errand, memory_in, from, source, target, epoch })
    }

    /// Orders an errand.
    pub(super) fn order(&self, rack: &Rack, errand: Errand, from: Side, pace: Pace) -> anyhow::Result<Order> {
        let source: HostDir = rack.host(from).clone();
        let budget = Budget { pace, bandwidth: None };
        let order: Box<dyn FnOnce() -> nil_host::Result<Answer> + Send> = match errand.direction() {
            Some(direction) => {
                let order = MoveMemory { budget, ..MoveMemory::all_of(self.name.clone(), direction) };
                let moved = move || Client::connect(&source)?.move_memory(&order, |_| {});
                Box::new(move || Ok(Answer::Moved(Box::new(moved()?))))
            }
            None => {
                let to = rack.host(from.other()).name().clone();
                let deadline_us = u64::try_from(DEADLINE.as_micros())?;
                let order = Migrate { deadline_us, budget, ..Migrate::new(self.name.clone(), to) };
                let migrated = move || Client::connect(&source)?.migrate(&order, |_| {});
                Box::new(move || Ok(Answer::Migrated(Box::new(migrated()?))))
            }
        };
        let timed = move || {
            let begun = Instant::now();
            (order(), begun.elapsed())
        };
        Ok(std::thread::Builder::new().name("order".into()).spawn(timed)?)
    }

    /// What the agent of a host says of the guest; `None` while nobody answers.
    pub(super) fn report(&self, rack: &Rack, side: Side) -> Option<GuestReport> {
        let guests = rack.call(side).ok()?.ps().ok()?;
        guests.into_iter().find(|guest| guest.id == self.control.id())
    }

    /// Goes on watching it in the process that runs it now.
    pub(super) fn look_at(&mut self, rack: &Rack, side: Side) -> anyhow::Result<()> {
        self.observer.look_through(await_home(rack, side, &self.control)?);
        Ok(())
    }

    /// Looks into the memory that a lost guest has left behind, if all of that is in the pool.
    pub(super) fn look_at_remains(&mut self) -> anyhow::Result<bool> {
        let whole = self.words.now()?.spread() == Spread::Pool;
        if whole {
            self.observer.look_through(View::of_pool(&self.control)?);
        }
        Ok(whole)
    }

    pub(super) fn counters(&self) -> anyhow::Result<Counters> {
        Counters::read(&*self.observer.block()?)
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
            let sockets =
                [Side::A, Side::B].map(|side| rack.host(side).worker_sockets().map_or(0, |names| names.len()));
            let is_gone = usage.guests == 0 && usage.free == free && workers(rack).is_empty();
            Ok((is_gone && sockets == [0, 0]).then_some(()))
        };
        interrupt::wait_for("a stopped guest has left something", PATIENCE_WITH_STOP, gone).with_context(|| {
            let usage = rack.pool().usage();
            format!("{} guests, {} bytes free of {free}, workers {:?}", usage.guests, usage.free, workers(rack))
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

/// Waits until the agent says which process runs the guest, and looks into that.
fn await_home(rack: &Rack, side: Side, control: &GuestControl) -> anyhow::Result<View> {
    let arrived = "the agent has not said which process runs the guest, and where it has the guest's memory";
    interrupt::wait_for(arrived, ARRIVAL, || {
        let guests = rack.call(side)?.ps()?;
        let home = guests.into_iter().find(|guest| guest.id == control.id()).and_then(|guest| view_of(&guest));
        Ok(home)
    })
}

/// The living workers of the rack.
pub(super) fn workers(rack: &Rack) -> Vec<i32> {
    prey::workers(&rack.host(Side::A).run_dir()).into_iter().map(|worker| worker.pid).collect()
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

/// A host whose agent is just coming up again is not listed for a moment.
fn slot_of(rack: &Rack, side: Side) -> anyhow::Result<HostSlot> {
    let name = rack.host(side).name();
    let listed = || Ok(rack.pool().find_host(name.as_str()).map(|host| host.slot));
    interrupt::wait_for("the pool does not list one of its hosts", PATIENCE_WITH_LISTING, listed)
        .with_context(|| format!("host {name}"))
}
