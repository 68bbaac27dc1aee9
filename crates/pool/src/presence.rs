//! Whether any process of a host is left, on the kernel where it ran.
//!
//! Every process that may write in a host's name (its agent, its workers) holds a shared lock on one byte of the pool's file
//! or device: the first of the host's entry. The lock belongs to the open file description, so it goes when the process has
//! gone, and not before its threads have let go of its memory (`do_exit`: `exit_mm` comes before `exit_files`). Somebody else on the same
//! kernel who finds the byte free knows that nobody is left. A lock says nothing across kernels, nor through another
//! inode of the same device: the host's entry says which inode it locked.

use crate::backing::Backing;
use crate::error::{Error, Result};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

/// A lock of one byte (`struct flock`).
fn lock_of(kind: libc::c_int, byte: u64) -> libc::flock {
    // SAFETY: all bytes zero are a `struct flock`; open file description locks want `l_pid` to be zero.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::c_short::try_from(kind).unwrap_or(libc::c_short::MAX);
    lock.l_whence = libc::c_short::try_from(libc::SEEK_SET).unwrap_or(0);
    lock.l_start = i64::try_from(byte).unwrap_or(i64::MAX);
    lock.l_len = 1;
    lock
}

/// Holds the byte for as long as this open file description lives. False where there are no such locks.
pub(crate) fn hold(backing: &Backing, byte: u64) -> Result<bool> {
    let lock = lock_of(libc::F_RDLCK, byte);
    // SAFETY: the descriptor is open for reading, and `lock` is alive.
    let result = unsafe { libc::fcntl(backing.file().as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if result == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP) => Ok(false),
        _ => Err(failed(backing)),
    }
}

/// Whether somebody else holds the byte.
pub(crate) fn is_held(backing: &Backing, byte: u64) -> Result<bool> {
    let mut lock = lock_of(libc::F_WRLCK, byte);
    // SAFETY: the descriptor is open, and `lock` is alive and writable.
    let result = unsafe { libc::fcntl(backing.file().as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    if result == 0 { Ok(libc::c_int::from(lock.l_type) != libc::F_UNLCK) } else { Err(failed(backing)) }
}

/// The numbers of the file's device and inode.
pub(crate) fn file_number(backing: &Backing) -> Result<(u64, u64)> {
    let metadata = backing.file().metadata();
    let metadata =
        metadata.map_err(|source| Error::System { what: "examine", path: backing.path().to_owned(), source })?;
    Ok((metadata.dev(), metadata.ino()))
}

fn failed(backing: &Backing) -> Error {
    Error::System { what: "lock a byte of", path: backing.path().to_owned(), source: io::Error::last_os_error() }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::mapping::Access;

    #[test]
    fn a_byte_is_held_as_long_as_somebody_has_it_and_neighbours_do_not_matter() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("pool");
        std::fs::write(&path, [0; 4096]).expect("a file");
        let open = || Backing::open(&path, Access::ReadWrite).expect("it opens");
        let (observer, agent, worker) = (open(), open(), open());
        assert!(!is_held(&observer, 256).expect("it can be asked"));
        for holder in [&agent, &worker] {
            assert!(hold(holder, 256).expect("it can be held"));
        }
        assert!(!is_held(&observer, 512).expect("it can be asked"));
        drop(agent);
        assert!(is_held(&observer, 256).expect("it can be asked"), "its worker is left");
        drop(worker);
        assert!(!is_held(&observer, 256).expect("it can be asked"));
    }
}
