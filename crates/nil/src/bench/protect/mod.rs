//! `nil bench protect`: what commits of a running guest cost the guest.
//!
//! ```text
//! for every case    guest in DRAM of this process, a pool beside it
//!                   ├─ unprotected: what it can do ─┤├─ all of it copied ─┤├─ protected: standstills, speed ─┤├─ brought back ─┤
//! ```
//!
//! The guest stores into every page of its working set without pause. So an epoch changes as many pages as the working set
//! has, if it is long enough for that; and the guest notices whatever slows its stores down.

mod case;
mod report;

use crate::cli::Output;
use crate::cli::duration;
use crate::lab::frequency::Frequency;
use crate::lab::interrupt;
use case::Plan;
use nil_guest_abi::layout::MAX_VCPUS;
use nil_pool::Bytes;
use report::Report;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Memory of the guest.
    #[arg(long, default_value = "1G", value_name = "SIZE")]
    memory: Bytes,
    /// Its vCPUs.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_VCPUS)))]
    vcpus: u32,
    /// How many pages an epoch changes, separated by commas; with the intervals, one for each: 10000@100ms.
    #[arg(long, default_value = "10000@100ms,1221@25ms,122@25ms", value_delimiter = ',', value_name = "PAGES@INTERVAL", value_parser = parse_load)]
    dirty: Vec<Load>,
    /// What the guest does with each page of its working set.
    #[arg(long, value_enum, default_value_t = Work::Rewrites, value_name = "WORK")]
    work: Work,
    /// How long each guest is watched, unprotected and protected.
    #[arg(long, default_value = "5s", value_parser = duration::parse_some, value_name = "TIME")]
    time: Duration,
}

/// What a guest does with each page of its working set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Work {
    /// It verifies and rewrites every word.
    Rewrites,
    /// It stores one word, and does nothing else: the worst that there is.
    Stores,
}

/// How many pages an epoch changes, and how long it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Load {
    pages: u64,
    interval: Duration,
}

fn parse_load(text: &str) -> Result<Load, String> {
    let malformed = || format!("`{text}` is not PAGES@INTERVAL, such as 10000@100ms");
    let (pages, interval) = text.split_once('@').ok_or_else(malformed)?;
    let pages = pages.parse().ok().filter(|pages| *pages > 0).ok_or_else(malformed)?;
    Ok(Load { pages, interval: duration::parse_some(interval)? })
}

pub(super) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    interrupt::conclude(output, || measure(args, output), Report::is_good)
}

fn measure(args: &Args, output: Output) -> anyhow::Result<Report> {
    let frequency = Frequency::measure();
    let mut cases = Vec::new();
    for &Load { pages, interval } in &args.dirty {
        let Args { memory, vcpus, time, work, .. } = *args;
        let plan = Plan { memory_bytes: memory.get(), vcpus, pages, interval, time, stores: work == Work::Stores };
        cases.push(case::measure(plan, frequency, output)?);
    }
    Ok(Report { cases })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_pages_and_an_interval() {
        assert_eq!(parse_load("122@25ms"), Ok(Load { pages: 122, interval: Duration::from_millis(25) }));
        for text in ["", "122", "@25ms", "0@25ms", "12@", "12@0s", "x@1s"] {
            assert!(parse_load(text).is_err(), "{text}");
        }
    }
}
