//! What a takeover was: a guest whose host was fenced goes on at another, or is lost.

use crate::name::{GuestName, HostName};
use nil_pool::GuestId;
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// What an agent does about hosts of its pools that have expired.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Takeover {
    /// It fences them and takes their guests.
    Auto,
    /// It says so, and does it when `nil takeover` tells it to.
    #[default]
    Ask,
    /// Nothing, whatever it is told.
    Never,
}

impl Takeover {
    /// The mode in one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Ask => "ask",
            Self::Never => "never",
        }
    }
}

impl std::str::FromStr for Takeover {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Self::Auto, Self::Ask, Self::Never].into_iter().find(|mode| mode.as_str() == text);
        known.ok_or_else(|| format!("`{text}` is no way to treat dead hosts; there are auto, ask and never"))
    }
}

/// What has become of a guest whose host was fenced.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum TakeoverOutcome {
    /// It runs at its taker, from its last checkpoint on.
    Resumed,
    /// It runs at its taker, from where it had been frozen: nothing is lost.
    Rescued,
    /// Its CPU state is gone: it had no checkpoint. Its memory is kept.
    Lost,
    /// It is not lost, and does not run.
    Failed {
        /// Why.
        why: String,
    },
}

impl fmt::Display for TakeoverOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resumed => write!(f, "resumed from its last checkpoint"),
            Self::Rescued => write!(f, "rescued as it had been frozen"),
            Self::Lost => write!(f, "lost: it had no checkpoint; its memory is kept"),
            Self::Failed { why } => write!(f, "not taken: {why}"),
        }
    }
}

/// One takeover. Times are counted from the last sign of life of the host that was seen here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TakeoverReport {
    /// The guest.
    pub guest: GuestName,
    /// Its identity.
    pub id: GuestId,
    /// The host that was fenced.
    pub from: String,
    /// The host that took it.
    pub by: HostName,
    /// What has become of it.
    pub outcome: TakeoverOutcome,
    /// Whether it was known for sure that nothing of the host was left.
    pub sure: bool,
    /// The checkpoint from which it went on, if it did.
    pub last_commit: Option<u64>,
    /// When the host was judged dead, in microseconds.
    pub detected_us: u64,
    /// How long it took to fence it from then on, with the fence command.
    pub fenced_us: u64,
    /// How long it took to bring memory and state back to the checkpoint.
    pub undone_us: u64,
    /// Pages that were brought back.
    pub pages: u64,
    /// When the guest executed its first instruction here; `None` if it did not.
    pub resumed_us: Option<u64>,
}
