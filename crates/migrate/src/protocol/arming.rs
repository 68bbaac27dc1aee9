//! The arm word: how far a target has come with its preparations.
//!
//! It is advice. A source offers only what a target asked for, and kicks its vCPUs only once the target watches; but who
//! may run the guest is decided by the ownership word alone, and a wrong arm word costs time, never a guest.
//!
//! ```text
//!     Idle ──begin──▶ Arming(T,e) ──ready──▶ Armed(T,e) ──poise──▶ Poised(T,e)
//!      ▲                   └────────────┬────────┴───────────────────┘
//!      └── clear, by the owner        refuse ──▶ Refused(T,e)
//! ```

use nil_pool::{Arm, Epoch, HostSlot};
use std::fmt;

/// Something that changes the arm word.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ArmEvent {
    /// The owner makes place for the next plan.
    Clear,
    /// A target starts to build its half.
    Begin,
    /// The target is built and has loaded the previous state.
    Ready,
    /// The target has seen the offer, and all of its vCPU threads watch.
    Poise,
    /// The target will not claim.
    Refuse,
}

impl fmt::Display for ArmEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clear => "clear",
            Self::Begin => "begin",
            Self::Ready => "get ready",
            Self::Poise => "poise",
            Self::Refuse => "refuse",
        })
    }
}

/// An arm word that does not allow an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{by} cannot {event} at epoch {epoch}: the arm word is {arm:?}; the guest's owner has to clear it for a new plan"
)]
pub struct IllegalArm {
    /// The word.
    pub arm: Arm,
    /// Who asked.
    pub by: HostSlot,
    /// For which epoch.
    pub epoch: Epoch,
    /// What was asked for.
    pub event: ArmEvent,
}

/// The arm word that `event`, made by `by` for a handoff at `epoch`, leads to. `Clear` is the owner's, the others the
/// target's.
///
/// # Errors
/// [`IllegalArm`] when the word belongs to another host or another epoch, or has not come that far.
pub fn arm_step(arm: Arm, by: HostSlot, epoch: Epoch, event: ArmEvent) -> Result<Arm, IllegalArm> {
    let illegal = IllegalArm { arm, by, epoch, event };
    let own = |host: HostSlot, at: Epoch, next: Arm| if host == by && at == epoch { Ok(next) } else { Err(illegal) };
    match (arm, event) {
        (
            Arm::Idle | Arm::Arming { .. } | Arm::Armed { .. } | Arm::Poised { .. } | Arm::Refused { .. },
            ArmEvent::Clear,
        ) => Ok(Arm::Idle),
        (Arm::Idle, ArmEvent::Begin) => Ok(Arm::Arming { host: by, epoch }),
        // A fresh worker of the same host starts again where one before it stopped.
        (
            Arm::Arming { host, .. } | Arm::Armed { host, .. } | Arm::Poised { host, .. } | Arm::Refused { host, .. },
            ArmEvent::Begin,
        ) => own(host, epoch, Arm::Arming { host: by, epoch }),
        (Arm::Arming { host, epoch: at }, ArmEvent::Ready) => own(host, at, Arm::Armed { host, epoch }),
        (Arm::Armed { host, epoch: at }, ArmEvent::Poise) => own(host, at, Arm::Poised { host, epoch }),
        (
            Arm::Arming { host, epoch: at } | Arm::Armed { host, epoch: at } | Arm::Poised { host, epoch: at },
            ArmEvent::Refuse,
        ) => own(host, at, Arm::Refused { host, epoch }),
        (Arm::Idle, ArmEvent::Ready | ArmEvent::Poise | ArmEvent::Refuse)
        | (Arm::Arming { .. }, ArmEvent::Poise)
        | (Arm::Armed { .. }, ArmEvent::Ready)
        | (Arm::Poised { .. } | Arm::Refused { .. }, ArmEvent::Ready | ArmEvent::Poise)
        | (Arm::Refused { .. }, ArmEvent::Refuse) => Err(illegal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch(4);

    fn host(index: u16) -> HostSlot {
        HostSlot::new(index).expect("a small slot")
    }

    #[test]
    fn a_target_goes_from_idle_to_poised_in_order() {
        let mut arm = Arm::Idle;
        for (event, expected) in [
            (ArmEvent::Begin, Arm::Arming { host: host(2), epoch: EPOCH }),
            (ArmEvent::Ready, Arm::Armed { host: host(2), epoch: EPOCH }),
            (ArmEvent::Poise, Arm::Poised { host: host(2), epoch: EPOCH }),
            (ArmEvent::Refuse, Arm::Refused { host: host(2), epoch: EPOCH }),
        ] {
            arm = arm_step(arm, host(2), EPOCH, event).expect("the documented order");
            assert_eq!(arm, expected);
        }
    }

    #[test]
    fn a_step_cannot_be_skipped() {
        for event in [ArmEvent::Ready, ArmEvent::Poise, ArmEvent::Refuse] {
            assert!(arm_step(Arm::Idle, host(2), EPOCH, event).is_err());
        }
        assert!(arm_step(Arm::Arming { host: host(2), epoch: EPOCH }, host(2), EPOCH, ArmEvent::Poise).is_err());
    }

    #[test]
    fn another_hosts_arm_word_is_left_alone() {
        let arm = Arm::Armed { host: host(3), epoch: EPOCH };
        for event in [ArmEvent::Begin, ArmEvent::Poise, ArmEvent::Refuse] {
            assert!(arm_step(arm, host(2), EPOCH, event).is_err());
        }
    }

    #[test]
    fn a_late_target_does_not_poise_for_an_epoch_that_is_gone() {
        let arm = Arm::Armed { host: host(2), epoch: Epoch(5) };
        assert!(arm_step(arm, host(2), EPOCH, ArmEvent::Poise).is_err());
    }

    #[test]
    fn a_fresh_worker_of_the_same_host_starts_again() {
        let arm = Arm::Poised { host: host(2), epoch: EPOCH };
        let again = arm_step(arm, host(2), EPOCH, ArmEvent::Begin);
        assert_eq!(again, Ok(Arm::Arming { host: host(2), epoch: EPOCH }));
    }
}
