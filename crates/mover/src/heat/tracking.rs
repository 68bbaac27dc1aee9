//! Write protection that tells of the first store, and which pages there are to protect: a userfaultfd and the page tables,
//! as moves use them.

use crate::error::{Error, Result};
use crate::pagemap::{Page, PageMap};
use crate::userfault::Userfault;
use std::io;
use std::ops::Range;
use std::time::Duration;

/// The means to protect memory and to see who stores into it.
#[derive(Debug)]
pub(super) struct Tracking {
    userfault: Userfault,
    page_map: PageMap,
}

/// Memory that is tracked. Dropped, it is no longer.
#[derive(Debug)]
pub(super) struct Registered<'a> {
    tracking: &'a Tracking,
    memory: Range<usize>,
    is_released: bool,
}

impl Tracking {
    /// Opens both interfaces.
    pub(super) fn new() -> Result<Self> {
        let page_map = PageMap::open().map_err(|source| Error::PageMap { source })?;
        Ok(Self { userfault: Userfault::open()?, page_map })
    }

    /// Begins to track this memory; protects nothing yet.
    pub(super) fn register(&self, memory: &Range<usize>) -> io::Result<Registered<'_>> {
        self.userfault.register(memory)?;
        Ok(Registered { tracking: self, memory: memory.clone(), is_released: false })
    }

    /// Tells each run of pages that are there, in order.
    pub(super) fn present(&self, range: &Range<usize>, tell: impl FnMut(Range<usize>, Page)) -> io::Result<()> {
        self.page_map.present(range, tell)
    }

    /// From now on, whoever stores into the range waits.
    pub(super) fn protect(&self, range: &Range<usize>) -> io::Result<()> {
        self.userfault.protect(range)
    }

    /// Lets stores into the range through, those that wait among them.
    pub(super) fn unprotect(&self, range: &Range<usize>) -> io::Result<()> {
        self.userfault.unprotect(range)
    }

    /// Waits until somebody waits to store, for so long at most; and tells the addresses.
    pub(super) fn stores(&self, timeout: Duration, tell: impl FnMut(usize) -> io::Result<()>) -> io::Result<()> {
        self.userfault.stores(timeout, tell)
    }
}

impl Registered<'_> {
    /// Lifts all protection, and lets go of the memory.
    pub(super) fn release(mut self) -> io::Result<()> {
        self.is_released = true;
        self.unregister()
    }

    fn unregister(&self) -> io::Result<()> {
        self.tracking.userfault.unregister(&self.memory)
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        if !self.is_released {
            // A failure is of no consequence: the descriptor is closed next, which does the same.
            let _ = self.unregister();
        }
    }
}
