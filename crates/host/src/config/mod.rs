//! What an agent is told by a file: `nil host run --config host.toml`.
//!
//! Reading it takes two steps. `raw` is the file as it is written, where a key that nobody knows is an error with its
//! line; [`HostConfig`] is what it means, every value checked. What the file leaves out is `None` or empty here, so that
//! the command line can fill it in or overrule it.
//!
//! The Unix socket in the run directory is always there and needs no configuration.

mod address;
mod pool_ref;
mod raw;
#[cfg(test)]
mod tests;

pub use address::PeerAddress;
pub use pool_ref::PoolRef;

use crate::error::{Error, Result};
use crate::name::HostName;
use crate::report::Takeover;
use crate::tls::{Role, TlsFiles};
use nil_pool::LeaseTerms;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The most bytes that a configuration may have.
const LARGEST: u64 = 1 << 20;

/// An agent's configuration, checked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostConfig {
    /// The host's name.
    pub name: Option<HostName>,
    /// The pools to join.
    pub pools: Vec<PoolRef>,
    /// Directories in which pools may lie that are told by their UUIDs; empty is the usual one.
    pub search: Vec<PathBuf>,
    /// How capacity is taken that is offered to the host.
    pub accept: Option<Acceptance>,
    /// Bytes per second that may be used to move guests' memory, all moves together; `None` is no limit.
    pub move_bandwidth: Option<u64>,
    /// The most that guests may be promised of this host's CPUs, as `--cpu-limit` takes it; `None` is all that they have.
    pub cpu_limit: Option<String>,
    /// Where to answer other machines.
    pub listen: Listen,
    /// Where other hosts are, for those that do not say so in a pool. No two have the same name.
    pub peers: Vec<PeerConfig>,
    /// How guests' workers are confined.
    pub worker: WorkerConfig,
    /// How the host beats, and what it does about others that do not.
    pub lease: LeaseConfig,
    /// Where the agent's log goes.
    pub log: LogConfig,
}

/// Where an agent answers besides its Unix socket.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Listen {
    /// By mutual TLS.
    pub tls: Option<TlsListen>,
    /// Without any protection, for this machine only.
    pub plain: Option<PlainListen>,
}

/// An address where certificates say who is who.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsListen {
    /// Where to listen.
    pub address: SocketAddr,
    /// Where other hosts find that, if `address` is not it (`0.0.0.0`, or behind a translation).
    pub advertise: Option<PeerAddress>,
    /// The host's certificate, its key and its authority. [`crate::ServerTls::load`] and [`crate::ClientTls::load`]
    /// check them.
    pub files: TlsFiles,
}

impl TlsListen {
    /// Where other hosts are to call; `None` when there is no one address that they could use.
    #[must_use]
    pub fn advertised(&self) -> Option<PeerAddress> {
        let own = || (!self.address.ip().is_unspecified()).then(|| self.address.into());
        self.advertise.clone().or_else(own)
    }
}

/// An address where everybody on this machine is let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlainListen {
    /// Where to listen: a loopback address, always.
    pub address: SocketAddr,
    /// What who calls there may do: never what a host may.
    pub role: Role,
}

/// A host, and where its agent answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerConfig {
    /// Its name, which its certificate must have.
    pub name: HostName,
    /// Its address.
    pub address: PeerAddress,
}

/// How workers are confined.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WorkerConfig {
    /// Whether, and how strictly.
    pub sandbox: SandboxMode,
    /// Directories that hold guests' images, besides those that orders name: workers may read there.
    pub paths: Vec<PathBuf>,
    /// Bytes of memory that a worker may use besides twice its guest's; `None` is no limit.
    pub memory: Option<u64>,
    /// Threads that a worker may have besides one for each vCPU; `None` is no limit.
    pub threads: Option<u32>,
}

/// How a host takes capacity that is offered to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Acceptance {
    /// Its agent accepts whatever can be mapped.
    #[default]
    Always,
    /// The offer stays open until a person answers it.
    Ask,
}

impl FromStr for Acceptance {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "always" => Ok(Self::Always),
            "ask" => Ok(Self::Ask),
            _ => Err(format!("`{text}` is no way to take capacity; there are always and ask")),
        }
    }
}

/// How the host beats in its pools, and what it does about hosts that do not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LeaseConfig {
    /// How often it beats, and when it may be taken for dead.
    pub terms: LeaseTerms,
    /// What it does about hosts that may be taken for dead.
    pub takeover: Takeover,
    /// A program that takes a host's access to memory away, before anything is taken from the host.
    pub fence_command: Option<PathBuf>,
}

/// Whether workers are put into a sandbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxMode {
    /// As far as this kernel and this user can; what is missing is told.
    #[default]
    On,
    /// A worker that cannot be confined wholly is not started.
    Required,
    /// Not at all.
    Off,
}

impl SandboxMode {
    /// The mode's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Required => "required",
            Self::Off => "off",
        }
    }
}

impl FromStr for SandboxMode {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let known = [Self::On, Self::Required, Self::Off].into_iter().find(|mode| mode.as_str() == text);
        known.ok_or_else(|| format!("`{text}` is no way to confine a worker; there are on, required and off"))
    }
}

/// Where the agent's log goes, and how much of it there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogConfig {
    /// Where to.
    pub to: LogTarget,
    /// Down to which level; `None` leaves it to the environment.
    pub level: Option<LogLevel>,
}

/// Where a log goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogTarget {
    /// To the journal if systemd has connected standard error to it, else to standard error.
    #[default]
    Auto,
    /// To systemd's journal.
    Journal,
    /// To standard error.
    Stderr,
}

/// How much is logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// What failed.
    Error,
    /// And what went wrong and was dealt with.
    Warn,
    /// And what happens to guests.
    Info,
    /// And how.
    Debug,
    /// And everything else.
    Trace,
}

impl LogLevel {
    /// The level's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl HostConfig {
    /// A configuration in which every key stands with its meaning.
    pub const EXAMPLE: &'static str = include_str!("example.toml");

    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, is no TOML, has a key that is not known, or a value that cannot be: told with its line.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io("open the configuration", path, error))?;
        let mut text = String::new();
        file.take(LARGEST + 1).read_to_string(&mut text).map_err(|error| Error::io("read", path, error))?;
        if text.len() as u64 > LARGEST {
            return Err(Error::Unusable { path: path.to_path_buf(), why: format!("it has more than {LARGEST} bytes") });
        }
        // What is relative is so to the file, not to wherever the agent was started.
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, folder)
            .map_err(|why| Error::Unusable { path: path.to_path_buf(), why: why.trim_end().to_owned() })
    }

    /// Understands a text, in which relative paths begin at `folder`.
    ///
    /// # Errors
    /// Why it cannot be understood, with the line.
    pub fn parse(text: &str, folder: &Path) -> std::result::Result<Self, String> {
        let raw: raw::RawConfig = toml::from_str(text).map_err(|error| error.to_string())?;
        let config = raw.interpret(folder);
        let mut names = BTreeSet::new();
        match config.peers.iter().find(|peer| !names.insert(&peer.name)) {
            Some(twice) => Err(format!("peers: host {} has two addresses; give it one", twice.name)),
            None => Ok(config),
        }
    }
}
