//! What a move may do next: how large the next chunk is, and how long the guest is left alone before it.
//!
//! Pure: it is told what each chunk cost ([`ChunkSample`]) and what time it is, and keeps three promises.
//!
//! - **Stall.** Chunks shrink while they stay write-protected for longer than the budget's longest stall, and grow while
//!   there is room ([`size::ChunkSize`]).
//! - **Slowdown.** What the guest has lost stays under its share of the time that has passed: what is lost is a debt
//!   which only time pays back ([`debt::Debt`]), so the promise holds on average whatever single chunks cost.
//! - **Bandwidth.** Bytes are a debt of the same kind, at whatever rate is allowed when it is paid back.

mod debt;
mod size;

use crate::plan::{Budget, Pace};
use crate::report::{ChunkSizes, StallFigures};
use debt::Debt;
use hdrhistogram::Histogram;
use size::ChunkSize;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// The longest pause that is asked for at once, so that a move notices soon that it is called off or may go faster.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_millis(20);
/// Pauses shorter than this are not worth going to sleep for: they are saved up.
const SHORTEST_PAUSE: Duration = Duration::from_micros(100);
/// For how long a move that has been left behind (its sleep lasted too long) may catch up.
const CATCH_UP: Duration = Duration::from_millis(5);
/// The longest that one chunk is paid for. What takes longer than this was no chunk's doing: the machine stood still.
const LONGEST_PAYMENT: Duration = Duration::from_secs(1);

/// What one chunk cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChunkSample {
    /// Bytes that were copied: none of memory that was untouched, or all zeros.
    pub(crate) bytes: u64,
    /// From its write protection to the wake.
    pub(crate) protected: Duration,
    /// Whether a store of the guest waited for it; then `protected` is what every vCPU is taken to have lost.
    pub(crate) hit: bool,
    /// What the guest's threads lost otherwise since the last sample ([`crate::loss::GuestLoss::lost`]): of the time of
    /// one thread, the average over them.
    pub(crate) lost: Duration,
    /// When it was over.
    pub(crate) now: Instant,
}

/// What the chunks so far have cost.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Figures {
    pub(crate) stall_us: StallFigures,
    pub(crate) slowdown_pct: f64,
    pub(crate) chunk_bytes: ChunkSizes,
}

/// Paces one move.
#[derive(Debug)]
pub(crate) struct Controller {
    size: ChunkSize,
    /// Seconds of the guest's time that a second pays back; `None` when the guest's time does not matter.
    share: Option<f64>,
    bandwidth: Option<u64>,
    /// Seconds.
    time_owed: Debt,
    bytes_owed: Debt,
    stalls: Histogram<u64>,
    chunk_bytes: ChunkSizes,
    lost: Duration,
    elapsed: Duration,
    last: Option<Instant>,
}

impl Controller {
    /// A controller that keeps to this budget, and to chunks of so many bytes. What the pool is mapped in goes before both
    /// the longest stall and the largest chunk.
    pub(crate) fn new(budget: &Budget, chunks: &RangeInclusive<u64>) -> Self {
        let (size, share) = match budget.pace {
            Pace::Fast => (ChunkSize::fixed(chunks), None),
            Pace::Paced { max_stall_us, max_slowdown_pct } => {
                let share = f64::from(max_slowdown_pct.clamp(1, 100)) / 100.0;
                let size = ChunkSize::under(Duration::from_micros(max_stall_us), chunks);
                (size, Some(share).filter(|share| *share < 1.0))
            }
        };
        let longest = u64::try_from(LONGEST_PAYMENT.as_micros()).unwrap_or(u64::MAX);
        Self {
            size,
            share,
            bandwidth: budget.bandwidth,
            time_owed: Debt::default(),
            bytes_owed: Debt::default(),
            stalls: Histogram::new_with_bounds(1, longest, 3).expect("1 µs to 1 s at three digits are valid bounds"),
            chunk_bytes: ChunkSizes::default(),
            lost: Duration::ZERO,
            elapsed: Duration::ZERO,
            last: None,
        }
    }

    /// Begins with the largest chunk: for memory that lies in huge pages, which smaller chunks would split.
    pub(crate) fn begin_large(&mut self) {
        self.size.begin_large();
    }

    /// How large the next chunk is to be: a power of two from the smallest to the largest.
    pub(crate) fn chunk_bytes(&self) -> u64 {
        self.size.bytes()
    }

    /// Takes note of a chunk that has moved.
    pub(crate) fn record(&mut self, sample: &ChunkSample) {
        let before = self.last.unwrap_or(sample.now.checked_sub(sample.protected).unwrap_or(sample.now));
        self.elapsed += sample.now.saturating_duration_since(before).min(LONGEST_PAYMENT);
        self.last = Some(sample.now);

        let stall = if sample.hit { sample.protected.min(LONGEST_PAYMENT) } else { Duration::ZERO };
        if sample.hit {
            self.stalls.saturating_record(u64::try_from(stall.as_micros()).unwrap_or(u64::MAX).max(1));
        }
        let lost = stall + sample.lost.min(LONGEST_PAYMENT);
        self.lost += lost;
        self.time_owed.incur(lost.as_secs_f64());
        self.bytes_owed.incur(sample.bytes as f64);

        if sample.bytes > 0 {
            let ChunkSizes { smallest, largest } = &mut self.chunk_bytes;
            *smallest = if *smallest == 0 { sample.bytes } else { sample.bytes.min(*smallest) };
            *largest = sample.bytes.max(*largest);
            self.size.learn(sample.bytes, sample.protected);
        }
    }

    /// How long to leave the guest alone before the next chunk, when `limit` bytes per second are allowed now beside
    /// what the plan allows. At most [`LONGEST_PAUSE`]: ask again afterwards, and go on when it is zero.
    pub(crate) fn pause(&mut self, now: Instant, limit: Option<u64>) -> Duration {
        let for_the_guest = self.share.map_or(Duration::ZERO, |share| self.time_owed.pay(now, share));
        let rate = [self.bandwidth, limit].into_iter().flatten().min();
        let for_bandwidth = self.bytes_owed.pay(now, rate.map_or(f64::INFINITY, |rate| rate as f64));
        let pause = for_the_guest.max(for_bandwidth).min(LONGEST_PAUSE);
        if pause < SHORTEST_PAUSE { Duration::ZERO } else { pause }
    }

    /// What the chunks so far have cost.
    pub(crate) fn figures(&self) -> Figures {
        let at = |quantile: f64| if self.stalls.is_empty() { 0 } else { self.stalls.value_at_quantile(quantile) };
        let elapsed = self.elapsed.as_secs_f64();
        let slowdown_pct = if elapsed > 0.0 { (self.lost.as_secs_f64() / elapsed * 100.0).min(100.0) } else { 0.0 };
        Figures {
            stall_us: StallFigures { count: self.stalls.len(), p50: at(0.5), p99: at(0.99), max: at(1.0) },
            slowdown_pct,
            chunk_bytes: self.chunk_bytes,
        }
    }
}

#[cfg(test)]
mod tests;
