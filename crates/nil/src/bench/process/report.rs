//! What `nil bench process` has found.

use crate::cli::Table;
use nil_pool::Bytes;
use serde::Serialize;
use std::fmt;

/// Milliseconds, of several samples.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(super) struct Milliseconds {
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Milliseconds {
    /// Of at least one sample in ns; the nearest rank.
    pub(super) fn of(mut samples: Vec<u64>) -> Option<Self> {
        samples.sort_unstable();
        let rank = |percent: usize| {
            let index = (samples.len() * percent).div_ceil(100).saturating_sub(1);
            samples.get(index).map(|ns| *ns as f64 / 1e6)
        };
        Some(Self { p50: rank(50)?, p99: rank(99)?, max: rank(100)? })
    }
}

/// One size, by reference.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Case {
    pub(super) memory_bytes: u64,
    /// By the program's own clock, dump and restore on one machine.
    pub(super) blackout_ms: Milliseconds,
    /// What CRIU takes, plain, for the same program with 1 MiB (median).
    pub(super) criu_fixed_ms: f64,
    /// Bytes of the program's memory that were not in the pool at a handoff, and that CRIU copied; the most of all samples.
    pub(super) copied_bytes: u64,
    /// Pages in CRIU's images all the same: the stack, data of programs and libraries; the most of all samples.
    pub(super) image_bytes: u64,
    /// Medians of where the time went.
    pub(super) stop_ms: f64,
    pub(super) dump_ms: f64,
    pub(super) restore_ms: f64,
    pub(super) decouple_bytes_per_s: f64,
    pub(super) recouple_bytes_per_s: f64,
    /// The longest that stores waited for one chunk.
    pub(super) decouple_stall_ms: f64,
    /// The program's speed while it was decoupled, of what it was before.
    pub(super) decouple_speed_pct: f64,
    /// No store lost, no word wrong.
    pub(super) verified: bool,
}

/// One size, by something else.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Peer {
    pub(super) name: &'static str,
    pub(super) memory_bytes: u64,
    pub(super) blackout_ms: Milliseconds,
    /// How many times longer than by reference (medians).
    pub(super) ratio: f64,
    pub(super) verified: bool,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Report {
    pub(super) cases: Vec<Case>,
    pub(super) peers: Vec<Peer>,
}

impl Report {
    pub(super) fn is_good(&self) -> bool {
        self.cases.iter().all(|case| case.verified && case.copied_bytes == 0)
            && self.peers.iter().all(|peer| peer.verified)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(["MEMORY", "BY", "BLACKOUT P50", "MAX", "RATIO", "COPIED", "VERIFIED"]);
        let yes = |verified| if verified { "yes" } else { "NO" }.to_owned();
        for case in &self.cases {
            table.row([
                Bytes(case.memory_bytes).to_string(),
                "reference".to_owned(),
                format!("{:.1} ms", case.blackout_ms.p50),
                format!("{:.1} ms", case.blackout_ms.max),
                "1".to_owned(),
                Bytes(case.copied_bytes).to_string(),
                yes(case.verified),
            ]);
            for peer in self.peers.iter().filter(|peer| peer.memory_bytes == case.memory_bytes) {
                table.row([
                    String::new(),
                    peer.name.to_owned(),
                    format!("{:.1} ms", peer.blackout_ms.p50),
                    format!("{:.1} ms", peer.blackout_ms.max),
                    format!("{:.1}", peer.ratio),
                    "all".to_owned(),
                    yes(peer.verified),
                ]);
            }
        }
        write!(f, "{table}")?;
        for case in &self.cases {
            writeln!(
                f,
                "{}: stop {:.1}, dump {:.1}, restore {:.1} ms; CRIU alone takes {:.1} ms for 1 MiB; decoupled at {:.2} GB/s \
                 (stores waited up to {:.2} ms, the program kept {:.0} % of its speed), recoupled at {:.2} GB/s",
                Bytes(case.memory_bytes),
                case.stop_ms,
                case.dump_ms,
                case.restore_ms,
                case.criu_fixed_ms,
                case.decouple_bytes_per_s / 1e9,
                case.decouple_stall_ms,
                case.decouple_speed_pct,
                case.recouple_bytes_per_s / 1e9
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let of = Milliseconds::of((1..=10).map(|ms| ms * 1_000_000).collect()).expect("samples");
        assert_eq!([of.p50, of.p99, of.max], [5.0, 10.0, 10.0]);
        assert_eq!(Milliseconds::of(Vec::new()), None);
    }
}
