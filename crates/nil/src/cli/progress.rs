//! Lines that show how far something is, no more often than a person can read them.

use super::Output;
use nil_host::Progress;
use nil_mover::Stall;
use std::time::{Duration, Instant};

/// How often numbers alone are worth a new line.
const PERIOD: Duration = Duration::from_secs(1);

/// Shows steps as they come, and moves of memory now and then: when they begin, every second, and when what they wait for
/// changes.
#[derive(Debug)]
pub(super) struct Shown {
    output: Output,
    /// Said before the first line.
    hint: Option<String>,
    last_move: Option<(Instant, Option<Stall>)>,
}

impl Shown {
    /// `cancel` is the command that calls off what is shown.
    pub(super) fn new(output: Output, cancel: &str) -> Self {
        let hint = Some(format!("Ctrl-C lets it go on; `{cancel}` calls it off"));
        Self { output, hint, last_move: None }
    }

    pub(super) fn show(&mut self, progress: &Progress) {
        if self.is_worth_a_line(progress, Instant::now()) {
            if let Some(hint) = self.hint.take() {
                self.output.progress(hint);
            }
            self.output.progress(&progress.step);
        }
    }

    fn is_worth_a_line(&mut self, progress: &Progress, now: Instant) -> bool {
        let Some(moving) = &progress.moving else {
            // Whatever moves next is something new.
            self.last_move = None;
            return true;
        };
        let worth = match &self.last_move {
            None => true,
            Some((at, stall)) => now.duration_since(*at) >= PERIOD || *stall != moving.stall,
        };
        if worth {
            self.last_move = Some((now, moving.stall.clone()));
        }
        worth
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nil_mover::{Direction, MoveProgress, StallReason};

    #[test]
    fn steps_are_shown_at_once_and_numbers_every_second() {
        let (mut shown, now) = (Shown::new(Output::Json, "nil"), Instant::now());
        let step = Progress { step: "B gets ready".into(), moving: None };
        let moving =
            MoveProgress { direction: Direction::Decouple, done_bytes: 0, total_bytes: 9, bytes_per_s: 0, stall: None };
        let reason = StallReason::Held { owner: "x".into(), reason: "y".into() };
        let stalled = MoveProgress { stall: Some(Stall { guest_address: 0, bytes: 1, reason }), ..moving.clone() };
        let line = |moving| Progress { step: "moves".into(), moving: Some(moving) };
        let mut is_shown = |progress: &Progress, at| shown.is_worth_a_line(progress, at);
        assert!(is_shown(&step, now) && is_shown(&step, now));
        assert!(is_shown(&line(moving.clone()), now));
        assert!(!is_shown(&line(moving.clone()), now));
        assert!(is_shown(&line(stalled.clone()), now));
        assert!(!is_shown(&line(stalled), now));
        assert!(is_shown(&line(moving.clone()), now + PERIOD));
        assert!(is_shown(&step, now + PERIOD) && is_shown(&line(moving), now + PERIOD));
    }
}
