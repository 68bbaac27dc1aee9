//! How the target's vCPU threads wait for the guest.
//!
//! Before the offer everybody sleeps on a doorbell, at most a millisecond at a time. Once the guest is offered it will
//! be frozen within microseconds, and a spin sees that at once; but a spinning thread takes a CPU away from whatever
//! else runs there, the guest at its source included.
//!
//! | style      | vCPU 0's thread                    | the other threads                       |
//! |------------|------------------------------------|-----------------------------------------|
//! | `Spin`     | spins on the ownership word        | the same                                |
//! | `Auto`     | spins if there is a CPU to spare   | sleep until vCPU 0's thread wakes them  |
//! | `Doorbell` | sleeps on the doorbell             | the same                                |
//!
//! Nobody spins for more than [`SPIN_LIMIT`] on one offer: a source that dies after its offer costs a slow poll.

use super::{End, Target};
use crate::protocol::{TargetTurn, target_turn};
use crate::tsc;
use nil_pool::sync::Ordering;
use nil_pool::{Side, Stamp};
use std::time::{Duration, Instant};

/// How long a thread sleeps at most before it looks at the words again.
const POLL: Duration = Duration::from_millis(1);
/// How long an offer is watched by spinning.
const SPIN_LIMIT: Duration = Duration::from_millis(20);
/// Looks at the word between two looks at the clock.
const LOOKS: u32 = 256;

/// How a target's vCPU threads wait.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum WaitStyle {
    /// One thread spins if this process may use more CPUs than the guest has vCPUs; else all sleep.
    #[default]
    Auto,
    /// Every thread spins. The fastest where there is a CPU for each thread of both sides.
    Spin,
    /// Every thread sleeps.
    Doorbell,
}

impl WaitStyle {
    pub(super) fn on_this_machine(self, vcpus: usize) -> Waiting {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        self.with_cpus(cpus, vcpus)
    }

    fn with_cpus(self, cpus: usize, vcpus: usize) -> Waiting {
        match self {
            Self::Spin => Waiting::Spin,
            Self::Doorbell => Waiting::Doorbell,
            Self::Auto if cpus > vcpus => Waiting::Led,
            Self::Auto => Waiting::Doorbell,
        }
    }
}

/// A [`WaitStyle`] with what this machine has taken into account.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Waiting {
    Spin,
    Led,
    Doorbell,
}

/// What the leader saw, as a word for the threads that follow it.
pub(super) struct Sight;

impl Sight {
    /// Nothing yet.
    pub(super) const NONE: u32 = 0;
    /// The guest is frozen: load.
    const FROZEN: u32 = 1;
    /// Superseded or aborted, as [`End`] encodes it, above this.
    const GONE: u32 = 16;

    fn encode(sight: Result<(), End>) -> u32 {
        sight.map_or_else(|end| Self::GONE + end.encode(), |()| Self::FROZEN)
    }

    fn decode(word: u32) -> Option<Result<(), End>> {
        match word {
            Self::NONE => None,
            Self::FROZEN => Some(Ok(())),
            gone => Some(Err(End::decode(gone.wrapping_sub(Self::GONE)).unwrap_or(End::Superseded))),
        }
    }
}

impl Target {
    /// Waits until the guest is frozen for this worker, or will not be.
    pub(super) fn watch(&self, index: usize) -> Result<(), End> {
        self.present.fetch_add(1, Ordering::AcqRel);
        let leads = index == 0;
        if self.waiting != Waiting::Led {
            return self.look(leads);
        }
        if !leads {
            return self.gate.wait(|| Sight::decode(self.sight.load(Ordering::Acquire)));
        }
        let sight = self.look(true);
        self.sight.store(Sight::encode(sight), Ordering::Release);
        self.gate.open();
        sight
    }

    fn look(&self, leads: bool) -> Result<(), End> {
        let bell = self.control.bell(Side::Target);
        let mut spin_until = None;
        let mut poised = false;
        loop {
            let seen = bell.read();
            let word = self.control.ownership().load().map_err(|_| End::Superseded)?;
            match target_turn(self.role, &self.handoff, word) {
                TargetTurn::Load => break,
                TargetTurn::TearDown => return Err(End::Superseded),
                TargetTurn::Wait | TargetTurn::Poise if self.aborted.load(Ordering::Acquire) != 0 => {
                    return Err(End::Aborted);
                }
                TargetTurn::Wait => bell.wait(seen, POLL),
                TargetTurn::Poise if leads && !poised && !self.all_present() => std::thread::yield_now(),
                TargetTurn::Poise => {
                    if leads && !poised {
                        self.poise();
                        poised = true;
                    }
                    let limit = *spin_until.get_or_insert_with(|| Instant::now() + SPIN_LIMIT);
                    if self.waiting == Waiting::Doorbell || Instant::now() >= limit {
                        bell.wait(seen, POLL);
                    } else {
                        self.spin();
                    }
                }
            }
        }
        if leads {
            self.control.timeline().set(Stamp::Seen, tsc::now());
        }
        Ok(())
    }

    /// Keeps looking at the word for some microseconds, or until it is no longer `Offered`.
    fn spin(&self) {
        let offered = self.handoff.offered();
        for _ in 0..LOOKS {
            if self.control.ownership().load() != Ok(offered) {
                return;
            }
            std::hint::spin_loop();
        }
    }

    /// Tells the source that it may stop the guest. Where the arm word is another's by now, the source has gone on.
    fn poise(&self) {
        if self.advance_arm(crate::protocol::ArmEvent::Poise).is_ok() {
            self.control.timeline().set(Stamp::Poised, tsc::now());
            self.control.bell(Side::Source).ring();
        }
    }

    fn all_present(&self) -> bool {
        self.present.load(Ordering::Acquire) >= u32::from(self.vcpus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_spins_by_itself_only_where_a_cpu_is_to_spare() {
        assert_eq!(WaitStyle::Auto.with_cpus(2, 1), Waiting::Led);
        assert_eq!(WaitStyle::Auto.with_cpus(2, 2), Waiting::Doorbell);
        assert_eq!(WaitStyle::Auto.with_cpus(1, 1), Waiting::Doorbell);
        assert_eq!(WaitStyle::Spin.with_cpus(1, 8), Waiting::Spin);
        assert_eq!(WaitStyle::Doorbell.with_cpus(64, 1), Waiting::Doorbell);
    }

    #[test]
    fn what_the_leader_saw_reaches_the_followers() {
        for sight in [Ok(()), Err(End::Superseded), Err(End::Aborted)] {
            assert_eq!(Sight::decode(Sight::encode(sight)), Some(sight));
        }
        assert_eq!(Sight::decode(Sight::NONE), None);
    }
}
