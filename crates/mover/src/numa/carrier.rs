//! Brings a guest's local memory to a node, chunk by chunk: what [`crate::chunk`] is for the way between DRAM and pool.
//!
//! ```text
//! survey: bind all that is local ─▶ count what is elsewhere ─▶ next chunk ─▶ kernel moves its pages ─▶ … ─▶ none elsewhere
//!                                                                 └─ pinned, or the kernel will not: the granule waits
//! ```
//!
//! The kernel keeps stores out of each page while it moves, and no longer, so there is no barrier here; it does not tell
//! whether any store waited. Only what is private to this process is bound: a policy on a mapping of the pool would be
//! the pool file's, for all who map it. Memory that is in the pool comes to the node through the mirror, which is bound.

use super::node::Node;
use super::{NodeMove, NumaError, bytes_elsewhere};
use crate::chunk::{Attempt, Contents, HOLDER, Moved};
use crate::dram::{PAGE, granule_bytes};
use crate::error::{Error, Result};
use crate::memory::GuestMemory;
use crate::pagemap::PageMap;
use crate::report::{Stall, StallReason, UndeclaredPin};
use crate::sides::{Side, Sides};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Instant;

/// What one move brings local memory to a node with.
#[derive(Debug)]
pub(crate) struct NodeCarrier<'a> {
    memory: &'a GuestMemory,
    node: Node,
    page_map: PageMap,
    /// Granules of which a part is on other nodes, with how much.
    elsewhere: BTreeMap<usize, u64>,
}

impl<'a> NodeCarrier<'a> {
    /// Binds what is local of these granules, so that new pages come from the node from now on, and finds what is on
    /// other nodes.
    ///
    /// # Errors
    /// [`Error::Numa`] when there is no such node, or it has no memory for us; [`Error::PageMap`].
    pub(crate) fn survey(memory: &'a GuestMemory, node: u32, granules: Range<usize>) -> Result<Self> {
        let page_map = PageMap::open().map_err(|source| Error::PageMap { source })?;
        let mut carrier = Self { memory, node: Node::with_memory(node)?, page_map, elsewhere: BTreeMap::new() };
        for granule in granules {
            let _turn = memory.turn();
            for part in local_parts(&memory.sides(), granule) {
                carrier.node.bind(carrier.at(&part), part.len())?;
            }
            carrier.count(granule)?;
        }
        Ok(carrier)
    }

    /// Bytes that are on other nodes.
    pub(crate) fn left(&self) -> u64 {
        self.elsewhere.values().sum()
    }

    /// Whether a part of the granule is on other nodes.
    pub(crate) fn has_left(&self, granule: usize) -> bool {
        self.elsewhere.contains_key(&granule)
    }

    /// Brings the next chunk of a granule, of at most `limit` bytes; a huge page as a whole.
    pub(crate) fn move_next(&mut self, granule: usize, limit: usize) -> Result<Attempt> {
        if !self.has_left(granule) {
            return Ok(Attempt::Nothing);
        }
        let _turn = self.memory.turn();
        if let Some(stall) = self.pinned(granule) {
            return Ok(Attempt::Blocked(stall));
        }
        let parts = local_parts(&self.memory.sides(), granule);
        let mut refused = None;
        for chunk in parts.iter().flat_map(|part| self.chunks(part, limit)) {
            if bytes_elsewhere(self.at(&chunk), chunk.len(), self.node.id())? == 0 {
                continue;
            }
            let begun = Instant::now();
            let outcome = self.node.bring(self.at(&chunk), chunk.len())?;
            let protected = begun.elapsed();
            let bytes = usize::try_from(outcome.moved_bytes).unwrap_or(chunk.len());
            if bytes > 0 {
                self.count(granule)?;
                let huge = self.is_huge(&chunk);
                let contents = Contents::Something;
                return Ok(Attempt::Moved(Moved { chunk, bytes, contents, huge, protected, hit: false }));
            }
            refused = refused.or(self.refusal(&chunk, &outcome)?);
        }
        self.count(granule)?;
        Ok(refused.map_or(Attempt::Nothing, Attempt::Blocked))
    }

    /// Counts anew what is on other nodes. The turn is taken.
    fn count(&mut self, granule: usize) -> Result<()> {
        let mut bytes = 0;
        for part in local_parts(&self.memory.sides(), granule) {
            bytes += bytes_elsewhere(self.at(&part), part.len(), self.node.id())?;
        }
        match bytes {
            0 => self.elsewhere.remove(&granule),
            bytes => self.elsewhere.insert(granule, bytes),
        };
        Ok(())
    }

    /// A part in chunks of at most `limit` bytes. A smaller part of a huge page could not move without the rest.
    fn chunks(&self, part: &Range<usize>, limit: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let step = if self.is_huge(part) { granule_bytes() } else { limit.clamp(PAGE, granule_bytes()) };
        let end = part.end;
        part.clone().step_by(step).map(move |start| start..end.min(start + step))
    }

    fn is_huge(&self, part: &Range<usize>) -> bool {
        let start = self.at(part).addr();
        part.len() == granule_bytes() && self.page_map.is_huge(&(start..start + part.len())).unwrap_or(false)
    }

    /// What the kernel's refusal to move any page of a chunk means: a node that is full ends the move, anything else may
    /// pass.
    fn refusal(&self, chunk: &Range<usize>, outcome: &NodeMove) -> Result<Option<Stall>> {
        let Some(refused) = outcome.refused.first() else { return Ok(None) };
        let errno = Errno::from_raw_os_error(refused.errno);
        if errno == Errno::NOMEM {
            return Err(NumaError::Full { node: self.node.id(), bytes: outcome.refused_bytes() }.into());
        }
        let holder = match errno {
            Errno::BUSY => "something that the kernel does not name".to_owned(),
            Errno::ACCESS => "another process, which has it mapped too,".to_owned(),
            errno => format!("the kernel ({errno})"),
        };
        let pin = UndeclaredPin { offset: Some(chunk.start as u64), bytes: outcome.refused_bytes(), holder };
        let guest_address = self.memory.guest_address(chunk.start);
        Ok(Some(Stall { guest_address, bytes: chunk.len() as u64, reason: StallReason::Undeclared(pin) }))
    }

    /// What has pinned a part of the granule. Who only holds it in DRAM does not mind the node.
    fn pinned(&self, granule: usize) -> Option<Stall> {
        let (start, end) = (granule as u64 * granule_bytes() as u64, (granule as u64 + 1) * granule_bytes() as u64);
        let pins = self.memory.pins().list();
        let pin = pins
            .into_iter()
            .find(|pin| pin.owner != HOLDER && pin.offset < end && pin.offset.saturating_add(pin.bytes) > start)?;
        let (first, last) = (pin.offset.max(start), pin.offset.saturating_add(pin.bytes).min(end));
        let guest_address = self.memory.guest_address(usize::try_from(first).ok()?);
        let reason = StallReason::Pinned { owner: pin.owner, reason: pin.reason };
        Some(Stall { guest_address, bytes: last - first, reason })
    }

    fn at(&self, part: &Range<usize>) -> *const u8 {
        self.memory.range().at(part.start).cast_const()
    }
}

/// The parts of a granule that are in this host's DRAM: offsets in the guest's memory.
fn local_parts(sides: &Sides, granule: usize) -> Vec<Range<usize>> {
    let whole = granule * granule_bytes()..(granule + 1) * granule_bytes();
    match sides.bytes_not_on(Side::Dram, granule) {
        0 => return vec![whole],
        pooled if pooled == granule_bytes() => return Vec::new(),
        _ => {}
    }
    let mut parts: Vec<Range<usize>> = Vec::new();
    for page in whole.step_by(PAGE).filter(|page| sides.side_of(*page) == Side::Dram) {
        match parts.last_mut() {
            Some(part) if part.end == page => part.end += PAGE,
            _ => parts.push(page..page + PAGE),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use nil_pool::{Epoch, HostSlot};

    #[test]
    fn the_local_parts_of_a_granule_are_joined() {
        let mut sides = Sides::new(3, None);
        sides.owner = Some((HostSlot::new(0).expect("a slot"), Epoch(1)));
        let start = granule_bytes();
        sides.note(&(start + 4 * PAGE..start + 8 * PAGE), Side::Pool);
        sides.note(&(2 * start..3 * start), Side::Pool);
        assert_eq!(local_parts(&sides, 0), [Range { start: 0, end: start }]);
        assert_eq!(local_parts(&sides, 1), [start..start + 4 * PAGE, start + 8 * PAGE..2 * start]);
        assert_eq!(local_parts(&sides, 2), [0..0; 0]);
    }
}
