//! Starting and stopping guests.

use super::Host;
use super::table::{Entry, Reservation};
use crate::error::{Error, Result, story};
use crate::message::{Phase, WorkerRequest};
use crate::name::GuestName;
use crate::order::{ImageSource, MemoryIn, RunVm};
use crate::process::ProcessId;
use crate::report::{GuestReport, known};
use nil_pool::{
    BadOwnership, GRANULE, GuestControl, GuestKind, GuestRequest, HostSlot, Membership, MemoryHome, Ownership,
};
use std::sync::Arc;
use std::time::Duration;

/// How long an image may take to be loaded and started.
const PATIENCE_WITH_BOOT: Duration = Duration::from_secs(120);
/// How long a worker may take to stop its guest before it is killed.
const PATIENCE_WITH_STOP: Duration = Duration::from_secs(10);
/// How long the news of a worker may take to arrive after it has answered.
const NEWS: Duration = Duration::from_secs(5);

impl Host {
    /// Starts a VM. Either it runs when this returns, or nothing is left of it.
    pub(crate) fn run_vm(self: &Arc<Self>, order: &RunVm) -> Result<GuestReport> {
        check_size(order)?;
        self.check_adopted(&order.name)?;
        let membership = self.pools.get(order.pool)?;
        let reservation = self.table.reserve(&order.name, self.dir.name(), Duration::ZERO)?;
        self.check_open()?;
        let access = self.hosts_that_may_run(order, membership.pool())?;
        let request = GuestRequest {
            name: order.name.to_string(),
            kind: GuestKind::Vm,
            memory_bytes: order.memory_bytes,
            home: match order.memory_in {
                MemoryIn::Dram => MemoryHome::Dram,
                MemoryIn::Pool => MemoryHome::Pool,
            },
            vcpus: order.vcpus,
            features: 0,
        };
        let control = membership.create_guest_for(&request, &access)?;
        let booted = self.boot(&reservation, &control, membership.slot(), order);
        if let Err(error) = booted {
            tracing::warn!("guest {}: it did not start: {}", order.name, error.story());
            if let Some(entry) = self.table.find(&order.name) {
                self.clear_away(&order.name, entry.worker.id());
            }
            discard(&membership, &control, &order.name);
            return Err(error);
        }
        let entry = self.table.find(&order.name);
        entry.and_then(|entry| self.report(&order.name, &entry)).ok_or_else(|| {
            Error::refused(format!("guest {} started and ended at once; `nil ps` knows more", order.name))
        })
    }

    fn boot(
        self: &Arc<Self>,
        reservation: &Reservation<'_>,
        control: &GuestControl,
        me: HostSlot,
        order: &RunVm,
    ) -> Result<()> {
        let cpu = self.processors.model_for(order.cpu.as_ref())?;
        let image = match &order.image {
            ImageSource::Builtin(_) => None,
            ImageSource::File(path) => Some(path.as_path()),
        };
        let worker = self.start_worker(reservation, control, me, image)?;
        let request = WorkerRequest::Boot { image: order.image.clone(), command_line: order.command_line.clone(), cpu };
        self.order(&order.name, &request, PATIENCE_WITH_BOOT)?;
        self.table.wait(&order.name, worker.id(), NEWS, |phase| !matches!(phase, Phase::Empty | Phase::Starting));
        Ok(())
    }

    /// Stops a guest of this host, whatever it is doing, and frees its memory.
    pub(crate) fn stop_guest(&self, name: &GuestName) -> Result<()> {
        self.check_adopted(name)?;
        let (control, word) = match self.table.find(name) {
            Some(entry) => {
                self.stop_worker(name, &entry)?;
                let word = word_of(name, &entry.control)?;
                (entry.control, word)
            }
            None => self.find_remains(name)?,
        };
        let membership = self.pools.get(control.pool().id())?;
        // By that word: whoever has taken the guest over meanwhile keeps it.
        membership.destroy_guest_while(&control, word)?;
        self.reap_orphan_stripes();
        tracing::info!("guest {name}: stopped, its memory is free again");
        Ok(())
    }

    fn stop_worker(&self, name: &GuestName, entry: &Entry) -> Result<()> {
        match entry.phase {
            Phase::Armed => {
                return Err(Error::refused(format!("guest {name} has not arrived here yet; stop it when it has")));
            }
            Phase::Leaving | Phase::Released | Phase::TornDown => {
                return Err(Error::refused(format!("guest {name} is on its way to another host; stop it there")));
            }
            Phase::Empty | Phase::Starting | Phase::Running | Phase::Halted | Phase::Ended => {}
        }
        match self.order(name, &WorkerRequest::Stop, PATIENCE_WITH_STOP) {
            Ok(_) => {}
            Err(error @ Error::Refused(_)) => return Err(error),
            Err(error) => {
                tracing::warn!("guest {name}: {}; killing its worker", error.story());
                entry.worker.kill();
            }
        }
        self.clear_away(name, entry.worker.id());
        Ok(())
    }

    /// Waits until a worker that is about to end has ended and is forgotten; if it does not end, it is killed.
    pub(super) fn clear_away(&self, name: &GuestName, worker: ProcessId) {
        let gone = |patience| self.table.wait(name, worker, patience, |_| false).is_none();
        if gone(NEWS) {
            return;
        }
        if let Some(entry) = self.table.find(name).filter(|entry| entry.worker.id() == worker) {
            entry.worker.kill();
            gone(NEWS);
        }
    }

    /// A guest of ours whose worker is gone, and its word.
    fn find_remains(&self, name: &GuestName) -> Result<(GuestControl, Ownership)> {
        for membership in self.pools.all() {
            let Some(guest) = membership.pool().find_guest(name.as_str()) else { continue };
            let me = membership.slot();
            match guest.ownership {
                Some(word @ (Ownership::Lost { .. } | Ownership::Owned { .. })) if word.responsible() == Some(me) => {
                    return Ok((membership.pool().guest(guest.slot, guest.id)?, word));
                }
                _ => {}
            }
        }
        let names = self.table.entries().into_iter().map(|(name, _)| name);
        Err(Error::UnknownGuest { name: name.to_string(), known: known("guest here", names) })
    }
}

/// The word of a guest whose worker here is gone.
fn word_of(name: &GuestName, control: &GuestControl) -> Result<Ownership> {
    control.ownership().load().map_err(|bad| damaged(name, bad).into())
}

fn damaged(name: &GuestName, bad: BadOwnership) -> nil_pool::Error {
    nil_pool::Error::DamagedWord { what: format!("ownership of guest '{name}'"), word: bad.0 }
}

/// Frees what a guest that did not start has left in the pool.
fn discard(membership: &Membership, control: &GuestControl, name: &GuestName) {
    let destroyed = control.ownership().load().map(|word| membership.destroy_guest_while(control, word));
    match destroyed.unwrap_or_else(|bad| Err(damaged(name, bad))) {
        // Its worker's end may have been noticed, and seen to, before.
        Ok(()) | Err(nil_pool::Error::GuestGone { .. }) => {}
        Err(error) => tracing::error!("guest {name}: its memory cannot be freed: {}", story(&error)),
    }
}

fn check_size(order: &RunVm) -> Result<()> {
    let RunVm { name, memory_bytes, vcpus, .. } = order;
    let mib = GRANULE >> 20;
    if *memory_bytes == 0 || memory_bytes % GRANULE != 0 {
        return Err(Error::refused(format!(
            "guest {name} cannot have {memory_bytes} bytes of memory: the pool gives memory in pieces of {mib} MiB; choose \
             a --memory that is a multiple of it"
        )));
    }
    if *vcpus == 0 {
        return Err(Error::refused(format!("guest {name} cannot run without a vCPU; choose --vcpus 1 or more")));
    }
    Ok(())
}
