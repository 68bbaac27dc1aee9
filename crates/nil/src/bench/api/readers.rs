//! Callers that ask at a steady rate, and how long they wait for their answers.

use super::caller::Caller;
use crate::lab::figures::Samples;
use anyhow::ensure;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What is asked, in turn.
pub(super) const QUESTIONS: [&str; 4] = ["GET host", "GET guests", "GET jobs", "GET one guest"];

/// What a caller has seen.
#[derive(Debug)]
pub(super) struct Seen {
    /// Times of the answers to each of [`QUESTIONS`].
    pub(super) times: [Samples; 4],
    /// Questions that were asked later than they were due by more than a millisecond: the caller itself got no processor.
    pub(super) late: u64,
}

impl Seen {
    pub(super) fn nothing() -> Self {
        Self { times: std::array::from_fn(|_| Samples::new()), late: 0 }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.times.iter_mut().zip(&other.times).for_each(|(own, others)| own.add(others));
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
        let asking = Instant::now();
        seen.late += u64::from(asking.saturating_duration_since(due) > Duration::from_millis(1));
        let answer = caller.get(&paths[at])?;
        let took = asking.elapsed();
        // A guest that is asked for may be on its way to another host.
        let is_good = answer.status == 200 || at == 3 && answer.status == 404;
        ensure!(is_good, "{}: {}: {}", QUESTIONS[at], answer.status, String::from_utf8_lossy(&answer.body));
        seen.times[at].record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        asked += 1;
    }
    Ok(seen)
}
