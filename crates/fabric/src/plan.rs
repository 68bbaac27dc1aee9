//! What comes of planning for many guests.

use crate::model::{Fabric, HostId};
use crate::path::Path;
use crate::quantity::{Bytes, Duration};

/// A guest's move.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Move {
    /// Its place in the list of guests that was given.
    pub guest: usize,
    /// Its way.
    pub path: Path,
}

/// Moves that are made at once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wave {
    /// The moves.
    pub moves: Vec<Move>,
}

impl Wave {
    /// Until the last of them is done.
    #[must_use]
    pub fn time(&self) -> Duration {
        self.moves.iter().map(|one| one.path.time()).max().unwrap_or_default()
    }
}

/// A guest for which nothing was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Left {
    /// Its place in the list of guests that was given.
    pub guest: usize,
    /// Why, as a sentence.
    pub why: String,
}

/// Moves for many guests: wave after wave, each begun when all of the one before is done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// The waves.
    pub waves: Vec<Wave>,
    /// The guests that stay where they are although they should not.
    pub left: Vec<Left>,
}

impl Plan {
    /// All moves, in order.
    pub fn moves(&self) -> impl Iterator<Item = &Move> {
        self.waves.iter().flat_map(|wave| &wave.moves)
    }

    /// Until the last wave is done.
    #[must_use]
    pub fn time(&self) -> Duration {
        self.waves.iter().map(Wave::time).sum()
    }

    /// How much memory is copied in all.
    #[must_use]
    pub fn copied(&self) -> Bytes {
        Bytes(self.moves().map(|one| one.path.copied().0).fold(0, u64::saturating_add))
    }
}

/// How evenly hosts are used, in thousandths of what they have. A host is used as far as its CPUs or its DRAM are,
/// whichever is more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Evenness {
    /// The host that is used most.
    pub most: Option<HostId>,
    /// How far.
    pub highest: u64,
    /// The mean.
    pub mean: u64,
    /// The standard deviation.
    pub deviation: u64,
}

impl Evenness {
    /// Of hosts that are used this far.
    pub(crate) fn of(fabric: &Fabric, used: &[u64]) -> Self {
        let most = fabric.host_ids().max_by_key(|host| (used[host.index()], std::cmp::Reverse(*host)));
        let count = used.len().max(1) as u64;
        let mean = used.iter().sum::<u64>() / count;
        let variance = used.iter().map(|one| one.abs_diff(mean).pow(2)).sum::<u64>() / count;
        Self { most, highest: most.map_or(0, |host| used[host.index()]), mean, deviation: variance.isqrt() }
    }
}

#[cfg(test)]
mod tests;
