//! Looks out, while a move lasts, for what the kernel knows of the memory and the guest's record does not.
//!
//! ```text
//! move begins ─▶ look ─▶ every 50 ms: counters or pin table changed? ─▶ look      move done ─▶ look once more ─▶ report
//!                                     the move stalls? ─▶ look
//! ```
//!
//! - A pin whose place the kernel tells keeps its granules where they are. One of which it does not tell where it is may be
//!   anywhere, and keeps everything where it is. Both last until a look does not find them any more, or finds them
//!   declared.
//! - Memory that mlock has locked may move, but what it moves to is not locked: how much that was is counted.
//!
//! Between two looks a pin can be overlooked: by whoever does not declare it. What turns up at the last look has come while
//! memory moved; that is too late to stall the move, so it is reported.

use crate::dram::granule_bytes;
use crate::memory::GuestMemory;
use crate::report::UndeclaredPin;
use crate::undeclared::{PinWatch, Undeclared, Undetectable, undeclared_pins, without};
use std::ops::Range;

/// When a look is worth what it costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Look {
    /// When there may be something new.
    IfChanged,
    /// Now.
    Anyway,
}

/// What is known on behalf of one move.
#[derive(Debug)]
pub(crate) struct Lookout<'a> {
    memory: &'a GuestMemory,
    watch: PinWatch,
    /// The pins that were declared when it looked last: addresses.
    declared: Vec<Range<usize>>,
    /// The others.
    pins: Vec<UndeclaredPin>,
    /// All of them that there have been since the move began.
    seen: Vec<UndeclaredPin>,
    /// What is locked: offsets in the guest's memory.
    locked: Vec<Range<u64>>,
    /// What was, before it moved.
    unlocked: Vec<Range<u64>>,
    /// Whether it has been said that nothing can be seen.
    is_blind: bool,
}

impl<'a> Lookout<'a> {
    /// Looks for the first time.
    pub(crate) fn begin(memory: &'a GuestMemory) -> Self {
        let mut lookout = Self {
            memory,
            watch: PinWatch::default(),
            declared: Vec::new(),
            pins: Vec::new(),
            seen: Vec::new(),
            locked: Vec::new(),
            unlocked: Vec::new(),
            is_blind: false,
        };
        lookout.look(Look::Anyway);
        lookout
    }

    /// Looks again. What it saw last stands when that fails.
    pub(crate) fn look(&mut self, look: Look) {
        match self.find(look) {
            Ok(found) => found.into_iter().for_each(|found| self.note(found)),
            Err(error) if self.is_blind => tracing::debug!("{error}"),
            Err(error) => {
                self.is_blind = true;
                tracing::warn!("{error}; memory that something has pinned without saying so may move nevertheless");
            }
        }
    }

    fn find(&mut self, look: Look) -> Result<Option<Undeclared>, Undetectable> {
        let addresses = self.memory.range().addresses();
        let declared = declared(self.memory);
        let has_changed = self.watch.has_changed()? || declared != self.declared;
        if look == Look::IfChanged && !has_changed {
            return Ok(None);
        }
        let found = undeclared_pins(&addresses, &declared)?;
        self.declared = declared;
        Ok(Some(found))
    }

    fn note(&mut self, found: Undeclared) {
        for pin in &found.pins {
            if !self.seen.contains(pin) {
                self.seen.push(pin.clone());
            }
        }
        self.pins = found.pins;
        self.locked = found.locked.iter().map(|locked| locked.offset..locked.offset + locked.bytes).collect();
    }

    /// A pin that nobody has declared and that is known to be in this granule.
    pub(crate) fn pin_in(&self, granule: usize) -> Option<(Range<u64>, &UndeclaredPin)> {
        let bytes = granule_bytes() as u64;
        let (start, end) = (granule as u64 * bytes, (granule as u64 + 1) * bytes);
        let place = |pin: &UndeclaredPin| pin.offset.map(|offset| offset..offset.saturating_add(pin.bytes));
        let mut placed = self.pins.iter().filter_map(|pin| Some((place(pin)?, pin)));
        placed.find(|(place, _)| place.start < end && place.end > start)
    }

    /// A pin that nobody has declared and that may be anywhere.
    pub(crate) fn pin_anywhere(&self) -> Option<&UndeclaredPin> {
        self.pins.iter().find(|pin| pin.offset.is_none())
    }

    /// All that were seen since the move began.
    pub(crate) fn seen(&self) -> &[UndeclaredPin] {
        &self.seen
    }

    /// Something else has been mapped over this chunk, which is not locked.
    pub(crate) fn replaced(&mut self, chunk: &Range<usize>) {
        let chunk = chunk.start as u64..chunk.end as u64;
        let within = |locked: &Range<u64>| locked.start.max(chunk.start)..locked.end.min(chunk.end);
        let gone: Vec<_> = self.locked.iter().map(within).filter(|part| !part.is_empty()).collect();
        if gone.is_empty() {
            return;
        }
        self.locked = self.locked.iter().flat_map(|locked| without(locked.clone(), &gone)).collect();
        // This is why the process has less locked memory now; it is no reason to look again.
        self.watch.expect_unlocked(bytes_of(&gone));
        let new: Vec<_> = gone.into_iter().flat_map(|part| without(part, &self.unlocked)).collect();
        self.unlocked.extend(new);
    }

    /// How much memory was locked, has moved, and is not locked now, as far as the last look tells.
    pub(crate) fn unlocked_bytes(&self) -> u64 {
        let still: Vec<_> = self.unlocked.iter().flat_map(|part| without(part.clone(), &self.locked)).collect();
        bytes_of(&still)
    }
}

/// The pins in the guest's record: addresses of this process.
fn declared(memory: &GuestMemory) -> Vec<Range<usize>> {
    let addresses = memory.range().addresses();
    let at =
        |offset: u64| addresses.start + usize::try_from(offset).map_or(addresses.len(), |at| at.min(addresses.len()));
    memory.pins().list().into_iter().map(|pin| at(pin.offset)..at(pin.offset.saturating_add(pin.bytes))).collect()
}

fn bytes_of(parts: &[Range<u64>]) -> u64 {
    parts.iter().map(|part| part.end - part.start).sum()
}
