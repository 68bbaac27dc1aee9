//! The status that a worker shows to whoever watches it.

use crate::message::{Phase, WorkerReply, WorkerStatus};
use crate::wire::Connection;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

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
    watchers: Vec<Connection>,
}

impl StatusBoard {
    pub(super) fn new(status: WorkerStatus) -> Self {
        Self(Arc::new(Shared { inner: Mutex::new(Inner { status, watchers: Vec::new() }), changed: Condvar::new() }))
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
        let reply = WorkerReply::Status(inner.status.clone());
        inner.watchers.retain(|watcher| watcher.send(&reply).is_ok());
        self.0.changed.notify_all();
        Ok(())
    }

    /// Tells `watcher` the present status, and every one that follows.
    pub(super) fn watch(&self, watcher: Connection) {
        let mut inner = self.lock();
        if watcher.send(&WorkerReply::Status(inner.status.clone())).is_ok() {
            inner.watchers.push(watcher);
        }
    }

    /// Waits until the worker has nothing more to do.
    pub(super) fn wait_final(&self) -> Phase {
        let inner = self.lock();
        let inner = self.0.changed.wait_while(inner, |inner| !inner.status.phase.is_final());
        inner.unwrap_or_else(PoisonError::into_inner).status.phase
    }
}
