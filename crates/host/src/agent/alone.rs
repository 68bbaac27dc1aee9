//! What an agent does once at a time, and with no guest in particular: emptying its host, evening hosts out.

use super::jobs::{End, Errand, Job};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Whether it is being done, and by which job.
#[derive(Debug, Default)]
pub(super) struct Alone(Mutex<Option<Arc<Job>>>);

/// It is being done. While this lives, nobody else begins to.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    alone: &'a Alone,
    pub(super) job: Arc<Job>,
}

impl Alone {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<Job>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins, unless somebody has.
    pub(super) fn begin(&self, errand: Errand) -> Option<Turn<'_>> {
        let mut alone = self.lock();
        if alone.is_some() {
            return None;
        }
        let job = Arc::new(Job::new(errand));
        *alone = Some(Arc::clone(&job));
        Some(Turn { alone: self, job })
    }

    /// The job that does it now.
    pub(super) fn job(&self) -> Option<Arc<Job>> {
        self.lock().clone()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.alone.lock() = None;
        // Whoever has called it off waits for an answer.
        let how = format!("{} no more; `nil ps` shows how things stand", self.job.errand);
        self.job.end(End::Otherwise(how));
    }
}
