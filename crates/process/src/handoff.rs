//! A process goes through CRIU, all but its memory in the pool.
//!
//! ```text
//! watched ─▶ stopped (SIGSTOP) ─▶ dumped ─▶ restored, stopped ─▶ goes on (SIGCONT)
//!                │                  └─ restore refused ─▶ the images are whole: restore them again
//!                └─ dump refused ─▶ goes on where it was
//! ```
//!
//! It is stopped before it is let go of: it makes no system call that nobody looks at.

use crate::criu::{Criu, Pages};
use crate::error::{Error, Result};
use crate::guard::{Guard, Leave};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where the time of a handoff went.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct HandoffReport {
    /// Until it was stopped and let go of.
    pub stop: Duration,
    /// CRIU's dump.
    pub dump: Duration,
    /// CRIU's restore.
    pub restore: Duration,
}

/// Hands a process over to itself: stops it, dumps it into `images`, restores it from there, and lets it go on. The caller
/// is its parent or has one that takes note of its end at once; afterwards the caller is its parent.
///
/// # Errors
/// [`Error::Criu`]: if the dump failed, the process goes on where it was, unwatched: [`Guard::attach`] again. If the restore
/// failed, `images` has all of it but for the memory in the pool, which nobody may touch then.
pub fn hand_over(guard: Guard<'_>, criu: &Criu, images: &Path) -> Result<HandoffReport> {
    let number = guard.pid();
    let pid = Pid::from_raw(number).ok_or(Error::Gone { pid: number })?;
    let go_on = || {
        let source = |errno: rustix::io::Errno| Error::Call { pid: number, what: "continue", source: errno.into() };
        kill_process(pid, Signal::CONT).map_err(source)
    };
    let (stopped, stop) = timed(|| guard.leave(Leave::Stopped));
    stopped?;
    let (dumped, dump) = timed(|| criu.dump(number, images));
    if let Err(refused) = dumped {
        go_on()?;
        return Err(refused);
    }
    // Its number is free when its parent has taken note; if that is somebody else, it is not ours to wait.
    let _ = waitpid(Some(pid), WaitOptions::empty());
    let (restored, restore) = timed(|| criu.restore(images, Pages::AtOnce));
    restored?;
    go_on()?;
    Ok(HandoffReport { stop, dump, restore })
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begin = Instant::now();
    let result = work();
    (result, begin.elapsed())
}
