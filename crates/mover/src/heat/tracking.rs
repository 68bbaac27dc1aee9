//! Write protection that tells of the first store, and which pages there are to protect: a userfaultfd and the page tables,
//! as moves use them.

use crate::error::{Error, Result};
use crate::pagemap::PageMap;
use crate::userfault::Userfault;
use std::io;
use std::ops::Range;

/// The means to protect memory and to see who stores into it.
#[derive(Debug)]
pub(super) struct Tracking {
    /// Protects, and tells of stores.
    pub(super) userfault: Userfault,
    /// Tells which pages there are.
    pub(super) page_map: PageMap,
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
