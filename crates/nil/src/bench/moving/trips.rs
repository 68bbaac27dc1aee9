//! Round trips: the guest's memory goes out of one host's DRAM and into the other's, again and again, and after each trip
//! the guest verifies every page, those that it stores into without pause among them.

use super::case::{guest_plan, rack_plan};
use super::report::{Figure, Shape, TripFigures};
use crate::cli::Output;
use crate::lab::Rack;
use crate::lab::canary::Span;
use crate::lab::figures::Samples;
use crate::lab::frequency::Frequency;
use crate::lab::progress::Progress;
use crate::lab::traveller::Traveller;
use crate::lab::verdict::Verdict;
use anyhow::Context;
use nil_guest_abi::Program;
use nil_mover::Direction;
use std::time::Instant;

/// Makes up to `asked` round trips; stops at the first after which something is not as it should be.
pub(super) fn make(shape: Shape, asked: u64, frequency: Frequency, output: Output) -> anyhow::Result<TripFigures> {
    let progress = Progress::new(output, asked);
    progress.doing(format!("{shape}: booting"));
    let rack = Rack::build(&rack_plan(&shape))?;
    let mut guest = Traveller::boot(&rack, guest_plan(&shape), Program::Pages, frequency)?;
    let mut tally = Tally::new();
    let begun = Instant::now();
    let mut verdict = guest.verdict()?;
    while tally.done < asked && verdict.is_clean() {
        tally.trip(&mut guest, &shape, frequency).with_context(|| format!("round trip {} failed", tally.done + 1))?;
        verdict = guest.verify_all()?;
        tally.verified += u64::from(verdict.is_clean());
        progress.reached(tally.done, || shape.to_string());
    }
    let figures = tally.figures(verdict, begun)?;
    guest.stop()?;
    Ok(figures)
}

/// What the trips have come to so far.
struct Tally {
    done: u64,
    verified: u64,
    copied_bytes: u64,
    decouple: Samples,
    handoff: Samples,
    recouple: Samples,
    blackouts: Samples,
}

impl Tally {
    fn new() -> Self {
        let none = Samples::new;
        Self {
            done: 0,
            verified: 0,
            copied_bytes: 0,
            decouple: none(),
            handoff: none(),
            recouple: none(),
            blackouts: none(),
        }
    }

    fn trip(&mut self, guest: &mut Traveller<'_>, shape: &Shape, frequency: Frequency) -> anyhow::Result<()> {
        let took = |span: Span| frequency.nanoseconds(span.end.saturating_sub(span.begin));
        let budget = shape.budget.budget();
        let out = guest.move_memory(Direction::Decouple, budget, |_, _| {})?;
        let landed = guest.handoff()?;
        let back = guest.move_memory(Direction::Recouple, budget, |_, _| {})?;
        self.decouple.record(took(out.ordered));
        self.handoff.record(took(landed.ordered));
        self.recouple.record(took(back.ordered));
        landed.report.handoff.iter().for_each(|handoff| self.blackouts.record(handoff.blackout_ns));
        self.copied_bytes += out.report.copied_bytes + back.report.copied_bytes;
        self.done += 1;
        Ok(())
    }

    fn figures(&self, verdict: Verdict, begun: Instant) -> anyhow::Result<TripFigures> {
        let none = "no round trip was made";
        Ok(TripFigures {
            done: self.done,
            verified: self.verified,
            lost_stores: verdict.errors,
            first_error: verdict.first_error,
            pages_written: verdict.pages_written,
            page_checks: verdict.page_checks,
            copied_bytes: self.copied_bytes,
            decouple_us: self.decouple.figures().context(none)?,
            handoff_us: self.handoff.figures().context(none)?,
            recouple_us: self.recouple.figures().context(none)?,
            blackout_us: self.blackouts.figures().context("no handoff has left its times")?,
            seconds: Figure(begun.elapsed().as_secs_f64()),
        })
    }
}
