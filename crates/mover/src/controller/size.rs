//! How large a chunk is: as large as the longest stall allows.
//!
//! The time for which a chunk stays protected is noisy: now and then the mover itself loses its CPU in the middle of one.
//! So no single chunk decides anything. A window holds the latest chunks of the present size, and what counts is the
//! second longest of them (about their 94th percentile).
//!
//! ```text
//!            second longest > limit                       window full, second longest × 5/2 ≤ limit
//! smaller ◀───────────────────────── this size ─────────────────────────────▶ larger
//! ```
//!
//! A step up that has to be taken back soon was a mistake: the next one waits for twice as many chunks, so that a size
//! just under the limit is not left every sixteen chunks.
//!
//! Huge pages are another matter: a smaller chunk splits them. There the largest size is left only when the *median* is over
//! the limit.

use std::ops::RangeInclusive;
use std::time::Duration;

/// The smallest chunk: a page.
pub(super) const SMALLEST: u64 = 4 << 10;
/// The largest chunk: a granule.
pub(super) const LARGEST: u64 = 2 << 20;
/// What a move begins with: on slow memory (1 GB/s) still within the default budget.
const FIRST: u64 = 256 << 10;
/// How many chunks are remembered.
const WINDOW: usize = 16;
/// How many windows a step up waits for at most, after it has failed again and again.
const MOST_PATIENCE: usize = 64;

/// The size of the chunks of one move.
#[derive(Debug)]
pub(super) struct ChunkSize {
    bytes: u64,
    smallest: u64,
    largest: u64,
    /// `None`: the size does not change.
    limit: Option<Duration>,
    /// Protected times of the latest chunks of this size.
    window: [Duration; WINDOW],
    /// Chunks of this size so far.
    seen: usize,
    /// How many windows a step up waits for.
    patience: usize,
    /// Whether the last step was one up.
    stepped_up: bool,
    /// Whether the largest size is only left when the median is over the limit.
    keeps_large: bool,
}

impl ChunkSize {
    /// Always the largest.
    pub(super) fn fixed(bounds: &RangeInclusive<u64>) -> Self {
        let smallest = power_of_two(*bounds.start());
        let largest = power_of_two(*bounds.end()).max(smallest);
        Self {
            bytes: largest,
            smallest,
            largest,
            limit: None,
            window: [Duration::ZERO; WINDOW],
            seen: 0,
            patience: 1,
            stepped_up: false,
            keeps_large: false,
        }
    }

    /// Within the bounds, and so small that few stay protected for longer than `limit`, if the smallest is small enough.
    pub(super) fn under(limit: Duration, bounds: &RangeInclusive<u64>) -> Self {
        let fixed = Self::fixed(bounds);
        Self { bytes: FIRST.clamp(fixed.smallest, fixed.largest), limit: Some(limit), ..fixed }
    }

    /// Begins with the largest, and leaves it only when the median is over the limit: for huge pages. A smaller chunk
    /// splits them, which costs the guest far more than a few long stalls.
    pub(super) fn begin_large(&mut self) {
        self.bytes = self.largest;
        self.keeps_large = true;
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Learns from a chunk of `bytes`. One that was smaller than it might have been proves only that it was too large.
    pub(super) fn learn(&mut self, bytes: u64, protected: Duration) {
        let Some(limit) = self.limit else { return };
        if bytes < self.bytes && protected <= limit {
            return;
        }
        self.window[self.seen % WINDOW] = protected;
        self.seen = self.seen.saturating_add(1);
        let high = if self.keeps_large && self.bytes == self.largest { self.median() } else { self.second_longest() };
        if high > limit && self.bytes > self.smallest {
            self.step_down();
        } else if self.is_patient_enough() && self.bytes < self.largest && high * 5 / 2 <= limit {
            self.step_to(self.bytes * 2);
            self.stepped_up = true;
        }
    }

    fn step_down(&mut self) {
        let soon = self.seen < 4 * WINDOW;
        self.patience = if self.stepped_up && soon { (self.patience * 2).min(MOST_PATIENCE) } else { 1 };
        self.step_to(self.bytes / 2);
        self.stepped_up = false;
    }

    fn step_to(&mut self, bytes: u64) {
        self.bytes = bytes;
        self.window = [Duration::ZERO; WINDOW];
        self.seen = 0;
    }

    fn is_patient_enough(&self) -> bool {
        self.seen >= WINDOW * self.patience
    }

    /// Of a window that is not full yet, what is missing counts as short.
    fn median(&self) -> Duration {
        let mut sorted = self.window;
        sorted.sort_unstable();
        sorted[WINDOW / 2]
    }

    fn second_longest(&self) -> Duration {
        let (mut first, mut second) = (Duration::ZERO, Duration::ZERO);
        for &protected in &self.window {
            if protected > first {
                (first, second) = (protected, first);
            } else {
                second = second.max(protected);
            }
        }
        second
    }
}

/// The largest power of two within the bounds of a chunk that is not above this.
fn power_of_two(bytes: u64) -> u64 {
    1 << bytes.clamp(SMALLEST, LARGEST).ilog2()
}
