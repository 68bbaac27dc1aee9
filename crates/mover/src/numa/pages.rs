//! Page by page: on which node each is, and what became of it.

use super::{NumaError, syscalls};
use crate::topology::NodeId;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};

/// Pages that the kernel is asked about in one call: the answers fit on the stack of no one, and in any cache.
const BATCH: usize = 4096;
/// What stands in the kernel's answers until it answers. It is no errno.
const UNANSWERED: c_int = c_int::MIN;

/// Memory of this process: whole pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    start: usize,
    bytes: usize,
}

impl Span {
    pub(super) fn new(start: *const u8, bytes: usize) -> Result<Self, NumaError> {
        let (start, page) = (start.addr(), rustix::param::page_size());
        if !start.is_multiple_of(page) || !bytes.is_multiple_of(page) || start.checked_add(bytes).is_none() {
            return Err(NumaError::NotWholePages { start, bytes });
        }
        Ok(Self { start, bytes })
    }

    pub(super) const fn start(self) -> usize {
        self.start
    }

    pub(super) const fn bytes(self) -> usize {
        self.bytes
    }

    pub(super) const fn is_empty(self) -> bool {
        self.bytes == 0
    }

    fn pages(self) -> impl Iterator<Item = usize> {
        (self.start..self.start + self.bytes).step_by(rustix::param::page_size())
    }
}

/// How much of a range is on which node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Whereabouts {
    /// Bytes by node.
    pub bytes: BTreeMap<NodeId, u64>,
    /// Bytes that are on no node: never touched, swapped out, or only ever read and so all the kernel's one page of zeros.
    pub absent_bytes: u64,
}

impl Whereabouts {
    /// Bytes on a node.
    #[must_use]
    pub fn on(&self, node: NodeId) -> u64 {
        self.bytes.get(&node).copied().unwrap_or(0)
    }
}

/// What became of a range that was to come to a node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NodeMove {
    /// Bytes that came.
    pub moved_bytes: u64,
    /// Bytes that had been there.
    pub already_there_bytes: u64,
    /// Bytes that have no page yet, and get one from the node when they are touched.
    pub absent_bytes: u64,
    /// Bytes that would not come, by reason.
    pub refused: Vec<Refused>,
}

/// Pages that would not come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refused {
    /// Why: `EBUSY` is a page that something holds (a device that has pinned it), `EACCES` one that other processes
    /// have mapped too, `ENOMEM` a node without room.
    pub errno: i32,
    /// How much.
    pub bytes: u64,
}

impl NodeMove {
    /// Bytes that would not come, for whatever reason.
    #[must_use]
    pub fn refused_bytes(&self) -> u64 {
        self.refused.iter().map(|refused| refused.bytes).sum()
    }

    /// Adds what became of another range.
    pub fn add(&mut self, other: &Self) {
        self.moved_bytes += other.moved_bytes;
        self.already_there_bytes += other.already_there_bytes;
        self.absent_bytes += other.absent_bytes;
        for refused in &other.refused {
            match self.refused.iter_mut().find(|known| known.errno == refused.errno) {
                Some(known) => known.bytes += refused.bytes,
                None => self.refused.push(*refused),
            }
        }
    }
}

/// On which nodes the pages of a range are. Whole pages of this process.
///
/// # Errors
/// [`NumaError::NotWholePages`], or [`NumaError::Refused`] with the kernel's reason.
pub fn where_is(start: *const u8, bytes: usize) -> Result<Whereabouts, NumaError> {
    let page = page_bytes();
    let mut whereabouts = Whereabouts::default();
    for location in locate(Span::new(start, bytes)?)? {
        match location {
            Location::On(node) => *whereabouts.bytes.entry(node).or_default() += page,
            Location::Absent => whereabouts.absent_bytes += page,
        }
    }
    Ok(whereabouts)
}

/// How much of a range is on other nodes than this one. Whole pages of this process.
pub(super) fn bytes_elsewhere(start: *const u8, bytes: usize, node: NodeId) -> Result<u64, NumaError> {
    let whereabouts = where_is(start, bytes)?;
    Ok(whereabouts.bytes.iter().filter(|(other, _)| **other != node).map(|(_, bytes)| *bytes).sum())
}

/// Where one page is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Location {
    On(NodeId),
    Absent,
}

impl Location {
    /// From the kernel's answer: a node, or a negated errno (`do_pages_stat` in `mm/migrate.c`: ENOENT where there is no
    /// page, EFAULT for the page of zeros). Any other leaves the page without a node as well.
    fn of_status(status: c_int) -> Self {
        u32::try_from(status).ok().and_then(NodeId::new).map_or(Self::Absent, Self::On)
    }
}

/// Where each page of a span is.
pub(super) fn locate(span: Span) -> Result<Vec<Location>, NumaError> {
    let mut locations = Vec::with_capacity(span.bytes() / rustix::param::page_size());
    let addresses: Vec<usize> = span.pages().collect();
    for batch in addresses.chunks(BATCH) {
        locations.extend(query(batch).map_err(|errno| refused("query", span, errno))?);
    }
    Ok(locations)
}

fn query(addresses: &[usize]) -> Result<Vec<Location>, Errno> {
    let mut status = vec![UNANSWERED; addresses.len()];
    syscalls::query_pages(&pointers(addresses), &mut status)?;
    Ok(status.into_iter().map(Location::of_status).collect())
}

/// Counts what has come to `node` since `before`, and asks the kernel for its reasons about the rest, by having it try
/// these once more, one by one.
pub(super) fn settle(span: Span, node: NodeId, before: &[Location]) -> Result<NodeMove, NumaError> {
    let page = page_bytes();
    let mut outcome = NodeMove::default();
    let mut left = Vec::new();
    for ((address, was), is) in span.pages().zip(before).zip(locate(span)?) {
        match (was, is) {
            (Location::On(was), Location::On(is)) if *was == node && is == node => outcome.already_there_bytes += page,
            (_, Location::On(is)) if is == node => outcome.moved_bytes += page,
            (_, Location::On(_)) => left.push(address),
            (_, Location::Absent) => outcome.absent_bytes += page,
        }
    }
    for batch in left.chunks(BATCH) {
        outcome.add(&insist(batch, node).map_err(|errno| refused("move to a node", span, errno))?);
    }
    Ok(outcome)
}

/// Tries pages once more that would not come with the others, to learn why.
fn insist(addresses: &[usize], node: NodeId) -> Result<NodeMove, Errno> {
    let number = c_int::try_from(node.get()).map_err(|_| Errno::INVAL)?;
    let mut status = vec![UNANSWERED; addresses.len()];
    match syscalls::place_pages(&pointers(addresses), &vec![number; addresses.len()], &mut status) {
        // ENOMEM and the like concern all that are left; which of them moved is asked below.
        Ok(_) | Err(Errno::NOMEM | Errno::BUSY | Errno::AGAIN) => {}
        Err(errno) => return Err(errno),
    }
    Ok(judge(&status, &query(addresses)?, node))
}

/// What became of pages, from what the kernel said about the attempt and from where they are now. The second counts: of
/// a huge page the attempt reports all but the first 4 KiB as busy, although it has come as a whole.
fn judge(attempts: &[c_int], now: &[Location], node: NodeId) -> NodeMove {
    let page = page_bytes();
    let mut outcome = NodeMove::default();
    for (attempt, is) in attempts.iter().zip(now) {
        match is {
            Location::On(is) if *is == node => outcome.moved_bytes += page,
            Location::Absent => outcome.absent_bytes += page,
            Location::On(_) => {
                // No answer, or one that is out of date, is what a page gets whose migration failed for its references.
                let errno = if *attempt < 0 && *attempt != UNANSWERED { -*attempt } else { Errno::BUSY.raw_os_error() };
                outcome.add(&NodeMove { refused: vec![Refused { errno, bytes: page }], ..NodeMove::default() });
            }
        }
    }
    outcome
}

fn pointers(addresses: &[usize]) -> Vec<*mut c_void> {
    addresses.iter().map(|address| std::ptr::without_provenance_mut(*address)).collect()
}

fn refused(action: &'static str, span: Span, errno: Errno) -> NumaError {
    NumaError::on_range(action, span.start(), span.bytes(), errno)
}

fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u32) -> NodeId {
        NodeId::new(number).expect("a node")
    }

    #[test]
    fn a_page_that_has_arrived_counts_as_moved_whatever_the_attempt_said() {
        let busy = -Errno::BUSY.raw_os_error();
        let outcome = judge(&[1, busy, busy, busy], &[Location::On(node(1)); 4], node(1));
        assert_eq!(outcome, NodeMove { moved_bytes: 4 * page_bytes(), ..NodeMove::default() });
    }

    #[test]
    fn what_stayed_is_counted_by_reason() {
        let (busy, shared) = (Errno::BUSY.raw_os_error(), Errno::ACCESS.raw_os_error());
        let elsewhere = Location::On(node(0));
        let outcome = judge(
            &[-busy, -shared, UNANSWERED, 0, 1],
            &[elsewhere, elsewhere, elsewhere, elsewhere, Location::Absent],
            node(1),
        );
        let page = page_bytes();
        let refused = vec![Refused { errno: busy, bytes: 3 * page }, Refused { errno: shared, bytes: page }];
        assert_eq!(outcome.refused_bytes(), 4 * page);
        assert_eq!(outcome, NodeMove { absent_bytes: page, refused, ..NodeMove::default() });
    }

    #[test]
    fn the_kernels_answers_are_told_apart() {
        assert_eq!(Location::of_status(3), Location::On(node(3)));
        for status in [-libc::ENOENT, -libc::EFAULT, UNANSWERED, c_int::MAX] {
            assert_eq!(Location::of_status(status), Location::Absent);
        }
    }
}
