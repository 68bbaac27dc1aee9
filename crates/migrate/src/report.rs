//! What a handoff cost, phase by phase, as both hosts saw it.

use crate::protocol::Handoff;
use nil_pool::{Stamp, Timeline};
use serde::{Deserialize, Serialize};

/// The blackout, in consecutive phases, in nanoseconds. They add up to [`HandoffReport::blackout_ns`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Phases {
    /// From the kick until the last vCPU has left the guest.
    pub kick_ns: u64,
    /// Until the last part is saved.
    pub save_ns: u64,
    /// Until the word is `Frozen`.
    pub publish_ns: u64,
    /// Until the target has seen that.
    pub notice_ns: u64,
    /// Until the last part is loaded.
    pub load_ns: u64,
    /// Until the target owns the guest.
    pub claim_ns: u64,
    /// Until the first vCPU is about to enter the guest.
    pub enter_ns: u64,
}

impl Phases {
    fn total_ns(&self) -> u64 {
        let Self { kick_ns, save_ns, publish_ns, notice_ns, load_ns, claim_ns, enter_ns } = self;
        [kick_ns, save_ns, publish_ns, notice_ns, load_ns, claim_ns, enter_ns].into_iter().sum()
    }
}

/// One handoff that ended with a claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HandoffReport {
    /// Slot of the host that handed the guest over.
    pub source: usize,
    /// Slot of the host that took it.
    pub target: usize,
    /// Epoch of the target's ownership.
    pub epoch: u32,
    /// From the kick until the guest was about to be entered, as the hosts saw it.
    pub blackout_ns: u64,
    /// The parts of it.
    pub phases: Phases,
}

impl HandoffReport {
    /// The report of a handoff whose stamps are in `timeline`, on a machine whose TSC runs at `tsc_hz`.
    ///
    /// `None` when a stamp is missing: the handoff has not been claimed, or the pool was written to by somebody else.
    /// Stamps that do not ascend (they are read from shared memory, and one may be taken just after what it marks)
    /// count as no time.
    #[must_use]
    pub fn of(handoff: &Handoff, timeline: &Timeline, tsc_hz: u64) -> Option<Self> {
        let stamps = [
            Stamp::Kick,
            Stamp::Exited,
            Stamp::Saved,
            Stamp::Published,
            Stamp::Seen,
            Stamp::Loaded,
            Stamp::Claimed,
            Stamp::Entered,
        ];
        let mut at = stamps.map(|stamp| timeline.get(stamp));
        if at.contains(&0) {
            return None;
        }
        for later in 1..at.len() {
            at[later] = at[later].max(at[later - 1]);
        }
        let span = |phase: usize| nanoseconds(at[phase + 1] - at[phase], tsc_hz);
        let phases = Phases {
            kick_ns: span(0),
            save_ns: span(1),
            publish_ns: span(2),
            notice_ns: span(3),
            load_ns: span(4),
            claim_ns: span(5),
            enter_ns: span(6),
        };
        Some(Self {
            source: handoff.source().index(),
            target: handoff.target().index(),
            epoch: handoff.next_epoch().0,
            blackout_ns: phases.total_ns(),
            phases,
        })
    }
}

fn nanoseconds(ticks: u64, tsc_hz: u64) -> u64 {
    let nanoseconds = u128::from(ticks) * 1_000_000_000 / u128::from(tsc_hz.max(1));
    u64::try_from(nanoseconds).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nil_pool::{Epoch, HostSlot};

    const STAMPS: [(Stamp, u64); 8] = [
        (Stamp::Kick, 1_000),
        (Stamp::Exited, 3_000),
        (Stamp::Saved, 7_000),
        (Stamp::Published, 7_002),
        (Stamp::Seen, 9_000),
        (Stamp::Loaded, 15_000),
        (Stamp::Claimed, 15_100),
        (Stamp::Entered, 16_000),
    ];

    fn handoff() -> Handoff {
        let slot = |index| HostSlot::new(index).expect("a small slot");
        Handoff::new(slot(1), slot(2), Epoch(4)).expect("a legal handoff")
    }

    fn timeline(stamps: &[(Stamp, u64)]) -> Timeline {
        let timeline = Timeline::default();
        for &(stamp, tsc) in stamps {
            timeline.set(stamp, tsc);
        }
        timeline
    }

    #[test]
    fn the_phases_add_up_to_the_blackout() {
        let report = HandoffReport::of(&handoff(), &timeline(&STAMPS), 2_000_000_000).expect("all stamps are there");
        assert_eq!(report.blackout_ns, 7_500);
        assert_eq!(report.phases.kick_ns, 1_000);
        assert_eq!(report.phases.publish_ns, 1);
        assert_eq!(report.phases.load_ns, 3_000);
        assert_eq!((report.source, report.target, report.epoch), (1, 2, 5));
    }

    #[test]
    fn a_handoff_without_all_stamps_has_no_report() {
        assert_eq!(HandoffReport::of(&handoff(), &timeline(&STAMPS[..7]), 2_000_000_000), None);
    }

    #[test]
    fn hostile_stamps_do_no_harm() {
        let hostile = STAMPS.map(|(stamp, tsc)| (stamp, u64::MAX - tsc));
        let report = HandoffReport::of(&handoff(), &timeline(&hostile), 0).expect("all stamps are there");
        assert_eq!(report.blackout_ns, 0);
    }

    #[test]
    fn a_report_survives_json() {
        let report = HandoffReport::of(&handoff(), &timeline(&STAMPS), 2_000_000_000).expect("all stamps are there");
        let json = serde_json::to_string(&report).expect("plain numbers");
        assert_eq!(serde_json::from_str::<HandoffReport>(&json).expect("what was written"), report);
    }
}
