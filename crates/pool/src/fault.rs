//! A place to die: every write to the pool passes through [`step`], where the crash tests stop it.
//!
//! In ordinary builds there is nothing here.

#[cfg(not(all(test, not(loom))))]
#[inline(always)]
pub(crate) fn step() {}

/// Whether this thread unwinds because its host dies in a test.
#[cfg(not(all(test, not(loom))))]
pub(crate) fn is_dying() -> bool {
    false
}

/// Whether nobody else acts while this thread waits: it plays all hosts of a simulation.
#[cfg(not(all(test, not(loom))))]
pub(crate) fn is_alone() -> bool {
    false
}

#[cfg(all(test, not(loom)))]
pub(crate) use armed::{is_alone, is_dying, step};

#[cfg(all(test, not(loom)))]
pub(crate) mod armed {
    use std::cell::{Cell, RefCell};
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    type Interruption = (usize, Box<dyn FnOnce()>);

    thread_local! {
        static INTERRUPTION: RefCell<Option<Interruption>> = const { RefCell::new(None) };
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
        static TAKEN: Cell<usize> = const { Cell::new(0) };
    }

    struct Crash;

    /// One write is about to happen.
    pub(crate) fn step() {
        TAKEN.set(TAKEN.get() + 1);
        if let Some(interrupt) = due() {
            interrupt();
        }
        match LEFT.get() {
            None => {}
            Some(0) => {
                LEFT.set(None);
                resume_unwind(Box::new(Crash));
            }
            Some(left) => LEFT.set(Some(left - 1)),
        }
    }

    pub(crate) fn is_dying() -> bool {
        std::thread::panicking()
    }

    pub(crate) fn is_alone() -> bool {
        crate::medium::is_software_coherent().is_some()
    }

    /// So many writes this thread has come to.
    pub(crate) fn taken() -> usize {
        TAKEN.get()
    }

    /// What is to be done before this write.
    fn due() -> Option<Box<dyn FnOnce()>> {
        INTERRUPTION.with_borrow_mut(|interruption| match interruption.take()? {
            (0, interrupt) => Some(interrupt),
            (left, interrupt) => {
                *interruption = Some((left - 1, interrupt));
                None
            }
        })
    }

    /// Runs `work`, and `interrupt` in between, when it is about to make its write number `writes`. The result, and whether
    /// it came that far.
    pub(crate) fn interrupted<T>(
        writes: usize,
        interrupt: impl FnOnce() + 'static,
        work: impl FnOnce() -> T,
    ) -> (T, bool) {
        INTERRUPTION.set(Some((writes, Box::new(interrupt))));
        let result = work();
        (result, INTERRUPTION.take().is_none())
    }

    /// Runs `work` until it is about to make its write number `writes`; `None` when it was stopped there.
    pub(crate) fn crash_after<T>(writes: usize, work: impl FnOnce() -> T) -> Option<T> {
        LEFT.set(Some(writes));
        let result = catch_unwind(AssertUnwindSafe(work));
        LEFT.set(None);
        match result {
            Ok(value) => Some(value),
            Err(payload) if payload.is::<Crash>() => None,
            Err(payload) => resume_unwind(payload),
        }
    }
}
