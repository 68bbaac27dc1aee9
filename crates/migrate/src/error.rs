//! What can go wrong around a handoff.

use crate::protocol::{Illegal, IllegalArm};
use crate::source::Reason;
use nil_pool::{Arm, BadArm, BadOwnership, Epoch, HostSlot, Ownership};

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a handoff did not begin, or a recovery did not happen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The ownership word is damaged.
    #[error("the guest's ownership word is damaged; run `nil pool check`")]
    DamagedWord(#[from] BadOwnership),
    /// The arm word is damaged.
    #[error("the guest's arm word is damaged; run `nil pool check`")]
    DamagedArm(#[from] BadArm),
    /// The protocol does not allow it.
    #[error(transparent)]
    Illegal(#[from] Illegal),
    /// The arm word does not allow it.
    #[error(transparent)]
    IllegalArm(#[from] IllegalArm),
    /// The guest is not this worker's to hand over.
    #[error("{me} cannot offer the guest: it expected to own it at epoch {epoch}, but the guest is {found}")]
    NotOwner {
        /// Who wanted to offer it.
        me: HostSlot,
        /// At which epoch.
        epoch: Epoch,
        /// What the word says.
        found: Ownership,
    },
    /// The target has not armed for this handoff.
    #[error("{target} is not armed for epoch {epoch}: the arm word is {found}; arm the target first, then hand over")]
    NotArmed {
        /// Who was to take the guest.
        target: HostSlot,
        /// At which epoch.
        epoch: Epoch,
        /// What the arm word says.
        found: Arm,
    },
    /// The guest is not in a state in which this host could take it.
    #[error("{me} cannot take the guest: it is {found}")]
    NotToBeHad {
        /// Who wanted to take it.
        me: HostSlot,
        /// What the word says.
        found: Ownership,
    },
    /// The offer was taken back before the guest was stopped.
    #[error("the offer was withdrawn ({reason}); the guest runs on at its source, epoch {epoch}")]
    Withdrawn {
        /// The epoch of the source's ownership from now on.
        epoch: Epoch,
        /// Why.
        reason: Reason,
    },
    /// It was called off before anything was offered.
    #[error("the handoff was called off before the guest was offered")]
    CalledOff,
    /// The word was changed under this worker: recovery judged it dead, or another worker acts in its name.
    #[error("the guest was taken from this worker: it is {found}; stop its vCPUs and do not run it again")]
    Displaced {
        /// What the word says.
        found: Ownership,
    },
    /// A vCPU thread is not yet through with the last handoff, which was taken back.
    #[error("a vCPU is still saving its state for the last handoff, which was taken back; try again in a moment")]
    StillSaving,
    /// A checkpoint was to be published that is not there.
    #[error("the guest's state is not whole in its slot: it is {found}; bring it back from its checkpoint first")]
    NotWhole {
        /// What the word says.
        found: Ownership,
    },
    /// A guest has at least one vCPU.
    #[error("a guest with {0} vCPUs cannot be handed over; it needs 1 to 65535")]
    VcpuCount(usize),
    /// A state area cannot be read.
    #[error("cannot read the guest's state")]
    Pool(#[from] nil_pool::Error),
}
