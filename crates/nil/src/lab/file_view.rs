//! The beginning of a file in this process's memory, shared with whoever else has it mapped.

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::ptr::{self, NonNull};

/// A shared, writable mapping, ended on drop.
#[derive(Debug)]
pub(crate) struct FileView {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to no thread: any may look at it, and whichever drops the view unmaps it.
#[allow(unsafe_code)]
unsafe impl Send for FileView {}
// SAFETY: as above; what it gives out is a pointer, and whoever reads through that says why it may.
#[allow(unsafe_code)]
unsafe impl Sync for FileView {}

impl FileView {
    /// Maps the first `length` bytes of a file, which must have as many.
    pub(crate) fn open(path: &Path, length: usize) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let there = file.metadata()?.len();
        if usize::try_from(there).is_ok_and(|there| there < length) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("it has only {there} bytes")));
        }
        let start = Self::map(&file, length)?;
        Ok(Self { start, length })
    }

    #[allow(unsafe_code)]
    fn map(file: &std::fs::File, length: usize) -> io::Result<NonNull<u8>> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the address, so that no mapping of this process is replaced.
        let start = unsafe { mmap(ptr::null_mut(), length, protection, MapFlags::SHARED, file, 0) }?;
        NonNull::new(start.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// Its first byte, at a page's beginning.
    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.length
    }
}

impl Drop for FileView {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: `map` mapped exactly these bytes, and whoever reads through `as_ptr` borrows this view.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok(), "munmap of a mapping of ours: {unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_too_short_is_not_mapped() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let error = FileView::open(file.path(), 4096).expect_err("it is empty");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        file.as_file().set_len(4096).expect("a page");
        assert_eq!(FileView::open(file.path(), 4096).expect("a view").len(), 4096);
    }
}
