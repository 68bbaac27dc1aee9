//! The status that a worker shows to whoever watches it.

use crate::message::{Lane, Phase, WorkerReply, WorkerStatus};
use crate::report::ProtectionReport;
use crate::wire::{Connection, Sent};
use nil_mover::MoveProgress;
use nil_pool::GuestControl;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a watcher may take nothing before it is hung up on.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a watcher that had no room is told again.
const CATCH_UP: Duration = Duration::from_millis(50);

/// Holds the worker's status and tells every watcher when it changes.
#[derive(Clone, Debug)]
pub(super) struct StatusBoard(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inner {
    status: WorkerStatus,
    main_move: Option<Shown>,
    pull_back: Option<Shown>,
    watchers: Vec<Watcher>,
}

/// Somebody who follows the status.
#[derive(Debug)]
struct Watcher {
    connection: Connection,
    /// Since when it has not got the latest status, because it takes nothing.
    behind: Option<Instant>,
}

impl Watcher {
    /// Tells it the latest status without waiting. Returns whether it is still worth telling.
    fn tell(&mut self, latest: &WorkerReply) -> bool {
        match self.connection.send_now(latest) {
            Ok(Sent::Whole) => self.behind = None,
            Ok(Sent::NoRoom) => return self.behind.get_or_insert_with(Instant::now).elapsed() < PATIENCE,
            Err(_) => return false,
        }
        true
    }
}

/// A move as it is shown.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub(super) progress: MoveProgress,
    /// Bytes per second that it may use.
    pub(super) limit: Option<u64>,
}

impl Inner {
    /// Tells every watcher how things stand; who has gone, or takes nothing any more, is forgotten.
    fn tell(&mut self) {
        let latest = WorkerReply::Status(Box::new(self.status.clone()));
        self.watchers.retain_mut(|watcher| watcher.tell(&latest));
    }

    /// Tells those again who had no room.
    fn catch_up(&mut self) {
        let latest = WorkerReply::Status(Box::new(self.status.clone()));
        self.watchers.retain_mut(|watcher| watcher.behind.is_none() || watcher.tell(&latest));
    }

    fn is_somebody_behind(&self) -> bool {
        self.watchers.iter().any(|watcher| watcher.behind.is_some())
    }
}

impl StatusBoard {
    pub(super) fn new(status: WorkerStatus) -> Self {
        let inner = Inner { status, main_move: None, pull_back: None, watchers: Vec::new() };
        Self(Arc::new(Shared { inner: Mutex::new(inner), changed: Condvar::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn phase(&self) -> Phase {
        self.lock().status.phase
    }

    /// Enters `phase` if the present one is among `from`; otherwise returns the present one.
    pub(super) fn enter(&self, from: &[Phase], phase: Phase, detail: Option<String>) -> Result<(), Phase> {
        let mut inner = self.lock();
        if !from.contains(&inner.status.phase) {
            return Err(inner.status.phase);
        }
        inner.status.phase = phase;
        inner.status.detail = detail;
        inner.tell();
        self.0.changed.notify_all();
        Ok(())
    }

    /// Shows how far the move in a lane is; `None` when it is over. Of two moves the one in the main lane is shown.
    pub(super) fn show_move(&self, lane: Lane, shown: Option<Shown>) {
        let mut inner = self.lock();
        match lane {
            Lane::Main => inner.main_move = shown,
            Lane::PullBack => inner.pull_back = shown,
        }
        let shown = inner.main_move.clone().or_else(|| inner.pull_back.clone());
        inner.status.move_limit = shown.as_ref().and_then(|shown| shown.limit);
        inner.status.moving = shown.map(|shown| shown.progress);
        inner.tell();
        self.0.changed.notify_all();
    }

    /// Shows how the guest is protected; `None`, that it is not.
    pub(super) fn show_protection(&self, protection: Option<ProtectionReport>) {
        let mut inner = self.lock();
        if inner.status.protection != protection {
            inner.status.protection = protection;
            inner.tell();
            self.0.changed.notify_all();
        }
    }

    /// Shows where the guest's memory lies in this process.
    pub(super) fn show_memory(&self, address: u64) {
        let mut inner = self.lock();
        inner.status.memory_address = Some(address);
        inner.tell();
        self.0.changed.notify_all();
    }

    /// Shows in which pool, and where there, the guest has its home.
    pub(super) fn show_home(&self, control: &GuestControl) {
        let mut inner = self.lock();
        inner.status.pool = control.pool().id();
        inner.status.slot = control.slot();
        inner.tell();
        self.0.changed.notify_all();
    }

    /// Tells `watcher` the present status, and every one that follows.
    pub(super) fn watch(&self, watcher: Connection) {
        let mut inner = self.lock();
        let mut watcher = Watcher { connection: watcher, behind: None };
        if watcher.tell(&WorkerReply::Status(Box::new(inner.status.clone()))) {
            inner.watchers.push(watcher);
        }
    }

    /// Waits until the worker has nothing more to do, and lets those catch up meanwhile who had no room for the status.
    pub(super) fn wait_final(&self) -> Phase {
        let mut inner = self.lock();
        while !inner.status.phase.is_final() {
            inner = if inner.is_somebody_behind() {
                let waited = self.0.changed.wait_timeout(inner, CATCH_UP);
                let mut inner = waited.unwrap_or_else(PoisonError::into_inner).0;
                inner.catch_up();
                inner
            } else {
                self.0.changed.wait(inner).unwrap_or_else(PoisonError::into_inner)
            };
        }
        inner.status.phase
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn board() -> StatusBoard {
        StatusBoard::new(WorkerStatus::of_test())
    }

    fn watched(board: &StatusBoard) -> Connection {
        let (ours, theirs) = UnixStream::pair().expect("two sockets");
        board.watch(Connection::over(ours, "the agent"));
        Connection::over(theirs, "the worker")
    }

    /// Shows one address after the other until somebody has no room; returns the one that was shown last.
    fn fill(board: &StatusBoard) -> u64 {
        let mut shown = 0;
        while !board.lock().is_somebody_behind() {
            shown += 1;
            board.show_memory(shown);
        }
        shown
    }

    #[test]
    fn a_watcher_that_does_not_read_holds_nobody_up_and_gets_the_latest_when_it_does() {
        let (board, last) = (board(), std::sync::mpsc::channel());
        let mut watcher = watched(&board);
        let shown = fill(&board);
        std::thread::scope(|scope| {
            scope.spawn(|| board.wait_final());
            scope.spawn(|| {
                while let Ok(Some(WorkerReply::Status(status))) = watcher.receive() {
                    last.0.send(status.memory_address).expect("the test listens");
                    if status.memory_address == Some(shown) {
                        break;
                    }
                }
            });
            let heard = last.1.iter().find(|address| *address == Some(shown));
            assert_eq!(heard, Some(Some(shown)));
            board.enter(&[Phase::Running], Phase::Ended, None).expect("it ran");
        });
    }

    #[test]
    fn a_watcher_that_never_reads_is_hung_up_on() {
        let board = board();
        let _watcher = watched(&board);
        fill(&board);
        let mut inner = board.lock();
        inner.watchers[0].behind = Instant::now().checked_sub(PATIENCE);
        inner.catch_up();
        assert!(inner.watchers.is_empty());
    }
}
