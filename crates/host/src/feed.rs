//! A record of what happens, for any number of readers to follow, each at its own pace.
//!
//! Whoever writes never waits for anybody: the record keeps so many entries, and a reader that is further behind than
//! that misses some, which it sees from their numbers. Numbers grow by one from entry to entry. A reader may come at any time, and
//! says after which number it wants to go on.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// What has happened, as far as it is kept.
#[derive(Debug)]
pub(crate) struct Feed<T> {
    ring: Mutex<Ring<T>>,
    state: watch::Sender<State>,
}

#[derive(Debug)]
struct Ring<T> {
    capacity: usize,
    next: u64,
    entries: VecDeque<(u64, T)>,
}

/// What readers wait for a change of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct State {
    newest: u64,
    closed: bool,
}

/// Somebody who follows a feed.
#[derive(Debug)]
pub(crate) struct Reader<T> {
    feed: Arc<Feed<T>>,
    state: watch::Receiver<State>,
    after: u64,
}

impl<T: Clone> Feed<T> {
    /// One that keeps `capacity` entries.
    pub(crate) fn new(capacity: usize) -> Self {
        Self::beginning_at(capacity, 1)
    }

    /// The same, whose first entry has that number, which is not 0.
    pub(crate) fn beginning_at(capacity: usize, first: u64) -> Self {
        let ring = Ring { capacity, next: first, entries: VecDeque::new() };
        let (state, _) = watch::channel(State { newest: first - 1, closed: false });
        Self { ring: Mutex::new(ring), state }
    }

    fn lock(&self) -> MutexGuard<'_, Ring<T>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an entry. What the newest one says can be `replaced` by it: then that is dropped.
    pub(crate) fn push(&self, entry: T, replaced: impl FnOnce(&T) -> bool) {
        let mut ring = self.lock();
        if ring.entries.back().is_some_and(|(_, newest)| replaced(newest)) {
            ring.entries.pop_back();
        } else if ring.entries.len() >= ring.capacity {
            ring.entries.pop_front();
        }
        let number = ring.next;
        ring.next += 1;
        ring.entries.push_back((number, entry));
        // Under the lock, so that what readers are told of grows.
        self.state.send_modify(|state| state.newest = number);
    }

    /// Lets readers end when they have read everything.
    pub(crate) fn close(&self) {
        self.state.send_modify(|state| state.closed = true);
    }

    /// The numbers of the oldest entry that is kept and of the newest; before the first entry, the number that it will have
    /// and the one before that.
    pub(crate) fn range(&self) -> (u64, u64) {
        let ring = self.lock();
        let newest = ring.next - 1;
        (ring.entries.front().map_or(ring.next, |(number, _)| *number), newest)
    }

    /// Follows it, from the first entry that has a greater number than `after` and is still kept.
    pub(crate) fn follow(self: &Arc<Self>, after: u64) -> Reader<T> {
        Reader { feed: Arc::clone(self), state: self.state.subscribe(), after }
    }

    fn first_after(&self, number: u64) -> Option<(u64, T)> {
        let ring = self.lock();
        let position = ring.entries.partition_point(|(at, _)| *at <= number);
        ring.entries.get(position).cloned()
    }
}

impl<T: Clone> Reader<T> {
    /// The next entry and its number, as soon as there is one; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<(u64, T)> {
        loop {
            // First the state, so that nothing can come in between unnoticed.
            let closed = self.state.borrow_and_update().closed;
            if let Some((number, entry)) = self.feed.first_after(self.after) {
                self.after = number;
                return Some((number, entry));
            }
            if closed || self.state.changed().await.is_err() {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
    }

    fn read_all(reader: &mut Reader<u32>) -> Vec<(u64, u32)> {
        block_on(async {
            let mut read = Vec::new();
            while let Some(entry) = reader.next().await {
                read.push(entry);
            }
            read
        })
    }

    #[test]
    fn a_reader_that_comes_late_goes_on_where_it_says() {
        let feed = Arc::new(Feed::new(10));
        (1..=4).for_each(|entry| feed.push(entry, |_| false));
        feed.close();
        assert_eq!(read_all(&mut feed.follow(0)), [(1, 1), (2, 2), (3, 3), (4, 4)]);
        assert_eq!(read_all(&mut feed.follow(2)), [(3, 3), (4, 4)]);
        assert_eq!(read_all(&mut feed.follow(99)), []);
    }

    #[test]
    fn what_is_kept_is_told_by_its_numbers() {
        let feed = Feed::beginning_at(2, 7);
        assert_eq!(feed.range(), (7, 6));
        (1..=3).for_each(|entry| feed.push(entry, |_| false));
        assert_eq!(feed.range(), (8, 9));
    }

    #[test]
    fn of_more_than_is_kept_the_oldest_goes_and_the_numbers_show_it() {
        let feed = Arc::new(Feed::new(2));
        (1..=5).for_each(|entry| feed.push(entry, |_| false));
        feed.close();
        assert_eq!(read_all(&mut feed.follow(0)), [(4, 4), (5, 5)]);
    }

    #[test]
    fn an_entry_that_is_replaced_is_not_kept_beside_its_successor() {
        let feed = Arc::new(Feed::new(3));
        for entry in [1, 2, 4, 6, 7, 8, 10] {
            feed.push(entry, |newest: &u32| (entry | newest) & 1 == 0);
        }
        feed.close();
        assert_eq!(read_all(&mut feed.follow(0)), [(4, 6), (5, 7), (7, 10)]);
    }

    #[test]
    fn a_reader_that_waits_is_woken_by_an_entry_and_by_the_end() {
        let feed = Arc::new(Feed::new(3));
        let mut reader = feed.follow(0);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(move || read_all(&mut reader));
            feed.push(7, |_| false);
            feed.close();
            assert_eq!(waiting.join().expect("no panic"), [(1, 7)]);
        });
    }
}
