//! What can go wrong with a QEMU.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of driving QEMU.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such program.
    #[error("cannot start {}: {source}; install QEMU (on Debian: apt-get install qemu-system-x86)", program.display())]
    NotInstalled {
        /// What was to be started.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// QEMU ended by itself.
    #[error("QEMU ended ({status}): {said}")]
    Exited {
        /// Its exit status.
        status: String,
        /// The end of what it wrote.
        said: String,
    },
    /// QEMU took too long.
    #[error("QEMU did not come to this within {waited:?}: {what}")]
    Timeout {
        /// What was awaited.
        what: String,
        /// For how long.
        waited: Duration,
    },
    /// QEMU refuses a command.
    #[error("QEMU refuses {command}: {reason}")]
    Refused {
        /// The QMP command.
        command: String,
        /// QEMU's reason.
        reason: String,
    },
    /// QEMU said something that is no QMP.
    #[error("QEMU's control socket speaks no QMP: {what}")]
    Protocol {
        /// What is wrong.
        what: String,
    },
    /// A migration failed.
    #[error("QEMU's migration {status}: {reason}")]
    Migration {
        /// The final status.
        status: String,
        /// QEMU's reason, if it gave one.
        reason: String,
    },
    /// A migration did not end.
    #[error(
        "QEMU's migration did not converge within {waited:?}: the guest dirties memory faster than QEMU copies it \
         ({} MiB copied in vain)", transferred_bytes >> 20
    )]
    NotConverging {
        /// How long was waited.
        waited: Duration,
        /// Bytes that were sent for nothing.
        transferred_bytes: u64,
    },
    /// The control socket failed.
    #[error("the control socket of QEMU failed: {0}")]
    Socket(#[source] io::Error),
    /// A directory for sockets or memory cannot be used.
    #[error("cannot use {} for a QEMU's files: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}
