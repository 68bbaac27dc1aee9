//! A move: granule after granule, chunk after chunk, until all of it is there, or it is called off, or waits in vain.
//!
//! ```text
//!            ┌───────────────────────────────── chunk moved, pause ──┐
//!            ▼                                                       │
//!  start ─▶ next granule ──▶ not pinned ─────────────────────────────┘
//!            │   │  └─ pinned: set aside, next
//!            │   └─ none left but pinned ones ─▶ STALL: look again every few ms ──▶ timeout ─▶ Stalled
//!            └─ none left: came any back (decouple only)? ─▶ start; else Done            cancel, anywhere ─▶ Cancelled
//! ```
//!
//! Whatever the end, the memory stays as it is: what has moved has moved, and the placement map says so.

use crate::chunk::{Attempt, Carrier, Contents, Moved};
use crate::controller::{ChunkSample, Controller};
use crate::dram::{PAGE, granule_bytes};
use crate::equipment::{Equipment, Guard, Guest, Needs, bytes_of, pool_of};
use crate::error::{Error, Result};
use crate::lookout::{Look, Lookout};
use crate::loss::GuestLoss;
use crate::memory::GuestMemory;
use crate::numa::NodeCarrier;
use crate::order::{self, Grouping};
use crate::plan::{Direction, MoveControl, MovePlan, Pace};
use crate::report::{MoveOutcome, MoveProgress, MoveReport, Stall, StallReason};
use crate::sides::Side;
use nil_pool::GRANULE;
use rustix::process::Pid;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// How often a stalled move looks whether it can go on.
const STALL_POLL: Duration = Duration::from_millis(2);
/// How often progress is told, and the process is asked for pins that nobody has declared.
const TELL_EVERY: Duration = Duration::from_millis(50);

/// A move of a guest's memory, ready to run.
#[derive(Debug)]
pub struct Move {
    memory: Arc<GuestMemory>,
    plan: MovePlan,
    vcpu_threads: Vec<Pid>,
    granules: Range<usize>,
    largest_chunk: usize,
    guard: Guard,
}

impl Move {
    /// Gets a move ready. What the guest loses is measured on its vCPU threads.
    ///
    /// # Errors
    /// [`Error::BadRange`], [`Error::NoOwner`]; [`Error::Pool`] when the guest's memory has no capacity in the pool to go
    /// to.
    pub fn new(memory: Arc<GuestMemory>, plan: MovePlan, vcpu_threads: Vec<Pid>) -> Result<Self> {
        let granules = granules_of(&plan, memory.len())?;
        if memory.sides().owner.is_none() {
            return Err(Error::NoOwner);
        }
        pool_of(&memory, plan.direction)?;
        let (largest_chunk, guard) = (granule_bytes(), Guard::BestFit);
        Ok(Self { memory, plan, vcpu_threads, granules, largest_chunk, guard })
    }

    /// The same move in chunks of at most this many bytes, if the pool can be mapped in them: a power of two from 4 KiB to
    /// 2 MiB.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn in_chunks_of(self, bytes: usize) -> Self {
        assert!(bytes.is_power_of_two() && (PAGE..=granule_bytes()).contains(&bytes), "{bytes}");
        Self { largest_chunk: bytes, ..self }
    }

    /// The same move with mprotect in place of a userfaultfd.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn by_mprotect(self) -> Self {
        Self { guard: Guard::Protect, ..self }
    }

    /// The same move without anything that keeps stores out of what is being copied. **It loses stores**: by this a test
    /// proves that it would see them lost.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn unprotected(self) -> Self {
        Self { guard: Guard::Nothing, ..self }
    }

    /// Moves. Blocks until it is over; runs on the caller's thread. `progress` is told every 50 ms, and whenever the move
    /// stalls or goes on.
    ///
    /// # Errors
    /// [`Error::Lost`] when memory of the guest has failed; [`Error::PoolFailed`] and [`Error::Populate`] when there is
    /// nowhere to move it to. What has moved stays where it is.
    pub fn run(&self, control: &MoveControl, mut progress: impl FnMut(&MoveProgress)) -> Result<MoveReport> {
        let equipment = Equipment::take(&self.memory, &self.needs())?;
        let mut run = Run::begin(self, control, equipment.carrier())?;
        let outcome = run.until_the_end(&mut progress)?;
        run.tell(&mut progress);
        Ok(run.report(outcome))
    }

    fn needs(&self) -> Needs<'_> {
        let guest = if self.vcpu_threads.is_empty() { Guest::Stands } else { Guest::Runs };
        Needs { plan: &self.plan, granules: &self.granules, guard: self.guard, guest }
    }
}

fn granules_of(plan: &MovePlan, memory: usize) -> Result<Range<usize>> {
    let Some(range) = plan.range else { return Ok(0..memory / granule_bytes()) };
    let bad = Error::BadRange { offset: range.offset, bytes: range.bytes, memory: memory as u64 };
    let whole = range.offset.is_multiple_of(GRANULE) && range.bytes.is_multiple_of(GRANULE) && range.bytes > 0;
    let end = range.offset.checked_add(range.bytes).filter(|end| whole && *end <= memory as u64);
    let index = |bytes: u64| usize::try_from(bytes / GRANULE).ok();
    match (index(range.offset), end.and_then(index)) {
        (Some(start), Some(end)) => Ok(start..end),
        _ => Err(bad),
    }
}

/// A move under way.
struct Run<'a> {
    plan: &'a Move,
    control: &'a MoveControl,
    carrier: Option<&'a Carrier<'a>>,
    /// For what is local already, when the memory is to come to a node.
    nodes: Option<NodeCarrier<'a>>,
    controller: Controller,
    loss: GuestLoss,
    /// Granules that have to move, and can as far as is known.
    queue: VecDeque<usize>,
    /// Those that could not when they were looked at, and why the last of them could not.
    aside: Vec<usize>,
    stall: Option<Stall>,
    /// Since when nothing has moved because of that.
    stalled_since: Option<Instant>,
    lookout: Lookout<'a>,
    begun: Instant,
    told: Instant,
    told_bytes: u64,
    tally: Tally,
}

/// What has been done.
#[derive(Default)]
struct Tally {
    total_bytes: u64,
    copied_bytes: u64,
    zero_bytes: u64,
    untouched_bytes: u64,
    huge_bytes: u64,
    chunks: u64,
    bytes_per_s: u64,
    moving: Duration,
    stalled: Duration,
}

impl Tally {
    fn moved_bytes(&self) -> u64 {
        self.copied_bytes + self.zero_bytes + self.untouched_bytes
    }

    fn add(&mut self, moved: &Moved) {
        let bytes = moved.bytes as u64;
        *match moved.contents {
            Contents::Something => &mut self.copied_bytes,
            Contents::Zero => &mut self.zero_bytes,
            Contents::Untouched => &mut self.untouched_bytes,
        } += bytes;
        self.huge_bytes += if moved.huge { bytes } else { 0 };
        self.chunks += 1;
    }
}

/// What became of one step.
enum Step {
    Moved,
    Stalled(Stall),
    Done,
}

impl<'a> Run<'a> {
    fn begin(plan: &'a Move, control: &'a MoveControl, carrier: Option<&'a Carrier<'a>>) -> Result<Self> {
        let now = Instant::now();
        let node = plan.plan.node.filter(|_| plan.plan.direction == Direction::Recouple);
        let nodes = node.map(|node| NodeCarrier::survey(&plan.memory, node, plan.granules.clone())).transpose()?;
        let smallest_chunk = carrier.map_or(PAGE, Carrier::smallest_chunk);
        let chunks = smallest_chunk as u64..=plan.largest_chunk as u64;
        let mut run = Self {
            plan,
            control,
            carrier,
            nodes,
            controller: Controller::new(&plan.plan.budget, &chunks),
            loss: GuestLoss::watch(&plan.vcpu_threads),
            queue: VecDeque::new(),
            aside: Vec::new(),
            stall: None,
            stalled_since: None,
            lookout: Lookout::begin(&plan.memory),
            begun: now,
            told: now,
            told_bytes: 0,
            tally: Tally::default(),
        };
        if carrier.is_some_and(|carrier| carrier.has_huge_pages(&bytes_of(&plan.granules))) {
            run.controller.begin_large();
        }
        run.fill_queue()?;
        run.tally.total_bytes = run.left();
        Ok(run)
    }

    fn until_the_end(&mut self, progress: &mut impl FnMut(&MoveProgress)) -> Result<MoveOutcome> {
        loop {
            if self.control.is_cancelled() {
                return Ok(MoveOutcome::Cancelled);
            }
            match self.step()? {
                Step::Moved => {
                    if self.stall.take().is_some() {
                        self.tell(progress);
                    }
                    self.pause();
                }
                Step::Stalled(stall) => {
                    let since = *self.stalled_since.get_or_insert_with(Instant::now);
                    if self.stall.replace(stall.clone()).is_none() {
                        self.tell(progress);
                    }
                    if since.elapsed() >= Duration::from_micros(self.plan.plan.stall_timeout_us) {
                        self.tally.stalled += since.elapsed();
                        return Ok(MoveOutcome::Stalled(stall));
                    }
                    sleep(STALL_POLL);
                }
                Step::Done => {
                    self.look_back();
                    return Ok(MoveOutcome::Done);
                }
            }
            if self.told.elapsed() >= TELL_EVERY {
                self.lookout.look(if self.stall.is_some() { Look::Anyway } else { Look::IfChanged });
                self.tell(progress);
            }
        }
    }

    /// Moves one chunk, if any can move.
    fn step(&mut self) -> Result<Step> {
        if let Some(stall) = self.stalled_everywhere() {
            return Ok(Step::Stalled(stall));
        }
        let mut blocked_by = None;
        loop {
            let Some(&granule) = self.queue.front() else {
                if let Some(stall) = blocked_by {
                    return Ok(Step::Stalled(stall));
                }
                if self.aside.is_empty() && !self.came_back()? {
                    return Ok(Step::Done);
                }
                self.queue.extend(self.aside.drain(..));
                continue;
            };
            let begun = Instant::now();
            let limit = usize::try_from(self.controller.chunk_bytes()).unwrap_or(granule_bytes());
            match self.attempt(granule, limit)? {
                Attempt::Nothing => {
                    self.queue.pop_front();
                }
                Attempt::Blocked(stall) => {
                    self.queue.pop_front();
                    self.aside.push(granule);
                    blocked_by = Some(stall);
                }
                Attempt::Moved(moved) => {
                    self.learn(&moved, begun.elapsed());
                    return Ok(Step::Moved);
                }
            }
        }
    }

    /// Moves a chunk of a granule: from the other side, or else from another node.
    fn attempt(&mut self, granule: usize, limit: usize) -> Result<Attempt> {
        if let Some(carrier) = self.carrier {
            if let Some(stall) = self.undeclared_in(carrier, granule) {
                return Ok(Attempt::Blocked(stall));
            }
            match carrier.move_next(granule, limit)? {
                Attempt::Nothing => {}
                Attempt::Moved(moved) => {
                    self.lookout.replaced(&moved.chunk);
                    return Ok(Attempt::Moved(moved));
                }
                blocked => return Ok(blocked),
            }
        }
        self.nodes.as_mut().map_or(Ok(Attempt::Nothing), |nodes| nodes.move_next(granule, limit))
    }

    fn learn(&mut self, moved: &Moved, busy: Duration) {
        if let Some(since) = self.stalled_since.take() {
            self.tally.stalled += since.elapsed();
        }
        self.tally.moving += busy;
        self.tally.add(moved);
        let bytes = if moved.contents == Contents::Something { moved.bytes as u64 } else { 0 };
        let waited = self.loss.lost(busy);
        // The guest loses more than its threads wait: every change of page tables has its vCPUs leave it, and fault their
        // way back. Measured, it gets next to nothing done while chunk follows chunk; so a paced move is charged for all
        // the time that it is at work.
        let lost = if matches!(self.plan.plan.budget.pace, Pace::Fast) { waited } else { waited.max(busy) };
        let (protected, hit) = (moved.protected, moved.hit);
        self.controller.record(&ChunkSample { bytes, protected, hit, lost, now: Instant::now() });
    }

    fn pause(&mut self) {
        while !self.control.is_cancelled() {
            match self.controller.pause(Instant::now(), self.control.bandwidth()) {
                Duration::ZERO => return,
                pause => sleep(pause),
            }
        }
    }

    /// All granules of the range that are not where they are to go, in the order in which they are to go there.
    fn fill_queue(&mut self) -> Result<()> {
        let side = to(self.plan.plan.direction);
        let placement = self.plan.memory.placement();
        let grouping = Grouping::here(self.plan.memory.len() / granule_bytes());
        let mut granules = Vec::new();
        for granule in self.plan.granules.clone() {
            let placed = placement.get(granule)?;
            let on_another_node = self.nodes.as_ref().is_some_and(|nodes| nodes.has_left(granule));
            // Locked for a moment each time: another move may need it while it keeps stores out. As that one may be about to
            // note down where the granule is, whoever moves it is to say in its turn whether the map contradicts that.
            let sides = self.plan.memory.sides();
            let is_left = sides.bytes_not_on(side, granule) > 0 || sides.check(granule, placed.place).is_err();
            drop(sides);
            if on_another_node || is_left {
                granules.push((granule, placed.heat));
            }
        }
        self.queue = order::in_order(self.plan.plan.direction, &granules, grouping).into();
        Ok(())
    }

    /// Whether granules have come back that had been moved: pulled back by another move. A recouple leaves alone what
    /// goes to the pool behind its back, so that two moves do not undo each other's work for ever.
    fn came_back(&mut self) -> Result<bool> {
        if self.plan.plan.direction == Direction::Recouple {
            return Ok(false);
        }
        self.fill_queue()?;
        Ok(!self.queue.is_empty())
    }

    /// Bytes that are not there yet.
    fn left(&self) -> u64 {
        let side = to(self.plan.plan.direction);
        let memory = &self.plan.memory;
        let is_all = self.plan.granules.len() == memory.len() / granule_bytes();
        let on_the_other_side = if is_all {
            memory.sides().left(side)
        } else {
            // Locked for a moment each time, as above.
            self.plan.granules.clone().map(|granule| memory.sides().bytes_not_on(side, granule)).sum()
        };
        on_the_other_side as u64 + self.nodes.as_ref().map_or(0, NodeCarrier::left)
    }

    /// Whether the carrier has to move a part of the granule.
    fn is_left(&self, granule: usize) -> bool {
        self.plan.memory.sides().bytes_not_on(to(self.plan.plan.direction), granule) > 0
    }

    /// What keeps everything from moving: a pin that nobody has declared, and of which the kernel does not tell where it
    /// is.
    fn stalled_everywhere(&self) -> Option<Stall> {
        let (carrier, pin) = (self.carrier?, self.lookout.pin_anywhere()?);
        let &granule = self.queue.iter().chain(&self.aside).find(|granule| self.is_left(**granule))?;
        let anywhere = granule as u64 * GRANULE..(granule as u64 + 1) * GRANULE;
        Some(carrier.stall(anywhere, granule, StallReason::Undeclared(pin.clone())))
    }

    /// What keeps the granule from moving, although nobody has declared it.
    fn undeclared_in(&self, carrier: &Carrier<'_>, granule: usize) -> Option<Stall> {
        let (place, pin) = self.lookout.pin_in(granule)?;
        self.is_left(granule).then(|| carrier.stall(place, granule, StallReason::Undeclared(pin.clone())))
    }

    /// Whether anything has been pinned while memory moved, without that anybody said so, is known only now.
    fn look_back(&mut self) {
        self.lookout.look(Look::Anyway);
        if let Some(pin) = self.lookout.pin_anywhere() {
            tracing::warn!(
                "{pin}, since the guest's memory began to move: what it writes there may not reach the guest"
            );
        }
        let unlocked = self.lookout.unlocked_bytes();
        if unlocked > 0 {
            tracing::warn!(
                "{} KiB of the guest's memory that mlock had locked have moved, and are not locked now",
                unlocked >> 10
            );
        }
    }

    fn tell(&mut self, progress: &mut impl FnMut(&MoveProgress)) {
        let (moved, since) = (self.tally.moved_bytes(), self.told.elapsed());
        if since >= TELL_EVERY {
            self.tally.bytes_per_s = per_second(moved - self.told_bytes, since);
            (self.told, self.told_bytes) = (Instant::now(), moved);
        }
        progress(&MoveProgress {
            direction: self.plan.plan.direction,
            done_bytes: self.tally.total_bytes.saturating_sub(self.left()),
            total_bytes: self.tally.total_bytes,
            bytes_per_s: self.tally.bytes_per_s,
            stall: self.stall.clone(),
        });
    }

    fn report(self, outcome: MoveOutcome) -> MoveReport {
        let (elapsed, figures, tally) = (self.begun.elapsed(), self.controller.figures(), self.tally);
        MoveReport {
            direction: self.plan.plan.direction,
            outcome,
            total_bytes: tally.total_bytes,
            copied_bytes: tally.copied_bytes,
            zero_bytes: tally.zero_bytes,
            untouched_bytes: tally.untouched_bytes,
            huge_bytes: tally.huge_bytes,
            chunks: tally.chunks,
            elapsed_us: microseconds(elapsed),
            moving_us: microseconds(tally.moving),
            stalled_us: microseconds(tally.stalled),
            bytes_per_s: per_second(tally.moved_bytes(), elapsed.saturating_sub(tally.stalled)),
            stall_us: figures.stall_us,
            slowdown_pct: figures.slowdown_pct,
            chunk_bytes: figures.chunk_bytes,
            undeclared: self.lookout.seen().to_vec(),
        }
    }
}

fn to(direction: Direction) -> Side {
    match direction {
        Direction::Decouple => Side::Pool,
        Direction::Recouple => Side::Dram,
    }
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn per_second(bytes: u64, duration: Duration) -> u64 {
    let nanoseconds = duration.as_nanos().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000_000 / nanoseconds).unwrap_or(u64::MAX)
}
