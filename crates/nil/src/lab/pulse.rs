//! Taking a guest's pulse: how much work it does from millisecond to millisecond, and every pause that it notes.
//!
//! A thread reads the counters and the gap rings of all vCPUs, again and again, through one view or several: a guest that is
//! being moved by a program that copies memory has two memories for a while, of which the one that has counted further is
//! right. Nothing is asked of the guest, and the process that runs it is not stopped; it pays for a short hold of the lock
//! on its address space, a thousand times a second.

use super::canary::{Span, become_real_time};
use super::frequency::Frequency;
use super::gaps::Clock;
use super::view::View;
use anyhow::{Context, anyhow};
use nil_migrate::tsc;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the guest is looked at.
const PERIOD: Duration = Duration::from_millis(1);
/// How often another view is looked for, in periods.
const NEW_VIEWS: usize = 16;
/// The most samples and gaps per vCPU that are kept: 17 minutes' worth of samples. Later ones are dropped, and counted.
const KEPT: usize = 1 << 20;

/// What the guest's memory can be seen through beside the first view, from some time on.
pub(crate) type Finder = Box<dyn FnMut() -> Option<View> + Send>;

/// The thread; it ends when this is finished or dropped.
#[derive(Debug)]
pub(crate) struct Pulse {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<PulseRecord>>,
}

/// What was seen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct PulseRecord {
    /// The turns that all vCPUs together had made, at instants of the host's clock, in the order of time.
    work: Vec<(u64, u64)>,
    /// The pauses of all vCPUs, in the host's clock, in no order.
    pauses: Vec<Span>,
    /// Pauses that were overwritten before they were seen, or not kept.
    pub(crate) missed: u64,
}

/// What is known of one vCPU's gaps.
#[derive(Debug)]
struct Follower {
    clock: Clock,
    /// The first gap that has not been seen.
    next: u64,
}

impl Pulse {
    /// Follows the guest through `view`, and through whatever `more` finds. `clocks` has one entry per vCPU.
    pub(crate) fn start(view: View, mut more: Finder, clocks: &[Clock]) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let mut followers = Vec::with_capacity(clocks.len());
        for (index, &clock) in clocks.iter().enumerate() {
            followers.push(Follower { clock, next: view.vcpu(index)?.gaps.load(Ordering::Acquire) });
        }
        let body = move || follow(vec![view], &mut more, followers, &told);
        let thread = std::thread::Builder::new().name("pulse".into()).spawn(body)?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Follows it through one view only.
    pub(crate) fn through(view: View, clocks: &[Clock]) -> anyhow::Result<Self> {
        Self::start(view, Box::new(|| None), clocks)
    }

    /// Stops, and returns what was seen.
    pub(crate) fn finish(mut self) -> anyhow::Result<PulseRecord> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it was finished before")?;
        thread.join().map_err(|_| anyhow!("the thread that takes the guest's pulse has panicked"))
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by the panic hook; there is nothing to add.
            let _ = thread.join();
        }
    }
}

fn follow(mut views: Vec<View>, more: &mut Finder, mut followers: Vec<Follower>, stop: &AtomicBool) -> PulseRecord {
    become_real_time();
    let mut record = PulseRecord::default();
    for period in 0_usize.. {
        // What the last period brings is wanted too, so the flag is looked at before and obeyed after looking.
        let last = stop.load(Ordering::Relaxed);
        if period.is_multiple_of(NEW_VIEWS) {
            views.extend(more());
        }
        look(&views, &mut followers, &mut record);
        if last {
            break;
        }
        std::thread::sleep(PERIOD);
    }
    record
}

/// One look at all vCPUs. A view that can no longer be read belongs to a process that has ended.
fn look(views: &[View], followers: &mut [Follower], record: &mut PulseRecord) {
    let mut turns = 0;
    let mut at = 0;
    for (index, follower) in followers.iter_mut().enumerate() {
        let mut furthest = 0;
        for view in views {
            let Ok(vcpu) = view.vcpu(index) else { continue };
            furthest = furthest.max(vcpu.counter.load(Ordering::Acquire));
            for gap in vcpu.gaps(follower.next) {
                record.missed += gap.index.saturating_sub(follower.next);
                follower.next = gap.index + 1;
                record.note(follower.clock.span(gap));
            }
        }
        turns += furthest;
        at = tsc::now();
    }
    record.sample(at, turns);
}

impl PulseRecord {
    /// A guest that had made so many turns at these instants.
    #[cfg(test)]
    pub(crate) fn of_work(work: &[(u64, u64)]) -> Self {
        Self { work: work.to_vec(), ..Self::default() }
    }

    fn sample(&mut self, at: u64, turns: u64) {
        // A guest that cannot be seen just now (its worker is ending, its pages are on their way) has not gone back.
        if self.work.last().is_none_or(|&(then, last)| at > then && turns >= last) && self.work.len() < KEPT {
            self.work.push((at, turns));
        }
    }

    fn note(&mut self, pause: Span) {
        if self.pauses.len() < KEPT {
            self.pauses.push(pause);
        } else {
            self.missed += 1;
        }
    }

    /// This, and what was seen of the same guest afterwards, by whom it is believed: a view of where the guest was before
    /// shows memory that it has left.
    #[must_use]
    pub(crate) fn then(mut self, later: Self) -> Self {
        if let Some(&(since, _)) = later.work.first() {
            self.work.truncate(self.work.partition_point(|&(at, _)| at < since));
        }
        later.work.into_iter().for_each(|(at, turns)| self.sample(at, turns));
        let known: HashSet<Span> = self.pauses.iter().copied().collect();
        later.pauses.into_iter().filter(|pause| !known.contains(pause)).for_each(|pause| self.note(pause));
        self.missed += later.missed;
        self
    }

    /// When the first and the last look were taken.
    pub(crate) fn span(&self) -> Option<Span> {
        Some(Span { begin: self.work.first()?.0, end: self.work.last()?.0 })
    }

    /// The turns made until that instant, between two looks by the line through them; `None` outside of what was seen.
    pub(crate) fn turns_at(&self, instant: u64) -> Option<u64> {
        let after = self.work.partition_point(|&(at, _)| at < instant);
        let &(late, upper) = self.work.get(after)?;
        if late == instant {
            return Some(upper);
        }
        let &(early, lower) = self.work.get(after.checked_sub(1)?)?;
        let part = u128::from(upper - lower) * u128::from(instant - early) / u128::from(late - early);
        Some(lower + u64::try_from(part).unwrap_or(u64::MAX))
    }

    /// Turns per second within a span.
    #[expect(clippy::cast_precision_loss, reason = "a rate to six digits")]
    pub(crate) fn rate(&self, span: Span, frequency: Frequency) -> Option<f64> {
        let turns = self.turns_at(span.end)?.checked_sub(self.turns_at(span.begin)?)?;
        let nanoseconds = frequency.nanoseconds(span.end.checked_sub(span.begin)?);
        (nanoseconds > 0).then(|| turns as f64 / nanoseconds as f64 * 1e9)
    }

    /// The pauses that have a part in a span.
    pub(crate) fn pauses_in(&self, span: Span) -> impl Iterator<Item = Span> + '_ {
        self.pauses.iter().copied().filter(move |pause| pause.overlaps(span))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nil_guest_abi::control::{MAGIC, VERSION};

    const fn span(begin: u64, end: u64) -> Span {
        Span { begin, end }
    }

    fn record(work: &[(u64, u64)]) -> PulseRecord {
        PulseRecord { work: work.to_vec(), pauses: vec![span(10, 20), span(90, 120), span(300, 310)], missed: 0 }
    }

    #[test]
    fn work_between_two_looks_is_on_the_line_through_them() {
        let record = record(&[(100, 1_000), (200, 2_000), (300, 2_000)]);
        assert_eq!(record.turns_at(150), Some(1_500));
        assert_eq!((record.turns_at(100), record.turns_at(300)), (Some(1_000), Some(2_000)));
        assert_eq!((record.turns_at(99), record.turns_at(301)), (None, None), "nobody looked");
        assert_eq!(record.span(), Some(span(100, 300)));
    }

    #[test]
    fn the_rate_of_a_guest_that_stands_still_is_zero() {
        let frequency = Frequency::of_khz(1_000_000);
        let record = record(&[(0, 0), (1_000_000, 500), (2_000_000, 500)]);
        assert_eq!(record.rate(span(0, 1_000_000), frequency), Some(500_000.0));
        assert_eq!(record.rate(span(1_000_000, 2_000_000), frequency), Some(0.0));
        assert_eq!(record.rate(span(1_000_000, 1_000_000), frequency), None);
    }

    #[test]
    fn what_is_seen_where_the_guest_has_been_yields_to_what_is_seen_where_it_is() {
        let before = record(&[(100, 1_000), (200, 2_000), (300, 2_000), (400, 2_000)]);
        let after =
            PulseRecord { pauses: vec![span(300, 310), span(400, 410)], ..record(&[(250, 2_500), (450, 4_500)]) };
        let whole = before.then(after);
        assert_eq!((whole.turns_at(200), whole.turns_at(350)), (Some(2_000), Some(3_500)));
        assert_eq!(whole.pauses, [span(10, 20), span(90, 120), span(300, 310), span(400, 410)]);
    }

    #[test]
    fn pauses_count_in_a_span_that_they_have_a_part_in() {
        let pauses: Vec<Span> = record(&[]).pauses_in(span(100, 300)).collect();
        assert_eq!(pauses, [span(90, 120), span(300, 310)]);
    }

    #[test]
    fn a_guest_that_cannot_be_seen_has_not_gone_back() {
        let mut record = PulseRecord::default();
        record.sample(1, 700);
        record.sample(2, 0);
        record.sample(3, 900);
        assert_eq!(record.work, [(1, 700), (3, 900)]);
    }

    #[test]
    fn a_guest_in_a_file_is_followed_and_what_the_ring_has_lost_is_counted() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(1 << 20).expect("room");
        let guest = View::of_file(file.path()).expect("a view");
        let block = guest.block().expect("a block");
        block.magic.store(MAGIC, Ordering::Relaxed);
        block.version.store(VERSION, Ordering::Relaxed);
        block.vcpus.store(1, Ordering::Relaxed);
        block.vcpu[0].record_gap(5, 6);
        let view = View::of_unmapped_file(file.path()).expect("a view");
        let pulse = Pulse::through(view, &[Clock::default()]).expect("a thread");
        block.vcpu[0].counter.store(40, Ordering::Release);
        (0..2_000).for_each(|at| block.vcpu[0].record_gap(at * 10, at * 10 + 3));
        let record = pulse.finish().expect("what was seen");
        assert_eq!(record.turns_at(record.span().expect("looks").end), Some(40));
        assert_eq!(u64::try_from(record.pauses.len()).expect("a count") + record.missed, 2_000);
        assert_eq!(record.pauses.last(), Some(&span(19_990, 19_993)));
    }
}
