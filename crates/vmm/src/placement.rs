//! Where threads run during a handoff on a machine whose CPUs are scarce.
//!
//! The coordinator: not on a CPU of the guest, where there is another. A thread that wakes up on the CPU on which a vCPU
//! runs takes it from the guest, so the guest would stand still before it is even kicked. On a machine with CPUs to spare
//! the scheduler sees to that; where the target's spinning thread has the last one, it does not.
//!
//! The target's vCPU threads: each on a CPU of its own until they have landed. All of them are woken at once, while the
//! source's threads still have the CPUs, so the scheduler may put two on one CPU. The first then enters the guest and the
//! second waits beside an idle CPU until the next balancing, milliseconds later.

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The field of `/proc/self/task/TID/stat` that names the CPU (proc(5): `processor`, the 39th), counted from the one
/// behind the command name.
const PROCESSOR: usize = 39 - 3;

/// Moves the calling thread away from the CPUs on which `threads` were last seen; whether it was kept off any.
///
/// It is only moved, not bound: the kernel leaves a thread that sleeps and wakes up where it was if all CPUs are busy, and
/// a thread that were bound to one CPU could be starved there while a guest stands still.
pub(crate) fn step_aside(threads: impl IntoIterator<Item = Pid>) -> bool {
    let Ok(before) = sched_getaffinity(None) else { return false };
    let mut elsewhere = before;
    for cpu in threads.into_iter().filter_map(last_cpu) {
        elsewhere.unset(cpu);
    }
    if elsewhere.count() == 0 || elsewhere == before {
        return false;
    }
    let moved = sched_setaffinity(None, &elsewhere).is_ok();
    // The mask was this thread's own a moment ago; should a CPU have gone offline since, the kernel keeps the narrower one.
    sched_setaffinity(None, &before).ok();
    moved
}

/// Binds the calling thread, that of vCPU `index` of `vcpus`, to a CPU of its own, if CPUs are scarce and there are enough.
/// Returns what to give to [`unbind`].
pub(crate) fn bind(index: usize, vcpus: usize) -> Option<CpuSet> {
    let before = sched_getaffinity(None).ok()?;
    let cpus = usize::try_from(before.count()).ok()?;
    if !needs_binding(cpus, vcpus) {
        return None;
    }
    let cpu = (0..CpuSet::MAX_CPU).filter(|&cpu| before.is_set(cpu)).nth(index)?;
    let mut own = CpuSet::new();
    own.set(cpu);
    sched_setaffinity(None, &own).ok().map(|()| before)
}

/// Lets a thread run where it could before [`bind`].
pub(crate) fn unbind(thread: Pid, before: &CpuSet) {
    // It fails only for a thread that has ended.
    sched_setaffinity(Some(thread), before).ok();
}

/// Whether vCPU threads of both sides cannot have a CPU each, but those of one side can.
fn needs_binding(cpus: usize, vcpus: usize) -> bool {
    vcpus > 1 && vcpus <= cpus && cpus < 2 * vcpus
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
    fn only_scarce_but_sufficient_cpus_are_given_out() {
        assert!(needs_binding(2, 2) && needs_binding(3, 2) && needs_binding(7, 4));
        assert!(!needs_binding(2, 1) && !needs_binding(4, 2) && !needs_binding(1, 2) && !needs_binding(64, 4));
    }

    #[test]
    fn a_thread_steps_aside_only_if_there_is_another_cpu_and_is_not_bound_to_it() {
        let cpus = sched_getaffinity(None).expect("this thread's CPUs");
        assert_eq!(step_aside([rustix::thread::gettid()]), cpus.count() > 1);
        assert_eq!(sched_getaffinity(None).expect("this thread's CPUs"), cpus);
    }
}
