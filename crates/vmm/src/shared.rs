//! What the vCPU threads of a machine share with its coordinator.

use crate::error::Error;
use crate::placement;
use crate::protect::Standstill;
use crate::vm::VmEvent;
use nil_migrate::Source;
use rustix::process::Pid;
use rustix::thread::CpuSet;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// What the vCPU threads are wanted for when they are kicked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Request {
    /// Nothing (any more).
    None,
    /// To freeze for the handoff that is on.
    Freeze,
    /// To stand still for a commit, and go on.
    StandStill,
    /// To end.
    Stop,
}

/// What the vCPU threads of a machine share with its coordinator.
pub(crate) struct Shared {
    /// Another one takes its place when the guest's home moves to another pool. Nobody holds it for long.
    source: RwLock<Arc<Source>>,
    request: AtomicU32,
    events: Sender<VmEvent>,
    /// Why a part could not be saved, the last time that happened.
    failure: Mutex<Option<String>>,
    /// Kernel ids of the vCPU threads; 0 until one runs.
    thread_ids: Vec<AtomicI32>,
    pub(crate) standstill: Standstill,
    /// The threads that are bound to a CPU until the guest has landed, and where they could run before.
    bound: Mutex<Vec<(Pid, CpuSet)>>,
}

impl Shared {
    pub(crate) fn new(source: Source, events: Sender<VmEvent>, vcpus: usize) -> Self {
        Self {
            source: RwLock::new(Arc::new(source)),
            request: AtomicU32::new(0),
            events,
            failure: Mutex::default(),
            thread_ids: (0..vcpus).map(|_| AtomicI32::new(0)).collect(),
            standstill: Standstill::default(),
            bound: Mutex::default(),
        }
    }

    /// The source's half of the guest's handoffs.
    pub(crate) fn source(&self) -> Arc<Source> {
        Arc::clone(&self.source.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a vCPU may enter the guest.
    pub(crate) fn may_run(&self) -> bool {
        self.source.read().unwrap_or_else(PoisonError::into_inner).may_run()
    }

    /// Says that this host lives, and then the same.
    pub(crate) fn beat(&self) -> bool {
        self.source.read().unwrap_or_else(PoisonError::into_inner).beat()
    }

    /// Puts another source in the place of the present one, which is returned.
    pub(crate) fn replace_source(&self, source: Arc<Source>) -> Arc<Source> {
        std::mem::replace(&mut *self.source.write().unwrap_or_else(PoisonError::into_inner), source)
    }

    pub(crate) fn request(&self) -> Request {
        match self.request.load(Ordering::Acquire) {
            0 => Request::None,
            1 => Request::Freeze,
            3 => Request::StandStill,
            _ => Request::Stop,
        }
    }

    /// Asks for something, unless the threads have been asked to stop.
    pub(crate) fn ask(&self, request: Request) {
        let code = match request {
            Request::None => 0,
            Request::Freeze => 1,
            Request::Stop => 2,
            Request::StandStill => 3,
        };
        self.request.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| (now != 2).then_some(code)).ok();
    }

    /// How many vCPUs there are.
    pub(crate) fn vcpus(&self) -> usize {
        self.thread_ids.len()
    }

    /// Says which thread runs a vCPU.
    pub(crate) fn register_thread(&self, index: usize) {
        self.thread_ids[index].store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
    }

    /// Gives the calling thread a CPU of its own until the guest has landed, where that helps.
    pub(crate) fn bind_thread(&self, index: usize) {
        self.register_thread(index);
        if let Some(before) = placement::bind(index, self.thread_ids.len()) {
            lock(&self.bound).push((rustix::thread::gettid(), before));
        }
    }

    /// Lets the threads that were bound to a CPU run anywhere again.
    pub(crate) fn unbind_threads(&self) {
        for (thread, before) in lock(&self.bound).drain(..) {
            placement::unbind(thread, &before);
        }
    }

    /// The threads that run vCPUs now.
    pub(crate) fn vcpu_threads(&self) -> impl Iterator<Item = Pid> {
        self.thread_ids.iter().filter_map(|id| Pid::from_raw(id.load(Ordering::Relaxed)))
    }

    /// Remembers why a part could not be saved.
    pub(crate) fn note_failure(&self, error: &Error) {
        *lock(&self.failure) = Some(error.to_string());
    }

    /// Why a part could not be saved the last time, if it has not been asked for yet.
    pub(crate) fn take_failure(&self) -> Option<String> {
        lock(&self.failure).take()
    }

    /// Tells the coordinator what happened. It may have gone.
    pub(crate) fn tell(&self, event: VmEvent) {
        self.events.send(event).ok();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
