//! How a guest is protected, for people and programs to see.

use crate::micros::micros;
use nil_pool::{OutputRule, ProtectionSettings};
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// What the protection of a guest is good for now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProtectionState {
    /// It can be brought back to its last commit.
    Active,
    /// All of its memory is being copied into the image; it cannot be brought back yet.
    Syncing,
    /// Its memory moves, or is not all in DRAM, or something else is in the way; it cannot be brought back meanwhile.
    Suspended,
}

impl ProtectionState {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Active, Self::Syncing, Self::Suspended];

    /// The state in one word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Syncing => "syncing",
            Self::Suspended => "suspended",
        }
    }
}

/// How a guest is protected.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProtectionReport {
    /// What that is good for now.
    pub state: ProtectionState,
    /// Why it is not in force, where there is something to say.
    #[serde(default)]
    pub why: Option<String>,
    /// How long from one commit to the next, in microseconds.
    pub interval_us: u64,
    /// What becomes of output before the commit that follows it.
    pub output: OutputRule,
    /// The number of its last commit; 0 if there has been none.
    pub commit: u64,
    /// Pages of 4 KiB in that commit; `None` where only the guest's own host knows.
    #[serde(default)]
    pub pages: Option<u64>,
    /// The longest standstill of a commit in the last second, in microseconds; likewise.
    #[serde(default)]
    pub standstill_us: Option<u64>,
    /// How often an epoch has written more than a commit holds, since the guest is where it is.
    #[serde(default)]
    pub overruns: u64,
}

impl ProtectionReport {
    pub(crate) fn new(state: ProtectionState, settings: ProtectionSettings, commit: u64) -> Self {
        let interval_us = micros(settings.interval);
        let output = settings.output;
        Self { state, why: None, interval_us, output, commit, pages: None, standstill_us: None, overruns: 0 }
    }
}

impl ProtectionReport {
    /// State and last commit, where there is little room: "active, 17".
    #[must_use]
    pub fn brief(&self) -> String {
        format!("{}, {}", self.state.word(), self.commit)
    }
}

/// "active, every 25 ms, commit 17", or with what is in the way.
impl fmt::Display for ProtectionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { state, why, interval_us, commit, .. } = self;
        let held = if self.output == OutputRule::Hold { ", output held" } else { "" };
        let why = why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        let every = std::time::Duration::from_micros(*interval_us);
        f.pad(&format!("{}{why}, every {every:?}{held}, commit {commit}", state.word()))
    }
}
