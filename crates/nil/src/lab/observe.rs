//! Watching a guest from outside, through its own record of what happened to it.
//!
//! The lab reads the guest's control block while it runs (see [`super::view`]): nobody stops the guest to ask, and no host's
//! opinion is in the figures. What is read is hostile (the guest writes it), so it is copied, checked and then used.
//!
//! The guest's TSC may count from another origin than the host's. Its offset is estimated from the live reading that the
//! guest keeps: every reading is a little old when it is seen, never young, so the youngest of many is the best.

use super::canary::Span;
use super::figures::Microseconds;
use super::frequency::Frequency;
use super::gaps::{self, Clock, Unknown};
use super::interrupt;
use super::verdict::Verdict;
use super::view::{Look, View};
use anyhow::{bail, ensure};
use nil_guest_abi::blackout::{Blackout, Standstill};
use nil_guest_abi::{Command, CommandWord, ControlBlock, GuestState};
use nil_migrate::tsc;
use nil_pool::{GuestControl, Stamp};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The window after a landing in which the guest's losses are counted.
pub(crate) const FIRST: Duration = Duration::from_millis(1);
/// How much further than the window the guest's clock must be before its gap records are complete.
const SETTLED: Duration = Duration::from_micros(50);
/// How long a guest may take to say that it runs after it has landed.
const LANDING_PATIENCE: Duration = Duration::from_secs(5);
/// How long its clock may take to be seen going on. On a busy machine guest and observer may share a core for seconds, and
/// then each sees the other only standing still.
const CLOCK_PATIENCE: Duration = Duration::from_secs(30);
/// How long the guest's clock is compared with the host's at a stretch.
const COMPARISON: Duration = Duration::from_micros(300);
/// How many readings of it make a comparison.
const FRESH_READINGS: u32 = 500;
/// A vCPU that has made so many turns of its loop runs.
const SOME_TURNS: u64 = 100;
/// What any guest must manage: filling or verifying this many bytes per second.
const SLOWEST: u64 = 64 << 20;

/// A view on a running guest.
#[derive(Debug)]
pub(crate) struct Observer {
    view: View,
    /// How much the guest has to fill and to verify, as far as that is known.
    memory_bytes: u64,
    frequency: Frequency,
    /// Guest TSC minus host TSC, per vCPU; known once the guest runs.
    offsets: Vec<i64>,
}

/// How many gaps each vCPU had recorded at some instant.
#[derive(Clone, Debug)]
pub(crate) struct Marks(Vec<u64>);

/// What the guest saw of one handoff.
#[derive(Clone, Debug)]
pub(crate) struct Observation {
    /// The longest blackout of its vCPUs.
    pub(crate) blackout_ns: u64,
    /// From the claim until that vCPU first looked at its clock again.
    pub(crate) enter_ns: u64,
    /// When that was, in host TSC ticks.
    pub(crate) span: Span,
    /// How much of the first millisecond after landing its vCPUs lost, on average.
    pub(crate) lost_first_ms_ns: u64,
}

impl Observer {
    /// Watches a guest in a pool.
    pub(crate) fn attach(guest: &GuestControl, frequency: Frequency) -> anyhow::Result<Self> {
        let view = View::of_pool(guest)?;
        let bytes = view.mapping().map_or(0, |range| range.len());
        Ok(Self::through(view, u64::try_from(bytes)?, frequency))
    }

    /// Watches a guest whose memory is a file.
    pub(crate) fn attach_file(path: &Path, frequency: Frequency) -> anyhow::Result<Self> {
        Ok(Self::through(View::of_file(path)?, 0, frequency))
    }

    /// Watches a guest of that much memory through that view.
    pub(crate) fn through(view: View, memory_bytes: u64, frequency: Frequency) -> Self {
        Self { view, memory_bytes, frequency, offsets: Vec::new() }
    }

    /// Goes on watching the same guest through another view: it has moved.
    pub(crate) fn look_through(&mut self, view: View) {
        self.view = view;
    }

    /// The guest's control block, live or as it is now.
    pub(crate) fn block(&self) -> anyhow::Result<Look<'_, ControlBlock>> {
        self.view.block()
    }

    /// The mapping of the guest's memory, as an address range of this process, if it is mapped here.
    pub(crate) fn mapping(&self) -> Option<std::ops::Range<usize>> {
        self.view.mapping()
    }

    /// Waits until the guest has filled its memory and runs, and learns its clocks.
    pub(crate) fn await_running(&mut self) -> anyhow::Result<()> {
        interrupt::wait_for("the guest has not filled its memory", self.patience(), || {
            match self.block()?.guest_state() {
                Some(GuestState::Running) => Ok(Some(())),
                Some(GuestState::Refused) => bail!("the guest refuses its command line"),
                Some(GuestState::Panicked) => bail!("the guest found a bug in itself while it booted"),
                Some(GuestState::Booting | GuestState::Filling | GuestState::Stopped) | None => Ok(None),
            }
        })?;
        self.learn_clocks()
    }

    /// Waits until every vCPU is seen running, and learns its clock.
    pub(crate) fn learn_clocks(&mut self) -> anyhow::Result<()> {
        let vcpus = self.view.vcpus()?;
        let turns = || (0..vcpus).map(|index| self.view.turns(index)).collect::<anyhow::Result<Vec<_>>>();
        let before = turns()?;
        interrupt::wait_for("the guest does not run", LANDING_PATIENCE, || {
            let all_run = turns()?.iter().zip(&before).all(|(now, before)| now.wrapping_sub(*before) > SOME_TURNS);
            Ok(all_run.then_some(()))
        })?;
        self.offsets = (0..vcpus).map(|index| self.clock_offset(index)).collect::<anyhow::Result<_>>()?;
        ensure!(!self.offsets.is_empty(), "the guest says that it has no vCPU");
        Ok(())
    }

    /// The TSC of the guest's first vCPU minus that of the host, as it was last learnt.
    pub(crate) fn clock_offset_of_first(&self) -> i64 {
        self.offsets.first().copied().unwrap_or(0)
    }

    /// How fast the clocks count.
    pub(crate) fn frequency(&self) -> Frequency {
        self.frequency
    }

    /// The clocks of the guest's vCPUs, as they were last learnt.
    pub(crate) fn clocks(&self) -> Vec<Clock> {
        self.offsets.iter().copied().map(Clock).collect()
    }

    /// How many gaps there are now.
    pub(crate) fn marks(&self) -> anyhow::Result<Marks> {
        Ok(Marks(self.block()?.vcpus().map(|vcpu| vcpu.gaps.load(Ordering::Acquire)).collect()))
    }

    /// The stamps of the handoff that has just ended, in host TSC ticks.
    pub(crate) fn standstill(guest: &GuestControl) -> anyhow::Result<Standstill> {
        let stamp = |stamp| Some(guest.timeline().get(stamp)).filter(|&tsc| tsc != 0);
        match (stamp(Stamp::Published), stamp(Stamp::Claimed)) {
            (Some(stopped), Some(resumed)) => Ok(Standstill { stopped, resumed }),
            _ => bail!("the workers left no time stamps of the handoff in the pool"),
        }
    }

    /// Waits until the guest has run for a millisecond after the handoff, and reads what it recorded of it. An
    /// [`gaps::Unknown::Overwritten`] among the errors means that this handoff was not observed, nothing worse.
    pub(crate) fn await_landing(&self, marks: &Marks, standstill: Standstill) -> anyhow::Result<Observation> {
        let mut worst =
            Observation { blackout_ns: 0, enter_ns: 0, span: Span { begin: 0, end: 0 }, lost_first_ms_ns: 0 };
        let mut lost = 0;
        let window = self.frequency.ticks(FIRST);
        for index in 0..self.view.vcpus()? {
            let (Some(&mark), Some(&offset)) = (marks.0.get(index), self.offsets.get(index)) else {
                bail!("the guest's number of vCPUs has changed");
            };
            let blackout = self.await_blackout(index, mark, standstill, offset)?;
            let Blackout { gap, begin, end } = blackout;
            let vcpu = self.view.vcpu(index)?;
            lost += self.frequency.nanoseconds(gaps::lost_after(vcpu.gaps(gap.index + 1), gap.after, window));
            let blackout_ns = self.frequency.nanoseconds(blackout.ticks());
            if blackout_ns >= worst.blackout_ns {
                worst.blackout_ns = blackout_ns;
                worst.enter_ns = self.frequency.nanoseconds(end.saturating_sub(standstill.resumed));
                worst.span = Span { begin, end };
            }
        }
        worst.lost_first_ms_ns = lost / u64::try_from(self.offsets.len())?;
        Ok(worst)
    }

    /// Waits for the blackout of one vCPU to be recorded, and for the window after it to pass.
    ///
    /// A vCPU says how late it is *before* it records the gap, and it may lose its core in between: so a record that is
    /// missing is given up only when the vCPU has made some turns more.
    fn await_blackout(&self, index: usize, mark: u64, standstill: Standstill, offset: i64) -> anyhow::Result<Blackout> {
        let settled = self.frequency.ticks(FIRST + SETTLED);
        let resumed = standstill.resumed.wrapping_add_signed(offset);
        let mut found: Result<Blackout, Unknown> = Err(Unknown::Unrecorded);
        let mut turns_when_due = None;
        interrupt::wait_for("the guest has not run for a millisecond after it landed", LANDING_PATIENCE, || {
            let vcpu = self.view.vcpu(index)?;
            let turns = vcpu.counter.load(Ordering::Acquire);
            let last = vcpu.last_tsc.load(Ordering::Acquire);
            if found.is_err() && last > resumed {
                found = gaps::blackout(vcpu.gaps(mark).collect::<Vec<_>>().into_iter(), mark, standstill, offset);
            }
            let awaited = found.map_or(resumed, |blackout| blackout.gap.after).saturating_add(settled);
            if last <= awaited {
                return Ok(None);
            }
            let due = *turns_when_due.get_or_insert(turns);
            Ok((found.is_ok() || turns.wrapping_sub(due) > SOME_TURNS).then_some(()))
        })?;
        Ok(found?)
    }

    /// Gives the guest a command; the word that it is to acknowledge.
    pub(crate) fn give(&self, command: Command) -> anyhow::Result<CommandWord> {
        self.view.give(command)
    }

    /// Has the guest verify everything it owns, and waits for its verdict.
    pub(crate) fn verify_all(&self) -> anyhow::Result<Verdict> {
        let word = self.give(Command::VerifyAll)?;
        interrupt::wait_for("the guest has not verified its memory", self.patience(), || {
            let block = self.block()?;
            Ok((block.all_acknowledged(word) || block.guest_state() == Some(GuestState::Panicked)).then_some(()))
        })?;
        self.verdict()
    }

    /// What it has found so far.
    pub(crate) fn verdict(&self) -> anyhow::Result<Verdict> {
        Ok(Verdict::of(&*self.block()?))
    }

    /// Guest TSC minus host TSC: the largest difference of many fresh readings.
    fn clock_offset(&self, index: usize) -> anyhow::Result<i64> {
        let (mut youngest, mut last, mut fresh) = (i64::MIN, 0, 0);
        interrupt::wait_for("the guest's clock does not go on", CLOCK_PATIENCE, || {
            let end = tsc::now().saturating_add(self.frequency.ticks(COMPARISON));
            loop {
                let guest = self.view.last_tsc(index)?;
                let host = tsc::now();
                youngest = youngest.max(guest.wrapping_sub(host).cast_signed());
                fresh += u32::from(guest != last);
                last = guest;
                if host > end {
                    return Ok((fresh > FRESH_READINGS).then_some(()));
                }
            }
        })?;
        Ok(youngest)
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(20 + self.memory_bytes / SLOWEST)
    }
}

impl Observation {
    /// The blackout, for a person.
    pub(crate) fn blackout(&self) -> Microseconds {
        Microseconds::from_nanoseconds(self.blackout_ns)
    }
}
