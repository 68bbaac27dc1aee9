//! A histogram as text: one row per bucket, bars in eighths of a character.
//!
//! Buckets follow the Renard series of preferred numbers, 20 to a decade where that gives few enough rows, else 10, else
//! 5: latencies spread over decades, and a person still reads round bounds. Stretches without samples are folded away.

use crate::lab::figures::{Microseconds, Samples};
use std::fmt::Write;

/// Mantissas of R20; every second one is R10, every fourth R5.
const R20: [u64; 20] =
    [100, 112, 125, 140, 160, 180, 200, 224, 250, 280, 315, 355, 400, 450, 500, 560, 630, 710, 800, 900];
/// The coarser series begin when more rows than this would be printed.
const MOST_ROWS: usize = 16;
/// Width of the longest bar in characters.
const WIDTH: u64 = 40;

/// One row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Bucket {
    from: u64,
    to: u64,
    count: u64,
}

/// Renders the samples; one line per row, each indented by two.
pub(crate) fn render(samples: &Samples) -> String {
    let Some(figures) = samples.figures() else { return String::from("  no samples\n") };
    let buckets = [1, 2, 4]
        .map(|step| occupied(samples, step))
        .into_iter()
        .reduce(|fine, coarse| if rows(&fine) <= MOST_ROWS { fine } else { coarse })
        .unwrap_or_default();
    let highest = buckets.iter().map(|bucket| bucket.count).max().unwrap_or(1);
    let marks = [("p50", figures.p50), ("p90", figures.p90), ("p99", figures.p99)];
    let mut text = String::new();
    let mut folded = false;
    for bucket in &buckets {
        if bucket.count == 0 {
            if !folded {
                text.push_str("             ⋮\n");
            }
            folded = true;
            continue;
        }
        folded = false;
        let marks: Vec<&str> = marks.iter().filter(|(_, at)| bucket.contains(*at)).map(|(name, _)| *name).collect();
        let arrow = if marks.is_empty() { String::new() } else { format!("  ← {}", marks.join(", ")) };
        // Writing into a String cannot fail.
        let _ = writeln!(text, "  {}  {} {}{arrow}", bucket.label(), bar(bucket.count, highest), bucket.count);
    }
    text
}

/// Rows that the buckets take when empty stretches are folded.
fn rows(buckets: &[Bucket]) -> usize {
    buckets.iter().filter(|bucket| bucket.count > 0).count()
}

/// All buckets from the first to the last with a sample, every `step`th bound of R20.
fn occupied(samples: &Samples, step: usize) -> Vec<Bucket> {
    let bounds: Vec<u64> =
        (0..10).flat_map(|decade| R20.iter().step_by(step).map(move |m| m * 10_u64.pow(decade))).collect();
    let mut buckets: Vec<Bucket> = bounds
        .windows(2)
        .map(|pair| Bucket { from: pair[0], to: pair[1], count: samples.count_between(pair[0], pair[1]) })
        .collect();
    if let (Some(first), Some(last)) = (bounds.first(), bounds.last()) {
        buckets.insert(0, Bucket { from: 0, to: *first, count: samples.count_between(0, *first) });
        buckets.push(Bucket { from: *last, to: u64::MAX, count: samples.count_between(*last, u64::MAX) });
    }
    let begin = buckets.iter().position(|bucket| bucket.count > 0).unwrap_or(0);
    let end = buckets.iter().rposition(|bucket| bucket.count > 0).map_or(0, |last| last + 1);
    buckets.get(begin..end).unwrap_or_default().to_vec()
}

impl Bucket {
    fn contains(&self, time: Microseconds) -> bool {
        let (from, to) = (Microseconds::from_nanoseconds(self.from), Microseconds::from_nanoseconds(self.to));
        (from..to).contains(&time)
    }

    /// `  112 –   125 µs`, in the unit of the upper bound.
    fn label(&self) -> String {
        if self.to == u64::MAX {
            return format!("      over {:>5} s ", decimal(self.from, 1_000_000_000));
        }
        let (unit, name) = match self.to {
            0..=1_000 => (1, "ns"),
            1_001..=1_000_000 => (1_000, "µs"),
            1_000_001..=1_000_000_000 => (1_000_000, "ms"),
            _ => (1_000_000_000, "s "),
        };
        format!("{:>5} – {:>5} {name}", decimal(self.from, unit), decimal(self.to, unit))
    }
}

/// A quotient with as many digits as it needs, three at most.
fn decimal(value: u64, unit: u64) -> String {
    let (whole, thousandths) = (value / unit, value % unit * 1000 / unit);
    let text = format!("{whole}.{thousandths:03}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A bar whose length is to [`WIDTH`] as `count` is to `highest`; something is visible of every count.
fn bar(count: u64, highest: u64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (count * WIDTH * 8).div_ceil(highest.max(1));
    let whole = usize::try_from(eighths / 8).unwrap_or(0);
    let rest = EIGHTHS[usize::try_from(eighths % 8).unwrap_or(0)];
    format!("{}{rest}", "█".repeat(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(microseconds: impl IntoIterator<Item = u64>) -> Samples {
        let mut samples = Samples::new();
        microseconds.into_iter().for_each(|us| samples.record(us * 1000));
        samples
    }

    #[test]
    fn a_narrow_distribution_with_a_tail_is_shown_whole() {
        let bulk = (0..90).map(|i| 95 + i % 30);
        let tail = [210, 215, 340, 890, 21_000];
        insta::assert_snapshot!(render(&samples(bulk.chain(tail))), @r"
         90 –   100 µs  ███████████████▌ 15
        100 –   112 µs  █████████████████████████████████████ 36  ← p50
        112 –   125 µs  ████████████████████████████████████████ 39  ← p90
                 ⋮
        200 –   224 µs  ██▏ 2
                 ⋮
        315 –   355 µs  █▏ 1
                 ⋮
        800 –   900 µs  █▏ 1
                 ⋮
         20 –  22.4 ms  █▏ 1  ← p99
        ");
    }

    #[test]
    fn many_decades_are_shown_in_coarse_buckets() {
        insta::assert_snapshot!(render(&samples((0..200).map(|i| 3 * (i + 1) * (i + 1)))), @r"
        2.5 –     4 µs  █▏ 1
                 ⋮
         10 –    16 µs  █▏ 1
                 ⋮
         25 –    40 µs  █▏ 1
         40 –    63 µs  █▏ 1
         63 –   100 µs  █▏ 1
        100 –   160 µs  ██▏ 2
        160 –   250 µs  ██▏ 2
        250 –   400 µs  ██▏ 2
        400 –   630 µs  ███▎ 3
        630 –  1000 µs  ████▎ 4
          1 –   1.6 ms  █████▍ 5
        1.6 –   2.5 ms  █████▍ 5
        2.5 –     4 ms  ████████▌ 8
          4 –   6.3 ms  █████████▌ 9
        6.3 –    10 ms  ████████████▊ 12
         10 –    16 ms  ████████████████▉ 16
         16 –    25 ms  ███████████████████ 18
         25 –    40 ms  █████████████████████████▍ 24  ← p50
         40 –    63 ms  ██████████████████████████████▋ 29
         63 –   100 ms  ████████████████████████████████████████ 38  ← p90
        100 –   160 ms  ███████████████████ 18  ← p99
        ");
    }

    #[test]
    fn one_sample_is_one_row() {
        insta::assert_snapshot!(render(&samples([117])), @"112 –   125 µs  ████████████████████████████████████████ 1  ← p50, p90, p99");
    }

    #[test]
    fn nothing_is_said_to_be_nothing() {
        assert_eq!(render(&samples([])), "  no samples\n");
    }

    #[test]
    fn every_sample_is_in_some_row() {
        let samples = samples([0, 1, 999, 1_000, 5_000_000, 3_000_000_000]);
        let shown: u64 = occupied(&samples, 4).iter().map(|bucket| bucket.count).sum();
        assert_eq!(shown, samples.count());
    }
}
