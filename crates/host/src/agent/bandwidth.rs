//! The host's bandwidth for moving memory, shared fairly among the moves that are on.

use super::Host;
use crate::message::{Lane, WorkerRequest};
use crate::name::GuestName;
use nil_mover::fair_shares;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a worker may take to hear of its new share.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who has which share.
#[derive(Debug, Default)]
pub(super) struct Bandwidth {
    /// Bytes per second that all moves may use together; `None` is no limit.
    total: Option<u64>,
    moves: Mutex<Vec<Portion>>,
}

/// What one move may use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Portion {
    pub(super) guest: GuestName,
    pub(super) lane: Lane,
    wanted: Option<u64>,
    pub(super) bytes_per_s: u64,
}

/// A move's share while it lasts. Dropping it gives it to the others.
#[derive(Debug)]
pub(super) struct Share<'a> {
    host: &'a Host,
    guest: GuestName,
    lane: Lane,
    bytes_per_s: Option<u64>,
}

impl Host {
    /// Counts a move in, and tells those that must make room for it.
    pub(super) fn share_bandwidth(&self, guest: &GuestName, lane: Lane, wanted: Option<u64>) -> Share<'_> {
        let (bytes_per_s, changed) = self.bandwidth.begin(guest, lane, wanted);
        self.tell_shares(changed);
        Share { host: self, guest: guest.clone(), lane, bytes_per_s }
    }

    fn tell_shares(&self, changed: Vec<Portion>) {
        for Portion { guest, lane, bytes_per_s, .. } in changed {
            let request = WorkerRequest::SetBandwidth { lane, bytes_per_s: Some(bytes_per_s.max(1)) };
            match self.order(&guest, &request, PATIENCE) {
                Ok(_) => tracing::debug!("guest {guest}: it may move {bytes_per_s} bytes per second"),
                // A move that has just ended needs no bandwidth.
                Err(error) => tracing::debug!("guest {guest}: not told its bandwidth: {}", error.story()),
            }
        }
    }
}

impl Share<'_> {
    /// What the move may use; `None` is no limit.
    pub(super) fn bytes_per_s(&self) -> Option<u64> {
        self.bytes_per_s
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.host.tell_shares(self.host.bandwidth.end(&self.guest, self.lane));
    }
}

impl Bandwidth {
    pub(super) fn new(total: Option<u64>) -> Self {
        Self { total, moves: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Portion>> {
        self.moves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a move in. Returns its share, and which other moves' shares have changed; none if there is no limit.
    pub(super) fn begin(&self, guest: &GuestName, lane: Lane, wanted: Option<u64>) -> (Option<u64>, Vec<Portion>) {
        let Some(total) = self.total else { return (None, Vec::new()) };
        let mut moves = self.lock();
        moves.push(Portion { guest: guest.clone(), lane, wanted, bytes_per_s: 0 });
        let mut changed = share_out(total, &mut moves);
        let own = changed.iter().position(|portion| &portion.guest == guest && portion.lane == lane);
        let own = own.map(|position| changed.remove(position).bytes_per_s);
        // A share of nothing would be a move that never ends.
        (own.map(|share| share.max(1)).or(Some(total)), changed)
    }

    /// Counts it out. Returns the shares that have changed.
    pub(super) fn end(&self, guest: &GuestName, lane: Lane) -> Vec<Portion> {
        let Some(total) = self.total else { return Vec::new() };
        let mut moves = self.lock();
        moves.retain(|portion| &portion.guest != guest || portion.lane != lane);
        share_out(total, &mut moves)
    }
}

/// Divides anew; returns the portions that are not what they were.
fn share_out(total: u64, moves: &mut [Portion]) -> Vec<Portion> {
    let wanted: Vec<Option<u64>> = moves.iter().map(|portion| portion.wanted).collect();
    let mut changed = Vec::new();
    for (portion, share) in moves.iter_mut().zip(fair_shares(total, &wanted)) {
        if portion.bytes_per_s != share {
            portion.bytes_per_s = share;
            changed.push(portion.clone());
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(name: &str) -> GuestName {
        name.parse().expect("a good name")
    }

    fn shares(portions: &[Portion]) -> Vec<(&str, u64)> {
        portions.iter().map(|portion| (portion.guest.as_str(), portion.bytes_per_s)).collect()
    }

    #[test]
    fn moves_share_and_get_more_when_others_end() {
        let bandwidth = Bandwidth::new(Some(900));
        let begin = |name, wanted| bandwidth.begin(&guest(name), Lane::Main, wanted);
        assert_eq!(begin("a", None), (Some(900), Vec::new()));
        let (own, others) = begin("b", Some(100));
        assert_eq!((own, shares(&others)), (Some(100), vec![("a", 800)]));
        let (own, others) = begin("c", None);
        assert_eq!((own, shares(&others)), (Some(400), vec![("a", 400)]));
        assert_eq!(shares(&bandwidth.end(&guest("a"), Lane::Main)), [("c", 800)]);
        assert_eq!(shares(&bandwidth.end(&guest("c"), Lane::Main)), []);
    }

    #[test]
    fn two_moves_of_one_guest_count_as_two() {
        let bandwidth = Bandwidth::new(Some(900));
        bandwidth.begin(&guest("a"), Lane::Main, None);
        assert_eq!(bandwidth.begin(&guest("a"), Lane::PullBack, None).0, Some(450));
        assert_eq!(shares(&bandwidth.end(&guest("a"), Lane::PullBack)), [("a", 900)]);
    }

    #[test]
    fn without_a_limit_nobody_is_told_anything() {
        let bandwidth = Bandwidth::new(None);
        assert_eq!(bandwidth.begin(&guest("a"), Lane::Main, Some(5)), (None, Vec::new()));
        assert!(bandwidth.end(&guest("a"), Lane::Main).is_empty());
    }
}
