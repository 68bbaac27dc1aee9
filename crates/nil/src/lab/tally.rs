//! Many handoffs, summed up.

use super::canary::Span;
use super::figures::{Microseconds, Samples};
use super::phases::PhaseSamples;
use super::shuttle::Sample;
use serde::{Serialize, Serializer};

/// What many handoffs of one guest came to.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    /// Handoffs made.
    pub(crate) handoffs: u64,
    /// The guest's blackouts.
    pub(crate) blackouts: Samples,
    /// The hosts' steps.
    pub(crate) phases: PhaseSamples,
    /// When the guest stood still.
    pub(crate) spans: Vec<Span>,
    /// Handoffs whose blackout the guest recorded, but overwrote before it could be read. They count in no figure.
    pub(crate) unobserved: u64,
    /// Bytes of guest memory that were found elsewhere after a handoff, over all handoffs.
    pub(crate) copied_bytes: u64,
    /// Bytes of processor and device state per handoff: the most.
    pub(crate) state_bytes: u64,
    /// Bytes that a target's worker has read and written through system calls until the guest had landed: the most.
    pub(crate) system_call_bytes: u64,
    lost: Samples,
}

/// A share in percent, printed with two digits.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug)]
pub(crate) struct Percent(pub(crate) f64);

impl Tally {
    /// No handoffs yet.
    pub(crate) fn new() -> Self {
        Self {
            handoffs: 0,
            blackouts: Samples::new(),
            phases: PhaseSamples::new(),
            spans: Vec::new(),
            unobserved: 0,
            copied_bytes: 0,
            lost: Samples::new(),
            state_bytes: 0,
            system_call_bytes: 0,
        }
    }

    /// Adds one handoff.
    pub(crate) fn add(&mut self, sample: &Sample) {
        self.handoffs += 1;
        self.copied_bytes = self.copied_bytes.saturating_add(sample.copied_bytes);
        self.state_bytes = self.state_bytes.max(sample.state_bytes);
        self.system_call_bytes = self.system_call_bytes.max(sample.system_call_bytes);
        sample.phases.into_iter().for_each(|times| self.phases.record(times));
        match &sample.observed {
            Some(observation) => {
                self.blackouts.record(observation.blackout_ns);
                self.lost.record(observation.lost_first_ms_ns);
                self.spans.push(observation.span);
            }
            None => self.unobserved += 1,
        }
    }

    /// How much of its first millisecond after landing the guest lost: the median.
    pub(crate) fn lost_first_ms(&self) -> Option<Percent> {
        // A part of a millisecond: one percent of it is ten microseconds.
        self.lost.median().map(|Microseconds(lost)| Percent(lost / 10.0))
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64((self.0 * 100.0).round() / 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::observe::Observation;
    use super::super::phases::PhaseTimes;
    use super::*;

    fn sample(blackout_ns: u64, lost_first_ms_ns: u64) -> Sample {
        let span = Span { begin: 1, end: 2 };
        Sample {
            observed: Some(Observation { blackout_ns, enter_ns: 0, span, lost_first_ms_ns }),
            phases: Some(PhaseTimes { kick: 30_000, ..PhaseTimes::default() }),
            copied_bytes: 0,
            state_bytes: 6_000,
            system_call_bytes: 20_000,
        }
    }

    #[test]
    fn the_figures_are_those_of_the_samples() {
        let mut tally = Tally::new();
        for us in [90, 100, 110] {
            tally.add(&sample(us * 1_000, 20_000));
        }
        assert_eq!((tally.handoffs, tally.blackouts.count(), tally.copied_bytes), (3, 3, 0));
        assert_eq!(serde_json::to_string(&tally.lost_first_ms()).expect("a number"), "2.0");
        let figures = tally.blackouts.figures().expect("samples");
        assert!((figures.p50.0 - 100.0).abs() < 0.2, "{figures:?}");
    }

    #[test]
    fn a_blackout_that_was_not_seen_is_counted_and_in_no_figure() {
        let mut tally = Tally::new();
        tally.add(&Sample { observed: None, ..sample(0, 0) });
        assert_eq!((tally.handoffs, tally.unobserved), (1, 1));
        assert_eq!(tally.blackouts.figures(), None);
        assert_eq!(tally.lost_first_ms(), None);
    }

    #[test]
    fn copied_bytes_of_all_handoffs_add_up() {
        let mut tally = Tally::new();
        tally.add(&Sample { copied_bytes: 4096, ..sample(1, 1) });
        tally.add(&Sample { copied_bytes: 8192, ..sample(1, 1) });
        assert_eq!(tally.copied_bytes, 12_288);
    }
}
