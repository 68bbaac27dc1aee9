//! What a guest's words in the pool said, and when: the history of a round.

use super::judge::may_follow;
use nil_pool::{Arm, GuestControl, Ownership};
use std::fmt;
use std::time::Instant;

/// More changes than any round has; what comes after them is not kept.
const MOST: usize = 64;

/// The words of a guest, each change of them with its time.
#[derive(Clone, Debug)]
pub(super) struct Trail {
    begun: Instant,
    now: (Ownership, Arm),
    changes: Vec<(u128, Ownership, Arm)>,
    fault: Option<String>,
}

impl Trail {
    pub(super) fn begin() -> Self {
        let now = (Ownership::Vacant, Arm::Idle);
        Self { begun: Instant::now(), now, changes: Vec::new(), fault: None }
    }

    /// Looks at the words, and notes whether they are what may follow what they were.
    pub(super) fn look(&mut self, guest: &GuestControl) -> (Ownership, Arm) {
        let word = match guest.ownership().load() {
            Ok(word) => word,
            Err(bad) => {
                self.fault(format!("the ownership word is damaged: {bad}"));
                self.now.0
            }
        };
        // A damaged arm word costs time, nothing else; `Pool::check` finds it.
        let arm = guest.arm().load().unwrap_or(Arm::Idle);
        if (word, arm) == self.now && !self.changes.is_empty() {
            return self.now;
        }
        if !self.changes.is_empty() && !may_follow(self.now.0, word) {
            self.fault(format!("the ownership word went from `{}` to `{word}`", self.now.0));
        }
        if self.changes.len() < MOST {
            self.changes.push((self.begun.elapsed().as_micros(), word, arm));
        }
        self.now = (word, arm);
        self.now
    }

    /// The first thing that was wrong with them.
    pub(super) fn verdict(&self) -> Result<(), String> {
        self.fault.clone().map_or(Ok(()), Err)
    }

    /// When the round began.
    pub(super) fn begun(&self) -> Instant {
        self.begun
    }

    fn fault(&mut self, what: String) {
        self.fault.get_or_insert(what);
    }
}

impl fmt::Display for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (micros, word, arm)) in self.changes.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{micros} µs: {word} ({arm})")?;
        }
        Ok(())
    }
}
