//! How often a caller from elsewhere may ask: a bucket of permits for each, filled again at a constant rate.
//!
//! Callers on the Unix socket are not counted: whoever may open that may do anything to this host anyway.

use super::problem::Refusal;
use super::roles::Caller;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Requests per second, in the long run.
const RATE: f64 = 500.0;
/// Requests that may come at once.
const BURST: f64 = 1000.0;
/// Callers that are kept in mind. A bucket that is full need not be.
const CALLERS: usize = 1024;

/// The buckets of all callers.
#[derive(Debug, Default)]
pub(super) struct Rates {
    buckets: Mutex<HashMap<String, Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    permits: f64,
    at: Instant,
}

impl Bucket {
    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.permits = (self.permits + elapsed * RATE).min(BURST);
        self.at = now;
    }
}

impl Rates {
    /// Takes a permit of that caller's.
    ///
    /// # Errors
    /// After which time there will be one.
    pub(super) fn take(&self, caller: &str, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= CALLERS && !buckets.contains_key(caller) {
            buckets.retain(|_, bucket| {
                bucket.fill(now);
                bucket.permits < BURST
            });
            if buckets.len() >= CALLERS {
                return Err(Duration::from_secs_f64(BURST / RATE));
            }
        }
        let bucket = buckets.entry(caller.to_owned()).or_insert(Bucket { permits: BURST, at: now });
        bucket.fill(now);
        if bucket.permits < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.permits) / RATE));
        }
        bucket.permits -= 1.0;
        Ok(())
    }
}

/// Lets a request through if its caller has not asked too often.
pub(super) async fn limit(rates: Arc<Rates>, request: Request, next: Next) -> Response {
    let account = request.extensions().get::<Caller>().and_then(Caller::account);
    match account.map_or(Ok(()), |account| rates.take(&account, Instant::now())) {
        Ok(()) => next.run(request).await,
        Err(wait) => Refusal::too_often(wait).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many requests at one moment get through.
    fn permitted(rates: &Rates, caller: &str, requests: usize, now: Instant) -> usize {
        (0..requests).filter(|_| rates.take(caller, now).is_ok()).count()
    }

    #[test]
    fn who_asks_too_often_waits_and_the_others_do_not() {
        let (rates, now) = (Rates::default(), Instant::now());
        assert_eq!(permitted(&rates, "a", 3000, now), 1000);
        assert_eq!(permitted(&rates, "b", 10, now), 10);
        let wait = rates.take("a", now).expect_err("too often");
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(2), "{wait:?}");
        assert_eq!(permitted(&rates, "a", 3000, now + Duration::from_secs(1)), 500);
        assert_eq!(permitted(&rates, "a", 3000, now + Duration::from_secs(3600)), 1000);
    }

    #[test]
    fn more_callers_than_can_be_kept_in_mind_do_not_use_up_memory() {
        let (rates, now) = (Rates::default(), Instant::now());
        for caller in 0..3 * CALLERS {
            let _ = rates.take(&caller.to_string(), now);
        }
        assert!(rates.buckets.lock().expect("no panic").len() <= CALLERS);
        let later = now + Duration::from_secs(1);
        assert!(rates.take("one more", later).is_ok(), "those who ask no more must make room");
    }
}
