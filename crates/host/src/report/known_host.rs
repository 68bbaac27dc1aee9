//! What the pools say of hosts, and what hosts say of themselves.

use super::{PoolReport, Resources};
use crate::name::HostName;
use nil_pool::{HostId, Liveness, PoolId};
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// A host in one of the pools that this host has joined, this one among them; or one that shares none with it, and has told
/// it what it has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct KnownHost {
    /// Its name.
    pub name: HostName,
    /// Its identity.
    pub id: HostId,
    /// Whether it is the one that tells this.
    pub here: bool,
    /// Whether its agent lives, as far as is known here.
    pub life: Life,
    /// What its lease says of it, in the pool where that is worst.
    pub standing: HostStanding,
    /// Whether no guests are to come to it.
    pub cordoned: bool,
    /// Where its agent answers other machines.
    pub address: Option<String>,
    /// The pools that it has joined, of those that this host has joined, too.
    pub pools: Vec<PoolId>,
    /// How many guests in those pools it is responsible for.
    pub guests: usize,
    /// What it has for guests, as its agent has told within the last minute; `None` when it has not.
    #[serde(default)]
    pub resources: Option<Resources>,
    /// The pools that it has joined, whoever else has, as its agent has told within the last minute.
    #[serde(default)]
    pub joined: Vec<JoinedPool>,
}

/// A pool that a host has joined, as its agent tells others: where it is there is of no use to them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct JoinedPool {
    /// Its identity.
    pub id: PoolId,
    /// What it is called there.
    pub name: String,
    /// Bytes that it could still give.
    pub free_bytes: u64,
    /// Bytes that it has for guests.
    pub total_bytes: u64,
}

impl From<PoolReport> for JoinedPool {
    fn from(pool: PoolReport) -> Self {
        let name =
            pool.path.file_name().map_or_else(|| pool.id.to_string(), |name| name.to_string_lossy().into_owned());
        Self { id: pool.id, name, free_bytes: pool.free_bytes, total_bytes: pool.total_bytes }
    }
}

/// Whether a host's agent lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// Its process runs on this machine.
    Alive,
    /// It runs on another machine, or is hidden from here: only its lease could tell.
    Elsewhere,
    /// Its process is gone.
    Gone,
}

/// What is seen of a host by its lease.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostStanding {
    /// It beats.
    #[default]
    Alive,
    /// It has missed a beat.
    Late,
    /// It has not beaten for half of the time after which it may be fenced.
    Suspect,
    /// It has not beaten for so long that it may be fenced.
    Expired,
    /// Nothing of it is left on this machine, for sure.
    Dead,
    /// Somebody is fencing it; nothing is taken from it yet.
    Fencing,
    /// It has been fenced: what is left of it runs nothing more and writes nothing more.
    Fenced,
}

impl HostStanding {
    /// All of them, from the best to the worst.
    pub const ALL: [Self; 7] =
        [Self::Alive, Self::Late, Self::Suspect, Self::Expired, Self::Dead, Self::Fencing, Self::Fenced];

    /// The standing in one word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Late => "late",
            Self::Suspect => "suspect",
            Self::Expired => "expired",
            Self::Dead => "dead",
            Self::Fencing => "fencing",
            Self::Fenced => "fenced",
        }
    }
}

impl fmt::Display for HostStanding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl From<Liveness> for Life {
    fn from(liveness: Liveness) -> Self {
        match liveness {
            Liveness::Alive => Self::Alive,
            Liveness::Dead => Self::Gone,
            Liveness::Unknown => Self::Elsewhere,
        }
    }
}
