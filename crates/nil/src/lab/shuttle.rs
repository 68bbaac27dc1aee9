//! A guest that goes to and fro between the two hosts of a rack, and is measured each time.

use super::backing::{self, Backing};
use super::frequency::Frequency;
use super::gaps::Unknown;
use super::interrupt;
use super::observe::{Observation, Observer};
use super::phases::PhaseTimes;
use super::rack::{Rack, Side};
use super::verdict::Verdict;
use anyhow::{Context, bail};
use nil_guest_abi::{Mode, Options, Program};
use nil_host::{GuestName, HostName, ImageSource, MemoryIn, Migrate, MigrationOutcome, MigrationReport, RunVm};
use nil_pool::GuestControl;
use std::time::Duration;

/// How long a guest may stand frozen before its source takes it back.
const DEADLINE: Duration = Duration::from_secs(2);

/// The guest that is to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GuestPlan {
    /// Bytes of memory.
    pub(crate) memory_bytes: u64,
    /// Number of vCPUs.
    pub(crate) vcpus: u32,
    /// What it does with its memory.
    pub(crate) mode: Mode,
}

/// A guest on a rack.
#[derive(Debug)]
pub(crate) struct Shuttle<'rack> {
    rack: &'rack Rack,
    name: GuestName,
    control: GuestControl,
    observer: Observer,
    backing: Backing,
    side: Side,
}

/// One handoff, measured.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// What the guest saw; `None` when its records of it were overwritten before they could be read.
    pub(crate) observed: Option<Observation>,
    /// What the hosts saw, if they left all their stamps.
    pub(crate) phases: Option<PhaseTimes>,
    /// Bytes of guest memory that lie elsewhere than before.
    pub(crate) copied_bytes: u64,
    /// Bytes of processor and device state that went through the pool.
    pub(crate) state_bytes: u64,
    /// Bytes that the target's worker has read and written through system calls in its life so far.
    pub(crate) system_call_bytes: u64,
}

impl<'rack> Shuttle<'rack> {
    /// Boots the guest on host A and waits until it has filled its memory and runs.
    pub(crate) fn boot(rack: &'rack Rack, plan: &GuestPlan, frequency: Frequency) -> anyhow::Result<Self> {
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
            hosts: Vec::new(),
            cpu: None,
        };
        let report = rack.call(Side::A)?.run_vm(&order).context("the guest could not be started")?;
        let info = rack.pool().find_guest(&report.id.to_string()).context("the guest is not in the pool")?;
        let control = rack.pool().guest(info.slot, report.id)?;
        let mut observer = Observer::attach(&control, frequency)?;
        observer.await_running().with_context(|| format!("the guest does not run{}", rack.logs()))?;
        let mapping = observer.mapping().context("the guest's memory is not mapped here")?;
        let backing = Backing::of_mapping(&mapping, rack.pool_path())?;
        Ok(Self { rack, name, control, observer, backing, side: Side::A })
    }

    /// Hands the guest to the other host, and reads from its memory what it saw of it.
    pub(crate) fn handoff(&mut self) -> anyhow::Result<Sample> {
        interrupt::check()?;
        let marks = self.observer.marks()?;
        let report = self.migrate()?;
        self.side = self.side.other();
        let standstill = Observer::standstill(&self.control)?;
        let observed = match self.observer.await_landing(&marks, standstill) {
            Ok(observation) => Some(observation),
            Err(error) if error.downcast_ref() == Some(&Unknown::Overwritten) => None,
            Err(error) => return Err(error),
        };
        let worker = self.worker()?;
        Ok(Sample {
            phases: phase_times(&report, observed.as_ref()),
            observed,
            copied_bytes: report.copied_bytes.max(self.backing.bytes_elsewhere(worker)?),
            state_bytes: self.state_bytes(&report)?,
            system_call_bytes: backing::bytes_through_system_calls(worker)?,
        })
    }

    /// Has the guest verify every page and register.
    pub(crate) fn verify_all(&self) -> anyhow::Result<Verdict> {
        self.observer.verify_all()
    }

    /// What the guest has found so far.
    pub(crate) fn verdict(&self) -> anyhow::Result<Verdict> {
        self.observer.verdict()
    }

    /// The host that runs the guest now.
    pub(crate) fn host(&self) -> &HostName {
        self.rack.host(self.side).name()
    }

    /// Bytes of guest memory that the guest's process maps by huge pages.
    pub(crate) fn huge_bytes(&self) -> anyhow::Result<u64> {
        self.backing.huge_bytes(self.worker()?)
    }

    /// Stops the guest and frees its memory.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        Ok(self.rack.call(self.side)?.stop(&self.name)?)
    }

    fn migrate(&self) -> anyhow::Result<MigrationReport> {
        let to = self.rack.host(self.side.other()).name().clone();
        let deadline_us = u64::try_from(DEADLINE.as_micros())?;
        let order = Migrate { deadline_us, ..Migrate::new(self.name.clone(), to.clone()) };
        let report = self
            .rack
            .call(self.side)?
            .migrate(&order, |_| {})
            .with_context(|| format!("the guest could not be handed to host {to}{}", self.rack.logs()))?;
        match report.outcome {
            MigrationOutcome::Moved => Ok(report),
            MigrationOutcome::TakenBack { why }
            | MigrationOutcome::Cancelled { why }
            | MigrationOutcome::Stalled { why } => {
                bail!("host {to} did not get the guest: {why}{}", self.rack.logs())
            }
        }
    }

    /// The process that runs the guest now.
    fn worker(&self) -> anyhow::Result<i32> {
        let guests = self.rack.call(self.side)?.ps()?;
        let ours = guests.into_iter().find(|guest| guest.id == self.control.id());
        ours.and_then(|guest| guest.worker_pid).context("no process runs the guest")
    }

    /// Bytes of the sections that were published at the last handoff.
    fn state_bytes(&self, report: &MigrationReport) -> anyhow::Result<u64> {
        let Some(handoff) = report.handoff else { return Ok(0) };
        // A target that landed at epoch e has loaded what was frozen at e - 1.
        let slot = nil_pool::Epoch(handoff.epoch.wrapping_sub(1)).slot();
        let state = self.control.map_state()?;
        let vcpus = usize::try_from(state.vcpus())?;
        let areas = std::iter::once(state.machine(slot)).chain((0..vcpus).map(|index| state.vcpu(slot, index)));
        let mut bytes = 0;
        let mut buffer = Vec::new();
        for area in areas {
            area.read_into(&mut buffer)?;
            bytes += u64::try_from(buffer.len())?;
        }
        Ok(bytes)
    }
}

/// The hosts' phases, of which the guest itself ends the last: they cannot see it take its first step.
fn phase_times(report: &MigrationReport, observed: Option<&Observation>) -> Option<PhaseTimes> {
    let phases = report.handoff?.phases;
    Some(PhaseTimes {
        kick: phases.kick_ns,
        save: phases.save_ns,
        publish: phases.publish_ns + phases.notice_ns,
        load: phases.load_ns,
        claim: phases.claim_ns,
        enter: observed?.enter_ns,
    })
}
