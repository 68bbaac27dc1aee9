//! What may become of a guest whose host, or whose worker, was struck.
//!
//! The ownership word and the last commit are read before the blow and again once whatever it hit does nothing any more. The
//! table is all that the rest of the harness takes for granted about takeovers:
//!
//! | the word after the blow                   | with a commit | without one  |
//! |-------------------------------------------|---------------|--------------|
//! | Owned by the victim                       | must live     | may be lost  |
//! | Offered by the victim                     | must live     | may be lost  |
//! | Frozen by or for the victim               | must live     | must live    |
//! | Taken by the victim                       | must live     | must live    |
//! | Lost, and it was the victim's before      | must live     | may be lost  |
//! | the same, in a later epoch than before    |               | may be lost  |
//! | anything of other hosts                   | untouched     | untouched    |

use nil_pool::{GuestControl, HostSlot, Ownership};

/// What may become of a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Fate {
    /// Nothing was done to it.
    #[default]
    Untouched,
    /// It was struck, and must go on.
    MustLive,
    /// It was struck, and nobody promised anything.
    MayBeLost,
}

/// What a guest's pool says of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Standing {
    pub(super) word: Ownership,
    /// The commit to which its owner's peers could bring it back.
    pub(super) commit: Option<u64>,
}

impl Standing {
    pub(super) fn of(guest: &GuestControl) -> anyhow::Result<Self> {
        let word = guest.ownership().load()?;
        // Damage is as good as no commit here; the check of the pool names it.
        let last = |host| guest.last_commit(host).ok().flatten().map(|commit| commit.number);
        let commit = match word {
            Ownership::Owned { host, .. } | Ownership::Lost { host, .. } => last(host),
            Ownership::Offered { source, .. } | Ownership::Taken { source, .. } => last(source),
            Ownership::Frozen { .. } | Ownership::Vacant => None,
        };
        Ok(Self { word, commit })
    }
}

impl Fate {
    /// After a blow that hit the host in that slot. `handled`: something else was being done with the guest, so that a commit
    /// that there was before may have been given up for that.
    pub(super) fn after_blow(self, victim: HostSlot, before: Standing, after: Standing, handled: bool) -> Self {
        let by_commit = |commit: Option<u64>| if commit.is_some() { Self::MustLive } else { Self::MayBeLost };
        match after.word {
            Ownership::Owned { host, .. } | Ownership::Offered { source: host, .. } if host == victim => {
                by_commit(after.commit)
            }
            Ownership::Frozen { source, target, .. } if source == victim || target == victim => Self::MustLive,
            Ownership::Taken { taker, .. } if taker == victim => Self::MustLive,
            Ownership::Taken { source, .. } if source == victim => Self::MustLive,
            Ownership::Lost { host, .. } if host == victim && !matches!(before.word, Ownership::Lost { .. }) => {
                // In a later epoch: it had been brought back from an earlier blow, and was struck again before a commit.
                let ran_on = after.word.epoch() > before.word.epoch();
                if ran_on || handled || self == Self::MayBeLost { Self::MayBeLost } else { by_commit(before.commit) }
            }
            _ => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nil_pool::Epoch;

    const DEAD: HostSlot = HostSlot::new(1).expect("a slot");
    const OTHER: HostSlot = HostSlot::new(2).expect("a slot");

    fn after(word: Ownership, commit: Option<u64>) -> Fate {
        let before = Standing { word: Ownership::Owned { host: DEAD, epoch: Epoch(1) }, commit };
        Fate::Untouched.after_blow(DEAD, before, Standing { word, commit }, false)
    }

    #[test]
    fn a_guest_with_a_commit_must_live_and_one_without_may_be_lost() {
        let owned = Ownership::Owned { host: DEAD, epoch: Epoch(1) };
        assert_eq!((after(owned, Some(3)), after(owned, None)), (Fate::MustLive, Fate::MayBeLost));
        let lost = Ownership::Lost { host: DEAD, epoch: Epoch(1) };
        assert_eq!((after(lost, Some(3)), after(lost, None)), (Fate::MustLive, Fate::MayBeLost));
    }

    #[test]
    fn what_is_frozen_is_never_lost_and_what_is_others_is_not_touched() {
        let epoch = Epoch(1);
        assert_eq!(after(Ownership::Frozen { source: DEAD, target: OTHER, epoch }, None), Fate::MustLive);
        assert_eq!(after(Ownership::Frozen { source: OTHER, target: DEAD, epoch }, None), Fate::MustLive);
        assert_eq!(after(Ownership::Taken { source: OTHER, taker: DEAD, epoch }, None), Fate::MustLive);
        assert_eq!(after(Ownership::Owned { host: OTHER, epoch }, None), Fate::Untouched);
    }

    #[test]
    fn a_commit_may_be_given_up_for_what_else_is_done_with_the_guest() {
        let before = Standing { word: Ownership::Owned { host: DEAD, epoch: Epoch(1) }, commit: Some(3) };
        let lost = Standing { word: Ownership::Lost { host: DEAD, epoch: Epoch(1) }, commit: None };
        assert_eq!(Fate::Untouched.after_blow(DEAD, before, lost, true), Fate::MayBeLost);
        assert_eq!(Fate::MayBeLost.after_blow(DEAD, before, lost, false), Fate::MayBeLost, "it was struck before");
        let later = Standing { word: Ownership::Lost { host: DEAD, epoch: Epoch(2) }, commit: None };
        assert_eq!(Fate::MustLive.after_blow(DEAD, before, later, false), Fate::MayBeLost, "it had been brought back");
        assert_eq!(Fate::MustLive.after_blow(DEAD, lost, lost, false), Fate::MustLive, "that was an earlier blow");
    }
}
