//! The moves of the guest's memory that are on: at most one in each lane.
//!
//! A move runs on the thread that serves the order for it. It may outlive whoever ordered it: a connection that breaks
//! ends nobody's move.

use crate::error::{Error, Result};
use crate::message::Lane;
use nil_mover::{MoveControl, MoveProgress};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often progress is told while nothing but numbers change.
const TELL: Duration = Duration::from_millis(100);

/// The handles of the moves that are on.
#[derive(Debug, Default)]
pub(super) struct Moves {
    lanes: Mutex<Lanes>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Lanes {
    main: Option<MoveControl>,
    pull_back: Option<MoveControl>,
    /// Why no more moves begin.
    closed: Option<&'static str>,
}

impl Lanes {
    fn lane(&mut self, lane: Lane) -> &mut Option<MoveControl> {
        match lane {
            Lane::Main => &mut self.main,
            Lane::PullBack => &mut self.pull_back,
        }
    }
}

/// A move that is on, until this is dropped.
#[derive(Debug)]
pub(super) struct Moving<'a> {
    moves: &'a Moves,
    lane: Lane,
    pub(super) control: MoveControl,
}

impl Moves {
    fn lock(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a move.
    ///
    /// # Errors
    /// One is on in that lane, or the guest is being stopped or handed over.
    pub(super) fn begin(&self, lane: Lane, bandwidth: Option<u64>) -> Result<Moving<'_>> {
        let mut lanes = self.lock();
        if let Some(why) = lanes.closed {
            return Err(Error::refused(why));
        }
        let place = lanes.lane(lane);
        if place.is_some() {
            return Err(Error::refused("the guest's memory is being moved already"));
        }
        let control = MoveControl::default();
        control.set_bandwidth(bandwidth);
        *place = Some(control.clone());
        Ok(Moving { moves: self, lane, control })
    }

    /// The handle of the move that is on in a lane.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn control(&self, lane: Lane) -> Result<MoveControl> {
        self.lock().lane(lane).clone().ok_or_else(|| Error::refused("nothing of the guest's memory is being moved"))
    }

    /// Lets no move begin until [`Moves::reopen`], if none is on; `why` is what is said to those that would. A move must not
    /// go on in a process from which the guest has gone: its memory is another host's to move then.
    ///
    /// # Errors
    /// A move is on.
    pub(super) fn close_for(&self, why: &'static str) -> Result<()> {
        let mut lanes = self.lock();
        if lanes.main.is_some() || lanes.pull_back.is_some() {
            return Err(Error::refused("the guest's memory is being moved"));
        }
        lanes.closed.get_or_insert(why);
        Ok(())
    }

    /// The guest stays: moves may begin again.
    pub(super) fn reopen(&self) {
        self.lock().closed = None;
    }

    /// Calls all moves off, lets no other begin, and waits until they have ended.
    pub(super) fn close(&self) {
        let mut lanes = self.lock();
        lanes.closed = Some("the guest is being stopped");
        for control in [&lanes.main, &lanes.pull_back].into_iter().flatten() {
            control.cancel();
        }
        let on = |lanes: &mut Lanes| lanes.main.is_some() || lanes.pull_back.is_some();
        drop(self.ended.wait_while(lanes, on).unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        *self.moves.lock().lane(self.lane) = None;
        self.moves.ended.notify_all();
    }
}

/// Says which progress is worth telling: the first, then some in every second, and every change of what is waited for.
#[derive(Debug, Default)]
pub(super) struct Telling {
    last: Option<(Instant, MoveProgress)>,
}

impl Telling {
    pub(super) fn is_worth_telling(&mut self, progress: &MoveProgress, now: Instant) -> bool {
        let worth = match &self.last {
            None => true,
            Some((at, told)) => now.duration_since(*at) >= TELL || told.stall != progress.stall,
        };
        if worth {
            self.last = Some((now, progress.clone()));
        }
        worth
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nil_mover::{Direction, Stall, StallReason};

    #[test]
    fn each_lane_has_one_move_at_a_time() {
        let moves = Moves::default();
        let main = moves.begin(Lane::Main, Some(7)).expect("the lane is free");
        assert_eq!(main.control.bandwidth(), Some(7));
        assert!(moves.begin(Lane::Main, None).is_err());
        let _pull_back = moves.begin(Lane::PullBack, None).expect("the other lane is free");
        drop(main);
        assert!(moves.control(Lane::Main).is_err());
        moves.begin(Lane::Main, None).expect("the lane is free again");
    }

    #[test]
    fn closing_calls_moves_off_and_waits_for_them() {
        let moves = Moves::default();
        std::thread::scope(|scope| {
            let moving = moves.begin(Lane::PullBack, None).expect("the lane is free");
            let closing = scope.spawn(|| moves.close());
            while !moving.control.is_cancelled() {
                std::thread::yield_now();
            }
            assert!(!closing.is_finished());
            drop(moving);
            closing.join().expect("no panic");
        });
        assert!(moves.begin(Lane::Main, None).is_err());
    }

    #[test]
    fn a_handoff_and_a_move_exclude_each_other() {
        let moves = Moves::default();
        let moving = moves.begin(Lane::PullBack, None).expect("the lane is free");
        assert!(moves.close_for("the guest is on its way to another host").is_err());
        drop(moving);
        moves.close_for("the guest is on its way to another host").expect("nothing moves");
        let refused = moves.begin(Lane::Main, None).expect_err("a handoff is on").to_string();
        assert!(refused.contains("another host"), "{refused}");
        moves.reopen();
        moves.begin(Lane::Main, None).expect("the guest has stayed");
    }

    #[test]
    fn numbers_are_told_now_and_then_and_stalls_at_once() {
        let (mut telling, now) = (Telling::default(), Instant::now());
        let going =
            MoveProgress { direction: Direction::Decouple, done_bytes: 0, total_bytes: 9, bytes_per_s: 0, stall: None };
        assert!(telling.is_worth_telling(&going, now));
        assert!(!telling.is_worth_telling(&going, now));
        let reason = StallReason::Held { owner: "x".into(), reason: "y".into() };
        let stalled = MoveProgress { stall: Some(Stall { guest_address: 0, bytes: 1, reason }), ..going };
        assert!(telling.is_worth_telling(&stalled, now));
        assert!(!telling.is_worth_telling(&stalled, now));
        assert!(telling.is_worth_telling(&stalled, now + TELL));
    }
}
