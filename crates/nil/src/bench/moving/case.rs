//! One shape of guest, moved again and again, each way measured.
//!
//! ```text
//! source  ├─ quiet ─┤├─ decouple ─┤├─ handoff ─┤
//! target                                        ├─ recouple ─┤
//!         300 ms: what   speed, pauses           speed, pauses; and the first 100 ms after landing
//!         it can do
//! ```

use super::super::report::Outcome;
use super::report::{
    Case, CaseFigures, Figure, Findings, Journey, MachinePauses, MoverFigures, MoverStalls, OverheadCase, Shape,
};
use crate::cli::Output;
use crate::lab::canary::{Canary, Span};
use crate::lab::figures::{Microseconds, Samples};
use crate::lab::frequency::Frequency;
use crate::lab::interrupt;
use crate::lab::progress::Progress;
use crate::lab::pulse::PulseRecord;
use crate::lab::traveller::{Moved, QUIET, SETTLED, Travelled, Traveller};
use crate::lab::yardstick::Yardstick;
use crate::lab::{GuestPlan, PoolFate, Rack, RackPlan, Reach};
use anyhow::{Context, ensure};
use nil_guest_abi::Program;
use nil_migrate::tsc;
use nil_mover::{Direction, MoveReport};
use std::time::Duration;

/// How long a guest is watched after it has landed.
const LANDING: Duration = Duration::from_millis(100);

/// Everything that was measured of one shape.
#[derive(Debug)]
pub(super) struct Measured {
    cases: [Case; 2],
    journey: Journey,
    overhead: OverheadCase,
}

/// One move, as the guest, the kernel and the mover saw it.
#[derive(Clone, Debug)]
struct Leg {
    report: MoveReport,
    /// When it was under way, in host ticks.
    span: Span,
    /// The guest's work meanwhile, to what it does undisturbed, in percent.
    speed_pct: f64,
    /// The guest's pauses meanwhile.
    pauses: Vec<Span>,
    /// How long its vCPU threads waited for a core, to how long they could have run, in percent.
    core_wait_pct: f64,
    lost_stores: u64,
}

/// From DRAM to DRAM, each way measured.
#[derive(Clone, Debug)]
struct Round {
    decouple: Leg,
    recouple: Leg,
    first_100ms_speed_pct: f64,
    pauses_missed: u64,
}

/// The rack for guests of that shape.
pub(super) fn rack_plan(shape: &Shape) -> RackPlan {
    RackPlan {
        memory_bytes: shape.memory.get(),
        pool: PoolFate::Fleeting,
        reach: Reach::PoolAndDram,
        pages: shape.page.pages(),
    }
}

/// The guest of that shape.
pub(super) fn guest_plan(shape: &Shape) -> GuestPlan {
    GuestPlan { memory_bytes: shape.memory.get(), vcpus: shape.vcpus, mode: shape.guest.mode() }
}

/// Both ways of a shape that could not be measured.
pub(super) fn skipped(shape: Shape, why: &str) -> [Case; 2] {
    [Direction::Decouple, Direction::Recouple].map(|direction| Case {
        shape,
        direction,
        outcome: Outcome::skipped(why),
    })
}

/// Measures `samples` moves each way, and as many whole journeys.
pub(super) fn measure(shape: Shape, samples: u64, frequency: Frequency, output: Output) -> anyhow::Result<Measured> {
    let plan = rack_plan(&shape);
    plan.check()?;
    let progress = Progress::new(output, 2 * samples);
    progress.doing(format!("{shape}: memcpy"));
    let yardstick = Yardstick::measure(shape.memory.get(), shape.page.pages())?;
    progress.doing(format!("{shape}: booting"));
    let rack = Rack::build(&plan)?;
    let mut guest = Traveller::boot(&rack, guest_plan(&shape), Program::Pages, frequency)?;
    let canary = Canary::start(frequency)?;
    let (mut rounds, mut journeys) = (Vec::new(), Vec::new());
    for done in 1..=samples {
        rounds.push(round(&mut guest, &shape, frequency).with_context(|| format!("round {done} failed"))?);
        progress.reached(done, || shape.to_string());
    }
    let overhead = guest.overhead()?;
    for done in 1..=samples {
        let journey = guest.journey(shape.budget.budget(), |_, _| {});
        journeys.push(journey.with_context(|| format!("journey {done} failed"))?);
        progress.reached(samples + done, || format!("{shape}, by one order"));
    }
    progress.doing(format!("{shape}: the guest verifies every page"));
    let verdict = guest.verify_all()?;
    guest.stop()?;
    let told: u64 = rounds.iter().map(|round| round.decouple.lost_stores + round.recouple.lost_stores).sum();
    if let Some(last) = rounds.last_mut() {
        last.recouple.lost_stores += verdict.errors.saturating_sub(told);
    }
    let machine = canary.pauses();
    let case = |direction| {
        let figures = figures(direction, &rounds, &yardstick, &machine, frequency);
        let first_error = verdict.first_error.clone();
        Case { shape, direction, outcome: Outcome::Measured(CaseFigures { first_error, ..figures }) }
    };
    Ok(Measured {
        cases: [case(Direction::Decouple), case(Direction::Recouple)],
        journey: summarise(shape, &journeys, frequency)?,
        overhead: OverheadCase { shape, overhead, percent: Figure(overhead.percent_of(shape.memory.get())) },
    })
}

impl Measured {
    pub(super) fn add_to(self, found: &mut Findings) {
        found.cases.extend(self.cases);
        found.journeys.push(self.journey);
        found.overhead.push(self.overhead);
    }
}

/// Decouple, handoff, recouple.
fn round(guest: &mut Traveller<'_>, shape: &Shape, frequency: Frequency) -> anyhow::Result<Round> {
    let budget = shape.budget.budget();
    let errors = guest.verdict()?.errors;
    guest.await_pass()?;
    let on_source = guest.pulse()?;
    std::thread::sleep(QUIET);
    let waited = guest.waited_for_a_core()?;
    let out = guest.move_memory(Direction::Decouple, budget, |_, _| {})?;
    let out_waited = guest.waited_for_a_core()?.saturating_sub(waited);
    let errors_out = guest.verdict()?.errors;
    let landed = guest.handoff()?;
    let on_target = guest.pulse()?;
    let on_source = on_source.finish()?;
    let waited = guest.waited_for_a_core()?;
    let back = guest.move_memory(Direction::Recouple, budget, |_, _| {})?;
    let back_waited = guest.waited_for_a_core()?.saturating_sub(waited);
    let landing = Span { begin: landed.claimed, end: landed.claimed + frequency.ticks(LANDING) };
    sleep_until(landing.end, frequency)?;
    std::thread::sleep(SETTLED);
    let errors_back = guest.verdict()?.errors;
    let record = on_source.then(on_target.finish()?);
    let begin = record.span().context("the guest's work could not be seen")?.begin;
    let quiet = Span { begin, end: out.ordered.begin };
    let pulse = Undisturbed { record: &record, quiet, frequency, vcpus: shape.vcpus };
    Ok(Round {
        decouple: pulse.leg(&out, out_waited, errors_out.saturating_sub(errors))?,
        recouple: pulse.leg(&back, back_waited, errors_back.saturating_sub(errors_out))?,
        first_100ms_speed_pct: pulse.speed_pct(landing)?,
        pauses_missed: record.missed,
    })
}

fn sleep_until(instant: u64, frequency: Frequency) -> anyhow::Result<()> {
    interrupt::check()?;
    let left = instant.saturating_sub(tsc::now());
    std::thread::sleep(Duration::from_nanos(frequency.nanoseconds(left)));
    Ok(())
}

/// A guest's pulse, and the part of it in which nobody moved anything.
struct Undisturbed<'a> {
    record: &'a PulseRecord,
    quiet: Span,
    frequency: Frequency,
    vcpus: u32,
}

impl Undisturbed<'_> {
    fn leg(&self, moved: &Moved, core_wait_ns: u64, lost_stores: u64) -> anyhow::Result<Leg> {
        let span = moved.span;
        let ordered = self.frequency.nanoseconds(moved.ordered.end.saturating_sub(moved.ordered.begin));
        Ok(Leg {
            report: moved.report.clone(),
            span,
            speed_pct: self.speed_pct(span)?,
            pauses: self.record.pauses_in(span).collect(),
            core_wait_pct: percent(core_wait_ns, ordered.saturating_mul(self.vcpus.into())),
            lost_stores,
        })
    }

    /// The guest's work in a span, to what it does undisturbed, in percent.
    fn speed_pct(&self, span: Span) -> anyhow::Result<f64> {
        let rate = |span| self.record.rate(span, self.frequency);
        let undisturbed = rate(self.quiet).context("the guest was not seen at work before the move")?;
        ensure!(undisturbed > 0.0, "the guest did nothing before the move");
        let meanwhile = rate(span).context("the guest was not seen at work during the move")?;
        Ok(meanwhile / undisturbed * 100.0)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a percentage with two digits")]
fn percent(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64 * 100.0
}

/// Gigabytes (10⁹ bytes) per second.
#[expect(clippy::cast_precision_loss, reason = "a speed with three digits")]
fn gigabytes_per_s(bytes: u64, microseconds: u64) -> f64 {
    bytes as f64 / microseconds.max(1) as f64 / 1e3
}

/// What the rounds came to, one way; `machine` is when the machine itself stood still.
fn figures(
    direction: Direction,
    rounds: &[Round],
    yardstick: &Yardstick,
    machine: &[Span],
    frequency: Frequency,
) -> CaseFigures {
    let legs: Vec<&Leg> = rounds
        .iter()
        .map(|round| match direction {
            Direction::Decouple => &round.decouple,
            Direction::Recouple => &round.recouple,
        })
        .collect();
    let median = |of: fn(&Leg) -> f64| Figure::median(legs.iter().map(|leg| of(leg))).unwrap_or_default();
    let speed = median(|leg| gigabytes_per_s(leg.report.copied_bytes, leg.report.elapsed_us));
    let memcpy = yardstick.bytes_per_s(direction) / 1e9;
    let pauses = Pauses::of(&legs, machine, frequency);
    let landing = Figure::median(rounds.iter().map(|round| round.first_100ms_speed_pct));
    CaseFigures {
        moves: u64::try_from(legs.len()).unwrap_or(u64::MAX),
        gb_per_s: speed,
        memcpy_gb_per_s: Figure(memcpy),
        memcpy_pct: Figure(speed.0 / memcpy * 100.0),
        guest_speed_pct: median(|leg| leg.speed_pct),
        first_100ms_speed_pct: landing.filter(|_| direction == Direction::Recouple),
        stall_us: pauses.stalls.figures(),
        stalls: pauses.stalls.count(),
        longest_pause_us: Microseconds::from_nanoseconds(pauses.longest),
        pauses_missed: rounds.iter().map(|round| round.pauses_missed).sum(),
        core_wait_pct: median(|leg| leg.core_wait_pct),
        mover: mover_figures(&legs),
        lost_stores: legs.iter().map(|leg| leg.lost_stores).sum(),
        first_error: None,
        machine: pauses.machine,
    }
}

/// The guest's pauses during all moves one way, told apart.
struct Pauses {
    /// Those that are nobody else's.
    stalls: Samples,
    /// The longest of all, in nanoseconds.
    longest: u64,
    machine: MachinePauses,
}

impl Pauses {
    fn of(legs: &[&Leg], machine: &[Span], frequency: Frequency) -> Self {
        let nanoseconds = |span: &Span| frequency.nanoseconds(span.end.saturating_sub(span.begin));
        let mut found = Self { stalls: Samples::new(), longest: 0, machine: MachinePauses::default() };
        let meanwhile = |pause: &&Span| legs.iter().any(|leg| leg.span.overlaps(**pause));
        for pause in machine.iter().filter(meanwhile) {
            found.machine.pauses += 1;
            let length = Microseconds::from_nanoseconds(nanoseconds(pause));
            if length > found.machine.longest_us {
                found.machine.longest_us = length;
            }
        }
        for pause in legs.iter().flat_map(|leg| &leg.pauses) {
            found.longest = found.longest.max(nanoseconds(pause));
            if machine.iter().any(|other| other.overlaps(*pause)) {
                found.machine.coinciding_stalls += 1;
            } else {
                found.stalls.record(nanoseconds(pause));
            }
        }
        found
    }
}

fn mover_figures(legs: &[&Leg]) -> MoverFigures {
    let most = |of: fn(&MoveReport) -> u64| legs.iter().map(|leg| of(&leg.report)).max().unwrap_or(0);
    MoverFigures {
        stall_us: MoverStalls {
            p50: most(|report| report.stall_us.p50),
            p99: most(|report| report.stall_us.p99),
            max: most(|report| report.stall_us.max),
        },
        slowdown_pct: Figure::median(legs.iter().map(|leg| leg.report.slowdown_pct)).unwrap_or_default(),
        smallest_chunk_bytes: legs.iter().map(|leg| leg.report.chunk_bytes.smallest).min().unwrap_or(0),
        largest_chunk_bytes: most(|report| report.chunk_bytes.largest),
        copied_bytes: most(|report| report.copied_bytes),
        zero_bytes: most(|report| report.zero_bytes),
        untouched_bytes: most(|report| report.untouched_bytes),
        huge_bytes: most(|report| report.huge_bytes),
    }
}

/// What the journeys came to.
fn summarise(shape: Shape, journeys: &[Travelled], frequency: Frequency) -> anyhow::Result<Journey> {
    let (mut totals, mut landings, mut blackouts) = (Samples::new(), Samples::new(), Samples::new());
    let mut work = Vec::new();
    let mut copied_bytes = 0;
    for Travelled { report, ordered, record } in journeys {
        totals.record(frequency.nanoseconds(ordered.end.saturating_sub(ordered.begin)));
        landings.record(report.total_us.saturating_mul(1_000));
        report.handoff.iter().for_each(|handoff| blackouts.record(handoff.blackout_ns));
        let moves = [&report.decouple, &report.recouple];
        copied_bytes = copied_bytes.max(moves.into_iter().flatten().map(|moved| moved.copied_bytes).sum());
        let begin = record.span().context("the guest's work could not be seen")?.begin;
        let quiet = Span { begin, end: ordered.begin };
        let pulse = Undisturbed { record, quiet, frequency, vcpus: shape.vcpus };
        work.push(pulse.speed_pct(*ordered)?);
    }
    Ok(Journey {
        shape,
        journeys: totals.count(),
        total_us: totals.figures().context("no journey was made")?,
        until_landed_us: landings.figures().context("no journey was made")?,
        blackout_us: blackouts.figures().context("no handoff has left its times")?,
        copied_bytes,
        guest_work_pct: Figure::median(work).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nil_mover::{ChunkSizes, MoveOutcome, StallFigures};

    /// A clock by which a tick is a microsecond.
    const MICROSECONDS: Frequency = Frequency::of_khz(1_000);

    const fn span(begin: u64, end: u64) -> Span {
        Span { begin, end }
    }

    fn report(direction: Direction, copied_bytes: u64, elapsed_us: u64) -> MoveReport {
        MoveReport {
            direction,
            outcome: MoveOutcome::Done,
            total_bytes: copied_bytes,
            copied_bytes,
            zero_bytes: 0,
            untouched_bytes: 0,
            huge_bytes: copied_bytes,
            chunks: 2,
            elapsed_us,
            moving_us: elapsed_us,
            stalled_us: 0,
            bytes_per_s: 0,
            stall_us: StallFigures { count: 2, p50: 100, p99: 200, max: elapsed_us / 10 },
            slowdown_pct: 10.0,
            chunk_bytes: ChunkSizes { smallest: 4096, largest: 2 << 20 },
            undeclared: Vec::new(),
        }
    }

    fn leg(direction: Direction, elapsed_us: u64, pauses: &[Span]) -> Leg {
        Leg {
            report: report(direction, 8_000_000, elapsed_us),
            span: span(10_000, 10_000 + elapsed_us),
            speed_pct: 80.0,
            pauses: pauses.to_vec(),
            core_wait_pct: 3.0,
            lost_stores: 1,
        }
    }

    fn round(elapsed_us: u64, pauses: &[Span]) -> Round {
        Round {
            decouple: leg(Direction::Decouple, elapsed_us, pauses),
            recouple: leg(Direction::Recouple, 2 * elapsed_us, &[]),
            first_100ms_speed_pct: 75.0,
            pauses_missed: 1,
        }
    }

    #[test]
    fn the_figures_are_those_of_the_moves() {
        let rounds = [
            round(2_000, &[span(10_100, 10_150)]),
            round(1_000, &[span(10_200, 10_300)]),
            round(4_000, &[span(10_000, 10_010)]),
        ];
        let yardstick = Yardstick::of(16e9, 8e9);
        let found = figures(Direction::Decouple, &rounds, &yardstick, &[], MICROSECONDS);
        assert_eq!((found.moves, found.gb_per_s, found.memcpy_pct), (3, Figure(4.0), Figure(25.0)));
        assert_eq!((found.stalls, found.lost_stores, found.pauses_missed), (3, 3, 3));
        assert_eq!(found.first_100ms_speed_pct, None);
        assert_eq!(found.mover.stall_us, MoverStalls { p50: 100, p99: 200, max: 400 });
        let stalls = found.stall_us.expect("pauses");
        assert!((stalls.p50.0 - 50.0).abs() < 0.1 && (stalls.max.0 - 100.0).abs() < 0.2, "{stalls:?}");
        let back = figures(Direction::Recouple, &rounds, &yardstick, &[], MICROSECONDS);
        assert_eq!((back.gb_per_s, back.memcpy_pct), (Figure(2.0), Figure(25.0)));
        assert_eq!((back.stall_us, back.first_100ms_speed_pct), (None, Some(Figure(75.0))));
    }

    #[test]
    fn a_pause_of_the_machine_is_not_the_movers() {
        let rounds = [round(2_000, &[span(10_100, 10_150), span(10_400, 11_400)])];
        let machine = [span(10_500, 11_300), span(90_000, 99_000)];
        let found = figures(Direction::Decouple, &rounds, &Yardstick::of(1e9, 1e9), &machine, MICROSECONDS);
        assert_eq!((found.stalls, found.machine.coinciding_stalls, found.machine.pauses), (1, 1, 1));
        assert_eq!((found.longest_pause_us, found.machine.longest_us), (Microseconds(1_000.0), Microseconds(800.0)));
    }

    #[test]
    fn speed_is_held_against_the_same_guest_undisturbed() {
        let record = PulseRecord::of_work(&[(0, 0), (100_000, 1_000), (200_000, 1_600), (300_000, 2_600)]);
        let pulse = Undisturbed { record: &record, quiet: span(0, 100_000), frequency: MICROSECONDS, vcpus: 2 };
        assert!((pulse.speed_pct(span(100_000, 200_000)).expect("a speed") - 60.0).abs() < 1e-6);
        assert!(pulse.speed_pct(span(200_000, 400_000)).is_err(), "nobody looked so late");
        let moved = Moved {
            report: report(Direction::Decouple, 1, 100_000),
            span: span(100_000, 200_000),
            ordered: span(100_000, 200_000),
        };
        let leg = pulse.leg(&moved, 20_000_000, 0).expect("a leg");
        assert!((leg.core_wait_pct - 10.0).abs() < 1e-6, "20 of 2 × 100 ms: {}", leg.core_wait_pct);
    }

    #[test]
    fn a_guest_that_did_nothing_before_has_no_speed() {
        let record = PulseRecord::of_work(&[(0, 7), (100_000, 7), (200_000, 9)]);
        let pulse = Undisturbed { record: &record, quiet: span(0, 100_000), frequency: MICROSECONDS, vcpus: 1 };
        assert!(pulse.speed_pct(span(100_000, 200_000)).is_err());
    }
}
