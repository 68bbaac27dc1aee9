//! Where in a pool the memory of a process lies: one capacity, filled from its start on, seen as stretches of a file.
//!
//! Nothing but the kernel's table of mappings says which byte of a process lies where: whoever comes later reads the
//! very same from `/proc`. A place is never used twice while anything of the capacity is mapped.

use crate::error::{Error, Result};
use nil_pool::{Pool, Tag};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fstatfs, seek};
use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// `TMPFS_MAGIC` (`include/uapi/linux/magic.h`).
const TMPFS: i64 = 0x0102_1994;

/// A capacity for the memory of one process.
#[derive(Debug)]
pub struct Home {
    path: PathBuf,
    file: File,
    inode: (u64, u64),
    /// Where it lies in the file: offset and length, in the order of the capacity.
    stretches: Vec<(u64, u64)>,
    /// Bytes of the capacity that are taken.
    taken: Cell<u64>,
}

impl Home {
    /// Looks up a capacity that no other guest uses. The pool is a file on tmpfs whose path every host and process sees.
    ///
    /// # Errors
    /// [`Error::BadHome`] when the pool is no such file; those of [`Pool::stretches`].
    pub fn open(pool: &Pool, tag: Tag) -> Result<Self> {
        let path = pool.path().to_owned();
        let bad = |why: String| Error::BadHome { path: pool.path().to_owned(), why };
        let stretches = pool.stretches(tag)?;
        if stretches.iter().any(|(source, _)| source.pool != pool.id()) {
            return Err(bad("the capacity is striped over several pools; use one that is not".to_owned()));
        }
        let file = File::options().read(true).write(true).open(&path);
        let file = file.map_err(|error| bad(error.to_string()))?;
        let about = file.metadata().map_err(|error| bad(error.to_string()))?;
        let kind = fstatfs(&file).map_err(|error| bad(error.to_string()))?.f_type;
        if !about.is_file() || kind != TMPFS {
            return Err(bad("it is no file on tmpfs; use one in /dev/shm".to_owned()));
        }
        let stretches = stretches.iter().map(|(source, bytes)| (source.pool_offset.0, *bytes)).collect();
        Ok(Self { path, file, inode: (about.dev(), about.ino()), stretches, taken: Cell::new(0) })
    }

    /// The pool's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether that is the file with this device and inode.
    pub(crate) fn is_file(&self, device: (i32, i32), inode: u64) -> bool {
        let [major, minor] = [rustix::fs::major(self.inode.0), rustix::fs::minor(self.inode.0)];
        inode == self.inode.1
            && [device.0, device.1].map(|number| u32::try_from(number).ok()) == [Some(major), Some(minor)]
    }

    /// Takes note that a process has this part of the file mapped.
    pub(crate) fn note(&self, offset: u64, bytes: u64) {
        let mut before = 0;
        for (start, length) in &self.stretches {
            if (*start..start + length).contains(&offset) {
                self.taken.set(self.taken.get().max(before + offset - start + bytes));
            }
            before += length;
        }
    }

    /// Takes note that nothing is mapped.
    pub(crate) fn forget(&self) {
        self.taken.set(0);
    }

    /// Takes the next place for at most `bytes` bytes: an offset in the file, and how many there are.
    pub(crate) fn take(&self, bytes: u64) -> Result<(u64, u64)> {
        let mut before = 0;
        for (start, length) in &self.stretches {
            let skipped = self.taken.get().saturating_sub(before);
            if skipped < *length {
                let got = bytes.min(length - skipped);
                self.taken.set(before + skipped + got);
                return Ok((start + skipped, got));
            }
            before += length;
        }
        Err(Error::NoRoom { path: self.path.clone(), bytes })
    }

    /// Writes what a process had. Pages of zeros stay holes where the file has none; whether there are any.
    pub(crate) fn fill(&self, offset: u64, bytes: &[u8]) -> std::io::Result<bool> {
        const PAGE: usize = 4096;
        if self.has_data(offset, bytes.len() as u64) {
            return self.file.write_all_at(bytes, offset).map(|()| false);
        }
        let is_zero = |page: &[u8]| page.iter().all(|byte| *byte == 0);
        let (mut at, mut holes) = (0, false);
        while at < bytes.len() {
            let (zero, start) = (is_zero(&bytes[at..at + PAGE]), at);
            while at < bytes.len() && is_zero(&bytes[at..at + PAGE]) == zero {
                at += PAGE;
            }
            holes |= zero;
            if !zero {
                self.file.write_all_at(&bytes[start..at], offset + start as u64)?;
            }
        }
        Ok(holes)
    }

    /// Reads what a process has there.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        self.file.read_exact_at(into, offset)
    }

    /// Frees the memory there, which no process maps any more.
    pub(crate) fn free(&self, offset: u64, bytes: u64) -> std::io::Result<()> {
        Ok(fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, bytes)?)
    }

    /// Whether there is anything but holes.
    pub(crate) fn has_data(&self, offset: u64, bytes: u64) -> bool {
        // Only a file that has no data behind the offset says so by an error.
        seek(&self.file, SeekFrom::Data(offset)).is_ok_and(|data| data < offset + bytes)
    }
}
