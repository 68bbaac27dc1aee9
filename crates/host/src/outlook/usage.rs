//! How much of the processors each guest uses, as the kernel of this machine tells.
//!
//! Guests of other machines are not seen here. Nothing is known of what they use, and nothing is assumed.

use crate::report::GuestReport;
use nil_pool::GuestId;
use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// How long guests are watched.
const WATCH: Duration = Duration::from_millis(400);

/// What each guest uses: thousandths of a processor.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Usage(BTreeMap<GuestId, u64>);

impl Usage {
    /// Watches guests for a moment.
    pub(crate) fn watch(guests: &[GuestReport]) -> Self {
        let pids: Vec<(GuestId, i32)> = guests.iter().filter_map(|guest| Some((guest.id, guest.worker_pid?))).collect();
        if pids.is_empty() {
            return Self::default();
        }
        let look = || pids.iter().map(|(id, pid)| (*id, cpu_time(*pid))).collect::<BTreeMap<_, _>>();
        let (begun, before) = (Instant::now(), look());
        thread::sleep(WATCH);
        let (took, after) = (begun.elapsed(), look());
        let used = after.into_iter().filter_map(|(id, after)| {
            let time = after?.saturating_sub(before.get(&id).copied()??);
            Some((id, u64::try_from(time.as_nanos() * 1000 / took.as_nanos().max(1)).unwrap_or(u64::MAX)))
        });
        Self(used.collect())
    }

    /// What a guest uses, as far as that is known.
    pub(super) fn of(&self, guest: GuestId) -> u64 {
        self.0.get(&guest).copied().unwrap_or(0)
    }

    #[cfg(test)]
    pub(super) fn assumed(guests: impl IntoIterator<Item = (GuestId, u64)>) -> Self {
        Self(guests.into_iter().collect())
    }
}

/// The time that all threads of a process have had on a processor, if it lives and is ours.
fn cpu_time(pid: i32) -> Option<Duration> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let nanoseconds = tasks.flatten().filter_map(|task| {
        let schedstat = fs::read_to_string(task.path().join("schedstat")).ok()?;
        schedstat.split_ascii_whitespace().next()?.parse::<u64>().ok()
    });
    Some(Duration::from_nanos(nanoseconds.sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_had_some_time_and_one_that_is_not_there_has_none() {
        let me = i32::try_from(std::process::id()).expect("a pid");
        assert!(cpu_time(me).is_some_and(|time| !time.is_zero()));
        assert_eq!(cpu_time(0), None);
    }
}
