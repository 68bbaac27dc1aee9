//! The life of a vCPU thread.
//!
//! ```text
//!   boot:  wait for start ─┐
//!   arm:   preload, wait ──┼─► run ⇄ exits
//!          for the freeze  │    │ kick: request = Freeze
//!                          │    ▼
//!                          │  save ─► outcome ── taken back ──► run
//!                          │                  └─ released ────► end
//!                          └─ torn down ─► end
//! ```
//!
//! Before every entry into the guest the thread looks whether it may: whether the guest is still its own, and its host has not
//! been fenced. A timer kicks it once in every interval of the host's lease. So after any longer pause a kick is pending, the
//! next KVM_RUN returns before it has entered the guest, and the thread beats the lease and looks.

use crate::devices::{Devices, PortAction};
use crate::error::{Error, Result};
use crate::kick::{self, Ticker};
use crate::machine::Machine;
use crate::shared::{Request, Shared};
use crate::vcpu::Vcpu;
use crate::vm::VmEvent;
use crate::warm::WarmUp;
use kvm_ioctls::VcpuExit;
use nil_migrate::{Freeze, Landing, Outcome, Part, Seat, TornDown};
use nil_mover::{GuestMemory, Unreached, Waited};
use nil_pool::{Epoch, SectionWriter};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Room for a vCPU's state outside the pool: as much as its area has (docs/pool-format.md).
const SCRATCH: usize = 32 << 10;

/// A vCPU thread's own half of a machine.
pub(crate) struct Runner {
    pub(crate) index: usize,
    pub(crate) vcpu: Vcpu,
    pub(crate) machine: Arc<Mutex<Machine>>,
    pub(crate) devices: Arc<Mutex<Devices>>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) memory: Arc<GuestMemory>,
}

/// Why a vCPU left the guest.
enum Left {
    /// It was kicked.
    Kicked,
    /// The guest has ended by itself.
    Ended(String),
    /// KVM cannot go on.
    Faulted(Error),
    /// The guest is not to be run here any more.
    Displaced,
}

/// Whether a vCPU thread goes on after a handoff.
#[derive(PartialEq, Eq)]
enum Next {
    Run,
    End,
}

impl Runner {
    /// Prepares for the guest, waits for it, and runs it if it comes. Says on `ready` whether it is prepared.
    pub(crate) fn land(mut self, mut seat: Seat, warm_up: &WarmUp, ready: Sender<Result<()>>) {
        let warmed = warm_up.run(&mut self.vcpu, self.index);
        let kickable = self.vcpu.make_kickable();
        let mut ticker = None;
        let rehearsed = warmed.and(kickable).and_then(|()| self.rehearse()).and_then(|()| {
            ticker = Some(Ticker::new()?);
            Ok(())
        });
        self.shared.bind_thread(self.index);
        ready.send(rehearsed.and_then(|()| seat.preload(&mut self.vcpu).map(|_| ()))).ok();
        drop(ready);
        // A thread that could not prepare takes part all the same: a target whose threads are not all prepared never
        // arms, and a guest that is thawed at home needs no preparation, only to be loaded whole.
        match seat.land(&mut self.vcpu, &self.machine) {
            Landing::Landed { .. } => match ticker.map_or_else(Ticker::new, Ok) {
                Ok(ticker) => self.run(&ticker),
                Err(error) => self.fault(&error),
            },
            Landing::TornDown(TornDown::OtherRefused) => {}
            Landing::TornDown(why) => self.shared.tell(VmEvent::TornDown { why: why.to_string() }),
        }
    }

    /// Rehearses, and then runs the guest that was booted here.
    pub(crate) fn start(mut self) {
        match self.vcpu.make_kickable().and_then(|()| self.rehearse()).and_then(|()| Ticker::new()) {
            Ok(ticker) => self.run(&ticker),
            Err(error) => self.shared.tell(VmEvent::Faulted { why: error.to_string() }),
        }
    }

    /// Goes through what this thread will do when it is kicked: the signal, the exit, saving. So that none of that is
    /// done for the first time, at page faults and cache misses, while a guest stands still.
    fn rehearse(&mut self) -> Result<()> {
        kick::kick_self();
        match self.vcpu.run() {
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(Error::kvm("KVM_RUN")(error)),
            Ok(exit) => return Err(Error::Prewarm(format!("{exit:?}"))),
        }
        let mut scratch = vec![0; SCRATCH];
        self.vcpu.save(&mut SectionWriter::over(&mut scratch, Epoch(0)))?;
        self.take_kick();
        Ok(())
    }

    /// Takes back a kick that nobody means any more. One that came with a request in the same moment is renewed.
    fn take_kick(&self) {
        kick::clear();
        if self.shared.request() != Request::None {
            kick::kick_self();
        }
    }

    /// Runs the guest until it is released to another host, ends or is stopped. `ticker` kicks this thread.
    fn run(mut self, ticker: &Ticker) {
        self.shared.register_thread(self.index);
        self.run_until_over(ticker);
        self.shared.standstill.leave();
    }

    fn run_until_over(&mut self, ticker: &Ticker) {
        if let Err(error) = ticker.start(self.shared.source().tether().terms().interval()) {
            return self.fault(&error);
        }
        if !self.shared.beat() {
            return self.shared.tell(VmEvent::Displaced);
        }
        loop {
            match self.run_guest() {
                Left::Kicked => match self.shared.request() {
                    Request::None if self.memory.lost().is_none() => {
                        self.take_kick();
                        if !self.shared.beat() {
                            return self.shared.tell(VmEvent::Displaced);
                        }
                    }
                    Request::None => return self.fault(&self.memory_fault()),
                    Request::Stop => return,
                    Request::StandStill => self.stand_still(),
                    Request::Freeze if self.freeze() == Next::Run => {}
                    Request::Freeze => return,
                },
                Left::Ended(why) => return self.shared.tell(VmEvent::Ended { why }),
                Left::Faulted(error) => return self.fault(&error),
                Left::Displaced => return self.shared.tell(VmEvent::Displaced),
            }
        }
    }

    /// Lets the guest rest for so long, or until something is wanted of it. The ticks of the lease do not end its rest.
    fn rest(&self, limit: Duration) -> Option<Left> {
        let end = Instant::now() + limit;
        while kick::rest(end.saturating_duration_since(Instant::now())) {
            if self.shared.request() != Request::None || self.memory.lost().is_some() {
                return None;
            }
            self.take_kick();
            if !self.shared.beat() {
                return Some(Left::Displaced);
            }
        }
        None
    }

    fn fault(&self, error: &Error) {
        self.shared.tell(VmEvent::Faulted { why: error.to_string() });
    }

    /// Why KVM cannot reach the guest's memory.
    fn memory_fault(&self) -> Error {
        match self.memory.find_lost() {
            Some(lost) => Error::MemoryLost(lost),
            None => Error::kvm("KVM_RUN")(kvm_ioctls::Error::new(libc::EFAULT)),
        }
    }

    fn freeze(&mut self) -> Next {
        let source = self.shared.source();
        let ticket = match source.freeze(self.index, &mut self.vcpu, &self.machine) {
            Freeze::Saved(ticket) => ticket,
            Freeze::Failed(ticket, error) => {
                self.shared.note_failure(&error);
                ticket
            }
            Freeze::NoOffer => {
                self.take_kick();
                return Next::Run;
            }
        };
        kick::clear();
        match source.outcome(&ticket) {
            Outcome::TakenBack { .. } => Next::Run,
            Outcome::Released { .. } | Outcome::Displaced => Next::End,
        }
    }

    /// Stands still for a commit. A vCPU that cannot be saved runs on: there is no commit then.
    fn stand_still(&mut self) {
        if let Err(error) = self.shared.standstill.join(self.index, &mut self.vcpu, &self.memory) {
            self.shared.note_failure(&error);
        }
        self.take_kick();
    }

    fn run_guest(&mut self) -> Left {
        loop {
            if !self.shared.may_run() {
                return Left::Displaced;
            }
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(port, data)) => {
                    let action = lock(&self.devices).port_out(port, data);
                    match action {
                        PortAction::Continue => {}
                        PortAction::Exit(code) => return Left::Ended(format!("it wrote {code} to its exit port")),
                        PortAction::Rest(limit) => {
                            if let Some(left) = self.rest(limit) {
                                return left;
                            }
                        }
                    }
                }
                Ok(VcpuExit::IoIn(port, data)) => lock(&self.devices).port_in(port, data),
                // There is no device here. But what KVM emulates and cannot do in memory, because that is protected while it
                // moves, or lost, it takes for a device's, too.
                Ok(VcpuExit::MmioRead(address, data)) => match self.memory.load(address, data) {
                    Ok(()) => {}
                    Err(Unreached::NoMemory) => data.fill(0xFF),
                    Err(Unreached::Lost(lost)) => return Left::Faulted(Error::MemoryLost(lost)),
                },
                Ok(VcpuExit::MmioWrite(address, data)) => match self.memory.store(address, data) {
                    Ok(()) | Err(Unreached::NoMemory) => {}
                    Err(Unreached::Lost(lost)) => return Left::Faulted(Error::MemoryLost(lost)),
                },
                Ok(VcpuExit::Intr) => return Left::Kicked,
                Ok(VcpuExit::Hlt) => return Left::Ended("it halted".into()),
                // A guest whose page tables are gone faults until it cannot fault any more.
                Ok(VcpuExit::Shutdown) => {
                    return match self.memory.find_lost() {
                        Some(lost) => Left::Faulted(Error::MemoryLost(lost)),
                        None => Left::Ended("it shut down (triple fault)".into()),
                    };
                }
                Ok(exit) => return Left::Ended(format!("KVM stopped it: {exit:?}")),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return Left::Kicked,
                // The memory that the guest wants is being moved where only page protection can hold its stores back, or
                // it is not there any more.
                Err(error) if error.errno() == libc::EFAULT => match self.memory.wait_for_barrier() {
                    Waited::Moved => {}
                    Waited::NothingMoves => return Left::Faulted(self.memory_fault()),
                },
                Err(error) => return Left::Faulted(Error::kvm("KVM_RUN")(error)),
            }
        }
    }
}

fn lock(devices: &Mutex<Devices>) -> MutexGuard<'_, Devices> {
    devices.lock().unwrap_or_else(PoisonError::into_inner)
}
