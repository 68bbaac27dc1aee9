//! What can go wrong with a process that moves.

use std::io;
use std::path::PathBuf;

/// Why a process could not be moved, or not further.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The process is not one that can be moved; nothing was changed.
    #[error("process {pid} cannot be moved: {why}")]
    Refused {
        /// Which process.
        pid: i32,
        /// What stands in the way, and what to do.
        why: String,
    },
    /// The process has ended.
    #[error("process {pid} has ended")]
    Gone {
        /// Which process.
        pid: i32,
    },
    /// The process runs another program now, all of whose memory is its own.
    #[error("process {pid} has started another program (execve): begin again")]
    Execed {
        /// Which process.
        pid: i32,
    },
    /// A system call that is made on a process's behalf or on the process failed.
    #[error("could not {what} process {pid}: {source}")]
    Call {
        /// Which process.
        pid: i32,
        /// What was tried.
        what: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
    /// What `/proc` says could not be read.
    #[error("could not read about process {pid}: {source}; mount /proc")]
    Proc {
        /// Which process.
        pid: i32,
        /// Why not.
        source: procfs::ProcError,
    },
    /// The kernel's userfaultfd cannot do enough.
    #[error("stores of process {pid} cannot be held up: {source}")]
    Userfault {
        /// Which process.
        pid: i32,
        /// Why not.
        source: nil_mover::Error,
    },
    /// The capacity is full.
    #[error("the capacity in {} has no room for {bytes:#x} more bytes; add a larger one", path.display())]
    NoRoom {
        /// The pool.
        path: PathBuf,
        /// How much was wanted.
        bytes: u64,
    },
    /// The pool cannot be used for processes.
    #[error("the pool {} cannot hold memory of processes: {why}", path.display())]
    BadHome {
        /// The pool.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// CRIU refused or failed.
    #[error("criu {action} failed: {why}; all of it is in {}", log.display())]
    Criu {
        /// `dump`, `restore`, `check`.
        action: &'static str,
        /// Its first error.
        why: String,
        /// Its log.
        log: PathBuf,
    },
    /// There is no CRIU that works here.
    #[error("criu does not work here: {why}; install criu 4.1 or later (apt-get install criu)")]
    NoCriu {
        /// What it says.
        why: String,
    },
    /// The pool says no.
    #[error(transparent)]
    Pool(#[from] nil_pool::Error),
}

/// What nearly all of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;
