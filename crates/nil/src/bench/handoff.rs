//! `nil bench handoff`: one rack per case, one guest on it, many handoffs; then the same guest between two processes of
//! a peer. A case that cannot run here says why, and the others run.

use super::peers;
use super::report::{Case, CaseFigures, Dirty, Outcome, Peer, Report, Shape};
use crate::cli::Output;
use crate::lab::canary::Canary;
use crate::lab::frequency::Frequency;
use crate::lab::interrupt::{self, Interrupted};
use crate::lab::progress::Progress;
use crate::lab::tally::Tally;
use crate::lab::{GuestPlan, Rack, RackPlan, Shuttle};
use anyhow::{Context, bail};
use nil_guest_abi::layout::MAX_VCPUS;
use nil_pool::Bytes;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Memory sizes of the guests, separated by commas.
    #[arg(long, default_value = "64M,1G", value_delimiter = ',', value_name = "SIZES")]
    memory: Vec<Bytes>,
    /// Numbers of vCPUs, separated by commas.
    #[arg(long, default_value = "1", value_delimiter = ',', value_name = "NUMBERS",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_VCPUS)))]
    vcpus: Vec<u32>,
    /// Handoffs per case.
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    samples: u64,
    /// What the guests do with their memory, separated by commas.
    #[arg(long, default_value = "hot", value_delimiter = ',', value_name = "MODES")]
    dirty: Vec<Dirty>,
    /// Measure the same guest under something else too.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    peer: Vec<PeerName>,
    /// Migrations per case and peer.
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    peer_samples: u64,
}

/// With whom nil is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum PeerName {
    /// QEMU: its migration by reference and its pre-copy.
    Qemu,
}

pub(super) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    interrupt::conclude(output, || measure(args, output), Report::is_good)
}

fn measure(args: &Args, output: Output) -> anyhow::Result<Report> {
    let frequency = Frequency::measure();
    let mut pool = String::new();
    let mut cases = Vec::new();
    for shape in args.shapes() {
        let outcome = match measure_case(shape, args.samples, frequency, output) {
            Ok((figures, ground)) => {
                pool = ground;
                Outcome::Measured(figures)
            }
            Err(error) => Outcome::skipped(reason(error)?),
        };
        cases.push(Case { shape, outcome });
    }
    if let ([Case { outcome: Outcome::Skipped { skipped }, .. }, ..], true) =
        (&cases[..], cases.iter().all(|case| case.outcome.figures().is_none()))
    {
        bail!("no case could be measured: {skipped}");
    }
    let peers = measure_peers(args, frequency, output)?;
    Ok(Report::new(cases, peers, pool))
}

impl Args {
    /// Every combination that was asked for.
    fn shapes(&self) -> Vec<Shape> {
        let mut shapes = Vec::new();
        for &dirty in &self.dirty {
            for &vcpus in &self.vcpus {
                shapes.extend(self.memory.iter().map(|&memory| Shape { memory, vcpus, dirty }));
            }
        }
        shapes
    }
}

/// Why a case could not be measured, in one line; an interruption is passed on instead.
fn reason(error: anyhow::Error) -> anyhow::Result<String> {
    if error.is::<Interrupted>() { Err(error) } else { Ok(format!("{error:#}")) }
}

fn measure_case(
    shape: Shape,
    samples: u64,
    frequency: Frequency,
    output: Output,
) -> anyhow::Result<(CaseFigures, String)> {
    let progress = Progress::new(output, samples);
    progress.doing(format!("{shape}: booting"));
    let rack = Rack::build(&RackPlan::fleeting(shape.memory.get()))?;
    let guest = GuestPlan { memory_bytes: shape.memory.get(), vcpus: shape.vcpus, mode: shape.dirty.mode() };
    let mut shuttle = Shuttle::boot(&rack, &guest, frequency)?;
    let canary = Canary::start(frequency)?;
    let mut tally = Tally::new();
    while tally.handoffs < samples && shuttle.verdict()?.is_clean() {
        tally.add(&shuttle.handoff().with_context(|| format!("handoff {} failed", tally.handoffs + 1))?);
        progress.reached(tally.handoffs, || shape.to_string());
    }
    let canary = canary.report(&tally.spans);
    let verdict = shuttle.verify_all()?;
    let figures = CaseFigures {
        handoffs: tally.handoffs,
        unobserved: tally.unobserved,
        verified: verdict.is_clean(),
        blackout_us: tally.blackouts.figures().context("no blackout could be read")?,
        phases_us: tally.phases.medians(),
        copied_bytes: tally.copied_bytes,
        lost_first_ms_pct: tally.lost_first_ms(),
        state_bytes: tally.state_bytes,
        huge_page_bytes: shuttle.huge_bytes()?,
        canary,
    };
    shuttle.stop()?;
    Ok((figures, rack.ground()))
}

fn measure_peers(args: &Args, frequency: Frequency, output: Output) -> anyhow::Result<Vec<Peer>> {
    let mut measured = Vec::new();
    for peer in &args.peer {
        for shape in args.shapes() {
            match peer {
                PeerName::Qemu => measured.extend(peers::qemu(shape, args.peer_samples, frequency, output)?),
            }
        }
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_is_a_case() {
        let args = Args {
            memory: vec![Bytes(64 << 20), Bytes(1 << 30)],
            vcpus: vec![1, 2],
            samples: 1,
            dirty: vec![Dirty::Idle, Dirty::Hot],
            peer: Vec::new(),
            peer_samples: 1,
        };
        let shapes = args.shapes();
        assert_eq!(shapes.len(), 8);
        assert_eq!(shapes[1].to_string(), "1 GiB, 1 vCPU, idle");
    }

    #[test]
    fn an_interruption_is_no_skipped_case() {
        assert!(reason(Interrupted.into()).is_err());
        assert_eq!(reason(anyhow::anyhow!("no room")).expect("a reason"), "no room");
    }
}
