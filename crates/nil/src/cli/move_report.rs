//! What a move of memory did and cost, for a person.

use super::duration::of_micros;
use super::moving::facts;
use nil_mover::{ChunkSizes, MoveReport, StallFigures};
use nil_pool::Bytes;
use std::fmt;

/// A move's figures, one per line, indented.
pub(super) struct MoveTable<'a>(pub(super) &'a MoveReport);

impl fmt::Display for MoveTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        let size = |bytes: u64| Bytes(bytes).to_string();
        let mut lines = vec![
            ("memory", size(report.total_bytes)),
            (
                "copied",
                format!(
                    "{}; all zero {}; never touched {}",
                    size(report.copied_bytes),
                    size(report.zero_bytes),
                    size(report.untouched_bytes)
                ),
            ),
            ("huge pages", size(report.huge_bytes)),
            ("time", format!("{}, of that moving {}", of_micros(report.elapsed_us), of_micros(report.moving_us))),
            ("rate", format!("{}/s", size(report.bytes_per_s))),
        ];
        if report.chunks > 0 {
            lines.push(("chunks", chunks(report)));
        }
        lines.push(("guest stalled", stalls(report.stall_us)));
        lines.push(("guest slowed", format!("{:.1} %", report.slowdown_pct)));
        if report.stalled_us > 0 {
            lines.push(("waited", format!("{} for memory that could not move", of_micros(report.stalled_us))));
        }
        for pin in &report.undeclared {
            lines.push(("undeclared pin", pin.to_string()));
        }
        facts(f, lines)
    }
}

fn chunks(report: &MoveReport) -> String {
    let ChunkSizes { smallest, largest } = report.chunk_bytes;
    match (report.chunks, smallest, largest) {
        (number, _, 0) => number.to_string(),
        (number, smallest, largest) if smallest == largest => format!("{number} of {}", Bytes(largest)),
        (number, smallest, largest) => format!("{number} of {} to {}", Bytes(smallest), Bytes(largest)),
    }
}

fn stalls(stall: StallFigures) -> String {
    let longest = of_micros(stall.max);
    match stall.count {
        0 => "never".to_owned(),
        1 => format!("once, for {longest}"),
        count => {
            let (median, p99) = (of_micros(stall.p50), of_micros(stall.p99));
            format!("{count} times; median {median}, p99 {p99}, longest {longest}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nil_mover::{Direction, MoveOutcome, UndeclaredPin};

    #[test]
    fn none_and_one_are_said_as_such() {
        let stalls_of = |count| stalls(StallFigures { count, p50: 0, p99: 0, max: 40 });
        assert_eq!((stalls_of(0).as_str(), stalls_of(1).as_str()), ("never", "once, for 40 µs"));
    }

    #[test]
    fn a_report_shows_every_figure() {
        let report = MoveReport {
            direction: Direction::Decouple,
            outcome: MoveOutcome::Done,
            total_bytes: 1 << 30,
            copied_bytes: 512 << 20,
            zero_bytes: 256 << 20,
            untouched_bytes: 256 << 20,
            huge_bytes: 512 << 20,
            chunks: 384,
            elapsed_us: 1_500_000,
            moving_us: 400_000,
            stalled_us: 2_000,
            bytes_per_s: 700 << 20,
            stall_us: StallFigures { count: 7, p50: 40, p99: 180, max: 260 },
            slowdown_pct: 12.34,
            chunk_bytes: ChunkSizes { smallest: 64 << 10, largest: 2 << 20 },
            undeclared: vec![UndeclaredPin { offset: None, bytes: 8 << 10, holder: "io_uring".into() }],
        };
        insta::assert_snapshot!(MoveTable(&report).to_string(), @r"
          memory          1 GiB
          copied          512 MiB; all zero 256 MiB; never touched 256 MiB
          huge pages      512 MiB
          time            1.50 s, of that moving 400.0 ms
          rate            700 MiB/s
          chunks          384 of 64 KiB to 2 MiB
          guest stalled   7 times; median 40 µs, p99 180 µs, longest 260 µs
          guest slowed    12.3 %
          waited          2.0 ms for memory that could not move
          undeclared pin  io_uring has pinned 8 KiB somewhere in it
        ");
    }
}
