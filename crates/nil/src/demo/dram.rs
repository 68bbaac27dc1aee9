//! `nil demo --memory-in dram`: the guest's memory travels with it. Out of the source's DRAM into the pool, over to the
//! other host, out of the pool into that one's DRAM, while the guest runs; and in the end every byte is verified.

use super::Args;
use crate::cli::{Output, Table};
use crate::lab::canary::{Canary, CanaryReport, Span};
use crate::lab::figures::{Figures, Microseconds, Samples};
use crate::lab::frequency::Frequency;
use crate::lab::progress::Progress;
use crate::lab::surroundings;
use crate::lab::traveller::{Moved, Traveller};
use crate::lab::verdict::Verdict;
use crate::lab::{GuestPlan, Rack, RackPlan, Reach};
use anyhow::{Context, bail};
use nil_guest_abi::{Mode, Program};
use nil_mover::{Budget, Direction, Pace};
use nil_pool::Bytes;
use serde::Serialize;
use std::fmt;

/// How often the guest changes hosts if nothing is said: each time all of its memory is copied twice.
const HANDOFFS: u64 = 10;
/// As fast as it goes: a demo is no service.
const BUDGET: Budget = Budget { pace: Pace::Fast, bandwidth: None };

/// What the demo found out.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    handoffs: u64,
    #[serde(skip)]
    asked: u64,
    verified: bool,
    #[serde(rename = "memory_bytes")]
    memory: Bytes,
    vcpus: u32,
    /// Bytes that were copied while the guest ran, both ways.
    moved_bytes: u64,
    decouple_us: Figures,
    handoff_us: Figures,
    blackout_us: Figures,
    recouple_us: Figures,
    guest: Verdict,
    canary: CanaryReport,
    pool: String,
    limits: Vec<String>,
}

/// Runs the demo.
pub(super) fn demonstrate(args: &Args, output: Output) -> anyhow::Result<Report> {
    if args.keep {
        bail!("with --memory-in dram the pool holds nothing to be inspected afterwards; leave --keep away");
    }
    let asked = args.handoffs.unwrap_or(HANDOFFS);
    let plan = RackPlan { reach: Reach::PoolAndDram, ..RackPlan::fleeting(args.memory.get()) };
    plan.check()?;
    let frequency = Frequency::measure();
    let progress = Progress::new(output, asked);
    progress.doing("starting hosts A and B");
    let rack = Rack::build(&plan)?;
    progress.doing(format!("booting a guest with {} of memory on A, in its DRAM", args.memory));
    let guest = GuestPlan { memory_bytes: args.memory.get(), vcpus: args.vcpus, mode: Mode::Hot };
    let mut traveller = Traveller::boot(&rack, guest, Program::Demo, frequency)?;
    let canary = Canary::start(frequency)?;
    let mut tally = Tally::new(frequency);
    while tally.handoffs < asked && traveller.verdict()?.is_clean() {
        tally.trip(&mut traveller).with_context(|| format!("round {} failed", tally.handoffs + 1))?;
        progress.reached(tally.handoffs, || format!("in the DRAM of {} now", traveller.host()));
    }
    progress.doing("the guest verifies every page and register");
    let canary = canary.report(&tally.spans);
    let guest = traveller.verify_all()?;
    traveller.stop()?;
    let none = "the guest did not change hosts";
    Ok(Report {
        handoffs: tally.handoffs,
        asked,
        verified: guest.is_clean(),
        memory: args.memory,
        vcpus: args.vcpus,
        moved_bytes: tally.moved_bytes,
        decouple_us: tally.decouple.figures().context(none)?,
        handoff_us: tally.handoff.figures().context(none)?,
        blackout_us: tally.blackouts.figures().context(none)?,
        recouple_us: tally.recouple.figures().context(none)?,
        guest,
        canary,
        pool: rack.ground(),
        limits: surroundings::sentences(),
    })
}

/// What the rounds have come to so far.
struct Tally {
    frequency: Frequency,
    handoffs: u64,
    moved_bytes: u64,
    decouple: Samples,
    handoff: Samples,
    blackouts: Samples,
    recouple: Samples,
    spans: Vec<Span>,
}

impl Tally {
    fn new(frequency: Frequency) -> Self {
        let none = Samples::new;
        let (decouple, handoff, blackouts, recouple) = (none(), none(), none(), none());
        Self { frequency, handoffs: 0, moved_bytes: 0, decouple, handoff, blackouts, recouple, spans: Vec::new() }
    }

    fn trip(&mut self, guest: &mut Traveller<'_>) -> anyhow::Result<()> {
        let out = guest.move_memory(Direction::Decouple, BUDGET, |_, _| {})?;
        let landed = guest.handoff()?;
        let back = guest.move_memory(Direction::Recouple, BUDGET, |_, _| {})?;
        let took = |span: Span| self.frequency.nanoseconds(span.end.saturating_sub(span.begin));
        self.decouple.record(took(out.ordered));
        self.handoff.record(took(landed.ordered));
        self.recouple.record(took(back.ordered));
        landed.report.handoff.iter().for_each(|handoff| self.blackouts.record(handoff.blackout_ns));
        self.spans.push(landed.ordered);
        self.moved_bytes += [&out, &back].map(|moved: &Moved| moved.report.copied_bytes).iter().sum::<u64>();
        self.handoffs += 1;
        Ok(())
    }
}

impl Report {
    /// Whether every round was made and nothing differed.
    pub(super) fn is_good(&self) -> bool {
        self.verified && self.handoffs == self.asked
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { handoffs, memory, vcpus, moved_bytes, guest, .. } = self;
        let vcpus = if *vcpus == 1 { "one vCPU".into() } else { format!("{vcpus} vCPUs") };
        writeln!(f, "\nA virtual machine with {memory} of memory and {vcpus} changed hosts {handoffs} times,")?;
        writeln!(f, "and took its memory with it: {} were copied while it ran.\n", Bytes(*moved_bytes))?;
        let mut table = Table::new(["STEP", "WHAT HAPPENS", "P50", "P99", "LONGEST"]);
        for (step, what, figures) in [
            ("decouple", "its memory leaves the source's DRAM for the pool; it runs", &self.decouple_us),
            ("handoff", "the target gets ready and takes over; it runs until the last moment", &self.handoff_us),
            ("", "of that it stood still", &self.blackout_us),
            ("recouple", "its memory leaves the pool for the target's DRAM; it runs", &self.recouple_us),
        ] {
            let [p50, p99, max] = [figures.p50, figures.p99, figures.max].map(Microseconds::human);
            table.row([step.to_owned(), what.to_owned(), p50, p99, max]);
        }
        writeln!(f, "{table}")?;
        match &guest.first_error {
            None => writeln!(f, "No difference in any of its {} pages, nor in any register.", guest.pages)?,
            Some(first) => writeln!(f, "{} DIFFERENCES. The first of them: {first}", guest.errors)?,
        }
        writeln!(f, "The pool: {}", self.pool)?;
        self.limits.iter().try_for_each(|sentence| writeln!(f, "{sentence}"))
    }
}
