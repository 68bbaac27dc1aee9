//! Where in which file a mapped address lies.

use crate::backing::Backing;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Device and inode.
pub(crate) type FileId = (u64, u64);

/// A byte of a file, whatever it is mapped at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Place {
    pub(crate) file: FileId,
    pub(crate) offset: u64,
}

impl Place {
    /// Its cache line.
    pub(super) fn line(self) -> Self {
        Self { offset: self.offset & !(super::LINE - 1), ..self }
    }

    /// So many bytes further on.
    pub(super) fn after(self, bytes: usize) -> Self {
        Self { offset: self.offset + bytes as u64, ..self }
    }

    /// Its word in the line.
    pub(super) fn word(self) -> u8 {
        u8::try_from(self.offset % super::LINE / 8).unwrap_or(0)
    }

    /// A word of this line.
    pub(super) fn at_word(self, word: u8) -> Self {
        Self { offset: self.offset + u64::from(word) * 8, ..self }
    }
}

#[derive(Debug)]
struct Mapped {
    end: usize,
    place: Place,
}

/// By their first address.
static MAPPED: Mutex<BTreeMap<usize, Mapped>> = Mutex::new(BTreeMap::new());

fn all() -> MutexGuard<'static, BTreeMap<usize, Mapped>> {
    MAPPED.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn file_of(backing: &Backing) -> FileId {
    backing.file().metadata().map_or((0, 0), |metadata| (metadata.dev(), metadata.ino()))
}

/// Bytes of a backing lie at this address from now on.
pub(crate) fn mapped(backing: &Backing, offset: u64, start: *mut u8, bytes: usize) {
    let (start, end) = (start.addr(), start.addr() + bytes);
    let mut all = all();
    all.retain(|first, mapped| mapped.end <= start || *first >= end);
    all.insert(start, Mapped { end, place: Place { file: file_of(backing), offset } });
}

/// Nothing lies there any more.
pub(crate) fn unmapped(start: *mut u8, bytes: usize) {
    let (start, end) = (start.addr(), start.addr() + bytes);
    all().retain(|first, mapped| mapped.end <= start || *first >= end);
}

/// Some address at which a byte is mapped.
pub(super) fn address_of(place: Place) -> Option<usize> {
    all().iter().find_map(|(start, mapped)| {
        let distance = usize::try_from(place.offset.checked_sub(mapped.place.offset)?).ok()?;
        (place.file == mapped.place.file && distance < mapped.end - start).then_some(start + distance)
    })
}

/// What lies at an address, if it is a pool's.
pub(super) fn find(address: usize) -> Option<Place> {
    let all = all();
    let (start, mapped) = all.range(..=address).next_back()?;
    let offset = mapped.place.offset + (address - start) as u64;
    (address < mapped.end).then_some(Place { offset, ..mapped.place })
}
