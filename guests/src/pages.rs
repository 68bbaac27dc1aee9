//! Dirties memory and verifies every word of it.
//!
//! ```text
//! share of a vCPU   [ page 0 … hot … | … cold ]         cold pages keep generation 1 from the fill
//! hot pages         [ g | g | g | g-1 | g-1 … ]         before the cursor: this pass; behind it: the pass before
//! slice             verify a quarter of the page at the cursor ×4, rewrite a quarter ×4, move the cursor
//! slice of stores   check the generation of the page at the cursor, store the next one, move the cursor; ×4
//! ```
//!
//! A guest that only stores rewrites the one word that holds the generation; the rest of the page stays as it was filled.
//!
//! What must stand in a page follows from the cursor and the generation, which the vCPU keeps elsewhere. So a page that
//! holds a perfectly good older version of itself is found out too.

use crate::boot::Guest;
use crate::gaps::GapRecorder;
use core::sync::atomic::Ordering;
use nil_guest_abi::page::{
    ADDRESS_WORD, CHECKSUM_WORD, Checksum, GENERATION_WORD, PAGE_BYTES, PAGE_WORDS, PAYLOAD, Pattern,
};
use nil_guest_abi::{ErrorKind, Mode, VcpuBlock};

/// Words in a slice.
const QUARTER: usize = PAGE_WORDS / 4;
/// Pages in a slice of stores.
const STORES: usize = 4;
/// The generation that the fill writes.
const FIRST: u64 = 1;

/// One vCPU's share of the memory under test.
pub struct Pages {
    vcpu: &'static VcpuBlock,
    ranges: [(u64, u64); 2],
    first: u64,
    count: u64,
    hot: u64,
    cursor: u64,
    generation: u64,
    mode: Mode,
    step: Step,
}

/// Which generations a page must hold.
#[derive(Clone, Copy)]
struct Expected {
    /// In the word that says it.
    word: u64,
    /// In everything else.
    rest: u64,
}

/// What the next slice does with the page at the cursor.
enum Step {
    Verify(Verifier),
    Write { quarter: usize },
}

impl Pages {
    /// The share of a guest's vCPU: an equal part of all pages, and of the `workset` bytes that are hot.
    #[must_use]
    pub fn new(vcpu: &'static VcpuBlock, guest: &Guest, workset: u64) -> Self {
        let ranges = guest.ranges;
        let pages = ranges.iter().map(|range| range.1 / PAGE_BYTES).sum::<u64>();
        let (index, vcpus) = (guest.index as u64, guest.vcpus as u64);
        let first = pages * index / vcpus;
        let count = pages * (index + 1) / vcpus - first;
        let hot = workset.div_ceil(PAGE_BYTES).div_ceil(vcpus).min(count);
        vcpu.pages.store(count, Ordering::Relaxed);
        let (mode, step) = (guest.options.mode, Step::Verify(Verifier::new()));
        Self { vcpu, ranges, first, count, hot, cursor: 0, generation: FIRST, mode, step }
    }

    /// Writes the first generation of every page.
    pub fn fill(&mut self, gaps: &mut GapRecorder) {
        for page in 0..self.count {
            for quarter in 0..4 {
                self.write_quarter(page, FIRST, quarter);
                gaps.tick();
            }
        }
        self.generation = FIRST + 1;
        self.vcpu.pages_written.store(self.count, Ordering::Relaxed);
        self.vcpu.generation.store(self.generation, Ordering::Release);
    }

    /// One slice of the pass over the hot pages.
    pub fn slice(&mut self) {
        match (self.hot, self.mode) {
            (0, _) => {}
            (_, Mode::Stores) => (0..STORES).for_each(|_| self.store()),
            (_, Mode::Hot | Mode::Idle) => self.rewrite(),
        }
    }

    /// Checks that the last store into the page at the cursor is there, and makes the next one.
    fn store(&mut self) {
        let address = address_of(&self.ranges, self.first + self.cursor);
        let word = (address as *mut u64).wrapping_add(GENERATION_WORD);
        // SAFETY: as in `write_quarter`.
        let found = unsafe { word.read_volatile() };
        if found != self.generation - 1 {
            self.vcpu.record_error(ErrorKind::PageStale, address, self.generation - 1, found);
        }
        // SAFETY: as above.
        unsafe { word.write_volatile(self.generation) };
        self.advance();
    }

    /// One slice of verifying and rewriting the page at the cursor.
    fn rewrite(&mut self) {
        let (page, previous) = (self.cursor, self.generation - 1);
        match &mut self.step {
            Step::Verify(verifier) => {
                let address = address_of(&self.ranges, self.first + page);
                if verifier.quarter(self.vcpu, address, Expected { word: previous, rest: previous }) {
                    self.step = Step::Write { quarter: 0 };
                }
            }
            Step::Write { quarter } => {
                let now = *quarter;
                *quarter += 1;
                self.write_quarter(page, self.generation, now);
                if now == 3 {
                    self.advance();
                }
            }
        }
    }

    /// Verifies every page of the share, hot and cold. Returns when it has looked at all of them.
    pub fn verify_all(&mut self, gaps: &mut GapRecorder) {
        while self.hot != 0 && !matches!(self.step, Step::Verify(Verifier { next: 0, .. })) {
            self.slice();
            gaps.tick();
        }
        for page in 0..self.count {
            let expected = self.expected_in(page);
            let address = address_of(&self.ranges, self.first + page);
            let mut verifier = Verifier::new();
            while !verifier.quarter(self.vcpu, address, expected) {
                gaps.tick();
            }
            gaps.tick();
        }
        let complete = if self.hot == self.count { self.generation - 1 } else { FIRST };
        self.vcpu.verified_generation.store(complete, Ordering::Release);
    }

    /// What was last written to a page.
    fn expected_in(&self, page: u64) -> Expected {
        let word = match (page < self.hot, page < self.cursor) {
            (false, _) => FIRST,
            (true, true) => self.generation,
            (true, false) => self.generation - 1,
        };
        Expected { word, rest: if self.mode == Mode::Stores { FIRST } else { word } }
    }

    fn write_quarter(&self, page: u64, generation: u64, quarter: usize) {
        let address = address_of(&self.ranges, self.first + page);
        let pattern = Pattern::new(address, generation);
        let words = address as *mut u64;
        let (begin, end) = (quarter * QUARTER, (quarter + 1) * QUARTER);
        // SAFETY: `address` is a page of the memory under test: RAM behind the image, mapped, and this vCPU's alone.
        // Volatile, because the host may look at it at any time.
        unsafe {
            if quarter == 0 {
                words.add(ADDRESS_WORD).write_volatile(address);
                words.add(GENERATION_WORD).write_volatile(generation);
                words.add(CHECKSUM_WORD).write_volatile(pattern.checksum());
            }
            for index in begin.max(PAYLOAD)..end {
                words.add(index).write_volatile(pattern.payload(index));
            }
        }
    }

    /// Moves on to the next page, or to the next pass.
    fn advance(&mut self) {
        self.step = Step::Verify(Verifier::new());
        self.cursor += 1;
        let written = self.vcpu.pages_written.load(Ordering::Relaxed) + 1;
        self.vcpu.pages_written.store(written, Ordering::Relaxed);
        if self.cursor == self.hot {
            self.cursor = 0;
            self.generation += 1;
            self.vcpu.generation.store(self.generation, Ordering::Relaxed);
            self.vcpu.passes.store(self.vcpu.passes.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        self.vcpu.cursor.store(self.cursor, Ordering::Relaxed);
    }
}

/// The guest-physical address of a page, counted through both ranges.
fn address_of(ranges: &[(u64, u64); 2], page: u64) -> u64 {
    let offset = page * PAGE_BYTES;
    let [(first, bytes), (second, _)] = *ranges;
    if offset < bytes { first + offset } else { second + (offset - bytes) }
}

/// Verifies one page, a quarter at a time.
struct Verifier {
    next: usize,
    sum: Checksum,
}

impl Verifier {
    const fn new() -> Self {
        Self { next: 0, sum: Checksum::start(0, 0) }
    }

    /// Verifies the next quarter; whether the page is done, sound or not.
    fn quarter(&mut self, vcpu: &VcpuBlock, address: u64, expected: Expected) -> bool {
        let words = address as *const u64;
        // SAFETY: as in `write_quarter`. Volatile: what stands there may be anything, and that is the question.
        let word = |index: usize| unsafe { words.add(index).read_volatile() };
        if self.next == 0 {
            let (found_address, found_generation) = (word(ADDRESS_WORD), word(GENERATION_WORD));
            if (found_address, found_generation) != (address, expected.word) {
                let (kind, expected, found) = match (found_address, found_generation) {
                    (0, 0) => (ErrorKind::PageLost, expected.word, 0),
                    (other, _) if other != address => (ErrorKind::PageMisplaced, address, other),
                    (_, other) => (ErrorKind::PageStale, expected.word, other),
                };
                vcpu.record_error(kind, address, expected, found);
                return true;
            }
            self.sum = Checksum::start(address, expected.rest);
        }
        let pattern = Pattern::new(address, expected.rest);
        let range = (self.next * QUARTER).max(PAYLOAD)..(self.next + 1) * QUARTER;
        let mut difference = 0;
        for index in range.clone() {
            let found = word(index);
            difference |= found ^ pattern.payload(index);
            self.sum.add(found);
        }
        if difference != 0 {
            report_torn(vcpu, address, pattern, range, word);
            return true;
        }
        self.next += 1;
        if self.next < 4 {
            return false;
        }
        let (expected, found) = (self.sum.finish(), word(CHECKSUM_WORD));
        if expected != found {
            vcpu.record_error(ErrorKind::PageChecksum, address, expected, found);
        } else {
            vcpu.pages_verified.store(vcpu.pages_verified.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        true
    }
}

/// Names the first word of a quarter that differs. It may have changed back since; then its expected value stands as
/// found, which tells just that.
#[cold]
fn report_torn(
    vcpu: &VcpuBlock,
    address: u64,
    pattern: Pattern,
    mut range: core::ops::Range<usize>,
    word: impl Fn(usize) -> u64,
) {
    let begin = range.start;
    let index = range.find(|&index| word(index) != pattern.payload(index)).unwrap_or(begin);
    vcpu.record_error(ErrorKind::PageTorn, address + index as u64 * 8, pattern.payload(index), word(index));
}
