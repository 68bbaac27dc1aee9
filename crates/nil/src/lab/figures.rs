//! Samples of a duration, and the figures that are quoted of them.

use hdrhistogram::Histogram;
use serde::{Serialize, Serializer};

/// An hour in nanoseconds: what is longer is counted as this.
const LONGEST: u64 = 3_600_000_000_000;

/// Durations in nanoseconds, to three significant digits.
#[derive(Clone, Debug)]
pub(crate) struct Samples(Histogram<u64>);

/// What is quoted of many samples.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(crate) struct Figures {
    /// Median.
    pub(crate) p50: Microseconds,
    /// Nine out of ten are no longer.
    pub(crate) p90: Microseconds,
    /// Ninety-nine out of a hundred are no longer.
    pub(crate) p99: Microseconds,
    /// The longest.
    pub(crate) max: Microseconds,
}

/// A duration that is printed in microseconds with a tenth.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug, Default)]
pub(crate) struct Microseconds(pub(crate) f64);

impl Samples {
    /// No samples yet.
    pub(crate) fn new() -> Self {
        Self(Histogram::new_with_max(LONGEST, 3).expect("an hour, and three digits, are within the bounds"))
    }

    /// Adds one.
    pub(crate) fn record(&mut self, nanoseconds: u64) {
        self.0.saturating_record(nanoseconds);
    }

    /// Adds all of others.
    pub(crate) fn add(&mut self, others: &Self) {
        self.0.add(&others.0).expect("all samples have the same bounds");
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The figures, if there are samples.
    pub(crate) fn figures(&self) -> Option<Figures> {
        let at = |quantile| Microseconds::from_nanoseconds(self.0.value_at_quantile(quantile));
        let figures =
            Figures { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: Microseconds::from_nanoseconds(self.0.max()) };
        (self.count() > 0).then_some(figures)
    }

    /// The median, if there are samples.
    pub(crate) fn median(&self) -> Option<Microseconds> {
        self.figures().map(|figures| figures.p50)
    }

    /// How many samples lie in `from .. to` nanoseconds, to the histogram's precision.
    pub(crate) fn count_between(&self, from: u64, to: u64) -> u64 {
        self.0
            .iter_recorded()
            .filter(|step| (from..to).contains(&step.value_iterated_to()))
            .map(|step| step.count_at_value())
            .sum()
    }
}

impl Microseconds {
    /// Converts.
    #[expect(clippy::cast_precision_loss, reason = "durations of less than three months are exact")]
    pub(crate) fn from_nanoseconds(nanoseconds: u64) -> Self {
        Self(nanoseconds as f64 / 1000.0)
    }

    /// In a unit in which a person can say it.
    pub(crate) fn human(self) -> String {
        match self.0 {
            us if us < 10.0 => format!("{us:.1} µs"),
            us if us < 10_000.0 => format!("{us:.0} µs"),
            us if us < 100_000.0 => format!("{:.1} ms", us / 1e3),
            us if us < 10_000_000.0 => format!("{:.0} ms", us / 1e3),
            us => format!("{:.1} s", us / 1e6),
        }
    }
}

impl Serialize for Microseconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64((self.0 * 10.0).round() / 10.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_a_hundred_samples_are_theirs() {
        let mut samples = Samples::new();
        (1..=100).for_each(|us| samples.record(us * 1000));
        let figures = samples.figures().expect("samples");
        let near = |found: Microseconds, expected: f64| (found.0 - expected).abs() / expected < 0.002;
        assert!(near(figures.p50, 50.0) && near(figures.p90, 90.0) && near(figures.p99, 99.0), "{figures:?}");
        assert!(near(figures.max, 100.0), "{figures:?}");
    }

    #[test]
    fn no_samples_have_no_figures() {
        assert_eq!(Samples::new().figures(), None);
    }

    #[test]
    fn samples_are_counted_between_two_bounds() {
        let mut samples = Samples::new();
        [900, 1_000, 1_500, 2_000].into_iter().for_each(|ns| samples.record(ns));
        assert_eq!(samples.count_between(1_000, 2_000), 2);
    }

    #[test]
    fn microseconds_are_written_with_one_digit() {
        assert_eq!(serde_json::to_string(&Microseconds(98.76)).expect("a number"), "98.8");
        assert_eq!(serde_json::to_string(&Microseconds(100.0)).expect("a number"), "100.0");
    }

    #[test]
    fn a_person_reads_a_fitting_unit() {
        for (us, text) in
            [(4.21, "4.2 µs"), (98.6, "99 µs"), (21_400.0, "21.4 ms"), (191_000.0, "191 ms"), (1.2e7, "12.0 s")]
        {
            assert_eq!(Microseconds(us).human(), text);
        }
    }
}
