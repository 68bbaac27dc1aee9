//! What a host notes before it changes the pool's tables.

use crate::exclusion::Exclusive;
use crate::format::journal::{Entry, Intent};
use crate::ownership::HostSlot;
use crate::pool::Pool;
use std::ops::{Deref, DerefMut};
use std::sync::MutexGuard;

/// A host's journal, in the host's turn.
#[derive(Debug)]
pub(crate) struct Notes<'a> {
    pub(super) journal: MutexGuard<'a, Journal>,
    pub(super) _turn: Exclusive,
}

impl Deref for Notes<'_> {
    type Target = Journal;

    fn deref(&self) -> &Journal {
        &self.journal
    }
}

impl DerefMut for Notes<'_> {
    fn deref_mut(&mut self) -> &mut Journal {
        &mut self.journal
    }
}

/// The writing end of a host's journal.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(super) slot: HostSlot,
    pub(super) incarnation: u64,
    pub(super) sequence: u64,
}

impl Journal {
    /// Notes what is about to be done; it is in the pool before anything that comes after.
    pub(crate) fn write(&mut self, pool: &Pool, intent: Intent) {
        self.sequence += 1;
        let entry = Entry { sequence: self.sequence, incarnation: self.incarnation, intent };
        pool.tables().write_journal(self.slot, &entry);
    }
}
