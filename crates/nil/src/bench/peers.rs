//! The same guest image between two processes of somebody else, measured by the guest in the same way.

use super::report::{Outcome, Peer, PeerFigures, Shape};
use crate::cli::Output;
use crate::images;
use crate::lab::canary::{Canary, Span};
use crate::lab::figures::Samples;
use crate::lab::frequency::Frequency;
use crate::lab::interrupt::{self, Interrupted};
use crate::lab::observe::Observer;
use crate::lab::progress::Progress;
use crate::lab::recorder::Recorder;
use anyhow::{Context, bail, ensure};
use nil_guest_abi::blackout::{Blackout, Offsets, Standstill};
use nil_guest_abi::{GuestState, Options, Program};
use nil_migrate::tsc;
use nil_qemu::{Peer as Qemu, PeerOptions, PeerSample, Stage, Transfer};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// After so many migrations that came to nothing, a case is given up.
const MOST_FAILURES: usize = 2;
/// QEMU's ways that nil is compared with.
const WAYS: [(&str, Transfer); 2] =
    [("qemu-by-reference", Transfer::ByReference), ("qemu-pre-copy", Transfer::PreCopy { bandwidth: None })];

/// Measures QEMU's migration by reference and its pre-copy, for one shape of guest.
pub(super) fn qemu(shape: Shape, samples: u64, frequency: Frequency, output: Output) -> anyhow::Result<Vec<Peer>> {
    let mut peers = Vec::new();
    for (name, transfer) in WAYS {
        let progress = Progress::new(output, samples);
        progress.doing(format!("{name}, {shape}: booting"));
        let outcome = match measure(shape, transfer, samples, frequency, &progress) {
            Ok(figures) => Outcome::Measured(figures),
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => {
                // Ctrl-C reaches QEMU too, which then ends in the middle of things.
                interrupt::check()?;
                Outcome::skipped(format!("{error:#}"))
            }
        };
        peers.push(Peer { name, shape, outcome });
    }
    Ok(peers)
}

fn measure(
    shape: Shape,
    transfer: Transfer,
    samples: u64,
    frequency: Frequency,
    progress: &Progress,
) -> anyhow::Result<PeerFigures> {
    ensure!(shape.vcpus == 1, "the guest is compared with one vCPU only");
    let directory = tempfile::Builder::new().prefix("nil-").tempdir()?;
    let image = directory.path().join(Program::Demo.name());
    fs::write(&image, images::builtin(Program::Demo.name()).context("the guest's image is not built in")?)?;
    let options = PeerOptions::new(image, shape.memory.get(), command_line(shape, frequency));
    let mut guest = Qemu::boot(&options, |memory| stage(memory, frequency))?;
    let canary = Canary::start(frequency)?;
    let (mut blackouts, mut totals, mut spans) = (Samples::new(), Samples::new(), Vec::new());
    let (mut unobserved, mut transferred, mut failures) = (0, 0, Vec::new());
    while blackouts.count() + unobserved < samples {
        interrupt::check()?;
        let before = watch(guest.memory_file(), frequency)?;
        let recorder = Recorder::start(guest.memory_file(), frequency)?;
        let sample = match guest.handoff(transfer, tsc::now) {
            Ok(sample) => sample,
            Err(error) => {
                failures.push(error);
                if failures.len() >= MOST_FAILURES {
                    break;
                }
                continue;
            }
        };
        let after = watch(&sample.memory_file, frequency)?;
        let source = before.clock_offset_of_first();
        let offsets = Offsets { source, destination: after.clock_offset_of_first() };
        transferred = transferred.max(sample.transferred_bytes);
        match Blackout::find(recorder.finish()?, standstill(&sample), offsets) {
            Some(blackout) => {
                blackouts.record(frequency.nanoseconds(blackout.ticks()));
                totals.record(nanoseconds(sample.total));
                spans.push(Span { begin: blackout.begin, end: blackout.end });
            }
            None => unobserved += 1,
        }
        progress.reached(blackouts.count(), || shape.to_string());
    }
    let (Some(blackout_us), Some(total_us)) = (blackouts.figures(), totals.figures()) else {
        match failures.into_iter().next() {
            Some(error) => return Err(error).context("no migration succeeded"),
            None => bail!("no blackout could be read from the guest's records"),
        }
    };
    Ok(PeerFigures {
        samples: blackouts.count(),
        unobserved,
        failed: u64::try_from(failures.len())?,
        blackout_us,
        total_us,
        copied_bytes: transferred,
        canary: canary.report(&spans),
    })
}

fn command_line(shape: Shape, frequency: Frequency) -> String {
    Options { mode: shape.dirty.mode(), tsc_khz: frequency.khz(), ..Options::default() }.to_string()
}

/// How far the guest has come, as far as its memory file tells already.
pub(super) fn stage(memory: &Path, frequency: Frequency) -> Stage {
    let Ok(observer) = Observer::attach_file(memory, frequency) else { return Stage::Silent };
    match observer.block().ok().and_then(|block| block.guest_state()) {
        None => Stage::Silent,
        Some(GuestState::Running) => Stage::Ready,
        Some(
            GuestState::Booting
            | GuestState::Filling
            | GuestState::Stopped
            | GuestState::Refused
            | GuestState::Panicked,
        ) => Stage::Started,
    }
}

/// Watches a guest that runs, and knows its clock.
fn watch(memory: &Path, frequency: Frequency) -> anyhow::Result<Observer> {
    let mut observer = Observer::attach_file(memory, frequency)?;
    observer.learn_clocks()?;
    Ok(observer)
}

fn standstill(sample: &PeerSample) -> Standstill {
    Standstill { stopped: sample.stopped, resumed: sample.resumed }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
