//! A commit that is being written, by the owner of a guest.
//!
//! ```text
//!   begin ──▶ add a page, again and again ──▶ publish ──▶ apply ──▶ begin the next
//!             (the latest contents count)       │          (into the image, behind the guest's back)
//!                                               └ checksums, index, record, word
//! ```

use super::{GuestPages, Protection};
use crate::capacity_mapping::CapacityMapping;
use crate::error::{Error, Result};
use crate::format::protection::{Commit, LogEntry, Standing};
use crate::ownership::{Epoch, HostSlot};

const NOWHERE: u32 = u32::MAX;

/// A commit that is being written. Adding pages allocates nothing.
#[derive(Debug)]
pub struct Draft {
    protection: Protection,
    number: u64,
    /// Where each page of the guest is in the log.
    place_of: Vec<u32>,
    entries: Vec<LogEntry>,
}

/// An epoch changed more pages than a redo log holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the redo log is full: an epoch changed more than {pages} pages of 4 KiB")]
pub struct LogFull {
    /// How many it holds.
    pub pages: u64,
}

impl Draft {
    /// The next commit. After a suspension it is the next but one: in the half that nobody was filling who has been
    /// interrupted.
    ///
    /// # Errors
    /// [`Error::ProtectionOver`] when somebody has taken the guest; [`Error::DamagedWord`].
    pub fn after_last(protection: &Protection) -> Result<Self> {
        let number = match protection.standing()? {
            Standing::Idle(0) => 1,
            Standing::Idle(last) => last + 2,
            Standing::Active(last) | Standing::Sealed(last) => last + 1,
        };
        let places = usize::try_from(protection.shape.memory_pages()).unwrap_or(usize::MAX);
        let most = usize::try_from(protection.log_pages()).unwrap_or(usize::MAX);
        Ok(Self {
            protection: protection.clone(),
            number,
            place_of: vec![NOWHERE; places],
            entries: Vec::with_capacity(most),
        })
    }

    /// The commit's number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// In which half of the protection it is written.
    #[must_use]
    pub fn half(&self) -> usize {
        Commit::half(self.number)
    }

    /// Pages that it has.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Takes what a page holds now into the commit.
    ///
    /// # Errors
    /// [`LogFull`]; then the page is not in it.
    ///
    /// # Panics
    /// When the guest has no such page.
    pub fn add(&mut self, memory: &impl GuestPages, page: u64) -> Result<(), LogFull> {
        let place = self.place(page)?;
        self.protection.log(self.half(), place, memory, page);
        Ok(())
    }

    /// Where in the redo log a page of the commit is to be copied ([`Protection::log`]), if others do that.
    ///
    /// # Errors
    /// [`LogFull`]; then the page is not in it.
    ///
    /// # Panics
    /// When the guest has no such page.
    pub fn place(&mut self, page: u64) -> Result<u64, LogFull> {
        let place_of = &mut self.place_of[usize::try_from(page).unwrap_or(usize::MAX)];
        if *place_of == NOWHERE {
            let pages = self.protection.log_pages();
            let place = self.entries.len() as u64;
            let place = u32::try_from(place).ok().filter(|_| place < pages).ok_or(LogFull { pages })?;
            *place_of = place;
            self.entries.push(LogEntry { page, crc: 0 });
        }
        Ok(u64::from(*place_of))
    }

    /// Makes it the guest's last commit. Its areas are written.
    ///
    /// # Errors
    /// [`Error::ProtectionOver`] when somebody has taken the guest, [`Error::DamagedWord`].
    pub fn publish(&mut self, host: HostSlot, epoch: Epoch, taken: u64) -> Result<Commit, Error> {
        let half = self.half();
        for (place, entry) in (0..).zip(&mut self.entries) {
            entry.crc = self.protection.logged_checksum(half, place);
            self.protection.enter(half, place, *entry);
        }
        let pages = self.pages();
        let index_crc = self.protection.index_checksum(half, pages);
        let commit = Commit { number: self.number, pages, taken, host, epoch, index_crc };
        self.protection.publish(&commit)?;
        Ok(commit)
    }

    /// Brings the commit, which has been published, into the image, and begins the next. `still_ours` is asked every few
    /// pages: whether the guest is still its owner's to write for.
    ///
    /// # Errors
    /// [`Error::TakenAgain`] when it is not; the rest is for who has taken it.
    pub fn apply(&mut self, image: &CapacityMapping, still_ours: impl Fn() -> bool) -> Result<()> {
        self.protection.apply(self.half(), &self.entries, image, still_ours)?;
        self.protection.note_applied(self.number);
        self.begin(self.number + 1);
        Ok(())
    }

    /// The pages that it has.
    pub fn logged(&self) -> impl Iterator<Item = u64> + '_ {
        self.entries.iter().map(|entry| entry.page)
    }

    /// Forgets the pages that it has, and begins as the commit with this number.
    pub fn begin(&mut self, number: u64) {
        for entry in self.entries.drain(..) {
            if let Some(place) = usize::try_from(entry.page).ok().and_then(|page| self.place_of.get_mut(page)) {
                *place = NOWHERE;
            }
        }
        self.number = number;
    }
}
