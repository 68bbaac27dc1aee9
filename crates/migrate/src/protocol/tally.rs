//! The countdown that the vCPU threads of one worker share: who is the last, and whether all went well.
//!
//! A tally belongs to one round (the epoch of a handoff), so a thread that comes late for a round that is over is not
//! counted into the next.

use nil_pool::Epoch;

/// How many of a worker's vCPUs have still to arrive in a round, and whether any failed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tally {
    /// The round.
    pub round: Epoch,
    /// vCPUs that have not arrived.
    pub left: u16,
    /// Whether one that arrived had failed.
    pub failed: bool,
}

/// What an arrival means for whoever arrived.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Arrival {
    /// Others have still to come.
    Early,
    /// All are there and all went well: the last one goes on for all.
    LastOfAll,
    /// All are there and at least one failed.
    LastWithFailure,
    /// The round is over: nobody waits for this arrival.
    TooLate,
}

impl Tally {
    const FAILED: u64 = 1 << 63;

    /// A round that nobody has arrived in.
    #[must_use]
    pub fn open(round: Epoch, vcpus: u16) -> Self {
        Self { round, left: vcpus, failed: false }
    }

    /// A round that nobody may arrive in.
    #[must_use]
    pub fn closed(round: Epoch) -> Self {
        Self { round, left: 0, failed: false }
    }

    /// Whether vCPUs are expected.
    #[must_use]
    pub fn is_open(self) -> bool {
        self.left > 0
    }

    /// The tally after one arrival in `round`.
    #[must_use]
    pub fn arrive(self, round: Epoch, well: bool) -> (Self, Arrival) {
        if self.round != round || self.left == 0 {
            return (self, Arrival::TooLate);
        }
        let next = Self { left: self.left - 1, failed: self.failed || !well, ..self };
        let arrival = match (next.left, next.failed) {
            (0, false) => Arrival::LastOfAll,
            (0, true) => Arrival::LastWithFailure,
            (1.., _) => Arrival::Early,
        };
        (next, arrival)
    }

    /// The tally after something went wrong in `round` for one that had arrived already.
    #[must_use]
    pub fn fail(self, round: Epoch) -> Self {
        Self { failed: self.failed || self.round == round, ..self }
    }

    /// As one word, for an atomic.
    #[must_use]
    pub fn encode(self) -> u64 {
        let failed = if self.failed { Self::FAILED } else { 0 };
        failed | u64::from(self.left) << 32 | u64::from(self.round.0)
    }

    /// The inverse of [`Tally::encode`].
    #[must_use]
    pub fn decode(word: u64) -> Self {
        let [r0, r1, r2, r3, l0, l1, ..] = word.to_le_bytes();
        Self {
            round: Epoch(u32::from_le_bytes([r0, r1, r2, r3])),
            left: u16::from_le_bytes([l0, l1]),
            failed: word & Self::FAILED != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_arrival_is_told_so() {
        let tally = Tally::open(Epoch(9), 2);
        let (tally, first) = tally.arrive(Epoch(9), true);
        assert_eq!(first, Arrival::Early);
        let (tally, last) = tally.arrive(Epoch(9), true);
        assert_eq!(last, Arrival::LastOfAll);
        assert!(!tally.is_open());
    }

    #[test]
    fn an_early_failure_is_not_forgotten() {
        let (tally, _) = Tally::open(Epoch(9), 2).arrive(Epoch(9), false);
        assert_eq!(tally.arrive(Epoch(9), true).1, Arrival::LastWithFailure);
    }

    #[test]
    fn an_arrival_for_another_round_is_not_counted() {
        let tally = Tally::open(Epoch(9), 1);
        assert_eq!(tally.arrive(Epoch(8), true), (tally, Arrival::TooLate));
        let closed = Tally::closed(Epoch(9));
        assert_eq!(closed.arrive(Epoch(9), true), (closed, Arrival::TooLate));
    }

    #[test]
    fn a_tally_survives_its_encoding() {
        for tally in [
            Tally { round: Epoch(u32::MAX), left: u16::MAX, failed: true },
            Tally { round: Epoch(1), left: 3, failed: false },
        ] {
            assert_eq!(Tally::decode(tally.encode()), tally);
        }
    }
}
