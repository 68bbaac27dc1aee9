//! Where the coordinator of a handoff runs: not on a CPU of the guest, where there is another.
//!
//! A thread that wakes up on the CPU on which a vCPU runs takes it from the guest, so the guest would stand still before
//! it is even kicked. On a machine with CPUs to spare the scheduler sees to that; where the target's spinning thread has
//! the last one, it does not.

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The field of `/proc/self/task/TID/stat` that names the CPU (proc(5): `processor`, the 39th), counted from the one
/// behind the command name.
const PROCESSOR: usize = 39 - 3;

/// While it lives, the calling thread keeps off the CPUs on which the given threads were last seen.
pub(crate) struct KeptOff {
    before: CpuSet,
}

impl KeptOff {
    /// Moves the calling thread away from where `threads` run. `None`, and nothing changed, when no CPU would be left.
    pub(crate) fn from(threads: impl IntoIterator<Item = Pid>) -> Option<Self> {
        let before = sched_getaffinity(None).ok()?;
        let mut allowed = before;
        for cpu in threads.into_iter().filter_map(last_cpu) {
            allowed.unset(cpu);
        }
        if allowed.count() == 0 || allowed == before {
            return None;
        }
        sched_setaffinity(None, &allowed).ok()?;
        Some(Self { before })
    }
}

impl Drop for KeptOff {
    fn drop(&mut self) {
        // The mask was this thread's own a moment ago; should a CPU have gone offline, the kernel keeps the narrower one.
        sched_setaffinity(None, &self.before).ok();
    }
}

fn last_cpu(thread: Pid) -> Option<usize> {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).ok()?;
    parse_processor(&stat)
}

fn parse_processor(stat: &str) -> Option<usize> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(PROCESSOR)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_found_behind_a_command_name_with_blanks() {
        let numbers: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        assert_eq!(parse_processor(&format!("7 (vcpu 0) S) R {}", numbers.join(" "))), Some(39));
    }

    #[test]
    fn a_thread_keeps_off_its_own_cpu_only_if_there_is_another() {
        let cpus = sched_getaffinity(None).expect("this thread's CPUs").count();
        let kept_off = KeptOff::from([rustix::thread::gettid()]);
        assert_eq!(kept_off.is_some(), cpus > 1);
    }
}
