//! Pages that a guest writes in every epoch.
//!
//! A page that is protected costs the guest a fault when it is written next, some microseconds. One that is left open costs a
//! copy at every standstill, a third of a microsecond, and the standstill is as much longer. So pages that were in several
//! commits one after the other are left open, as many as the standstill has room for: all of them, if an epoch changes so little
//! that copying it takes no longer than half a millisecond; otherwise a part, and the standstill stays short. Every now and then
//! such a page is protected once, to see whether it is still written.

use std::time::Duration;

/// A page that was in so many commits before this one, one after the other, may be left open.
const TRIAL: u8 = 2;
/// Once in so many commits it is protected all the same; not all pages at once.
const TERM: u64 = 32;
/// What a standstill may take once the vCPUs have stopped.
const SHORT: Duration = Duration::from_micros(150);
/// The same, if no page of an epoch need be protected then: the guest has no faults at all.
const LONG: Duration = Duration::from_micros(600);
/// So many pages an epoch may change for that.
const FEW: usize = 1536;
/// By how many pages what is left open may grow from one commit to the next.
const GROWTH: usize = 64;

/// How often each page has been in a commit lately, and how many may be left open.
pub(super) struct Hot {
    /// Of each page, the last commit that it was in.
    last: Vec<u64>,
    /// And in how many before that without a break, up to [`TRIAL`].
    run: Vec<u8>,
    room: usize,
    /// Pages of the last commit.
    changed: usize,
    open: Vec<u64>,
    /// Whether each page is left open now.
    is_open: Vec<bool>,
    /// Pages that are not, and might be.
    candidates: Vec<u64>,
}

impl Hot {
    pub(super) fn new(pages: usize) -> Self {
        let (open, candidates) = (Vec::with_capacity(pages), Vec::with_capacity(pages));
        let (last, run, is_open) = (vec![u64::MAX; pages], vec![0; pages], vec![false; pages]);
        Self { last, run, room: 0, changed: 0, open, is_open, candidates }
    }

    /// Learns from a commit, and from how long the guest stood still for it after it had stopped. The pages that are to be left
    /// open from now on.
    pub(super) fn learn(
        &mut self,
        commit: u64,
        pages: impl Iterator<Item = u64>,
        standstill: Duration,
    ) -> impl Iterator<Item = u64> + '_ {
        let bound = if self.changed <= FEW { LONG } else { SHORT };
        self.room = if standstill > bound { self.room - self.room.div_ceil(8) } else { self.room + GROWTH };
        self.open.clear();
        self.candidates.clear();
        self.changed = 0;
        for page in pages {
            self.changed += 1;
            let Some((last, run)) =
                usize::try_from(page).ok().and_then(|page| Some((self.last.get_mut(page)?, self.run.get_mut(page)?)))
            else {
                continue;
            };
            *run = if last.checked_add(1) == Some(commit) { (*run + 1).min(TRIAL) } else { 0 };
            *last = commit;
            let on_trial = commit.wrapping_add(page).is_multiple_of(TERM);
            if *run >= TRIAL && !on_trial {
                // Those that are open stay so: to change them would cost the guest the faults that it is to be spared.
                let is_open = usize::try_from(page).is_ok_and(|page| self.is_open[page]);
                if is_open { &mut self.open } else { &mut self.candidates }.push(page);
            }
        }
        self.open.truncate(self.room);
        self.open.extend(self.candidates.iter().take(self.room - self.open.len()));
        self.is_open.fill(false);
        for &page in &self.open {
            if let Some(is_open) = usize::try_from(page).ok().and_then(|page| self.is_open.get_mut(page)) {
                *is_open = true;
            }
        }
        // What is not needed now may be too much later.
        self.room = self.room.min(FEW);
        self.open.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_TIME: Duration = Duration::ZERO;

    fn open(hot: &mut Hot, commit: u64, pages: &[u64], standstill: Duration) -> Vec<u64> {
        hot.learn(commit, pages.iter().copied(), standstill).collect()
    }

    #[test]
    fn a_page_of_every_commit_is_left_open_and_tried_now_and_then() {
        let mut hot = Hot::new(8);
        let opened: Vec<bool> = (1..=66).map(|commit| !open(&mut hot, commit, &[5], NO_TIME).is_empty()).collect();
        assert_eq!(opened[2..].iter().filter(|open| !**open).count(), 2, "once in every term of 32");
        assert!(!opened[0] && !opened[1] && opened[2]);
    }

    #[test]
    fn a_page_that_was_not_in_the_last_commit_begins_anew() {
        let mut hot = Hot::new(8);
        (1..=5).for_each(|commit| drop(open(&mut hot, commit, &[5], NO_TIME)));
        assert!(open(&mut hot, 6, &[], NO_TIME).is_empty());
        assert!(open(&mut hot, 7, &[5], NO_TIME).is_empty());
    }

    #[test]
    fn no_more_is_left_open_than_the_standstill_has_room_for() {
        let mut hot = Hot::new(1000);
        let all: Vec<u64> = (0..1000).collect();
        let mut opened = Vec::new();
        for commit in 1..=9 {
            opened = open(&mut hot, commit, &all, NO_TIME);
        }
        assert!((GROWTH..=9 * GROWTH).contains(&opened.len()), "{}", opened.len());
        let before = opened.len();
        let opened = open(&mut hot, 10, &all, Duration::from_millis(5)).len();
        assert!(opened < before, "{opened}, {before}");
    }

    #[test]
    fn a_standstill_is_longer_only_where_that_leaves_nothing_protected() {
        let in_between = SHORT + Duration::from_micros(1);
        let opened = |pages: u64| {
            let (mut hot, all) = (Hot::new(4000), (0..pages).collect::<Vec<_>>());
            (1..=30).for_each(|commit| drop(open(&mut hot, commit, &all, NO_TIME)));
            (31..=34).for_each(|commit| drop(open(&mut hot, commit, &all, in_between)));
            open(&mut hot, 35, &all, in_between).len()
        };
        assert!(opened(1200) > 1100, "all but those that are on trial");
        assert!(opened(2400) < FEW);
    }

    #[test]
    fn pages_that_are_open_stay_so_whatever_the_order_in_which_they_come() {
        let mut hot = Hot::new(1000);
        let all: Vec<u64> = (0..1000).collect();
        (1..=4).for_each(|commit| drop(open(&mut hot, commit, &all, NO_TIME)));
        let before = open(&mut hot, 5, &all, NO_TIME);
        let turned: Vec<u64> = all.iter().rev().copied().collect();
        let after = open(&mut hot, 6, &turned, NO_TIME);
        let on_trial = |page: &u64| (6 + page).is_multiple_of(TERM);
        assert!(before.iter().all(|page| on_trial(page) || after.contains(page)));
    }

    #[test]
    fn pages_that_there_are_not_are_passed_over() {
        assert!(open(&mut Hot::new(1), 1, &[7, u64::MAX], NO_TIME).is_empty());
    }
}
