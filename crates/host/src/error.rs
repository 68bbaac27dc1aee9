//! What can go wrong on a host, said so that a person knows what to do.

use crate::compatibility::Reason;
use crate::name::{GuestName, HostName};
use std::io;
use std::path::{Path, PathBuf};

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an agent, a worker or a client could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on a file failed.
    #[error("cannot {doing} {path}", path = path.display())]
    Io {
        /// What was attempted, as a verb.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The run directory is too deep for the addresses of Unix sockets.
    #[error(
        "{path} is too long a path for sockets, which have room for 107 bytes in all; set NIL_RUN_DIR to a shorter one",
        path = path.display()
    )]
    PathTooLong {
        /// The host's directory.
        path: PathBuf,
    },
    /// Others may write into the host's directory.
    #[error(
        "{path} belongs to somebody else or can be written by others, who could take over your guests; remove it or set \
         NIL_RUN_DIR to a directory of your own",
        path = path.display()
    )]
    ForeignRunDir {
        /// The host's directory.
        path: PathBuf,
    },
    /// A host of that name runs already.
    #[error("a host named {name} is running already (process {pid}); stop it, or choose another --name")]
    NameTaken {
        /// The name.
        name: HostName,
        /// What the running agent wrote into its lock.
        pid: String,
    },
    /// No host of that name was ever started here.
    #[error("there is no host named {name}; {known}")]
    UnknownHost {
        /// The name that was asked for.
        name: String,
        /// Which hosts there are, as a sentence.
        known: String,
    },
    /// The host exists, but its agent does not run.
    #[error("the agent of host {name} is not running; start it with `nil host run --name {name} --pool PATH`")]
    HostGone {
        /// The host.
        name: HostName,
    },
    /// No guest of that name is known.
    #[error("there is no guest named {name}; {known}")]
    UnknownGuest {
        /// The name that was asked for.
        name: String,
        /// Which guests there are, as a sentence.
        known: String,
    },
    /// A guest of that name exists on the host.
    #[error(
        "host {host} has a guest named {name} already; choose another --name, or stop it with `nil vm stop {name}`"
    )]
    GuestNameTaken {
        /// The guest.
        name: GuestName,
        /// The host.
        host: HostName,
    },
    /// The process is not there any more.
    #[error("the process has ended")]
    ProcessGone,
    /// Nobody listens on the peer's socket.
    #[error("{peer} does not answer: nobody listens on its socket")]
    NobodyThere {
        /// Who was called.
        peer: String,
    },
    /// The peer hung up in the middle of a conversation.
    #[error("{peer} hung up before it had answered")]
    Hangup {
        /// Who hung up.
        peer: String,
    },
    /// The peer kept silent for too long.
    #[error("{peer} has not answered in time")]
    NoAnswer {
        /// Who kept silent.
        peer: String,
    },
    /// What the peer sent is no message of ours.
    #[error("{peer} sent something that is not understood; do both run the same version of nil?")]
    NotUnderstood {
        /// Who sent it.
        peer: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The connection to the peer broke.
    #[error("the connection to {peer} broke")]
    Broken {
        /// Who was at the other end.
        peer: String,
        /// How it broke.
        source: io::Error,
    },
    /// A certificate, a key or an authority is no good.
    #[error("{path} cannot be used: {why}", path = path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The other side of a connection is not who it should be.
    #[error("{peer} is not trusted: {why}")]
    Untrusted {
        /// Who was called, or calls.
        peer: String,
        /// Why not.
        why: String,
    },
    /// The pool refused.
    #[error(transparent)]
    Pool(#[from] nil_pool::Error),
    /// The handoff protocol refused.
    #[error(transparent)]
    Migrate(#[from] nil_migrate::Error),
    /// The VMM refused.
    #[error(transparent)]
    Vm(#[from] nil_vmm::Error),
    /// The agent ends, and begins nothing any more.
    #[error("the agent of host {name} is stopping")]
    Stopping {
        /// The host.
        name: HostName,
    },
    /// Something else is being done that this does not go together with; the sentence says what.
    #[error("{0}")]
    Busy(String),
    /// What was asked for is not there; the sentence says what.
    #[error("{0}")]
    Unknown(String),
    /// A host cannot have a guest.
    #[error("{said}")]
    Incompatible {
        /// The guest, the host, and every reason: one a line.
        said: String,
        /// The same for programs.
        reasons: Vec<Reason>,
    },
    /// What was being done was called off.
    #[error("it was called off")]
    CalledOff,
    /// The request was refused; the sentence says why.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    pub(crate) fn io(doing: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Io { doing, path: path.as_ref().to_path_buf(), source }
    }

    pub(crate) fn refused(sentence: impl Into<String>) -> Self {
        Self::Refused(sentence.into())
    }

    /// The whole story in one line: this error and everything that caused it.
    #[must_use]
    pub fn story(&self) -> String {
        story(self)
    }
}

/// An error and everything that caused it, in one line.
pub(crate) fn story(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some errors repeat their cause in their own words; saying it twice helps nobody.
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
