//! What the pools say of hosts.

use super::Resources;
use crate::name::HostName;
use nil_pool::{HostId, Liveness, PoolId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A host in one of the pools that this host has joined; this one is among them.
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

impl From<Liveness> for Life {
    fn from(liveness: Liveness) -> Self {
        match liveness {
            Liveness::Alive => Self::Alive,
            Liveness::Dead => Self::Gone,
            Liveness::Unknown => Self::Elsewhere,
        }
    }
}
