//! The host's view of a handoff: how long each step took.

use super::figures::{Microseconds, Samples};
use serde::Serialize;

/// Samples of every step.
#[derive(Clone, Debug)]
pub(crate) struct PhaseSamples {
    kick: Samples,
    save: Samples,
    publish: Samples,
    load: Samples,
    claim: Samples,
    enter: Samples,
}

/// One handoff's steps in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct PhaseTimes {
    pub(crate) kick: u64,
    pub(crate) save: u64,
    pub(crate) publish: u64,
    pub(crate) load: u64,
    pub(crate) claim: u64,
    pub(crate) enter: u64,
}

/// The median of every step.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(crate) struct PhaseMedians {
    pub(crate) kick: Microseconds,
    pub(crate) save: Microseconds,
    pub(crate) publish: Microseconds,
    pub(crate) load: Microseconds,
    pub(crate) claim: Microseconds,
    pub(crate) enter: Microseconds,
}

impl PhaseSamples {
    /// No samples yet.
    pub(crate) fn new() -> Self {
        let none = Samples::new;
        Self { kick: none(), save: none(), publish: none(), load: none(), claim: none(), enter: none() }
    }

    /// Adds one handoff.
    pub(crate) fn record(&mut self, times: PhaseTimes) {
        self.kick.record(times.kick);
        self.save.record(times.save);
        self.publish.record(times.publish);
        self.load.record(times.load);
        self.claim.record(times.claim);
        self.enter.record(times.enter);
    }

    /// The median of every step, if there are samples.
    pub(crate) fn medians(&self) -> Option<PhaseMedians> {
        Some(PhaseMedians {
            kick: self.kick.median()?,
            save: self.save.median()?,
            publish: self.publish.median()?,
            load: self.load.median()?,
            claim: self.claim.median()?,
            enter: self.enter.median()?,
        })
    }
}

impl PhaseMedians {
    /// The steps in the order in which they happen: name, what happens in it, median.
    pub(crate) fn in_order(&self) -> [(&'static str, &'static str, Microseconds); 6] {
        [
            ("kick", "a signal takes the vCPUs out of the guest", self.kick),
            ("save", "each vCPU writes its registers into the pool", self.save),
            ("publish", "one word says Frozen, and the target sees it", self.publish),
            ("load", "the target's vCPUs take the registers", self.load),
            ("claim", "one compare-and-swap: the guest has a new owner", self.claim),
            ("enter", "the guest looks at its clock again", self.enter),
        ]
    }
}
