//! One report of several moves that were one to whoever ordered them: a move that had to be interrupted, or that went in
//! several ranges.

use nil_mover::{ChunkSizes, MoveReport, StallFigures, UndeclaredPin};

/// More undeclared pins than this are not told one by one.
const MOST_PINS: usize = 64;

/// What two moves, one after the other, were together. What cannot be told from two reports (percentiles) is the worse of
/// the two; the outcome is the later one's. Bytes that were to move count once if the second move was to finish the first.
pub(crate) fn join(earlier: MoveReport, later: MoveReport, relation: Relation) -> MoveReport {
    let total_bytes = match relation {
        Relation::Continued => earlier.total_bytes.max(later.total_bytes),
        Relation::AnotherRange => earlier.total_bytes + later.total_bytes,
    };
    let elapsed_us = earlier.elapsed_us + later.elapsed_us;
    let stalled_us = earlier.stalled_us + later.stalled_us;
    let bytes = u128::from(moved_bytes(&earlier)) + u128::from(moved_bytes(&later));
    let rate = bytes * 1_000_000 / u128::from((elapsed_us - stalled_us.min(elapsed_us)).max(1));
    let mut undeclared = later.undeclared;
    undeclared.extend(earlier.undeclared.into_iter().filter(|pin| !undeclared.contains(pin)).collect::<Vec<_>>());
    let undeclared = first_of(undeclared);
    MoveReport {
        direction: later.direction,
        outcome: later.outcome,
        total_bytes,
        copied_bytes: earlier.copied_bytes + later.copied_bytes,
        zero_bytes: earlier.zero_bytes + later.zero_bytes,
        untouched_bytes: earlier.untouched_bytes + later.untouched_bytes,
        huge_bytes: earlier.huge_bytes + later.huge_bytes,
        chunks: earlier.chunks + later.chunks,
        elapsed_us,
        moving_us: earlier.moving_us + later.moving_us,
        stalled_us,
        bytes_per_s: u64::try_from(rate).unwrap_or(u64::MAX),
        stall_us: worse(earlier.stall_us, later.stall_us),
        slowdown_pct: weighted((earlier.slowdown_pct, earlier.elapsed_us), (later.slowdown_pct, later.elapsed_us)),
        chunk_bytes: both_sizes(earlier.chunk_bytes, later.chunk_bytes),
        undeclared,
    }
}

/// As many undeclared pins as a person reads, and how many more there are.
pub(crate) fn first_of(mut pins: Vec<UndeclaredPin>) -> Vec<UndeclaredPin> {
    if pins.len() > MOST_PINS {
        let rest = pins.split_off(MOST_PINS - 1);
        let bytes = rest.iter().map(|pin| pin.bytes).sum();
        pins.push(UndeclaredPin { offset: None, bytes, holder: format!("a group of {} more", rest.len()) });
    }
    pins
}

/// Bytes that have arrived, whether or not they had to be copied.
pub(crate) fn moved_bytes(report: &MoveReport) -> u64 {
    report.copied_bytes + report.zero_bytes + report.untouched_bytes
}

/// How two moves that are reported as one belong together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Relation {
    /// The second took up what the first had not finished.
    Continued,
    /// The second moved other memory.
    AnotherRange,
}

fn worse(a: StallFigures, b: StallFigures) -> StallFigures {
    StallFigures { count: a.count + b.count, p50: a.p50.max(b.p50), p99: a.p99.max(b.p99), max: a.max.max(b.max) }
}

/// The mean of two shares, each weighted with how long it lasted.
#[expect(clippy::cast_precision_loss, reason = "microseconds of a move fit into 53 bits for 285 years")]
fn weighted((a, a_us): (f64, u64), (b, b_us): (f64, u64)) -> f64 {
    let (a_us, b_us) = (a_us as f64, b_us as f64);
    if a_us + b_us == 0.0 { 0.0 } else { (a * a_us + b * b_us) / (a_us + b_us) }
}

/// A move without chunks has no sizes.
fn both_sizes(a: ChunkSizes, b: ChunkSizes) -> ChunkSizes {
    match (a.largest, b.largest) {
        (0, _) => b,
        (_, 0) => a,
        _ => ChunkSizes { smallest: a.smallest.min(b.smallest), largest: a.largest.max(b.largest) },
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use nil_mover::{Direction, MoveOutcome};

    pub(crate) fn report(outcome: MoveOutcome, total: u64, copied: u64) -> MoveReport {
        MoveReport {
            direction: Direction::Decouple,
            outcome,
            total_bytes: total,
            copied_bytes: copied,
            zero_bytes: 0,
            untouched_bytes: 0,
            huge_bytes: 0,
            chunks: 1,
            elapsed_us: 1_000_000,
            moving_us: 500_000,
            stalled_us: 0,
            bytes_per_s: copied,
            stall_us: StallFigures { count: 1, p50: 10, p99: copied, max: copied },
            slowdown_pct: 10.0,
            chunk_bytes: ChunkSizes { smallest: copied, largest: copied },
            undeclared: Vec::new(),
        }
    }

    #[test]
    fn many_undeclared_pins_are_told_as_some_and_a_number() {
        let pin = |bytes| UndeclaredPin { offset: None, bytes, holder: "io_uring".into() };
        let told = first_of((1..=100).map(pin).collect());
        assert_eq!((told.len(), told[0].clone()), (64, pin(1)));
        assert_eq!((told[63].bytes, told[63].holder.as_str()), ((64..=100).sum(), "a group of 37 more"));
        assert_eq!(first_of(vec![pin(1); 64]), vec![pin(1); 64]);
    }

    #[test]
    fn a_move_that_was_interrupted_is_one_move_of_the_same_bytes() {
        let (first, second) = (report(MoveOutcome::Cancelled, 100, 40), report(MoveOutcome::Done, 60, 60));
        let joined = join(first, second, Relation::Continued);
        assert_eq!((joined.outcome, joined.total_bytes, joined.copied_bytes), (MoveOutcome::Done, 100, 100));
        assert_eq!((joined.chunks, joined.bytes_per_s), (2, 50));
        assert_eq!(joined.stall_us, StallFigures { count: 2, p50: 10, p99: 60, max: 60 });
        assert_eq!(joined.chunk_bytes, ChunkSizes { smallest: 40, largest: 60 });
    }

    #[test]
    fn ranges_add_up_and_a_move_without_chunks_has_no_part_in_their_sizes() {
        let none = MoveReport { chunk_bytes: ChunkSizes::default(), ..report(MoveOutcome::Done, 10, 0) };
        let joined = join(none, report(MoveOutcome::Done, 100, 100), Relation::AnotherRange);
        assert_eq!((joined.total_bytes, joined.chunk_bytes.smallest), (110, 100));
    }

    #[test]
    fn a_pin_that_was_found_twice_is_reported_once() {
        let pin = UndeclaredPin { offset: None, bytes: 4096, holder: "io_uring".into() };
        let with_pin = || MoveReport { undeclared: vec![pin.clone()], ..report(MoveOutcome::Done, 1, 1) };
        assert_eq!(join(with_pin(), with_pin(), Relation::Continued).undeclared, [pin]);
    }
}
