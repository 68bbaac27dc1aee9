//! The same guest under QEMU, whose memory is copied to another process while it runs, before the switch or after it.
//!
//! Its work is read from its memory files, the source's and the destination's, by reading and never by mapping: a page of
//! the destination's file that were looked at through a mapping before it has come would be there, empty, and what the
//! source sends for it would be dropped.

use super::super::peers::stage;
use super::super::report::{Dirty, Outcome};
use super::report::{Figure, Peer, PeerFigures};
use crate::cli::Output;
use crate::images;
use crate::lab::canary::Span;
use crate::lab::figures::Samples;
use crate::lab::frequency::Frequency;
use crate::lab::gaps::Clock;
use crate::lab::interrupt::{self, Interrupted};
use crate::lab::progress::Progress;
use crate::lab::pulse::{Finder, Pulse};
use crate::lab::traveller::{QUIET, SETTLED};
use crate::lab::view::View;
use anyhow::{Context, ensure};
use nil_guest_abi::{Options, Program};
use nil_migrate::tsc;
use nil_pool::Bytes;
use nil_qemu::{Peer as Qemu, PeerOptions, PeerSample, Transfer};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// More than any machine copies: QEMU's default limit (128 MiB/s) would decide the comparison alone.
const UNLIMITED: Option<u64> = Some(1 << 40);
/// QEMU's ways that nil is compared with.
const WAYS: [(&str, Transfer); 2] = [
    ("qemu-pre-copy", Transfer::PreCopy { bandwidth: UNLIMITED }),
    ("qemu-post-copy", Transfer::PostCopy { bandwidth: UNLIMITED }),
];
/// QEMU starts this image on one vCPU.
const VCPUS: u32 = 1;

/// What is to be measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) memory: Bytes,
    pub(super) guest: Dirty,
    pub(super) samples: u64,
    pub(super) limit_s: u64,
}

/// Measures QEMU's pre-copy and its post-copy.
pub(super) fn qemu(plan: &Plan, frequency: Frequency, output: Output) -> anyhow::Result<Vec<Peer>> {
    let mut peers = Vec::new();
    for (name, transfer) in WAYS {
        let progress = Progress::new(output, plan.samples);
        progress.doing(format!("{name}, {}, {}: booting", plan.memory, plan.guest));
        let outcome = match measure(plan, transfer, frequency, &progress) {
            Ok(figures) => Outcome::Measured(figures),
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => {
                // Ctrl-C reaches QEMU too, which then ends in the middle of things.
                interrupt::check()?;
                Outcome::skipped(format!("{error:#}"))
            }
        };
        peers.push(Peer { name, memory: plan.memory, vcpus: VCPUS, guest: plan.guest, outcome });
    }
    Ok(peers)
}

fn measure(plan: &Plan, transfer: Transfer, frequency: Frequency, progress: &Progress) -> anyhow::Result<PeerFigures> {
    let directory = tempfile::Builder::new().prefix("nil-").tempdir()?;
    let image = directory.path().join(Program::Pages.name());
    fs::write(&image, images::builtin(Program::Pages.name()).context("the guest's image is not built in")?)?;
    let command_line = Options { mode: plan.guest.mode(), tsc_khz: frequency.khz(), ..Options::default() }.to_string();
    let options = PeerOptions {
        patience: Duration::from_secs(plan.limit_s),
        ..PeerOptions::new(image, plan.memory.get(), command_line)
    };
    let mut guest = Qemu::boot(&options, |memory| stage(memory, frequency))?;
    let mut tally = Tally::new();
    while tally.totals.count() < plan.samples {
        interrupt::check()?;
        match sample(&mut guest, transfer, frequency) {
            Ok((sample, work)) => tally.add(&sample, work, frequency),
            // One that does not end in time has taken all that time; a second one would not end either.
            Err(error) if tally.totals.count() == 0 => return Err(error),
            Err(_) => {
                tally.failed += 1;
                break;
            }
        }
        progress.reached(tally.totals.count(), || format!("{}, {}", plan.memory, plan.guest));
    }
    tally.figures()
}

/// One migration, and the guest's work meanwhile, to what it does undisturbed, in percent.
fn sample(guest: &mut Qemu, transfer: Transfer, frequency: Frequency) -> anyhow::Result<(PeerSample, f64)> {
    let memory = guest.memory_file().to_path_buf();
    View::of_unmapped_file(&memory)?.await_pass()?;
    let pulse = Pulse::start(View::of_unmapped_file(&memory)?, new_files(&memory)?, &[Clock::default()])?;
    std::thread::sleep(QUIET);
    let quiet_end = tsc::now();
    let sample = guest.handoff(transfer, tsc::now)?;
    std::thread::sleep(SETTLED);
    let record = pulse.finish()?;
    let begin = record.span().context("the guest's work could not be seen")?.begin;
    let rate = |span| record.rate(span, frequency);
    let undisturbed = rate(Span { begin, end: quiet_end }).context("the guest was not seen at work before it moved")?;
    ensure!(undisturbed > 0.0, "the guest did nothing before it moved");
    let meanwhile = rate(Span { begin: sample.ordered, end: sample.completed });
    let meanwhile = meanwhile.context("the guest was not seen at work while it moved")?;
    Ok((sample, meanwhile / undisturbed * 100.0))
}

/// Finds the memory files that come to lie beside the source's.
fn new_files(memory: &Path) -> anyhow::Result<Finder> {
    let directory = memory.parent().context("a memory file lies in a directory")?.to_path_buf();
    let mut known = BTreeSet::from([memory.to_path_buf()]);
    Ok(Box::new(move || {
        let paths = fs::read_dir(&directory).ok()?.flatten().map(|entry| entry.path());
        let new: PathBuf = paths.filter(|path| path.is_file()).find(|path| !known.contains(path))?;
        let view = View::of_unmapped_file(&new).ok()?;
        known.insert(new);
        Some(view)
    }))
}

/// What the migrations have come to so far.
struct Tally {
    totals: Samples,
    landings: Samples,
    downtimes: Samples,
    work: Vec<f64>,
    copied_bytes: u64,
    passes: u64,
    page_requests: u64,
    failed: u64,
}

impl Tally {
    fn new() -> Self {
        let none = Samples::new;
        Self {
            totals: none(),
            landings: none(),
            downtimes: none(),
            work: Vec::new(),
            copied_bytes: 0,
            passes: 0,
            page_requests: 0,
            failed: 0,
        }
    }

    fn add(&mut self, sample: &PeerSample, work: f64, frequency: Frequency) {
        let between = |begin: u64, end: u64| frequency.nanoseconds(end.saturating_sub(begin));
        self.totals.record(u64::try_from(sample.total.as_nanos()).unwrap_or(u64::MAX));
        self.landings.record(between(sample.ordered, sample.resumed));
        self.downtimes.record(between(sample.stopped, sample.resumed));
        self.work.push(work);
        self.copied_bytes = self.copied_bytes.max(sample.transferred_bytes);
        self.passes = self.passes.max(sample.passes);
        self.page_requests = self.page_requests.max(sample.page_requests);
    }

    fn figures(self) -> anyhow::Result<PeerFigures> {
        let none = "no migration succeeded";
        Ok(PeerFigures {
            samples: self.totals.count(),
            failed: self.failed,
            total_us: self.totals.figures().context(none)?,
            until_landed_us: self.landings.figures().context(none)?,
            downtime_us: self.downtimes.figures().context(none)?,
            copied_bytes: self.copied_bytes,
            passes: self.passes,
            page_requests: self.page_requests,
            guest_work_pct: Figure::median(self.work).context(none)?,
        })
    }
}
