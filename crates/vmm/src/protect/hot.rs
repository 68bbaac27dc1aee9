//! Pages that a guest writes in every epoch.
//!
//! A page that is protected costs the guest a fault when it is written next, some microseconds. One that is left open costs a
//! copy at every standstill, a third of a microsecond, and the standstill is as much longer. So pages that were in several
//! commits one after the other are left open, as many as the standstill has room for. Every now and then such a page is
//! protected once, to see whether it is still written.

use std::time::Duration;

/// For so many commits, of each [`TERM`], a page that was in all of them is not left open.
const TRIAL: u8 = 2;
const TERM: u8 = 32;
/// What a standstill may take once the vCPUs have stopped.
const ROOM: Duration = Duration::from_micros(200);
/// By how many pages what is left open may grow from one commit to the next.
const GROWTH: usize = 32;

/// How often each page has been in a commit lately, and how many may be left open.
pub(super) struct Hot {
    /// Of each page, the last commit that it was in.
    last: Vec<u64>,
    /// And in how many commits without a break, counted round [`TERM`].
    run: Vec<u8>,
    room: usize,
    open: Vec<u64>,
}

impl Hot {
    pub(super) fn new(pages: usize) -> Self {
        Self { last: vec![u64::MAX; pages], run: vec![0; pages], room: 0, open: Vec::with_capacity(pages) }
    }

    /// Learns from a commit, and from how long the guest stood still for it after it had stopped. The pages that are to be left
    /// open from now on.
    pub(super) fn learn(
        &mut self,
        commit: u64,
        pages: impl Iterator<Item = u64>,
        standstill: Duration,
    ) -> impl Iterator<Item = u64> + '_ {
        self.room = if standstill > ROOM { self.room - self.room.div_ceil(8) } else { self.room + GROWTH };
        self.open.clear();
        for page in pages {
            let Some((last, run)) =
                usize::try_from(page).ok().and_then(|page| Some((self.last.get_mut(page)?, self.run.get_mut(page)?)))
            else {
                continue;
            };
            *run = if last.checked_add(1) == Some(commit) { (*run + 1) % TERM } else { 0 };
            *last = commit;
            if *run >= TRIAL && self.open.len() < self.room {
                self.open.push(page);
            }
        }
        // No more room than is used: what is not needed now may be too much later.
        self.room = self.room.min(self.open.len() + GROWTH);
        self.open.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::ZERO;

    fn open(hot: &mut Hot, commit: u64, pages: &[u64], standstill: Duration) -> Vec<u64> {
        hot.learn(commit, pages.iter().copied(), standstill).collect()
    }

    #[test]
    fn a_page_of_every_commit_is_left_open_and_tried_now_and_then() {
        let mut hot = Hot::new(8);
        let opened: Vec<bool> = (1..=64).map(|commit| !open(&mut hot, commit, &[5], SHORT).is_empty()).collect();
        assert_eq!(opened.iter().filter(|open| !**open).count(), 4, "twice in every term of 32");
        assert!(!opened[0] && !opened[1] && opened[2]);
    }

    #[test]
    fn a_page_that_was_not_in_the_last_commit_begins_anew() {
        let mut hot = Hot::new(8);
        (1..=5).for_each(|commit| drop(open(&mut hot, commit, &[5], SHORT)));
        assert!(open(&mut hot, 6, &[], SHORT).is_empty());
        assert!(open(&mut hot, 7, &[5], SHORT).is_empty());
    }

    #[test]
    fn no_more_is_left_open_than_the_standstill_has_room_for() {
        let mut hot = Hot::new(1000);
        let all: Vec<u64> = (0..1000).collect();
        let mut opened = Vec::new();
        for commit in 1..=9 {
            opened = open(&mut hot, commit, &all, SHORT);
        }
        assert!((GROWTH..9 * GROWTH + 1).contains(&opened.len()), "{}", opened.len());
        let before = opened.len();
        let opened = open(&mut hot, 10, &all, Duration::from_millis(5)).len();
        assert!(opened < before, "{opened}, {before}");
    }

    #[test]
    fn pages_that_there_are_not_are_passed_over() {
        assert!(open(&mut Hot::new(1), 1, &[7, u64::MAX], SHORT).is_empty());
    }
}
