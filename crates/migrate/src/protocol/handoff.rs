//! One handoff: who hands a guest to whom at which epoch, and the words that it passes through.

use super::{Event, Illegal, step};
use nil_pool::{Arm, Epoch, HostSlot, Ownership};

/// One handoff S → T at epoch e. That it exists means that its every transition is legal, so the words below need no
/// error.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Handoff {
    source: HostSlot,
    target: HostSlot,
    epoch: Epoch,
    next: Epoch,
}

impl Handoff {
    /// A handoff of the guest that `source` owns at `epoch` to `target`.
    ///
    /// # Errors
    /// [`Illegal`] when source and target are the same, or no epoch follows.
    pub fn new(source: HostSlot, target: HostSlot, epoch: Epoch) -> Result<Self, Illegal> {
        let owned = Ownership::Owned { host: source, epoch };
        step(owned, source, Event::Offer { target })?;
        let next = epoch.next().ok_or(Illegal::NoEpochLeft(owned))?;
        Ok(Self { source, target, epoch, next })
    }

    /// The handoff that a word is in the middle of, if it is.
    #[must_use]
    pub fn of(word: Ownership) -> Option<Self> {
        match word {
            Ownership::Offered { source, target, epoch } => Self::new(source, target, epoch).ok(),
            Ownership::Frozen { source, target, epoch } => Self::frozen_for(source, target, epoch).ok(),
            Ownership::Vacant | Ownership::Owned { .. } | Ownership::Lost { .. } | Ownership::Taken { .. } => None,
        }
    }

    /// The end of a handoff that has come to its freeze. A guest that its own host has taken back to a checkpoint is frozen
    /// for that host: it cannot be offered to itself, but thawed.
    ///
    /// # Errors
    /// [`Illegal`] when no epoch follows.
    pub fn frozen_for(source: HostSlot, target: HostSlot, epoch: Epoch) -> Result<Self, Illegal> {
        let next = epoch.next().ok_or(Illegal::NoEpochLeft(Ownership::Frozen { source, target, epoch }))?;
        Ok(Self { source, target, epoch, next })
    }

    /// Who hands the guest over.
    #[must_use]
    pub fn source(&self) -> HostSlot {
        self.source
    }

    /// Who is to take it.
    #[must_use]
    pub fn target(&self) -> HostSlot {
        self.target
    }

    /// The epoch of the source's ownership: the state goes to slot `epoch & 1`.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The epoch of whoever owns the guest once the handoff is over, whichever way it ends.
    #[must_use]
    pub fn next_epoch(&self) -> Epoch {
        self.next
    }

    /// The word before the handoff.
    #[must_use]
    pub fn owned(&self) -> Ownership {
        Ownership::Owned { host: self.source, epoch: self.epoch }
    }

    /// The word while the source still runs the guest and freezes it.
    #[must_use]
    pub fn offered(&self) -> Ownership {
        Ownership::Offered { source: self.source, target: self.target, epoch: self.epoch }
    }

    /// The word while nobody runs the guest.
    #[must_use]
    pub fn frozen(&self) -> Ownership {
        Ownership::Frozen { source: self.source, target: self.target, epoch: self.epoch }
    }

    /// The word after the target has claimed the guest.
    #[must_use]
    pub fn claimed(&self) -> Ownership {
        Ownership::Owned { host: self.target, epoch: self.next }
    }

    /// The word after the source has withdrawn its offer or cancelled the handoff.
    #[must_use]
    pub fn kept(&self) -> Ownership {
        Ownership::Owned { host: self.source, epoch: self.next }
    }

    /// What the target writes once it may be offered the guest.
    #[must_use]
    pub fn armed(&self) -> Arm {
        Arm::Armed { host: self.target, epoch: self.epoch }
    }

    /// What the target writes once it has seen the offer.
    #[must_use]
    pub fn poised(&self) -> Arm {
        Arm::Poised { host: self.target, epoch: self.epoch }
    }

    /// What the target writes when it will not claim.
    #[must_use]
    pub fn refused(&self) -> Arm {
        Arm::Refused { host: self.target, epoch: self.epoch }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_handoff_are_what_the_transitions_make_of_them() {
        let (source, target) = (HostSlot::new(1).expect("small"), HostSlot::new(2).expect("small"));
        let handoff = Handoff::new(source, target, Epoch(5)).expect("a legal handoff");
        assert_eq!(step(handoff.owned(), source, Event::Offer { target }), Ok(handoff.offered()));
        assert_eq!(step(handoff.offered(), source, Event::Withdraw), Ok(handoff.kept()));
        assert_eq!(step(handoff.offered(), source, Event::Freeze), Ok(handoff.frozen()));
        assert_eq!(step(handoff.frozen(), source, Event::Cancel), Ok(handoff.kept()));
        assert_eq!(step(handoff.frozen(), target, Event::Claim), Ok(handoff.claimed()));
        assert_eq!(Handoff::of(handoff.offered()), Some(handoff));
        assert_eq!(Handoff::of(handoff.frozen()), Some(handoff));
    }
}
