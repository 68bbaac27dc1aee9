//! What a move costs the guest beyond the stores that wait for a chunk: the time that its vCPU threads wait for a CPU.
//!
//! The kernel counts for every thread how long it was runnable and did not run (`/proc/self/task/TID/schedstat`, second
//! figure, in nanoseconds; Documentation/scheduler/sched-stats.rst). Not all of that is the mover's doing: a busy machine
//! makes a guest wait as well. But the mover keeps nobody from more CPU time than it uses itself. So of what the threads
//! waited, no more counts than that: a guest on a busy machine is not punished with a move that never ends.

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;
use rustix::time::{ClockId, clock_gettime};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// The least time on chunks between two readings, so that short chunks do not cost more to measure than to move.
const LEAST_BUSY: Duration = Duration::from_micros(200);
/// The same for each thread that has to be read: a reading takes one or two microseconds.
const LEAST_BUSY_PER_THREAD: Duration = Duration::from_micros(20);

/// Watches what the guest's threads lose.
#[derive(Debug)]
pub(crate) struct GuestLoss {
    threads: Vec<Watched>,
    least_busy: Duration,
    /// What the mover has spent on chunks since the last reading.
    busy: Duration,
    /// CPU time of the mover's thread at the last reading.
    used: Duration,
    /// What was left of the allowance at the last reading: a thread that waits still is counted when it has got its CPU.
    left: Duration,
}

#[derive(Debug)]
struct Watched {
    schedstat: OwnedFd,
    waited: Duration,
}

impl GuestLoss {
    /// Watches these threads of this process. Those that the kernel tells nothing of are left out, with one warning.
    pub(crate) fn watch(threads: &[Pid]) -> Self {
        let watched: Vec<_> = threads.iter().filter_map(|&thread| Watched::open(thread)).collect();
        if watched.len() < threads.len() {
            tracing::warn!(
                "this kernel does not tell how long {} of {} vCPU threads wait for a CPU (no /proc/self/task/TID/schedstat; \
                 CONFIG_SCHED_INFO has it): only the stores that wait for a chunk count as the guest's loss",
                threads.len() - watched.len(),
                threads.len()
            );
        }
        let for_all = LEAST_BUSY_PER_THREAD * u32::try_from(watched.len()).unwrap_or(u32::MAX);
        let least_busy = LEAST_BUSY.max(for_all);
        Self { threads: watched, least_busy, busy: Duration::ZERO, used: own_cpu_time(), left: Duration::ZERO }
    }

    /// How much of its time the average thread lost to the mover since it was last asked, when the mover has spent `busy`
    /// on chunks since then: to be asked by the thread that does so. Zero until enough has come together to be worth a
    /// reading. Does not allocate.
    pub(crate) fn lost(&mut self, busy: Duration) -> Duration {
        self.busy += busy;
        let Ok(count) = u32::try_from(self.threads.len()) else { return Duration::ZERO };
        if count == 0 || self.busy < self.least_busy {
            return Duration::ZERO;
        }
        let waited: Duration = self.threads.iter_mut().map(Watched::since_last).sum();
        let now = own_cpu_time();
        let used = now.saturating_sub(self.used).min(self.busy);
        let allowance = self.left + used;
        let lost = waited.min(allowance);
        self.left = (allowance - lost).min(used);
        (self.busy, self.used) = (Duration::ZERO, now);
        lost / count
    }
}

impl Watched {
    fn open(thread: Pid) -> Option<Self> {
        let path = format!("/proc/self/task/{}/schedstat", thread.as_raw_nonzero());
        let schedstat = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut watched = Self { schedstat, waited: Duration::ZERO };
        watched.waited = watched.read()?;
        Some(watched)
    }

    /// What the thread has waited since this was last asked; nothing when it has ended.
    fn since_last(&mut self) -> Duration {
        let Some(waited) = self.read() else { return Duration::ZERO };
        let since = waited.saturating_sub(self.waited);
        self.waited = waited;
        since
    }

    fn read(&self) -> Option<Duration> {
        let mut line = [0; 80];
        let length = rustix::io::pread(&self.schedstat, &mut line, 0).ok()?;
        waited(&line[..length])
    }
}

/// CPU time that the calling thread has used.
fn own_cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// The second figure of a schedstat line: nanoseconds.
fn waited(line: &[u8]) -> Option<Duration> {
    let line = str::from_utf8(line).ok()?;
    line.split_ascii_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::time::Instant;

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// Keeps the calling thread to the first of the CPUs that it may use.
    fn stay_on_one_cpu() {
        let allowed = sched_getaffinity(None).unwrap();
        let mut one = CpuSet::new();
        one.set((0..CpuSet::MAX_CPU).find(|&cpu| allowed.is_set(cpu)).unwrap());
        sched_setaffinity(None, &one).unwrap();
    }

    fn spin(time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn the_second_figure_is_what_a_thread_waited() {
        assert_eq!(waited(b"531117 68341 2\n"), Some(Duration::from_nanos(68341)));
        assert_eq!(waited(b"0 0 0\n"), Some(Duration::ZERO));
        for bad in [&b""[..], b"531117", b"12 many 3", b"1 -5 3", b"\xff 1 2"] {
            assert_eq!(waited(bad), None);
        }
    }

    #[test]
    fn threads_that_the_mover_keeps_from_their_cpu_lose_as_much_as_it_takes() {
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            for _ in 0..2 {
                let (sender, ended) = (sender.clone(), &ended);
                scope.spawn(move || {
                    stay_on_one_cpu();
                    sender.send(gettid()).unwrap();
                    while !ended.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            let mover = scope.spawn(move || {
                let threads = [receiver.recv().unwrap(), receiver.recv().unwrap()];
                stay_on_one_cpu();
                let mut loss = GuestLoss::watch(&threads);
                let (mut busy, mut lost) = (Duration::ZERO, Duration::ZERO);
                while lost < MILLISECOND {
                    spin(MILLISECOND);
                    busy += MILLISECOND;
                    lost += loss.lost(MILLISECOND);
                    assert!(lost * 2 <= busy, "two threads lost {lost:?} each, though the mover took {busy:?} only");
                }
            });
            mover.join().unwrap();
            ended.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn threads_that_have_ended_lose_nothing_more() {
        let (sender, receiver) = mpsc::channel();
        let (hold, held) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            sender.send(gettid()).unwrap();
            held.recv().unwrap_err();
        });
        let mut loss = GuestLoss::watch(&[receiver.recv().unwrap()]);
        assert_eq!(loss.threads.len(), 1);
        drop(hold);
        thread.join().unwrap();
        loss.lost(MILLISECOND);
        assert_eq!(loss.lost(MILLISECOND), Duration::ZERO);
    }

    #[test]
    fn a_thread_that_there_is_not_is_left_out() {
        let nobody = Pid::from_raw(i32::MAX).unwrap();
        let mut loss = GuestLoss::watch(&[nobody, gettid()]);
        assert_eq!(loss.threads.len(), 1);
        assert!(loss.lost(MILLISECOND) <= MILLISECOND);
        assert_eq!(GuestLoss::watch(&[nobody]).lost(MILLISECOND), Duration::ZERO);
    }

    #[test]
    fn short_chunks_are_not_measured_one_by_one() {
        let mut loss = GuestLoss::watch(&[gettid()]);
        for _ in 0..9 {
            assert_eq!(loss.lost(LEAST_BUSY / 10), Duration::ZERO);
        }
        assert_eq!(loss.busy, LEAST_BUSY / 10 * 9);
        loss.lost(LEAST_BUSY / 10);
        assert_eq!(loss.busy, Duration::ZERO);
    }
}
