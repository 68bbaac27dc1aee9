//! The host-pause canary: notices when this machine itself stood still.
//!
//! A thread sleeps for a short period, again and again, at real-time priority where that is permitted, so that nothing on
//! this machine but a pause of the machine (or of the core it is on) makes it oversleep by much. A tail of a latency
//! distribution is worth little without it: a blackout of 20 ms beside a pause of 20 ms says nothing about nil.
//!
//! It is a witness, not a proof: a pause that falls into its 10 µs of work, or is shorter than [`NOTEWORTHY`], goes unseen.

use super::figures::Microseconds;
use super::frequency::Frequency;
use super::lock::lock;
use nil_migrate::tsc;
use rustix::thread::{ClockId, clock_nanosleep_relative};
use rustix::time::Timespec;
use serde::Serialize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long it sleeps. Each awakening costs the core it happens on some microseconds.
const PERIOD: Duration = Duration::from_millis(1);
/// A pause that is worth recording.
const NOTEWORTHY: Duration = Duration::from_micros(200);
/// The most pauses that are kept one by one; further ones are only counted.
const KEPT: usize = 100_000;

/// A stretch of time in TSC ticks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Span {
    /// First tick.
    pub(crate) begin: u64,
    /// Last tick.
    pub(crate) end: u64,
}

impl Span {
    /// Whether the two have a tick in common.
    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.begin <= other.end && other.begin <= self.end
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    pauses: Mutex<Pauses>,
}

#[derive(Debug, Default)]
struct Pauses {
    kept: Vec<Span>,
    count: u64,
    longest: u64,
}

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Canary {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    frequency: Frequency,
    real_time: bool,
}

/// What the canary saw.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct CanaryReport {
    /// Pauses of the machine of more than 200 µs.
    pub(crate) pauses: u64,
    /// The longest of them.
    pub(crate) longest_us: Microseconds,
    /// Handoffs during which there was one.
    pub(crate) coinciding_handoffs: u64,
    /// Whether the canary ran at real-time priority; if not, a busy machine looks like a paused one.
    pub(crate) real_time: bool,
}

impl Canary {
    /// Starts the thread.
    pub(crate) fn start(frequency: Frequency) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (tell, told) = std::sync::mpsc::channel();
        let watched = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("canary".into()).spawn(move || {
            // The other end waits for exactly this; should it be gone, nobody wants to know.
            let _ = tell.send(become_real_time());
            watch(&watched, frequency);
        })?;
        let real_time = told.recv()?;
        Ok(Self { shared, thread: Some(thread), frequency, real_time })
    }

    /// The pauses that it has seen so far.
    pub(crate) fn pauses(&self) -> Vec<Span> {
        lock(&self.shared.pauses).kept.clone()
    }

    /// What it has seen so far; `handoffs` are the spans in which a guest stood still.
    pub(crate) fn report(&self, handoffs: &[Span]) -> CanaryReport {
        let pauses = lock(&self.shared.pauses);
        CanaryReport {
            pauses: pauses.count,
            longest_us: Microseconds::from_nanoseconds(self.frequency.nanoseconds(pauses.longest)),
            coinciding_handoffs: coinciding(&pauses.kept, handoffs),
            real_time: self.real_time,
        }
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A canary that panicked has been reported by the panic hook; there is nothing to add.
            let _ = thread.join();
        }
    }
}

/// How many of the handoffs overlap a pause.
fn coinciding(pauses: &[Span], handoffs: &[Span]) -> u64 {
    let paused = |handoff: &&Span| pauses.iter().any(|pause| pause.overlaps(**handoff));
    u64::try_from(handoffs.iter().filter(paused).count()).unwrap_or(u64::MAX)
}

fn watch(shared: &Shared, frequency: Frequency) {
    let period = frequency.ticks(PERIOD);
    let noteworthy = frequency.ticks(NOTEWORTHY);
    let timespec = Timespec::try_from(PERIOD).unwrap_or_default();
    let mut slept = tsc::now();
    while !shared.stop.load(Ordering::Relaxed) {
        // An early return by a signal looks like a short sleep, which is no pause.
        let _ = clock_nanosleep_relative(ClockId::Monotonic, &timespec);
        let awake = tsc::now();
        let due = slept.saturating_add(period);
        let late = awake.saturating_sub(due);
        if late > noteworthy {
            let mut pauses = lock(&shared.pauses);
            pauses.count += 1;
            pauses.longest = pauses.longest.max(late);
            if pauses.kept.len() < KEPT {
                pauses.kept.push(Span { begin: due, end: awake });
            }
        }
        slept = awake;
    }
}

/// Gives the calling thread the lowest real-time priority, if this process may have it.
#[allow(unsafe_code)]
pub(super) fn become_real_time() -> bool {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the call reads the structure, which lives until it returns, and changes nothing but the scheduling of the
    // calling thread (pid 0).
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn span(begin: u64, end: u64) -> Span {
        Span { begin, end }
    }

    #[test]
    fn a_handoff_coincides_with_a_pause_that_it_overlaps() {
        let pauses = [span(100, 200), span(500, 600)];
        let handoffs = [span(0, 99), span(150, 160), span(190, 520), span(601, 700)];
        assert_eq!(coinciding(&pauses, &handoffs), 2);
    }

    #[test]
    fn a_canary_that_is_dropped_stops_at_once() {
        let canary = Canary::start(Frequency::measure()).expect("a thread");
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(canary.report(&[]).coinciding_handoffs, 0);
        let shared = Arc::clone(&canary.shared);
        drop(canary);
        assert_eq!(Arc::strong_count(&shared), 1);
    }
}
