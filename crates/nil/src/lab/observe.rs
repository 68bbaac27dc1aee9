//! Watching a guest from outside, through its own record of what happened to it.
//!
//! The lab maps the guest's memory from the pool and reads its control block while it runs: nobody stops the guest to ask,
//! and no host's opinion is in the figures. What is read is hostile (the guest writes it), so it is copied, checked and
//! then used.
//!
//! The guest's TSC may count from another origin than the host's. Its offset is estimated from the live reading that the
//! guest keeps: every reading is a little old when it is seen, never young, so the youngest of many is the best.

use super::canary::Span;
use super::figures::Microseconds;
use super::frequency::Frequency;
use super::gaps::{self, Standstill};
use super::interrupt;
use super::verdict::Verdict;
use anyhow::{Context, bail, ensure};
use nil_guest_abi::layout::CONTROL_OFFSET;
use nil_guest_abi::{Command, ControlBlock, Gap, GuestState, VcpuBlock};
use nil_migrate::tsc;
use nil_pool::{CapacityMapping, GuestControl, Stamp};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The window after a landing in which the guest's losses are counted.
pub(crate) const FIRST: Duration = Duration::from_millis(1);
/// How much further than the window the guest's clock must be before its gap records are complete.
const SETTLED: Duration = Duration::from_micros(50);
/// How long a guest may take to say that it runs after it has landed.
const LANDING_PATIENCE: Duration = Duration::from_secs(5);
/// How long the guest's clock is compared with the host's.
const COMPARISON: Duration = Duration::from_millis(2);
/// What any guest must manage: filling or verifying this many bytes per second.
const SLOWEST: u64 = 64 << 20;

/// A view on a running guest.
#[derive(Debug)]
pub(crate) struct Observer {
    memory: CapacityMapping,
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
    /// When that was, in host TSC ticks.
    pub(crate) span: Span,
    /// How much of the first millisecond after landing its vCPUs lost, on average.
    pub(crate) lost_first_ms_ns: u64,
}

/// A vCPU's ring did not keep the blackout until it was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("vCPU {vcpu} recorded so many gaps that the one of this handoff was overwritten before it could be read")]
pub(crate) struct Overwritten {
    pub(crate) vcpu: usize,
}

impl Observer {
    /// Maps the guest's memory.
    pub(crate) fn attach(guest: &GuestControl, frequency: Frequency) -> anyhow::Result<Self> {
        let memory = guest.map_memory().context("cannot map the guest's memory to watch it")?;
        let needed = CONTROL_OFFSET + size_of::<ControlBlock>();
        ensure!(
            memory.len() >= needed,
            "the guest's memory is too small for its control block: {} bytes",
            memory.len()
        );
        Ok(Self { memory, frequency, offsets: Vec::new() })
    }

    /// The guest's control block.
    #[allow(unsafe_code)]
    pub(crate) fn block(&self) -> &ControlBlock {
        // SAFETY: `attach` has checked that the mapping is long enough for the block; `CapacityMapping` is page aligned,
        // writable in a pool that is open for writing, and stays mapped as long as `self`. Nobody in this process touches
        // these bytes other than through the block's atomics.
        unsafe { ControlBlock::in_memory(self.memory.as_ptr()) }
    }

    /// The mapping of the guest's memory, as an address range of this process.
    pub(crate) fn mapping(&self) -> std::ops::Range<usize> {
        let start = self.memory.as_ptr().addr();
        start..start + self.memory.len()
    }

    /// Waits until the guest has filled its memory and runs, and learns its clock.
    pub(crate) fn await_running(&mut self) -> anyhow::Result<()> {
        let patience = self.patience();
        interrupt::wait_for("the guest has not filled its memory", patience, || match self.block().guest_state() {
            Some(GuestState::Running) => Ok(Some(())),
            Some(GuestState::Refused) => bail!("the guest refuses its command line"),
            Some(GuestState::Panicked) => bail!("the guest found a bug in itself while it booted"),
            Some(GuestState::Booting | GuestState::Filling | GuestState::Stopped) | None => Ok(None),
        })?;
        self.offsets = self.block().vcpus().map(|vcpu| self.clock_offset(vcpu)).collect();
        ensure!(!self.offsets.is_empty(), "the guest says that it has no vCPU");
        Ok(())
    }

    /// How many gaps there are now.
    pub(crate) fn marks(&self) -> Marks {
        Marks(self.block().vcpus().map(|vcpu| vcpu.gaps.load(Ordering::Acquire)).collect())
    }

    /// The stamps of the handoff that has just ended, in host TSC ticks.
    pub(crate) fn standstill(guest: &GuestControl) -> anyhow::Result<Standstill> {
        let stamp = |stamp| Some(guest.timeline().get(stamp)).filter(|&tsc| tsc != 0);
        match (stamp(Stamp::Published), stamp(Stamp::Claimed)) {
            (Some(published), Some(claimed)) => Ok(Standstill { published, claimed }),
            _ => bail!("the workers left no time stamps of the handoff in the pool"),
        }
    }

    /// Waits until the guest has run for a millisecond after the handoff, and reads what it recorded of it.
    pub(crate) fn await_landing(&self, marks: &Marks, standstill: Standstill) -> anyhow::Result<Observation> {
        let mut worst = Observation { blackout_ns: 0, span: Span { begin: 0, end: 0 }, lost_first_ms_ns: 0 };
        let mut lost = 0;
        let window = self.frequency.ticks(FIRST);
        for (index, vcpu) in self.block().vcpus().enumerate() {
            let (offset, mark) = match (self.offsets.get(index), marks.0.get(index)) {
                (Some(&offset), Some(&mark)) => (offset, mark),
                _ => bail!("the guest's number of vCPUs has changed"),
            };
            let in_guest = Standstill {
                published: standstill.published.wrapping_add_signed(offset),
                claimed: standstill.claimed.wrapping_add_signed(offset),
            };
            let gap = self.await_blackout(index, vcpu, mark, in_guest)?;
            let lost_ticks = gaps::lost_after(vcpu.gaps(gap.index + 1), gap.after, window);
            lost += self.frequency.nanoseconds(lost_ticks);
            let blackout_ns = self.frequency.nanoseconds(gap.cycles());
            if blackout_ns >= worst.blackout_ns {
                let to_host = |tsc: u64| tsc.wrapping_sub(offset.cast_unsigned());
                worst.blackout_ns = blackout_ns;
                worst.span = Span { begin: to_host(gap.before), end: to_host(gap.after) };
            }
        }
        worst.lost_first_ms_ns = lost / u64::try_from(self.offsets.len())?;
        Ok(worst)
    }

    /// Waits for the blackout of one vCPU to be recorded, and for the window after it to pass.
    fn await_blackout(&self, index: usize, vcpu: &VcpuBlock, mark: u64, standstill: Standstill) -> anyhow::Result<Gap> {
        let settled = self.frequency.ticks(FIRST + SETTLED);
        let mut found = None;
        interrupt::wait_for("the guest has not run for a millisecond after it landed", LANDING_PATIENCE, || {
            let last = vcpu.last_tsc.load(Ordering::Acquire);
            if found.is_none() && last > standstill.claimed {
                found = gaps::blackout(vcpu.gaps(mark), standstill);
            }
            let awaited = found.map_or(standstill.claimed, |gap| gap.after).saturating_add(settled);
            Ok((last > awaited).then_some(()))
        })?;
        if let Some(gap) = found.or_else(|| gaps::blackout(vcpu.gaps(mark), standstill)) {
            return Ok(gap);
        }
        match vcpu.gaps(mark).next() {
            Some(oldest) if oldest.index > mark && oldest.before > standstill.published => {
                Err(Overwritten { vcpu: index }.into())
            }
            _ => bail!(
                "vCPU {index} recorded no gap that contains the handoff, so its blackout cannot be told (its clock may \
                 differ from the host's)"
            ),
        }
    }

    /// Has the guest verify everything it owns, and waits for its verdict.
    pub(crate) fn verify_all(&self) -> anyhow::Result<Verdict> {
        let block = self.block();
        let word = block.give(Command::VerifyAll);
        interrupt::wait_for("the guest has not verified its memory", self.patience(), || {
            Ok((block.all_acknowledged(word) || block.guest_state() == Some(GuestState::Panicked)).then_some(()))
        })?;
        Ok(Verdict::of(block))
    }

    /// What it has found so far.
    pub(crate) fn verdict(&self) -> Verdict {
        Verdict::of(self.block())
    }

    /// Guest TSC minus host TSC.
    fn clock_offset(&self, vcpu: &VcpuBlock) -> i64 {
        let end = tsc::now().saturating_add(self.frequency.ticks(COMPARISON));
        let mut youngest = i64::MIN;
        loop {
            let guest = vcpu.last_tsc.load(Ordering::Relaxed);
            let host = tsc::now();
            youngest = youngest.max(guest.wrapping_sub(host).cast_signed());
            if host > end {
                return youngest;
            }
            std::hint::spin_loop();
        }
    }

    fn patience(&self) -> Duration {
        let bytes = u64::try_from(self.memory.len()).unwrap_or(u64::MAX);
        Duration::from_secs(20 + bytes / SLOWEST)
    }
}

impl Observation {
    /// The blackout, for a person.
    pub(crate) fn blackout(&self) -> Microseconds {
        Microseconds::from_nanoseconds(self.blackout_ns)
    }
}
