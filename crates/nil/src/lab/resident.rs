//! A resting guest of a fleet: booted, ordered about, looked at, and stopped.

use super::counters::{Counters, await_running, view_of};
use super::fleet::Fleet;
use super::frequency::Frequency;
use super::interrupt;
use super::lock::lock;
use super::observe::Observer;
use super::soundness::require_clean;
use anyhow::{Context, bail, ensure};
use nil_guest_abi::{Command, CommandWord, Options, Program};
use nil_host::{GuestName, GuestReport, ImageSource, MemoryIn, RunVm};
use nil_pool::{Epoch, GuestControl, GuestId, HostSlot, Ownership, PlacementMap};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// How long the agent may take to say where a guest that it has just started has its memory.
const PATIENCE_WITH_ADDRESS: Duration = Duration::from_secs(20);
/// How long a guest may take to be seen going on, or to verify everything that it has. On a machine with much else to do
/// it may get no processor for seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A guest under test.
#[derive(Debug)]
pub(crate) struct Resident {
    name: GuestName,
    id: GuestId,
    home: Mutex<Home>,
    observer: Observer,
    /// What it had counted when it was last looked at.
    counters: Counters,
}

/// Where a guest has its record. That moves when the guest goes over several pools.
#[derive(Clone, Debug)]
struct Home {
    pool: usize,
    control: GuestControl,
    map: PlacementMap,
}

/// Who a guest belongs to while nothing is done with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Owner {
    pub(crate) host: usize,
    pub(crate) slot: HostSlot,
    pub(crate) epoch: Epoch,
}

impl Resident {
    /// Boots a guest on a host, with its home in a pool, and waits until it has filled its memory and runs.
    pub(crate) fn boot(
        fleet: &Fleet,
        place: (usize, usize),
        name: &str,
        memory: (u64, MemoryIn),
        frequency: Frequency,
    ) -> anyhow::Result<Self> {
        Self::boot_with(fleet, place, name, memory, frequency, Options::default())
    }

    /// The same, with options of its own besides the frequency.
    pub(crate) fn boot_with(
        fleet: &Fleet,
        (host, pool): (usize, usize),
        name: &str,
        (memory_bytes, memory_in): (u64, MemoryIn),
        frequency: Frequency,
        options: Options,
    ) -> anyhow::Result<Self> {
        let name: GuestName = name.parse()?;
        let options = Options { tsc_khz: frequency.khz(), ..options };
        let order = RunVm {
            name: name.clone(),
            pool: fleet.pools()[pool].id(),
            memory_bytes,
            memory_in,
            vcpus: 1,
            image: ImageSource::Builtin(Program::Rest.name().into()),
            command_line: options.to_string(),
            hosts: Vec::new(),
            cpu: None,
        };
        let id = fleet.call(host)?.run_vm(&order).with_context(|| format!("guest {name} could not be started"))?.id;
        let info = fleet.pools()[pool].find_guest(&id.to_string()).context("the guest is not in the pool")?;
        let control = fleet.pools()[pool].guest(info.slot, id)?;
        let view = interrupt::wait_for("the agent has not said where it has the guest", PATIENCE_WITH_ADDRESS, || {
            Ok(fleet.call(host)?.ps()?.iter().find(|guest| guest.id == id).and_then(view_of))
        })?;
        let observer = Observer::through(view, memory_bytes, frequency);
        await_running(&observer)?;
        let counters = Counters::read(&*observer.block()?)?;
        let map = control.map_state()?.placement();
        Ok(Self { name, id, home: Mutex::new(Home { pool, control, map }), observer, counters })
    }

    pub(crate) fn name(&self) -> &GuestName {
        &self.name
    }

    pub(crate) fn id(&self) -> GuestId {
        self.id
    }

    /// The pool that was its home when it was last asked for its owner; so with the rest.
    pub(crate) fn pool(&self) -> usize {
        self.home().pool
    }

    pub(crate) fn control(&self) -> GuestControl {
        self.home().control.clone()
    }

    pub(crate) fn map(&self) -> PlacementMap {
        self.home().map.clone()
    }

    fn home(&self) -> MutexGuard<'_, Home> {
        lock(&self.home)
    }

    /// Looks for the record that counts: of several, the one of the latest epoch.
    fn find_home(&self, fleet: &Fleet) -> anyhow::Result<()> {
        let epoch = |word: Ownership| word.epoch().map(|epoch| epoch.0);
        let records = fleet.pools().iter().enumerate().filter_map(|(number, pool)| {
            let info = pool.find_guest(&self.id.to_string())?;
            Some((epoch(info.ownership?)?, number, info.slot))
        });
        let (_, pool, slot) = records.max().with_context(|| format!("guest {} is in no pool", self.name))?;
        let control = fleet.pools()[pool].guest(slot, self.id)?;
        let map = control.map_state()?.placement();
        *self.home() = Home { pool, control, map };
        Ok(())
    }

    /// Who owns it, if anybody does, and the host is listed in the pool.
    pub(crate) fn owner(&self, fleet: &Fleet) -> anyhow::Result<Owner> {
        self.find_home(fleet)?;
        let Home { pool, control, .. } = self.home().clone();
        let word = control.ownership().load()?;
        let Ownership::Owned { host: slot, epoch } = word else { bail!("guest {} is {word}, not owned", self.name) };
        let host = fleet.host_of_slot(pool, slot).with_context(|| format!("{slot} is no host of the rack"))?;
        Ok(Owner { host, slot, epoch })
    }

    /// Goes on watching it where its agent says that it runs, and fails when anything that it counts has gone backwards.
    pub(crate) fn look_at(&mut self, report: &GuestReport) -> anyhow::Result<()> {
        let now = self.counted_by(report)?;
        now.check_since(&self.counters).with_context(|| format!("guest {}", self.name))?;
        self.counters = now;
        Ok(())
    }

    /// The same of a guest that may have been brought back to an earlier instant: what it counts begins anew.
    pub(crate) fn look_again_at(&mut self, report: &GuestReport) -> anyhow::Result<()> {
        self.counters = self.counted_by(report)?;
        Ok(())
    }

    /// What it has counted where its agent says that it runs, and where it is watched from now on.
    fn counted_by(&mut self, report: &GuestReport) -> anyhow::Result<Counters> {
        let view =
            view_of(report).with_context(|| format!("guest {}: its process cannot be looked into", self.name))?;
        self.observer.look_through(view);
        Counters::read(&*self.observer.block()?)
    }

    /// Tells it to verify everything.
    pub(crate) fn begin_to_verify(&self) -> anyhow::Result<CommandWord> {
        self.observer.give(Command::VerifyAll)
    }

    /// Waits until it has verified everything and has gone on since it was last looked at, and fails when it has found
    /// an error.
    pub(crate) fn await_verified(&mut self, word: CommandWord) -> anyhow::Result<()> {
        let name = &self.name;
        interrupt::wait_for("the guest has not verified its memory", PATIENCE, || {
            let block = self.observer.block()?;
            Ok((block.all_acknowledged(word) || block.errors() > 0).then_some(()))
        })
        .with_context(|| format!("guest {name}"))?;
        require_clean(&self.observer.verdict()?).with_context(|| format!("guest {name}"))?;
        let before = self.counters.clone();
        let now = interrupt::wait_for("the guest does not go on", PATIENCE, || {
            let now = Counters::read(&*self.observer.block()?)?;
            Ok(now.have_moved_since(&before).then_some(now))
        })
        .with_context(|| format!("guest {name}"))?;
        now.check_since(&before).with_context(|| format!("guest {name}"))?;
        self.counters = now;
        Ok(())
    }

    /// Stops it at its host.
    pub(crate) fn stop(&self, fleet: &Fleet) -> anyhow::Result<()> {
        let owner = self.owner(fleet)?;
        let control = self.control();
        let stopped = fleet.call(owner.host).and_then(|mut host| host.stop(&self.name));
        stopped.with_context(|| format!("guest {} could not be stopped", self.name))?;
        ensure!(control.ownership().load() != Ok(Ownership::Owned { host: owner.slot, epoch: owner.epoch }));
        Ok(())
    }
}
