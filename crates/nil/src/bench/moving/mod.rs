//! `nil bench move`: how fast a guest's memory goes between DRAM and pool, and what the guest notices of it.
//!
//! ```text
//! for every shape      memcpy of as many bytes between the same kinds of mapping
//!                      rack, guest in DRAM; then again and again: decouple, handoff, recouple, each measured;
//!                      then again and again: all of it by one order
//! for every guest      the same image under QEMU: pre-copy and post-copy
//! --round-trips N      instead: N times decouple, handoff, recouple, and every byte verified after each
//! ```
//!
//! A shape that cannot run here says why, and the others run.

mod case;
mod peer;
mod report;
mod target;
mod text;
mod trips;

use super::report::{Dirty, Outcome};
use crate::cli::Output;
use crate::lab::frequency::Frequency;
use crate::lab::interrupt::{self, Interrupted};
use anyhow::bail;
use nil_guest_abi::layout::MAX_VCPUS;
use nil_pool::Bytes;
use report::{BudgetName, Findings, Page, Report, RoundTrips, Shape};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Memory sizes of the guests, separated by commas.
    #[arg(long, default_value = "1G", value_delimiter = ',', value_name = "SIZES")]
    memory: Vec<Bytes>,
    /// With which pages, in the pool and in DRAM, separated by commas.
    #[arg(long, default_value = "2m,4k", value_delimiter = ',', value_name = "PAGES")]
    page: Vec<Page>,
    /// What the moves may cost the guest, separated by commas.
    #[arg(long, default_value = "fast,default", value_delimiter = ',', value_name = "BUDGETS")]
    budget: Vec<BudgetName>,
    /// Number of vCPUs; 1 unless said otherwise, and 2 for round trips.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_VCPUS)))]
    vcpus: Option<u32>,
    /// What the guests do with their memory, separated by commas.
    #[arg(long, default_value = "stores", value_delimiter = ',', value_name = "MODES")]
    guest: Vec<Dirty>,
    /// Moves per case.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    samples: u64,
    /// Make N round trips instead, with full verification after each, as fast as it goes unless --budget says otherwise.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    round_trips: Option<u64>,
    /// Measure the same guest under something else too.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    peer: Vec<PeerName>,
    /// Migrations per guest and peer.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    peer_samples: u64,
    /// After how many seconds a peer's migration that does not come to an end is given up.
    #[arg(long, default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    peer_limit: u64,
}

/// With whom nil is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum PeerName {
    /// QEMU: its pre-copy and its post-copy.
    Qemu,
}

pub(super) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    interrupt::conclude(output, || measure(args, output), Report::is_good)
}

fn measure(args: &Args, output: Output) -> anyhow::Result<Report> {
    let frequency = Frequency::measure();
    let mut found = Findings::default();
    match args.round_trips {
        Some(number) => make_round_trips(args, number, frequency, output, &mut found)?,
        None => measure_cases(args, frequency, output, &mut found)?,
    }
    if let Some(why) = why_nothing(&found) {
        bail!("nothing could be measured: {why}");
    }
    for &PeerName::Qemu in &args.peer {
        for &guest in &args.guest {
            for &memory in &args.memory {
                let plan = peer::Plan { memory, guest, samples: args.peer_samples, limit_s: args.peer_limit };
                found.peers.extend(peer::qemu(&plan, frequency, output)?);
            }
        }
    }
    Ok(Report::new(found))
}

fn measure_cases(args: &Args, frequency: Frequency, output: Output, found: &mut Findings) -> anyhow::Result<()> {
    for shape in args.shapes(1) {
        match case::measure(shape, args.samples, frequency, output) {
            Ok(measured) => measured.add_to(found),
            Err(error) => {
                let why = reason(error)?;
                found.cases.extend(case::skipped(shape, &why));
            }
        }
    }
    Ok(())
}

fn make_round_trips(
    args: &Args,
    asked: u64,
    frequency: Frequency,
    output: Output,
    found: &mut Findings,
) -> anyhow::Result<()> {
    let mut shapes = args.shapes(2);
    // Both budgets were asked for only if somebody asked: the default list is meant for cases.
    if args.budget == [BudgetName::Fast, BudgetName::Default] {
        shapes.retain(|shape| shape.budget == BudgetName::Fast);
    }
    for shape in shapes {
        let outcome = match trips::make(shape, asked, frequency, output) {
            Ok(figures) => Outcome::Measured(figures),
            Err(error) => Outcome::skipped(reason(error)?),
        };
        found.round_trips.push(RoundTrips { shape, asked, outcome });
    }
    Ok(())
}

impl Args {
    /// Every combination that was asked for.
    fn shapes(&self, vcpus: u32) -> Vec<Shape> {
        let vcpus = self.vcpus.unwrap_or(vcpus);
        let mut shapes = Vec::new();
        for &guest in &self.guest {
            for &memory in &self.memory {
                for &page in &self.page {
                    shapes.extend(self.budget.iter().map(|&budget| Shape { memory, page, vcpus, guest, budget }));
                }
            }
        }
        shapes
    }
}

/// Why something could not be measured, in one line; an interruption is passed on instead.
fn reason(error: anyhow::Error) -> anyhow::Result<String> {
    interrupt::check()?;
    if error.is::<Interrupted>() { Err(error) } else { Ok(format!("{error:#}")) }
}

/// The first reason why nothing at all was measured, if nothing was.
fn why_nothing(found: &Findings) -> Option<&str> {
    let cases = found.cases.iter().map(|case| case.outcome.reason());
    let mut reasons = cases.chain(found.round_trips.iter().map(|trips| trips.outcome.reason()));
    let first = reasons.next()??;
    reasons.all(|reason| reason.is_some()).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Line::try_parse_from(std::iter::once("move").chain(line.split_ascii_whitespace())).map(|line| line.args)
    }

    #[test]
    fn every_combination_is_a_shape() {
        let args = parse("--memory 64M,1G --page 4k --guest hot,stores").expect("a command line");
        let shapes: Vec<String> = args.shapes(1).iter().map(ToString::to_string).collect();
        assert_eq!(shapes.len(), 8);
        assert_eq!(shapes[0], "64 MiB, 4k pages, 1 vCPU, hot, fast");
        assert_eq!(shapes[7], "1 GiB, 4k pages, 1 vCPU, stores, default");
    }

    #[test]
    fn round_trips_have_two_vcpus_unless_said_otherwise() {
        let args = parse("--round-trips 100").expect("a command line");
        assert_eq!(args.shapes(2)[0].vcpus, 2);
        assert_eq!(parse("--round-trips 100 --vcpus 4").expect("a command line").shapes(2)[0].vcpus, 4);
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["--page 1g", "--budget cheap", "--samples 0", "--round-trips 0", "--vcpus 17", "--guest warm"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn an_interruption_is_no_reason() {
        assert!(reason(Interrupted.into()).is_err());
        assert_eq!(reason(anyhow::anyhow!("no room")).expect("a reason"), "no room");
    }
}
