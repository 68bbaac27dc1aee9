//! The handoff protocol as pure functions: which change of the ownership word is legal, and who may make it.
//!
//! ```text
//!               create                offer                  freeze                 claim
//!     Vacant ──────────▶ Owned(S,e) ─────────▶ Offered(S→T,e) ─────────▶ Frozen(S→T,e) ─────────▶ Owned(T,e+1)
//!        ▲                 │  ▲  ▲                │    │    salvage ▲        │
//!        │ destroy         │  │  └────────────────┘    └─────────────┘        │
//!        ├─────────────────┤  │  withdraw: Owned(S,e+1)                       │
//!        │                 │  └───────────────────────────────────────────────┘
//!        │           bury  ▼          bury                cancel: Owned(S,e+1)
//!        └────────────── Lost(S,e) ◀────── Offered(S→T,e)
//!
//!                            take                    ┌── retake: Taken(S→T',e+1), T is gone
//!     Owned, Offered(S,e) ──────────▶ Taken(S→T,e+1) ┤
//!                                       │        ▲   └── give up: Lost(S,e+1)
//!                                       │ raise  │
//!                                       ▼        └─ S is gone, its last checkpoint is whole
//!                                     Frozen(S→T,e+1), and on as above; when S and T are gone, redirect: Frozen(S→T',e)
//! ```
//!
//! | event    | from → to                     | who                                  | when                                        |
//! |----------|-------------------------------|--------------------------------------|---------------------------------------------|
//! | create   | Vacant → Owned(S,1)           | S                                    | the boot state lies in slot 0 as epoch 0    |
//! | offer    | Owned(S,e) → Offered(S→T,e)   | S's worker                           | T is `Armed` at e                           |
//! | withdraw | Offered → Owned(S,e+1)        | S's worker                           | T not ready, a save failed, or time is over |
//! | freeze   | Offered → Frozen              | S's last vCPU thread                 | every part is in slot e & 1                 |
//! | claim    | Frozen → Owned(T,e+1)         | T's last vCPU thread                 | every part is loaded                        |
//! | cancel   | Frozen → Owned(S,e+1)         | S's worker, or one that S's agent started | T refused, or time is over             |
//! | salvage  | Offered → Frozen              | recovery                             | S's worker is dead, every part is in slot e & 1 |
//! | bury     | Owned, Offered → Lost(S,e)    | recovery                             | S's worker is dead, the state is not whole  |
//! | destroy  | Owned(S,e), Lost → Vacant     | S; anybody                           | on request                                  |
//! | take     | Owned, Offered → Taken(S→T,e+1) | T, which may be S                  | S's worker is dead, or S is fenced; a checkpoint is whole |
//! | retake   | Taken(S→T,e) → Taken(S→T',e+1) | T', which may be T                  | T is gone                                   |
//! | raise    | Taken(S→T,e) → Frozen(S→T,e)  | T                                    | memory and slot e & 1 are those of the checkpoint |
//! | give up  | Taken(S→T,e) → Lost(S,e)      | T                                    | there is no whole checkpoint after all      |
//! | redirect | Frozen(S→T,e) → Frozen(S→T',e) | T'                                  | S and T are gone                            |
//!
//! Every change is one compare-and-swap from the exact word that the actor decided on; the epoch never comes back, so no
//! change can be made twice. Whoever's compare-and-swap succeeded made it, and knows that. A word that *reads* as one's
//! own proves nothing: another worker of the same host may have written it.
//!
//! # Crash points
//!
//! What is left when a worker dies at each step of a handoff S → T at epoch e, and what comes of it
//! ([`crate::recovery::recover`] decides; `tests/model` walks through all of it):
//!
//! | the last thing done                     | word         | S's worker dies                                  | T's worker dies                               |
//! |-----------------------------------------|--------------|--------------------------------------------------|-----------------------------------------------|
//! | T wrote `Arming` or `Armed`             | Owned(S,e)   | lost: its CPU state was in the worker only       | never offered to; the guest notices nothing   |
//! | S offered, nothing saved                | Offered      | lost                                             | S withdraws: `Poised` never comes             |
//! | T wrote `Poised`                        | Offered      | lost                                             | S freezes, waits its time, cancels            |
//! | S kicked, some parts saved              | Offered      | lost: some CPU state was in the worker only      | as above                                      |
//! | S saved the last part                   | Offered      | salvaged: Frozen, then as below                  | as above                                      |
//! | S froze                                 | Frozen       | T claims as if nothing had been                  | S cancels when its time is over               |
//! | T loaded some or all parts              | Frozen       | T claims                                         | S cancels; T had not become the owner         |
//! | S froze, then died; T refused or died   | Frozen       | S's agent thaws the guest at home (cancel)       | T's agent, if S's host is gone (claim)        |
//! | T claimed                               | Owned(T,e+1) | the guest is at T                                | lost: its CPU state was in the worker only    |
//! | S cancelled or withdrew                 | Owned(S,e+1) | lost                                             | T had nothing; a late claim fails             |

mod arming;
mod handoff;
mod tally;
mod turn;

pub use arming::{ArmEvent, IllegalArm, arm_step};
pub use handoff::Handoff;
pub use tally::{Arrival, Tally};
pub use turn::{Role, SourceTurn, TargetTurn, source_turn, target_turn};

use nil_pool::{Epoch, HostSlot, Ownership};
use std::fmt;

/// Something that changes the ownership word.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// A new guest gets its first owner.
    Create,
    /// The owner announces that it is about to freeze the guest for `target`.
    Offer {
        /// Who is to take over.
        target: HostSlot,
    },
    /// The owner takes its offer back; the guest never stopped for good.
    Withdraw,
    /// The owner publishes the guest's state.
    Freeze,
    /// The target becomes the owner: the commit point of a handoff.
    Claim,
    /// The source becomes the owner again.
    Cancel,
    /// Recovery publishes the whole state that a dead worker left unpublished.
    Salvage {
        /// Whose worker is dead.
        dead: HostSlot,
    },
    /// Recovery records that the guest's CPU state is gone.
    Bury {
        /// Whose worker is dead.
        dead: HostSlot,
    },
    /// The guest's record is given up.
    Destroy,
    /// A host takes a guest whose owner runs it no more, to bring it back to its last checkpoint. The commit point of who
    /// takes it.
    Take {
        /// Whose worker is dead, or fenced.
        dead: HostSlot,
    },
    /// A host takes a guest from one that died, or was fenced, while it brought it back.
    Retake {
        /// The taker that is gone.
        dead: HostSlot,
    },
    /// The taker publishes the checkpoint as the guest's state.
    Raise,
    /// The taker records that there is no whole checkpoint.
    GiveUp,
    /// A host takes a frozen guest from the dead target of a dead source.
    Redirect {
        /// The target that is gone.
        dead: HostSlot,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create => write!(f, "create"),
            Self::Offer { target } => write!(f, "offer to {target}"),
            Self::Withdraw => write!(f, "withdraw"),
            Self::Freeze => write!(f, "freeze"),
            Self::Claim => write!(f, "claim"),
            Self::Cancel => write!(f, "cancel"),
            Self::Salvage { dead } => write!(f, "salvage from {dead}"),
            Self::Bury { dead } => write!(f, "bury with {dead}"),
            Self::Destroy => write!(f, "destroy"),
            Self::Take { dead } => write!(f, "take from {dead}"),
            Self::Retake { dead } => write!(f, "retake from {dead}"),
            Self::Raise => write!(f, "raise"),
            Self::GiveUp => write!(f, "give up"),
            Self::Redirect { dead } => write!(f, "redirect from {dead}"),
        }
    }
}

/// Why the protocol does not allow an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Illegal {
    /// No event of this kind leaves this state.
    #[error("cannot {event}: the guest is {state}")]
    NotNow {
        /// The word.
        state: Ownership,
        /// What was asked for.
        event: Event,
    },
    /// The event is another host's to make.
    #[error("{by} may not {event}: the guest is {state}")]
    NotYours {
        /// The word.
        state: Ownership,
        /// Who asked.
        by: HostSlot,
        /// What was asked for.
        event: Event,
    },
    /// A host cannot hand a guest to itself.
    #[error("{0} cannot hand a guest to itself; name another host as the target")]
    ToItself(HostSlot),
    /// The guest has had 2³²−1 owners.
    #[error("the guest at {0} has used up its epochs; stop it and start it as a new guest")]
    NoEpochLeft(Ownership),
}

/// The word that `event`, made by `by`, leads to from `state`.
///
/// # Errors
/// [`Illegal`] when the protocol does not have this transition, or it is not `by`'s to make.
pub fn step(state: Ownership, by: HostSlot, event: Event) -> Result<Ownership, Illegal> {
    use {Event as E, Ownership as O};
    let only = |who: HostSlot| if who == by { Ok(()) } else { Err(Illegal::NotYours { state, by, event }) };
    let dead_is = |dead: HostSlot, who: HostSlot| {
        if dead == who { Ok(()) } else { Err(Illegal::NotYours { state, by: dead, event }) }
    };
    let after = |epoch: Epoch| epoch.next().ok_or(Illegal::NoEpochLeft(state));
    match (state, event) {
        (O::Vacant, E::Create) => Ok(O::Owned { host: by, epoch: Epoch(1) }),
        (O::Owned { host, epoch }, E::Offer { target }) => {
            only(host)?;
            after(epoch)?;
            if target == host {
                return Err(Illegal::ToItself(host));
            }
            Ok(O::Offered { source: host, target, epoch })
        }
        (O::Offered { source, epoch, .. }, E::Withdraw) | (O::Frozen { source, epoch, .. }, E::Cancel) => {
            only(source)?;
            Ok(O::Owned { host: source, epoch: after(epoch)? })
        }
        (O::Offered { source, target, epoch }, E::Freeze) => {
            only(source)?;
            Ok(O::Frozen { source, target, epoch })
        }
        (O::Frozen { target, epoch, .. }, E::Claim) => {
            only(target)?;
            Ok(O::Owned { host: target, epoch: after(epoch)? })
        }
        (O::Offered { source, target, epoch }, E::Salvage { dead }) => {
            dead_is(dead, source)?;
            Ok(O::Frozen { source, target, epoch })
        }
        (O::Owned { host, epoch } | O::Offered { source: host, epoch, .. }, E::Bury { dead }) => {
            dead_is(dead, host)?;
            Ok(O::Lost { host, epoch })
        }
        (O::Owned { host, .. }, E::Destroy) => {
            only(host)?;
            Ok(O::Vacant)
        }
        (O::Lost { .. }, E::Destroy) => Ok(O::Vacant),
        (O::Owned { host, epoch } | O::Offered { source: host, epoch, .. }, E::Take { dead }) => {
            dead_is(dead, host)?;
            // It is to be frozen and claimed yet.
            let epoch = after(epoch)?;
            after(epoch)?;
            Ok(O::Taken { source: host, taker: by, epoch })
        }
        (O::Taken { source, taker, epoch }, E::Retake { dead }) => {
            dead_is(dead, taker)?;
            let epoch = after(epoch)?;
            after(epoch)?;
            Ok(O::Taken { source, taker: by, epoch })
        }
        (O::Taken { source, taker, epoch }, E::Raise) => {
            only(taker)?;
            Ok(O::Frozen { source, target: taker, epoch })
        }
        (O::Taken { source, taker, epoch }, E::GiveUp) => {
            only(taker)?;
            Ok(O::Lost { host: source, epoch })
        }
        (O::Frozen { source, target, epoch }, E::Redirect { dead }) => {
            dead_is(dead, target)?;
            Ok(O::Frozen { source, target: by, epoch })
        }
        (
            O::Vacant,
            E::Offer { .. }
            | E::Withdraw
            | E::Freeze
            | E::Claim
            | E::Cancel
            | E::Salvage { .. }
            | E::Bury { .. }
            | E::Destroy
            | E::Take { .. }
            | E::Retake { .. }
            | E::Raise
            | E::GiveUp
            | E::Redirect { .. },
        )
        | (
            O::Owned { .. },
            E::Create
            | E::Withdraw
            | E::Freeze
            | E::Claim
            | E::Cancel
            | E::Salvage { .. }
            | E::Retake { .. }
            | E::Raise
            | E::GiveUp
            | E::Redirect { .. },
        )
        | (
            O::Offered { .. },
            E::Create
            | E::Offer { .. }
            | E::Claim
            | E::Cancel
            | E::Destroy
            | E::Retake { .. }
            | E::Raise
            | E::GiveUp
            | E::Redirect { .. },
        )
        | (
            O::Frozen { .. },
            E::Create
            | E::Offer { .. }
            | E::Withdraw
            | E::Freeze
            | E::Salvage { .. }
            | E::Bury { .. }
            | E::Destroy
            | E::Take { .. }
            | E::Retake { .. }
            | E::Raise
            | E::GiveUp,
        )
        | (
            O::Lost { .. },
            E::Create
            | E::Offer { .. }
            | E::Withdraw
            | E::Freeze
            | E::Claim
            | E::Cancel
            | E::Salvage { .. }
            | E::Bury { .. }
            | E::Take { .. }
            | E::Retake { .. }
            | E::Raise
            | E::GiveUp
            | E::Redirect { .. },
        )
        | (
            O::Taken { .. },
            E::Create
            | E::Offer { .. }
            | E::Withdraw
            | E::Freeze
            | E::Claim
            | E::Cancel
            | E::Salvage { .. }
            | E::Bury { .. }
            | E::Destroy
            | E::Take { .. }
            | E::Redirect { .. },
        ) => Err(Illegal::NotNow { state, event }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch(7);

    fn host(index: u16) -> HostSlot {
        HostSlot::new(index).expect("a small slot")
    }

    fn states() -> [Ownership; 6] {
        let (source, target, epoch) = (host(1), host(2), EPOCH);
        [
            Ownership::Vacant,
            Ownership::Owned { host: source, epoch },
            Ownership::Offered { source, target, epoch },
            Ownership::Frozen { source, target, epoch },
            Ownership::Lost { host: source, epoch },
            Ownership::Taken { source, taker: target, epoch },
        ]
    }

    fn events() -> [Event; 14] {
        let dead = host(1);
        [
            Event::Create,
            Event::Offer { target: host(2) },
            Event::Withdraw,
            Event::Freeze,
            Event::Claim,
            Event::Cancel,
            Event::Salvage { dead },
            Event::Bury { dead },
            Event::Destroy,
            Event::Take { dead },
            Event::Retake { dead: host(2) },
            Event::Raise,
            Event::GiveUp,
            Event::Redirect { dead: host(2) },
        ]
    }

    #[test]
    fn the_legal_transitions_are_the_documented_ones_and_no_others() {
        let mut legal = Vec::new();
        for state in states() {
            for event in events() {
                for by in 1..=3 {
                    if let Ok(next) = step(state, host(by), event) {
                        legal.push(format!("h{by}: {state} --{event}--> {next}"));
                    }
                }
            }
        }
        let expected = [
            "h1: vacant --create--> owned by h1, epoch 1",
            "h2: vacant --create--> owned by h2, epoch 1",
            "h3: vacant --create--> owned by h3, epoch 1",
            "h1: owned by h1, epoch 7 --offer to h2--> offered h1→h2, epoch 7",
            "h1: owned by h1, epoch 7 --bury with h1--> lost by h1, epoch 7",
            "h2: owned by h1, epoch 7 --bury with h1--> lost by h1, epoch 7",
            "h3: owned by h1, epoch 7 --bury with h1--> lost by h1, epoch 7",
            "h1: owned by h1, epoch 7 --destroy--> vacant",
            "h1: owned by h1, epoch 7 --take from h1--> taken from h1 by h1, epoch 8",
            "h2: owned by h1, epoch 7 --take from h1--> taken from h1 by h2, epoch 8",
            "h3: owned by h1, epoch 7 --take from h1--> taken from h1 by h3, epoch 8",
            "h1: offered h1→h2, epoch 7 --withdraw--> owned by h1, epoch 8",
            "h1: offered h1→h2, epoch 7 --freeze--> frozen h1→h2, epoch 7",
            "h1: offered h1→h2, epoch 7 --salvage from h1--> frozen h1→h2, epoch 7",
            "h2: offered h1→h2, epoch 7 --salvage from h1--> frozen h1→h2, epoch 7",
            "h3: offered h1→h2, epoch 7 --salvage from h1--> frozen h1→h2, epoch 7",
            "h1: offered h1→h2, epoch 7 --bury with h1--> lost by h1, epoch 7",
            "h2: offered h1→h2, epoch 7 --bury with h1--> lost by h1, epoch 7",
            "h3: offered h1→h2, epoch 7 --bury with h1--> lost by h1, epoch 7",
            "h1: offered h1→h2, epoch 7 --take from h1--> taken from h1 by h1, epoch 8",
            "h2: offered h1→h2, epoch 7 --take from h1--> taken from h1 by h2, epoch 8",
            "h3: offered h1→h2, epoch 7 --take from h1--> taken from h1 by h3, epoch 8",
            "h2: frozen h1→h2, epoch 7 --claim--> owned by h2, epoch 8",
            "h1: frozen h1→h2, epoch 7 --cancel--> owned by h1, epoch 8",
            "h1: frozen h1→h2, epoch 7 --redirect from h2--> frozen h1→h1, epoch 7",
            "h2: frozen h1→h2, epoch 7 --redirect from h2--> frozen h1→h2, epoch 7",
            "h3: frozen h1→h2, epoch 7 --redirect from h2--> frozen h1→h3, epoch 7",
            "h1: lost by h1, epoch 7 --destroy--> vacant",
            "h2: lost by h1, epoch 7 --destroy--> vacant",
            "h3: lost by h1, epoch 7 --destroy--> vacant",
            "h1: taken from h1 by h2, epoch 7 --retake from h2--> taken from h1 by h1, epoch 8",
            "h2: taken from h1 by h2, epoch 7 --retake from h2--> taken from h1 by h2, epoch 8",
            "h3: taken from h1 by h2, epoch 7 --retake from h2--> taken from h1 by h3, epoch 8",
            "h2: taken from h1 by h2, epoch 7 --raise--> frozen h1→h2, epoch 7",
            "h2: taken from h1 by h2, epoch 7 --give up--> lost by h1, epoch 7",
        ];
        assert_eq!(legal, expected);
    }

    #[test]
    fn a_frozen_guest_is_never_buried() {
        for dead in [host(1), host(2)] {
            let frozen = Ownership::Frozen { source: host(1), target: host(2), epoch: EPOCH };
            assert!(step(frozen, host(3), Event::Bury { dead }).is_err());
        }
    }

    #[test]
    fn a_living_hosts_guest_is_not_buried_with_another() {
        let owned = Ownership::Owned { host: host(1), epoch: EPOCH };
        assert!(step(owned, host(1), Event::Bury { dead: host(2) }).is_err());
    }

    #[test]
    fn a_host_does_not_offer_to_itself() {
        let owned = Ownership::Owned { host: host(1), epoch: EPOCH };
        assert_eq!(step(owned, host(1), Event::Offer { target: host(1) }), Err(Illegal::ToItself(host(1))));
    }

    #[test]
    fn a_guest_is_not_taken_when_nobody_could_claim_it() {
        for epoch in [u32::MAX, u32::MAX - 1] {
            let owned = Ownership::Owned { host: host(1), epoch: Epoch(epoch) };
            assert!(matches!(step(owned, host(2), Event::Take { dead: host(1) }), Err(Illegal::NoEpochLeft(_))));
        }
    }

    #[test]
    fn the_last_epoch_is_not_offered() {
        let owned = Ownership::Owned { host: host(1), epoch: Epoch(u32::MAX) };
        assert_eq!(step(owned, host(1), Event::Offer { target: host(2) }), Err(Illegal::NoEpochLeft(owned)));
    }
}
