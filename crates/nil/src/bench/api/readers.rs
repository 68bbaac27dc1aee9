//! Callers that ask at a steady rate, and how long they wait for their answers.

use super::caller::Caller;
use crate::lab::canary::Span;
use crate::lab::figures::Samples;
use anyhow::ensure;
use nil_migrate::tsc;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What is asked, in turn.
pub(super) const QUESTIONS: [&str; 4] = ["GET host", "GET guests", "GET jobs", "GET one guest"];

/// An answer that takes longer is slow.
pub(super) const SLOW: Duration = Duration::from_millis(5);

/// What a caller has seen.
#[derive(Debug)]
pub(super) struct Seen {
    /// Times of the answers to each of [`QUESTIONS`].
    pub(super) times: [Samples; 4],
    /// How long the agent took for them, as it says itself.
    pub(super) server: [Samples; 4],
    /// How much later than they were due questions were asked: how long a process here waits for a processor.
    pub(super) lateness: Samples,
    /// When answers were waited for that took longer than [`SLOW`].
    pub(super) slow: Vec<Span>,
    /// Questions that were asked later than they were due by more than a millisecond: the caller itself got no processor.
    pub(super) late: u64,
}

impl Seen {
    pub(super) fn nothing() -> Self {
        let none = || std::array::from_fn(|_| Samples::new());
        Self { times: none(), server: none(), lateness: Samples::new(), slow: Vec::new(), late: 0 }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.times.iter_mut().zip(&other.times).for_each(|(own, others)| own.add(others));
        self.server.iter_mut().zip(&other.server).for_each(|(own, others)| own.add(others));
        self.lateness.add(&other.lateness);
        self.slow.extend(&other.slow);
        self.late += other.late;
    }
}

/// Asks so many questions per second until it is told that it is enough. `guest` names the one that is asked for.
pub(super) fn read(socket: &Path, guest: &str, rate: f64, enough: &AtomicBool) -> anyhow::Result<Seen> {
    let paths = ["/v1/host".to_owned(), "/v1/guests".to_owned(), "/v1/jobs".to_owned(), format!("/v1/guests/{guest}")];
    let (mut caller, mut seen) = (Caller::connect(socket)?, Seen::nothing());
    let (begun, period) = (Instant::now(), Duration::from_secs_f64(1.0 / rate));
    let mut asked: u32 = 0;
    while !enough.load(Ordering::Acquire) {
        let due = begun + period * asked;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let at = usize::try_from(asked)? % QUESTIONS.len();
        let (asking, begin) = (Instant::now(), tsc::now());
        let late = asking.saturating_duration_since(due);
        seen.late += u64::from(late > Duration::from_millis(1));
        seen.lateness.record(nanoseconds(late));
        let answer = caller.get(&paths[at])?;
        let took = asking.elapsed();
        if took > SLOW {
            seen.slow.push(Span { begin, end: tsc::now() });
        }
        // A guest that is asked for may be on its way to another host.
        let is_good = answer.status == 200 || at == 3 && answer.status == 404;
        ensure!(is_good, "{}: {}: {}", QUESTIONS[at], answer.status, String::from_utf8_lossy(&answer.body));
        seen.times[at].record(nanoseconds(took));
        if let Some(server) = answer.server {
            seen.server[at].record(nanoseconds(server));
        }
        asked += 1;
    }
    Ok(seen)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
