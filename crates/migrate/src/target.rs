//! The target's half of a handoff, and of thawing a frozen guest at home.
//!
//! ```text
//!   coordinator                              vCPU threads, each with its `Seat`
//!   begin ── Arming                          preload: the state of the last landing
//!   arm   ── Armed                           land: wait ─ Offered ─▶ watch closely; the leader writes Poised
//!                                                       ─ Frozen ──▶ load own part
//!                                                       ─ barrier; the last: machine part, commit
//!                                            Landed: run the guest     TornDown: end
//! ```
//!
//! Invariants: nothing is committed before every part is loaded; a part that could not be loaded makes the whole landing
//! fail; whoever finds the guest gone arrives at the barrier all the same, so no thread waits there for ever.

mod wait;

pub use wait::WaitStyle;
use wait::Waiting;

use crate::countdown::Countdown;
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::part::Part;
use crate::protocol::{ArmEvent, Arrival, Handoff, Role, Tally, arm_step};
use crate::tsc;
use nil_pool::sync::{AtomicU32, Ordering};
use nil_pool::{Area, DecodeError, Epoch, GuestControl, HostSlot, Ownership, Side, Stamp, StateArea, Tether, decode};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a thread at the barrier stays runnable, yielding its CPU to whoever is late, before it sleeps. A thread that
/// sleeps here is woken onto a CPU where a sibling may have entered the guest already, and then waits for it for
/// milliseconds.
const BARRIER_SPIN: Duration = Duration::from_micros(500);

/// How a landing ended for one vCPU thread.
#[derive(Debug)]
#[must_use]
pub enum Landing<E> {
    /// This worker owns the guest and the part holds its state: run it.
    Landed {
        /// The epoch of this worker's ownership.
        epoch: Epoch,
    },
    /// This worker does not get the guest. Never run it.
    TornDown(TornDown<E>),
}

/// Why a worker does not get the guest.
#[derive(Debug, thiserror::Error)]
pub enum TornDown<E> {
    /// The source kept the guest, or somebody else has it.
    #[error("the guest went on elsewhere")]
    Superseded,
    /// This thread's part (or the machine, for the last thread) could not be loaded.
    #[error(transparent)]
    Refused(Refusal<E>),
    /// Another thread of this worker could not load its part.
    #[error("another part of the guest could not be loaded")]
    OtherRefused,
    /// [`Target::abort`] was called.
    #[error("the landing was aborted")]
    Aborted,
}

/// Why a part could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Refusal<E> {
    /// Its area cannot be read.
    #[error("cannot read the guest's state")]
    Unreadable(nil_pool::Error),
    /// Its area does not hold whole state of the right epoch.
    #[error("the guest's state is not usable")]
    Damaged(DecodeError),
    /// The part does not take the state.
    #[error(transparent)]
    Part(E),
}

/// Whether a part was loaded ahead of time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Preload {
    /// It holds the state with which the guest last landed.
    Done,
    /// There is no whole earlier state. The landing loads everything, which takes longer.
    Skipped,
}

/// A worker's preparations for one guest at one epoch. Shared by its vCPU threads and its coordinator.
#[derive(Debug)]
pub struct Target {
    control: GuestControl,
    state: Arc<StateArea>,
    role: Role,
    tether: Tether,
    handoff: Handoff,
    vcpus: u16,
    waiting: Waiting,
    /// vCPU threads that have begun to wait.
    present: AtomicU32,
    /// What the leader saw, for the threads that it watches for ([`wait::Sight`]).
    sight: AtomicU32,
    aborted: AtomicU32,
    countdown: Countdown,
    /// How the landing ended ([`End`]).
    end: AtomicU32,
    gate: Gate,
    /// Room for a private copy of the machine's area.
    machine_copy: Mutex<Vec<u8>>,
}

impl Target {
    /// Preparations of `me` to take the guest from whoever owns it now. Changes nothing yet.
    ///
    /// # Errors
    /// [`Error::NotToBeHad`] when no other host owns the guest, or it is on its way to a third one.
    pub fn new(
        control: GuestControl,
        state: Arc<StateArea>,
        me: HostSlot,
        vcpus: usize,
        style: WaitStyle,
    ) -> Result<Arc<Self>> {
        let found = control.ownership().load()?;
        let handoff = match found {
            Ownership::Owned { host, epoch } if host != me => Handoff::new(host, me, epoch)?,
            Ownership::Offered { source, target, epoch } | Ownership::Frozen { source, target, epoch }
                if target == me =>
            {
                Handoff::new(source, me, epoch)?
            }
            Ownership::Vacant
            | Ownership::Owned { .. }
            | Ownership::Offered { .. }
            | Ownership::Frozen { .. }
            | Ownership::Lost { .. }
            | Ownership::Taken { .. } => return Err(Error::NotToBeHad { me, found }),
        };
        Self::in_role(control, state, Role::Target, handoff, vcpus, style)
    }

    /// Preparations of `me` to take back a guest that an earlier worker of `me` froze before it died.
    ///
    /// # Errors
    /// [`Error::NotToBeHad`] when the guest is not frozen by `me`.
    pub fn home(control: GuestControl, state: Arc<StateArea>, me: HostSlot, vcpus: usize) -> Result<Arc<Self>> {
        let found = control.ownership().load()?;
        match found {
            Ownership::Frozen { source, target, epoch } if source == me => {
                let handoff = Handoff::frozen_for(me, target, epoch)?;
                Self::in_role(control, state, Role::Home, handoff, vcpus, WaitStyle::Doorbell)
            }
            Ownership::Vacant
            | Ownership::Owned { .. }
            | Ownership::Offered { .. }
            | Ownership::Frozen { .. }
            | Ownership::Lost { .. }
            | Ownership::Taken { .. } => Err(Error::NotToBeHad { me, found }),
        }
    }

    fn in_role(
        control: GuestControl,
        state: Arc<StateArea>,
        role: Role,
        handoff: Handoff,
        vcpus: usize,
        style: WaitStyle,
    ) -> Result<Arc<Self>> {
        let counted = u16::try_from(vcpus).ok().filter(|&n| n > 0).ok_or(Error::VcpuCount(vcpus))?;
        let machine_copy = Mutex::new(Vec::with_capacity(state.machine(handoff.epoch().slot()).len()));
        let tether = Tether::new(control.pool(), role.host(&handoff))?;
        Ok(Arc::new(Self {
            control,
            state,
            role,
            tether,
            handoff,
            vcpus: counted,
            waiting: style.on_this_machine(vcpus),
            present: AtomicU32::new(0),
            sight: AtomicU32::new(wait::Sight::NONE),
            aborted: AtomicU32::new(0),
            countdown: Countdown::new(Tally::open(handoff.epoch(), counted)),
            end: AtomicU32::new(End::NONE),
            gate: Gate::new(),
            machine_copy,
        }))
    }

    /// The handoff that is prepared for.
    #[must_use]
    pub fn handoff(&self) -> Handoff {
        self.handoff
    }

    /// The place of vCPU `index`'s thread, with its buffers.
    #[must_use]
    pub fn seat(self: &Arc<Self>, index: usize) -> Seat {
        let area = self.state.vcpu(self.handoff.epoch().slot(), index);
        Seat { target: Arc::clone(self), index, copy: Vec::with_capacity(area.len()) }
    }

    /// Announces that this worker is being built (`Arming`).
    ///
    /// # Errors
    /// [`Error::IllegalArm`] when another target holds the arm word.
    pub fn begin(&self) -> Result<()> {
        self.advance_arm(ArmEvent::Begin)
    }

    /// Announces that this worker is built, preloaded, and its vCPU threads land (`Armed`).
    ///
    /// # Errors
    /// [`Error::IllegalArm`] when [`Target::begin`] did not come before, or the owner has cleared the word since.
    pub fn arm(&self) -> Result<()> {
        self.advance_arm(ArmEvent::Ready)?;
        self.control.timeline().set(Stamp::Armed, tsc::now());
        self.control.bell(Side::Source).ring();
        Ok(())
    }

    /// Announces that this worker will not claim, so that the source takes the guest back at once. An arm word that is
    /// not this worker's any more is left alone.
    pub fn refuse(&self) {
        if self.advance_arm(ArmEvent::Refuse).is_ok() {
            self.control.bell(Side::Source).ring();
        }
    }

    /// Makes every thread that lands give up, unless the guest has been committed already.
    pub fn abort(&self) {
        self.aborted.store(1, Ordering::Release);
        self.refuse();
        self.control.bell(Side::Target).ring();
    }

    /// The epoch of this worker's ownership, once the guest has landed.
    #[must_use]
    pub fn landed(&self) -> Option<Epoch> {
        (End::decode(self.end.load(Ordering::Acquire)) == Some(End::Landed)).then(|| self.handoff.next_epoch())
    }

    /// Loads the machine's state of the last landing ahead of time.
    ///
    /// # Errors
    /// What the machine says when it does not take that state.
    pub fn preload_machine<M: Part>(&self, machine: &mut M) -> Result<Preload, M::Error> {
        let mut copy = self.machine_copy.lock().unwrap_or_else(PoisonError::into_inner);
        self.preload(|slot| self.state.machine(slot), &mut copy, machine)
    }

    fn preload<P: Part>(
        &self,
        area: impl Fn(usize) -> Area,
        copy: &mut Vec<u8>,
        part: &mut P,
    ) -> Result<Preload, P::Error> {
        let Some(earlier) = self.handoff.epoch().0.checked_sub(1).map(Epoch) else { return Ok(Preload::Skipped) };
        match load(part, &area(earlier.slot()), copy, earlier) {
            Ok(()) => Ok(Preload::Done),
            Err(Refusal::Unreadable(_) | Refusal::Damaged(_)) => Ok(Preload::Skipped),
            Err(Refusal::Part(error)) => Err(error),
        }
    }

    /// The last thread's work: the machine, then the commit. By now every vCPU's part is loaded.
    fn commit<M: Part>(&self, machine: &Mutex<M>) -> Result<End, Refusal<M::Error>> {
        let mut machine = machine.lock().unwrap_or_else(PoisonError::into_inner);
        let mut copy = self.machine_copy.lock().unwrap_or_else(PoisonError::into_inner);
        let round = self.handoff.epoch();
        // Before the machine looks at it: its devices have rings there.
        let is_here = self.control.take_memory_over().is_ok();
        load(&mut *machine, &self.state.machine(round.slot()), &mut copy, round)?;
        self.control.timeline().set(Stamp::Loaded, tsc::now());
        // Whoever has been fenced could run it no longer than to its next look.
        let frozen = self.handoff.frozen();
        let committed = self.role.committed(&self.handoff);
        if is_here && self.tether.holds() && self.control.ownership().transition(frozen, committed) {
            self.control.timeline().set(Stamp::Claimed, tsc::now());
            Ok(End::Landed)
        } else {
            Ok(End::Superseded)
        }
    }

    fn finish(&self, end: End) {
        self.end.store(end.encode(), Ordering::Release);
        self.gate.open();
    }

    fn advance_arm(&self, event: ArmEvent) -> Result<()> {
        let word = self.control.arm();
        if self.role == Role::Home {
            return Ok(());
        }
        loop {
            let seen = word.load()?;
            let next = arm_step(seen, self.handoff.target(), self.handoff.epoch(), event)?;
            if word.transition(seen, next) {
                return Ok(());
            }
        }
    }
}

/// One vCPU thread's place in a landing.
#[derive(Debug)]
pub struct Seat {
    target: Arc<Target>,
    index: usize,
    /// Room for a private copy of the vCPU's area.
    copy: Vec<u8>,
}

impl Seat {
    /// Loads the state of the last landing ahead of time, so that the landing loads only what differs.
    ///
    /// # Errors
    /// What the part says when it does not take that state: it would not take the frozen one either.
    pub fn preload<P: Part>(&mut self, part: &mut P) -> Result<Preload, P::Error> {
        let Self { target, index, copy } = self;
        target.preload(|slot| target.state.vcpu(slot, *index), copy, part)
    }

    /// Waits for the guest, loads this vCPU's part, and returns when the guest has been committed as a whole or is not
    /// to be had. The thread that comes last also loads the machine, which it alone locks.
    pub fn land<P, M>(&mut self, part: &mut P, machine: &Mutex<M>) -> Landing<P::Error>
    where
        P: Part,
        M: Part<Error = P::Error>,
    {
        let target = Arc::clone(&self.target);
        let loaded = match target.watch(self.index) {
            Ok(()) => self.load(part).map_err(TornDown::Refused),
            Err(End::Aborted) => Err(TornDown::Aborted),
            Err(End::Landed | End::Superseded | End::Refused) => Err(TornDown::Superseded),
        };
        match loaded {
            Ok(()) => target.arrive_loaded(machine, self.index),
            Err(why) => {
                target.arrive_without(&why);
                Landing::TornDown(why)
            }
        }
    }

    fn load<P: Part>(&mut self, part: &mut P) -> Result<(), Refusal<P::Error>> {
        let round = self.target.handoff.epoch();
        load(part, &self.target.state.vcpu(round.slot(), self.index), &mut self.copy, round)
    }
}

impl Target {
    fn arrive_loaded<M: Part>(&self, machine: &Mutex<M>, index: usize) -> Landing<M::Error> {
        let end = match self.countdown.arrive(self.handoff.epoch(), true) {
            Arrival::LastOfAll => match self.commit(machine) {
                Ok(end) => {
                    self.finish(end);
                    end
                }
                Err(refusal) => {
                    self.refuse();
                    self.finish(End::Refused);
                    return Landing::TornDown(TornDown::Refused(refusal));
                }
            },
            Arrival::LastWithFailure => {
                self.finish(End::Refused);
                End::Refused
            }
            Arrival::Early => self.await_end(),
            // A seat lands once; a second time finds its landing over.
            Arrival::TooLate => End::Superseded,
        };
        match end {
            End::Landed => {
                if index == 0 {
                    self.control.timeline().set(Stamp::Entered, tsc::now());
                }
                Landing::Landed { epoch: self.handoff.next_epoch() }
            }
            End::Superseded => Landing::TornDown(TornDown::Superseded),
            End::Refused => Landing::TornDown(TornDown::OtherRefused),
            End::Aborted => Landing::TornDown(TornDown::Aborted),
        }
    }

    /// Counts in a thread that has nothing to run, so that the others do not wait for it.
    fn arrive_without<E>(&self, why: &TornDown<E>) {
        if matches!(why, TornDown::Refused(_)) {
            self.refuse();
        }
        match self.countdown.arrive(self.handoff.epoch(), false) {
            Arrival::LastWithFailure => self.finish(match why {
                TornDown::Superseded => End::Superseded,
                TornDown::Refused(_) | TornDown::OtherRefused => End::Refused,
                TornDown::Aborted => End::Aborted,
            }),
            Arrival::Early | Arrival::LastOfAll | Arrival::TooLate => {}
        }
    }

    fn await_end(&self) -> End {
        let end = || End::decode(self.end.load(Ordering::Acquire));
        self.gate.wait_spinning(BARRIER_SPIN, end)
    }
}

/// Copies an area, decodes the copy, and loads a part from it.
fn load<P: Part>(part: &mut P, area: &Area, copy: &mut Vec<u8>, epoch: Epoch) -> Result<(), Refusal<P::Error>> {
    area.read_into(copy).map_err(Refusal::Unreadable)?;
    let sections = decode(copy, epoch).map_err(Refusal::Damaged)?;
    part.load(&sections).map_err(Refusal::Part)
}

/// How a landing ended for the worker as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Landed,
    Superseded,
    Refused,
    Aborted,
}

impl End {
    /// The landing is not over.
    const NONE: u32 = 0;

    fn encode(self) -> u32 {
        match self {
            Self::Landed => 1,
            Self::Superseded => 2,
            Self::Refused => 3,
            Self::Aborted => 4,
        }
    }

    fn decode(word: u32) -> Option<Self> {
        [Self::Landed, Self::Superseded, Self::Refused, Self::Aborted].into_iter().find(|end| end.encode() == word)
    }
}
