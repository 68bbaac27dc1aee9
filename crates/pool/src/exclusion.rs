//! One host at a time: who may change what several hosts write, where compare-and-swap does not reach other hosts.
//!
//! Lamport's bakery (Communications of the ACM 17, 8). Each host has a ticket in a line of its own; nobody else writes it.
//!
//! ```text
//! ticket   0 ──▶ choosing ──▶ number << 1 ──▶ 0
//!                   │            └ wait for those with a smaller number, or the same in a lower slot
//!                   └ look at all tickets: one more than the largest
//! ```
//!
//! Inside, every word of the pool is this host's alone, and compare-and-swap on it is what it is on one machine. What is stored
//! is written back at once ([`crate::sync::AtomicU64`]), so that nothing is left to do when the ticket is given back.
//!
//! Nobody waits for a host that is gone: its process is dead for sure, or it has been declared dead. So a host that was declared dead
//! wrongly, and goes on, may write beside another: without hardware coherence the fence command has to keep it from the memory.
//!
//! Where the hosts' caches agree there is nothing to wait for.

use crate::error::{Error, Result};
use crate::ownership::HostSlot;
use crate::pool::Pool;
use crate::sync::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// For how long a host waits for its turn. Every operation is a matter of milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at a ticket that is to be waited for.
const LOOK: Duration = Duration::from_micros(50);

/// A ticket while its number is being chosen.
const CHOOSING: u64 = 1;

/// The tickets of all hosts.
#[derive(Clone, Copy, Debug)]
pub struct Tickets<'a> {
    words: &'a [AtomicU64],
    /// Words from one ticket to the next.
    stride: usize,
}

impl<'a> Tickets<'a> {
    /// Tickets that are the first of every `stride` words.
    #[must_use]
    pub fn new(words: &'a [AtomicU64], stride: usize) -> Self {
        Self { words, stride }
    }

    fn count(&self) -> usize {
        self.words.len().div_ceil(self.stride)
    }

    fn of(&self, host: usize) -> &'a AtomicU64 {
        &self.words[host * self.stride]
    }

    fn put(&self, host: usize, value: u64) {
        crate::fault::step();
        self.of(host).store(value, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Returns when it is this host's turn. `waits` is asked again and again whether another host is to be waited for any longer:
    /// `None` to pass over it, `Err` to give up.
    ///
    /// # Errors
    /// What `waits` says; then there is no ticket.
    pub fn take<E>(
        &self,
        mine: usize,
        mut waits: impl FnMut(usize) -> std::result::Result<Option<()>, E>,
    ) -> std::result::Result<(), E> {
        let others = || (0..self.count()).filter(move |host| *host != mine);
        self.put(mine, CHOOSING);
        let largest = others().map(|host| self.of(host).load(Ordering::SeqCst) >> 1).max().unwrap_or(0);
        let number = largest + 1;
        self.put(mine, number << 1);
        for other in others() {
            loop {
                let ticket = self.of(other).load(Ordering::SeqCst);
                let is_before = (ticket >> 1, other) < (number, mine);
                if ticket != CHOOSING && (ticket == 0 || !is_before) {
                    break;
                }
                match waits(other) {
                    Ok(Some(())) => {}
                    Ok(None) => break,
                    Err(gave_up) => {
                        self.give_back(mine);
                        return Err(gave_up);
                    }
                }
            }
        }
        Ok(())
    }

    /// The turn is over.
    pub fn give_back(&self, mine: usize) {
        self.put(mine, 0);
    }
}

/// Which thread of this process has its host's turn.
#[derive(Debug, Default)]
struct Turn {
    thread: Option<ThreadId>,
    /// How many guards it has.
    depth: usize,
}

/// A host's way to its turn.
#[derive(Debug)]
pub(crate) struct Exclusion {
    pool: Pool,
    host: HostSlot,
    turn: Mutex<Turn>,
    over: Condvar,
}

/// As long as it lives no other host changes the pool's tables, nor another thread of this process in the host's name.
#[derive(Debug)]
#[must_use]
pub(crate) struct Exclusive {
    of: Option<Arc<Exclusion>>,
}

impl Exclusion {
    /// For who has claimed the host's entry. What an earlier process of the host has left of a ticket is void.
    pub(crate) fn new(pool: &Pool, host: HostSlot) -> Arc<Self> {
        if let Some(tickets) = pool.tables().tickets() {
            tickets.give_back(host.index());
        }
        Arc::new(Self { pool: pool.clone(), host, turn: Mutex::default(), over: Condvar::new() })
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is this thread's turn; a thread that has it already goes on.
    ///
    /// # Errors
    /// [`Error::PoolBusy`].
    pub(crate) fn enter(self: &Arc<Self>) -> Result<Exclusive> {
        self.enter_over(None)
    }

    /// The same, without waiting for a host that is known to be dead.
    ///
    /// # Errors
    /// [`Error::PoolBusy`].
    pub(crate) fn enter_over(self: &Arc<Self>, dead: Option<HostSlot>) -> Result<Exclusive> {
        let Some(tickets) = self.pool.tables().tickets() else { return Ok(Exclusive { of: None }) };
        let me = std::thread::current().id();
        let mut turn = self.turn();
        while turn.thread.is_some_and(|thread| thread != me) {
            turn = self.over.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
        if turn.depth == 0 {
            let start = Instant::now();
            tickets.take(self.host.index(), |other| self.waits(other, dead, start))?;
        }
        turn.thread = Some(me);
        turn.depth += 1;
        Ok(Exclusive { of: Some(Arc::clone(self)) })
    }

    fn waits(&self, other: usize, dead: Option<HostSlot>, start: Instant) -> Result<Option<()>> {
        let Some(host) = u16::try_from(other).ok().and_then(HostSlot::new) else { return Ok(None) };
        if dead == Some(host) || self.pool.is_out(host) {
            return Ok(None);
        }
        if start.elapsed() > PATIENCE || crate::fault::is_alone() {
            let name = self.pool.host(host).map_or_else(|| "(joining)".to_owned(), |host| host.name);
            return Err(Error::PoolBusy { path: self.pool.path().to_owned(), host, name });
        }
        std::thread::sleep(LOOK);
        Ok(Some(()))
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        let Some(exclusion) = &self.of else { return };
        let mut turn = exclusion.turn();
        turn.depth -= 1;
        if turn.depth > 0 {
            return;
        }
        turn.thread = None;
        // A simulated host that has died gives nothing back.
        if let Some(tickets) = exclusion.pool.tables().tickets().filter(|_| !crate::fault::is_dying()) {
            tickets.give_back(exclusion.host.index());
        }
        exclusion.over.notify_one();
    }
}
