//! What to do with a guest whose hosts or workers died, from its ownership word alone.
//!
//! Pure: it decides, others act. Whoever acts does so by [`crate::protocol::step`] and a compare-and-swap, so recoverers
//! that race with each other, with a late claim or with a returning host do no harm: one of them succeeds, the others
//! look again.
//!
//! # What is taken for granted
//!
//! - A worker is called dead only when it can never write again: its process has ended, or its host has been fenced.
//!   (A host judges its own workers by their processes, and other hosts by their lease.)
//! - A host has at most one worker for a guest at a time.

use nil_pool::{HostSlot, Ownership};

/// What whoever recovers knows about a host that the word names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Liveness {
    /// It has a worker that runs this guest, or may still claim it. (A worker that refused does not count.)
    Working,
    /// It lives, and has no worker for this guest.
    Idle,
    /// It is gone, with all of its workers.
    Gone,
    /// It lives, and whether it has a worker for this guest cannot be seen from here.
    Unknown,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Resolution {
    /// Nothing: there is no guest, or its owner runs it.
    Nothing,
    /// That host lives and acts by itself: its worker goes on, or its agent recovers.
    LeaveTo(HostSlot),
    /// The worker of this host died between its offer and its freeze. If every part is whole in the slot of the word's
    /// epoch, [`crate::protocol::Event::Salvage`] and look again; else [`crate::protocol::Event::Bury`]. Anybody may.
    SalvageOrBury(HostSlot),
    /// The worker of this host died while it ran the guest: [`crate::protocol::Event::Bury`], or
    /// [`crate::protocol::Event::Take`] if it has a whole checkpoint. Anybody may.
    Bury(HostSlot),
    /// The source starts a fresh worker that loads the frozen slot and commits by
    /// [`crate::protocol::Event::Cancel`]: the guest goes on where it was.
    TakeBack(HostSlot),
    /// The target starts a fresh worker that loads the frozen slot and commits by [`crate::protocol::Event::Claim`].
    TakeOver(HostSlot),
    /// This host has taken the guest, and brings it back to its checkpoint: from the beginning, if it was interrupted.
    BringBack(HostSlot),
    /// This host has taken the guest and is gone: [`crate::protocol::Event::Retake`]. Anybody may.
    Retake(HostSlot),
    /// The state is whole, and both who may run it are gone: it is kept until one of them returns, or another host that has
    /// fenced both does [`crate::protocol::Event::Redirect`].
    Stranded {
        /// May take it back.
        source: HostSlot,
        /// May claim it.
        target: HostSlot,
    },
    /// The CPU state is gone; the memory is kept until the guest is destroyed.
    Lost(HostSlot),
}

/// What becomes of a guest with this ownership word, given what is known of the hosts that it names.
pub fn recover(word: Ownership, liveness: impl Fn(HostSlot) -> Liveness) -> Resolution {
    use Liveness as L;
    match word {
        Ownership::Vacant => Resolution::Nothing,
        Ownership::Lost { host, .. } => Resolution::Lost(host),
        Ownership::Owned { host, .. } => match liveness(host) {
            L::Working => Resolution::Nothing,
            L::Unknown => Resolution::LeaveTo(host),
            L::Idle | L::Gone => Resolution::Bury(host),
        },
        Ownership::Offered { source, .. } => match liveness(source) {
            L::Working | L::Unknown => Resolution::LeaveTo(source),
            L::Idle | L::Gone => Resolution::SalvageOrBury(source),
        },
        Ownership::Taken { taker, .. } => match liveness(taker) {
            L::Working | L::Unknown => Resolution::LeaveTo(taker),
            L::Idle => Resolution::BringBack(taker),
            L::Gone => Resolution::Retake(taker),
        },
        Ownership::Frozen { source, target, .. } => match (liveness(source), liveness(target)) {
            (L::Working, L::Working | L::Idle | L::Gone | L::Unknown) => Resolution::LeaveTo(source),
            // An armed target is milliseconds nearer to running the guest than a fresh worker.
            (L::Idle | L::Gone | L::Unknown, L::Working) | (L::Gone, L::Unknown) => Resolution::LeaveTo(target),
            (L::Idle, L::Idle | L::Gone | L::Unknown) => Resolution::TakeBack(source),
            (L::Unknown, L::Idle | L::Gone | L::Unknown) => Resolution::LeaveTo(source),
            (L::Gone, L::Idle) => Resolution::TakeOver(target),
            (L::Gone, L::Gone) => Resolution::Stranded { source, target },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nil_pool::Epoch;

    const EPOCH: Epoch = Epoch(3);
    const ALL: [Liveness; 4] = [Liveness::Working, Liveness::Idle, Liveness::Gone, Liveness::Unknown];

    fn source() -> HostSlot {
        HostSlot::new(1).expect("a small slot")
    }

    fn target() -> HostSlot {
        HostSlot::new(2).expect("a small slot")
    }

    fn frozen_with(of_source: Liveness, of_target: Liveness) -> Resolution {
        let word = Ownership::Frozen { source: source(), target: target(), epoch: EPOCH };
        recover(word, |host| if host == source() { of_source } else { of_target })
    }

    #[test]
    fn a_running_guest_is_left_alone() {
        let word = Ownership::Owned { host: source(), epoch: EPOCH };
        assert_eq!(recover(word, |_| Liveness::Working), Resolution::Nothing);
        assert_eq!(recover(word, |_| Liveness::Unknown), Resolution::LeaveTo(source()));
    }

    #[test]
    fn a_guest_whose_worker_died_running_is_buried() {
        let word = Ownership::Owned { host: source(), epoch: EPOCH };
        for liveness in [Liveness::Idle, Liveness::Gone] {
            assert_eq!(recover(word, |_| liveness), Resolution::Bury(source()));
        }
    }

    #[test]
    fn an_offer_whose_source_died_is_looked_into() {
        let word = Ownership::Offered { source: source(), target: target(), epoch: EPOCH };
        assert_eq!(recover(word, |_| Liveness::Idle), Resolution::SalvageOrBury(source()));
        assert_eq!(recover(word, |_| Liveness::Working), Resolution::LeaveTo(source()));
    }

    #[test]
    fn a_frozen_guest_is_left_to_a_source_that_lives() {
        for of_target in ALL {
            assert_eq!(frozen_with(Liveness::Working, of_target), Resolution::LeaveTo(source()));
        }
    }

    #[test]
    fn a_frozen_guest_of_a_dead_source_is_left_to_the_armed_target() {
        for of_source in [Liveness::Idle, Liveness::Gone] {
            assert_eq!(frozen_with(of_source, Liveness::Working), Resolution::LeaveTo(target()));
        }
    }

    #[test]
    fn a_frozen_guest_comes_home_when_the_target_is_dead_too() {
        assert_eq!(frozen_with(Liveness::Idle, Liveness::Gone), Resolution::TakeBack(source()));
        assert_eq!(frozen_with(Liveness::Idle, Liveness::Idle), Resolution::TakeBack(source()));
    }

    #[test]
    fn a_frozen_guest_goes_on_at_the_target_when_the_sources_host_is_gone() {
        assert_eq!(frozen_with(Liveness::Gone, Liveness::Idle), Resolution::TakeOver(target()));
    }

    #[test]
    fn a_frozen_guest_is_never_given_up() {
        for of_source in ALL {
            for of_target in ALL {
                let resolution = frozen_with(of_source, of_target);
                assert!(!matches!(resolution, Resolution::Nothing | Resolution::Bury(_) | Resolution::Lost(_)));
            }
        }
    }

    #[test]
    fn a_taken_guest_is_its_takers_until_that_is_gone() {
        let word = Ownership::Taken { source: source(), taker: target(), epoch: EPOCH };
        let of = |liveness| recover(word, |host| if host == target() { liveness } else { Liveness::Gone });
        assert_eq!(of(Liveness::Working), Resolution::LeaveTo(target()));
        assert_eq!(of(Liveness::Unknown), Resolution::LeaveTo(target()));
        assert_eq!(of(Liveness::Idle), Resolution::BringBack(target()));
        assert_eq!(of(Liveness::Gone), Resolution::Retake(target()));
    }

    #[test]
    fn nobody_is_left_the_guest_who_is_gone() {
        for of_source in ALL {
            for of_target in ALL {
                let resolution = frozen_with(of_source, of_target);
                assert!(resolution != Resolution::LeaveTo(source()) || of_source != Liveness::Gone);
                assert!(resolution != Resolution::LeaveTo(target()) || of_target != Liveness::Gone);
            }
        }
    }
}
