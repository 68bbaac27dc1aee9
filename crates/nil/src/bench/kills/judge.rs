//! What may have become of a guest, by who died and what its ownership word said at that moment.
//!
//! | word when they were dead | source's worker dead        | target's worker dead | both           | neither        |
//! |--------------------------|-----------------------------|----------------------|----------------|----------------|
//! | owned by the source      | lost                        | runs at source       | lost           | runs at either |
//! | offered                  | lost, or salvaged           | runs at source       | lost, salvaged | runs at either |
//! | frozen                   | runs at either              | runs at source       | runs at source | runs at either |
//! | taken back               | lost                        | runs at source       | lost           | runs at source |
//! | owned by the target      | runs at target              | lost                 | lost           | runs at target |
//!
//! Where only memory moves, the word never changes by itself: the guest runs at its source at the same epoch, or is lost
//! with its worker.
//!
//! Agents die without consequence, so they do not appear. Survivors and agents act on while the word is read, so what is
//! read may already be the result of their doing: a guest that is lost by then is judged by who it was lost with.

use super::journey::{Errand, Journey};
use super::plan::Victim;
use nil_pool::{Epoch, HostSlot, Ownership};
use serde::Serialize;
use std::fmt;

/// What became of a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    Runs { host: HostSlot, epoch: Epoch },
    Lost { host: HostSlot, epoch: Epoch },
}

/// An ownership word, as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    OwnedBySource,
    Offered,
    Frozen,
    TakenBack,
    OwnedByTarget,
    Lost,
    /// Nothing that this migration can lead to.
    Alien,
}

/// An [`End`], as far as it matters for the statistics.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    RunsAtSource,
    RunsAtTarget,
    Lost,
}

impl Stage {
    /// Where in a migration a word stands.
    pub(super) fn of(word: Ownership, journey: &Journey) -> Self {
        let Journey { source: s, target: t, epoch: e, .. } = *journey;
        let next = journey.next_epoch();
        match word {
            Ownership::Owned { host, epoch } if host == s && epoch == e => Self::OwnedBySource,
            Ownership::Owned { host, epoch } if host == s && epoch == next => Self::TakenBack,
            Ownership::Owned { host, epoch } if host == t && epoch == next => Self::OwnedByTarget,
            Ownership::Offered { source, target, epoch } if (source, target, epoch) == (s, t, e) => Self::Offered,
            Ownership::Frozen { source, target, epoch } if (source, target, epoch) == (s, t, e) => Self::Frozen,
            Ownership::Lost { host, epoch } if host == s && (epoch == e || epoch == next) => Self::Lost,
            Ownership::Lost { host, epoch } if host == t && epoch == next => Self::Lost,
            Ownership::Vacant
            | Ownership::Owned { .. }
            | Ownership::Offered { .. }
            | Ownership::Frozen { .. }
            | Ownership::Lost { .. }
            | Ownership::Taken { .. } => Self::Alien,
        }
    }
}

/// Every end that is allowed.
pub(super) fn allowed(journey: &Journey, victim: Victim, word: Ownership) -> Vec<End> {
    let Journey { source, target, epoch, .. } = *journey;
    let next = journey.next_epoch();
    let untouched = End::Runs { host: source, epoch };
    let kept = End::Runs { host: source, epoch: next };
    let moved = End::Runs { host: target, epoch: next };
    let (source_died, target_died) = (victim.has_source_worker(), victim.has_target_worker());
    if journey.errand != Errand::Migration && Stage::of(word, journey) == Stage::OwnedBySource {
        return vec![if source_died { End::Lost { host: source, epoch } } else { untouched }];
    }
    match (Stage::of(word, journey), source_died, target_died) {
        (Stage::OwnedBySource, true, _) => vec![End::Lost { host: source, epoch }],
        (Stage::OwnedBySource, false, true) => vec![untouched, kept],
        (Stage::OwnedBySource, false, false) => vec![untouched, kept, moved],
        (Stage::Offered, true, true) => vec![End::Lost { host: source, epoch }, kept],
        (Stage::Offered, true, false) => vec![End::Lost { host: source, epoch }, kept, moved],
        (Stage::Offered | Stage::Frozen, false, true) | (Stage::Frozen, true, true) => vec![kept],
        (Stage::Offered | Stage::Frozen, false, false) | (Stage::Frozen, true, false) => vec![kept, moved],
        (Stage::TakenBack, true, _) => vec![End::Lost { host: source, epoch: next }],
        (Stage::TakenBack, false, _) => vec![kept],
        (Stage::OwnedByTarget, _, true) => vec![End::Lost { host: target, epoch: next }],
        (Stage::OwnedByTarget, _, false) => vec![moved],
        (Stage::Lost, _, _) => match word {
            Ownership::Lost { host, epoch } if (host == source && source_died) || (host == target && target_died) => {
                vec![End::Lost { host, epoch }]
            }
            _ => Vec::new(),
        },
        (Stage::Alien, _, _) => Vec::new(),
    }
}

/// Whether `later` may follow `earlier`, with any number of transitions in between that nobody saw.
pub(super) fn may_follow(earlier: Ownership, later: Ownership) -> bool {
    // Every epoch has one owner, and under it a guest is owned, offered, frozen, in this order.
    let place = |word| match word {
        Ownership::Vacant => None,
        Ownership::Owned { host, epoch } => Some((epoch, host, 0)),
        Ownership::Offered { source: host, epoch, .. } => Some((epoch, host, 1)),
        Ownership::Frozen { source: host, epoch, .. } => Some((epoch, host, 2)),
        Ownership::Lost { host, epoch } => Some((epoch, host, 3)),
        Ownership::Taken { source, epoch, .. } => Some((epoch, source, 1)),
    };
    let is_frozen = matches!(earlier, Ownership::Frozen { .. });
    let is_lost = matches!(later, Ownership::Lost { .. });
    match (place(earlier), place(later)) {
        _ if earlier == later => true,
        (None | Some((_, _, 3)), _) | (_, None) => false,
        (Some((before, ..)), Some((after, ..))) if before != after => before < after,
        // What is frozen is whole.
        (Some((_, host, rank)), Some((_, same, later))) => host == same && rank < later && !(is_frozen && is_lost),
    }
}

impl End {
    pub(super) fn outcome(self, journey: &Journey) -> Outcome {
        match self {
            Self::Lost { .. } => Outcome::Lost,
            Self::Runs { host, .. } if host == journey.source => Outcome::RunsAtSource,
            Self::Runs { .. } => Outcome::RunsAtTarget,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Runs { host, epoch } => write!(f, "runs on {host}, epoch {epoch}"),
            Self::Lost { host, epoch } => write!(f, "lost with {host}, epoch {epoch}"),
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::OwnedBySource => "owned by source",
            Self::Offered => "offered",
            Self::Frozen => "frozen",
            Self::TakenBack => "taken back",
            Self::OwnedByTarget => "owned by target",
            Self::Lost => "lost already",
            Self::Alien => "impossible",
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::RunsAtSource => "runs at source",
            Self::RunsAtTarget => "runs at target",
            Self::Lost => "lost",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::journey::tests::journey;
    use super::*;

    const VICTIMS: [Victim; 9] = [
        Victim::SourceWorker,
        Victim::TargetWorker,
        Victim::BothWorkers,
        Victim::SourceAgent,
        Victim::TargetAgent,
        Victim::BothAgents,
        Victim::SourceHost,
        Victim::TargetHost,
        Victim::BothHosts,
    ];

    fn words() -> [Ownership; 5] {
        let Journey { source, target, epoch, .. } = journey();
        let next = journey().next_epoch();
        [
            Ownership::Owned { host: source, epoch },
            Ownership::Offered { source, target, epoch },
            Ownership::Frozen { source, target, epoch },
            Ownership::Owned { host: source, epoch: next },
            Ownership::Owned { host: target, epoch: next },
        ]
    }

    #[test]
    fn a_frozen_guest_and_one_whose_owner_lives_are_never_lost() {
        for victim in VICTIMS {
            for word in words() {
                let owner_died = match word {
                    Ownership::Owned { host, .. } if host == journey().target => victim.has_target_worker(),
                    Ownership::Frozen { .. } => false,
                    _ => victim.has_source_worker(),
                };
                let ends = allowed(&journey(), victim, word);
                let may_be_lost = ends.iter().any(|end| matches!(end, End::Lost { .. }));
                assert_eq!(may_be_lost, owner_died, "{victim}, {word}: {ends:?}");
            }
        }
    }

    #[test]
    fn nobody_runs_a_guest_at_a_host_whose_worker_died_unless_it_was_thawed() {
        for victim in VICTIMS {
            for word in words() {
                for end in allowed(&journey(), victim, word) {
                    let End::Runs { host, epoch } = end else { continue };
                    assert!(host != journey().target || !victim.has_target_worker(), "{victim}, {word}: {end}");
                    let thawed = epoch == journey().next_epoch();
                    assert!(
                        host != journey().source || !victim.has_source_worker() || thawed,
                        "{victim}, {word}: {end}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_move_of_memory_changes_no_owner() {
        for errand in [Errand::Decouple, Errand::Recouple] {
            let journey = Journey { errand, ..journey() };
            let (host, epoch) = (journey.source, journey.epoch);
            let word = Ownership::Owned { host, epoch };
            assert_eq!(allowed(&journey, Victim::BothAgents, word), [End::Runs { host, epoch }]);
            assert_eq!(allowed(&journey, Victim::SourceHost, word), [End::Lost { host, epoch }]);
        }
    }

    #[test]
    fn a_word_of_no_migration_of_this_epoch_allows_nothing() {
        let host = journey().source;
        for word in
            [Ownership::Vacant, Ownership::Owned { host, epoch: Epoch(4) }, Ownership::Lost { host, epoch: Epoch(7) }]
        {
            assert_eq!(allowed(&journey(), Victim::SourceWorker, word), Vec::new());
        }
    }

    #[test]
    fn a_guest_lost_with_a_host_that_lives_is_not_allowed() {
        let word = Ownership::Lost { host: journey().source, epoch: journey().epoch };
        assert_eq!(allowed(&journey(), Victim::TargetWorker, word), Vec::new());
        assert_eq!(allowed(&journey(), Victim::SourceWorker, word).len(), 1);
    }

    #[test]
    fn words_only_move_forwards() {
        let words = words();
        for (earlier, &before) in words.iter().enumerate() {
            for (later, &after) in words.iter().enumerate() {
                // The last two are rivals for the same epoch.
                let rivals = earlier == 3 && later == 4;
                assert_eq!(may_follow(before, after), earlier <= later && !rivals, "{before} then {after}");
            }
        }
        let lost = Ownership::Lost { host: journey().source, epoch: journey().epoch };
        assert!(may_follow(words[1], lost));
        assert!(!may_follow(words[2], lost), "what is frozen is whole");
        assert!(!may_follow(lost, words[4]), "what is lost stays lost");
    }
}
