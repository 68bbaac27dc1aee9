//! Which of a guest's two records counts, while its home moves from one pool to another.
//!
//! Pure: it decides, the guest's host acts. For a while a guest has a record in each pool, its *twins*. The later one is
//! made Vacant, and published at an epoch after the earlier one's, in one compare-and-swap by the worker that runs the guest.
//! So the words alone say which one counts: **the one with the latest epoch**, and never one that is Vacant.
//!
//! # Who dies when
//!
//! R1 is the record that was, R2 the one that is to be; the host's slots in the two pools are both its own.
//!
//! | The agent, or the worker, died after | R1 | R2 | Counts | Agent dead: its successor | Worker dead: its agent |
//! |---|---|---|---|---|---|
//! | a part of R2 was made | Owned(e) | – | R1 | the pool's recovery undoes it | as without a rehoming |
//! | R2 was made | Owned(e) | Vacant | R1 | destroys R2 | destroys R2; buries R1 |
//! | some memory came to DRAM | Owned(e) | Vacant | R1 | destroys R2; memory stays where it is | destroys R2; buries R1 |
//! | R2 was published | Owned(e) | Owned(e+1) | R2 | waits: the worker is about to switch | destroys R1; buries R2 |
//! | the worker switched | Owned(e) | Owned(e+1) | R2 | destroys R1 | destroys R1; buries R2 |
//! | a part of R1 was destroyed | Vacant, ending | Owned(e+1) | R2 | the pool's recovery finishes it | the same; buries R2 |
//! | R1 was destroyed | – | Owned(e+1) | R2 | nothing to do | buries R2 |
//! | some memory went to the pool | – | Owned(e+1) | R2 | as after any decoupling | buries R2 |
//!
//! If both died, the next agent acts as on a dead worker. Only the death of the worker costs the guest anything: it ran
//! there.
//!
//! # What is taken for granted
//!
//! - A host has at most one worker for a guest, and says of it truly which record it refers to. What a worker that is
//!   switching says may be old by a moment: so nothing is done to a record that a living worker may still refer to.
//! - A guest is not handed over while it has two records: its agent occupies it, and a fresh agent looks for twins before
//!   it takes orders. Others do not destroy a record whose owner lives.

use nil_pool::{Epoch, HostSlot, Ownership};

/// One of a guest's two records, as the guest's host sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Record {
    /// Its ownership word.
    pub word: Ownership,
    /// The host's slot in the record's pool.
    pub host: HostSlot,
}

impl Record {
    /// When the owner that it names became so; `None` when it names none.
    fn since(&self) -> Option<Epoch> {
        self.word.epoch()
    }

    /// Whether the host may destroy it, if it does not count.
    fn is_disposable(&self) -> bool {
        match self.word {
            Ownership::Vacant | Ownership::Lost { .. } => true,
            Ownership::Owned { host, .. } => host == self.host,
            Ownership::Offered { .. } | Ownership::Frozen { .. } | Ownership::Taken { .. } => false,
        }
    }
}

/// One of two.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Which {
    /// The one that was named first.
    First,
    /// The other one.
    Second,
}

/// What is to be done about a guest with two records.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    /// That one does not count: destroy it.
    Discard(Which),
    /// The worker is about to refer to the one that counts: look again in a moment.
    Wait,
    /// They cannot be the two ends of a rehoming by this host: touch neither, and say so.
    Contradiction,
}

/// Judges the two records of a guest by their words, and by which of them a living worker of this host refers to.
#[must_use]
pub fn judge(first: Record, second: Record, worker: Option<Which>) -> Verdict {
    let idle = match (first.since(), second.since()) {
        (None, None) => return Verdict::Contradiction,
        (None, Some(_)) => Which::First,
        (Some(_), None) => Which::Second,
        (Some(one), Some(other)) if one == other => return Verdict::Contradiction,
        (Some(one), Some(other)) if one < other => Which::First,
        (Some(_), Some(_)) => Which::Second,
    };
    let record = match idle {
        Which::First => first,
        Which::Second => second,
    };
    match worker {
        _ if !record.is_disposable() => Verdict::Contradiction,
        Some(worker) if worker == idle && record.word == Ownership::Vacant => Verdict::Contradiction,
        Some(worker) if worker == idle => Verdict::Wait,
        Some(_) | None => Verdict::Discard(idle),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(index: u16) -> HostSlot {
        HostSlot::new(index).expect("a small slot")
    }

    /// A record in a pool in which this host has slot 3.
    fn record(word: Ownership) -> Record {
        Record { word, host: slot(3) }
    }

    fn owned(epoch: u32) -> Record {
        record(Ownership::Owned { host: slot(3), epoch: Epoch(epoch) })
    }

    fn vacant() -> Record {
        record(Ownership::Vacant)
    }

    #[test]
    fn a_twin_that_was_not_published_goes_whoever_has_died() {
        for worker in [None, Some(Which::First)] {
            assert_eq!(judge(owned(4), vacant(), worker), Verdict::Discard(Which::Second));
        }
        assert_eq!(judge(vacant(), owned(4), None), Verdict::Discard(Which::First));
    }

    #[test]
    fn once_it_is_published_the_earlier_record_goes_when_no_worker_refers_to_it() {
        assert_eq!(judge(owned(4), owned(5), Some(Which::First)), Verdict::Wait);
        assert_eq!(judge(owned(4), owned(5), Some(Which::Second)), Verdict::Discard(Which::First));
        assert_eq!(judge(owned(5), owned(4), None), Verdict::Discard(Which::Second));
    }

    #[test]
    fn of_two_that_were_buried_one_remains() {
        let lost = |epoch| record(Ownership::Lost { host: slot(3), epoch: Epoch(epoch) });
        assert_eq!(judge(lost(4), lost(5), None), Verdict::Discard(Which::First));
        assert_eq!(judge(lost(4), owned(5), None), Verdict::Discard(Which::First));
    }

    #[test]
    fn a_record_that_another_host_owns_is_not_touched() {
        let others = record(Ownership::Owned { host: slot(9), epoch: Epoch(4) });
        assert_eq!(judge(others, owned(5), None), Verdict::Contradiction);
        assert_eq!(judge(others, vacant(), None), Verdict::Discard(Which::Second));
    }

    #[test]
    fn what_is_on_its_way_elsewhere_is_not_touched() {
        let offered = record(Ownership::Offered { source: slot(3), target: slot(9), epoch: Epoch(4) });
        let frozen = record(Ownership::Frozen { source: slot(3), target: slot(9), epoch: Epoch(4) });
        for earlier in [offered, frozen] {
            assert_eq!(judge(earlier, owned(5), None), Verdict::Contradiction);
        }
    }

    #[test]
    fn two_of_the_same_epoch_are_no_twins() {
        assert_eq!(judge(owned(4), owned(4), None), Verdict::Contradiction);
        assert_eq!(judge(vacant(), vacant(), None), Verdict::Contradiction);
    }
}
