//! What each side does next, given the words that it reads. The drivers and the model check both ask here.

use super::{Event, Handoff};
use nil_pool::{Arm, HostSlot, Ownership};

/// In which capacity a worker loads a frozen guest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// For the target, which commits by a claim.
    Target,
    /// For the source, whose earlier worker died after it had frozen the guest: commits by a cancel.
    Home,
}

impl Role {
    /// The event by which the guest becomes this worker's.
    #[must_use]
    pub fn commit(self) -> Event {
        match self {
            Self::Target => Event::Claim,
            Self::Home => Event::Cancel,
        }
    }

    /// The host in whose name the worker acts.
    #[must_use]
    pub fn host(self, handoff: &Handoff) -> HostSlot {
        match self {
            Self::Target => handoff.target(),
            Self::Home => handoff.source(),
        }
    }

    /// The word that the commit makes of `Frozen`.
    #[must_use]
    pub fn committed(self, handoff: &Handoff) -> Ownership {
        match self {
            Self::Target => handoff.claimed(),
            Self::Home => handoff.kept(),
        }
    }
}

/// What a source's worker that has offered does next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SourceTurn {
    /// Nothing yet.
    Wait,
    /// Try [`Handoff::offered`] → [`Handoff::kept`].
    Withdraw,
    /// Try [`Handoff::frozen`] → [`Handoff::kept`].
    Cancel,
    /// The handoff is over and the guest went on without this worker: release everything, never run it again.
    Released,
    /// The handoff is over and not by the target's claim: recovery judged this worker dead. Never run the guest again.
    Displaced,
}

/// What the source does on reading `word` and `arm`; `give_up`: its time is over, or a part could not be saved.
#[must_use]
pub fn source_turn(handoff: &Handoff, word: Ownership, arm: Arm, give_up: bool) -> SourceTurn {
    let give_up = give_up || arm == handoff.refused();
    match word {
        _ if word == handoff.offered() && give_up => SourceTurn::Withdraw,
        _ if word == handoff.frozen() && give_up => SourceTurn::Cancel,
        _ if word == handoff.offered() || word == handoff.frozen() => SourceTurn::Wait,
        // Claimed; and possibly handed on since.
        Ownership::Owned { epoch, .. } | Ownership::Offered { epoch, .. } | Ownership::Frozen { epoch, .. }
            if epoch > handoff.epoch() && word != handoff.kept() =>
        {
            SourceTurn::Released
        }
        // Taken from whoever claimed it. From this host, at the very next epoch, it was taken before anybody could claim.
        Ownership::Taken { epoch, .. } if epoch > handoff.next_epoch() => SourceTurn::Released,
        Ownership::Lost { host, epoch } if epoch > handoff.epoch() && host != handoff.source() => SourceTurn::Released,
        Ownership::Vacant
        | Ownership::Owned { .. }
        | Ownership::Offered { .. }
        | Ownership::Frozen { .. }
        | Ownership::Lost { .. }
        | Ownership::Taken { .. } => SourceTurn::Displaced,
    }
}

/// What a worker that means to take the guest does next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TargetTurn {
    /// Nothing yet: the guest has not been offered.
    Wait,
    /// Write `Poised` and watch the word closely.
    Poise,
    /// Load every part from the frozen slot, then try to commit.
    Load,
    /// The guest is not to be had any more: tear down.
    TearDown,
}

/// What a target (or a worker that thaws at home) does on reading `word`.
#[must_use]
pub fn target_turn(role: Role, handoff: &Handoff, word: Ownership) -> TargetTurn {
    match role {
        _ if word == handoff.frozen() => TargetTurn::Load,
        Role::Target if word == handoff.owned() => TargetTurn::Wait,
        Role::Target if word == handoff.offered() => TargetTurn::Poise,
        Role::Target | Role::Home => TargetTurn::TearDown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::step;
    use nil_pool::Epoch;

    fn host(index: u16) -> HostSlot {
        HostSlot::new(index).expect("a small slot")
    }

    fn handoff() -> Handoff {
        Handoff::new(host(1), host(2), Epoch(5)).expect("a legal handoff")
    }

    #[test]
    fn a_patient_source_waits_and_an_impatient_one_takes_back() {
        let handoff = handoff();
        assert_eq!(source_turn(&handoff, handoff.offered(), handoff.poised(), false), SourceTurn::Wait);
        assert_eq!(source_turn(&handoff, handoff.frozen(), handoff.poised(), false), SourceTurn::Wait);
        assert_eq!(source_turn(&handoff, handoff.offered(), handoff.poised(), true), SourceTurn::Withdraw);
        assert_eq!(source_turn(&handoff, handoff.frozen(), handoff.poised(), true), SourceTurn::Cancel);
    }

    #[test]
    fn a_refusal_of_this_handoff_ends_the_patience_and_an_older_one_does_not() {
        let handoff = handoff();
        assert_eq!(source_turn(&handoff, handoff.frozen(), handoff.refused(), false), SourceTurn::Cancel);
        let older = Arm::Refused { host: host(2), epoch: Epoch(4) };
        assert_eq!(source_turn(&handoff, handoff.frozen(), older, false), SourceTurn::Wait);
    }

    #[test]
    fn a_source_whose_guest_was_claimed_is_released_even_if_the_guest_came_back() {
        let handoff = handoff();
        let back = Ownership::Owned { host: host(1), epoch: Epoch(7) };
        for word in [handoff.claimed(), back, Ownership::Lost { host: host(2), epoch: Epoch(6) }] {
            assert_eq!(source_turn(&handoff, word, Arm::Idle, true), SourceTurn::Released);
        }
    }

    #[test]
    fn a_source_does_not_take_another_workers_success_for_its_own() {
        let handoff = handoff();
        let buried = Ownership::Lost { host: host(1), epoch: Epoch(5) };
        for word in [handoff.kept(), buried, Ownership::Vacant, handoff.owned()] {
            assert_eq!(source_turn(&handoff, word, Arm::Idle, false), SourceTurn::Displaced);
        }
    }

    #[test]
    fn a_target_follows_its_own_handoff_only() {
        let handoff = handoff();
        let turn = |word| target_turn(Role::Target, &handoff, word);
        assert_eq!(turn(handoff.owned()), TargetTurn::Wait);
        assert_eq!(turn(handoff.offered()), TargetTurn::Poise);
        assert_eq!(turn(handoff.frozen()), TargetTurn::Load);
        let other = Handoff::new(host(1), host(3), Epoch(5)).expect("a legal handoff");
        for word in [handoff.kept(), handoff.claimed(), other.offered(), other.frozen(), Ownership::Vacant] {
            assert_eq!(turn(word), TargetTurn::TearDown);
        }
    }

    #[test]
    fn a_home_worker_loads_a_frozen_guest_and_nothing_else() {
        let handoff = handoff();
        assert_eq!(target_turn(Role::Home, &handoff, handoff.frozen()), TargetTurn::Load);
        for word in [handoff.owned(), handoff.offered(), handoff.kept(), handoff.claimed()] {
            assert_eq!(target_turn(Role::Home, &handoff, word), TargetTurn::TearDown);
        }
    }

    #[test]
    fn what_a_role_commits_is_what_the_protocol_makes_of_it() {
        let handoff = handoff();
        for role in [Role::Target, Role::Home] {
            let stepped = step(handoff.frozen(), role.host(&handoff), role.commit());
            assert_eq!(stepped, Ok(role.committed(&handoff)));
        }
    }
}
