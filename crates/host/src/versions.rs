//! The versions of what hosts and workers of different builds of nil have in common, in one place.
//!
//! | Interface | Between | Its version stands in | Rule |
//! |---|---|---|---|
//! | guest state | source and target worker, through the pool | every section (`nil_vmm::STATE_VERSION`) | a target reads its own version and the one before |
//! | handoff | source and target worker, by words in the pool | `nil_migrate::PROTOCOL_VERSION` | both speak the same, or one is one older |
//! | worker protocol | agent and worker, over a socket | `message::WORKER_PROTOCOL` | an agent understands workers of its own version and the one before |
//! | pool format | all, in the pool's header | `nil_pool::FORMAT_VERSION` | a host opens pools of its own version and the one before |
//!
//! Each counts from 1. A change that an older build could misunderstand raises the number, and whoever raises it keeps
//! the code for the number before.

use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// The versions that a build of nil speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Versions {
    /// Of a guest's saved state.
    pub state: u32,
    /// Of the handoff protocol.
    pub handoff: u32,
    /// Of what agents and workers say to each other.
    pub worker: u32,
    /// Of the pool format.
    pub pool: u32,
}

/// Something that two builds of nil have in common.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Interface {
    /// A guest's saved state.
    State,
    /// The handoff protocol.
    Handoff,
    /// What agents and workers say to each other.
    Worker,
    /// The pool format.
    Pool,
}

impl Versions {
    /// Those of this build.
    pub const OURS: Self = Self {
        state: nil_vmm::STATE_VERSION as u32,
        handoff: nil_migrate::PROTOCOL_VERSION,
        worker: crate::message::WORKER_PROTOCOL,
        pool: nil_pool::FORMAT_VERSION,
    };

    /// Those of workers that do not tell any: they are of the first build.
    #[must_use]
    pub fn first() -> Self {
        Self { state: 1, handoff: 1, worker: 1, pool: 1 }
    }

    /// What keeps a guest whose worker speaks `self` from being taken over by a worker that speaks `target`: the
    /// interface, the source's version, the target's.
    #[must_use]
    pub fn mismatches(&self, target: &Self) -> Vec<(Interface, u32, u32)> {
        let pairs = [
            (Interface::State, self.state, target.state, reads(target.state, self.state)),
            (
                Interface::Handoff,
                self.handoff,
                target.handoff,
                reads(target.handoff, self.handoff) || reads(self.handoff, target.handoff),
            ),
            (Interface::Pool, self.pool, target.pool, reads(target.pool, self.pool) || reads(self.pool, target.pool)),
        ];
        pairs
            .into_iter()
            .filter(|pair| !pair.3)
            .map(|(interface, source, target, _)| (interface, source, target))
            .collect()
    }
}

/// Whether a build at version `own` understands what one at `other` has written: N and N−1.
#[must_use]
pub(crate) fn reads(own: u32, other: u32) -> bool {
    other == own || (other > 0 && other.checked_add(1) == Some(own))
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::State => "guest state",
            Self::Handoff => "the handoff protocol",
            Self::Worker => "the worker protocol",
            Self::Pool => "the pool format",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_reads_its_own_version_and_the_one_before() {
        assert_eq!([1, 2, 3, 4].map(|other| reads(3, other)), [false, true, true, false]);
        assert!(!reads(1, 0) && !reads(u32::MAX, 0) && !reads(0, u32::MAX));
    }

    #[test]
    fn newer_state_is_not_taken_but_a_newer_target_takes_older_state() {
        let (old, new) = (Versions::first(), Versions { state: 2, handoff: 2, ..Versions::first() });
        assert!(old.mismatches(&new).is_empty());
        assert_eq!(new.mismatches(&old), [(Interface::State, 2, 1)]);
        let newest = Versions { state: 3, handoff: 3, pool: 3, worker: 3 };
        let all = [(Interface::State, 1, 3), (Interface::Handoff, 1, 3), (Interface::Pool, 1, 3)];
        assert_eq!(old.mismatches(&newest), all);
    }
}
