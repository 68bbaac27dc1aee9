//! What the user may do who runs this.

use super::{Finding, text};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};
use std::path::Path;

/// The capabilities that something of nil needs, and what.
const NEEDED: [(CapabilitySet, &str, &str); 3] = [
    (CapabilitySet::SYS_PTRACE, "CAP_SYS_PTRACE", "memory of guests to move while they run, without a sysctl"),
    (CapabilitySet::SYS_NICE, "CAP_SYS_NICE", "vCPU threads to get a real-time priority"),
    (CapabilitySet::CHECKPOINT_RESTORE, "CAP_CHECKPOINT_RESTORE", "processes to be frozen and restored"),
];
/// Fewer files than a rack's agent may have open.
const FILES: u64 = 4096;

pub(super) fn check(root: &Path) -> Vec<Finding> {
    vec![held(), sandbox(root), groups(root), files()]
}

fn held() -> Finding {
    const ABOUT: &str = "capabilities";
    let user = rustix::process::getuid();
    let held = match capabilities(None) {
        Ok(sets) => sets.effective,
        Err(errno) => return Finding::limited(ABOUT, format!("cannot be read: {errno}")),
    };
    let missing: Vec<_> = NEEDED.iter().filter(|(set, ..)| !held.contains(*set)).collect();
    if missing.is_empty() {
        return Finding::good(ABOUT, format!("user {} has what agents use", user.as_raw()));
    }
    let names: Vec<_> = missing.iter().map(|(_, name, _)| *name).collect();
    let means: Vec<_> = missing.iter().map(|(_, name, what)| format!("{name} is for {what}.")).collect();
    Finding::limited(ABOUT, format!("user {} lacks {}", user.as_raw(), names.join(", ")))
        .meaning(means.join("\n  "))
        .cured_by("run agents as root, or by systemd with AmbientCapabilities= (dist/nil-host@.service)")
}

/// What workers are confined by.
fn sandbox(root: &Path) -> Finding {
    const ABOUT: &str = "sandbox";
    let modules = text(root, "sys/kernel/security/lsm");
    let seccomp = text(root, "proc/sys/kernel/seccomp/actions_avail").is_some_and(|all| all.contains("kill_process"));
    match (seccomp, modules.map(|all| all.split(',').any(|name| name == "landlock"))) {
        (true, Some(true)) => Finding::good(ABOUT, "seccomp and landlock"),
        (true, None) => Finding::good(ABOUT, "seccomp; the kernel does not tell whether there is landlock"),
        (true, Some(false)) => Finding::limited(ABOUT, "seccomp, no landlock")
            .meaning("A guest that took its worker over could open files that the worker's user may.")
            .cured_by("add landlock to the kernel's lsm= parameter"),
        (false, _) => Finding::limited(ABOUT, "no seccomp that kills a process")
            .meaning("A guest that took its worker over could make any system call.")
            .cured_by("a kernel with CONFIG_SECCOMP_FILTER, 4.14 or later"),
    }
}

fn groups(root: &Path) -> Finding {
    const ABOUT: &str = "control groups";
    match text(root, "sys/fs/cgroup/cgroup.controllers") {
        Some(all) if ["memory", "pids"].iter().all(|name| all.split(' ').any(|it| it == *name)) => {
            Finding::good(ABOUT, "v2, with limits of memory and threads")
        }
        Some(all) => {
            Finding::limited(ABOUT, format!("v2, with {}", if all.is_empty() { "no controller" } else { &all }))
                .meaning("Workers cannot be limited in memory and threads.")
                .cured_by("delegate the controllers memory and pids to the agent's group (systemd: Delegate=yes)")
        }
        None if root.join("sys/fs/cgroup/memory").exists() => Finding::good(ABOUT, "v1, with limits of memory"),
        None => Finding::limited(ABOUT, "none").meaning("Workers cannot be limited in memory and threads."),
    }
}

fn files() -> Finding {
    const ABOUT: &str = "open files";
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < FILES => Finding::limited(ABOUT, format!("at most {limit} a process"))
            .meaning("An agent of many guests and callers runs out of them.")
            .cured_by(format!("ulimit -n {FILES}, or LimitNOFILE= of systemd")),
        Some(limit) => Finding::good(ABOUT, format!("at most {limit} a process")),
        None => Finding::good(ABOUT, "not limited"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;
    use std::fs;

    #[test]
    fn a_machine_without_a_layer_of_the_sandbox_is_told_which() {
        let root = tempfile::tempdir().expect("a directory");
        assert!(sandbox(root.path()).found.contains("no seccomp"));
        let write = |path: &str, content: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
            fs::write(path, content).expect("a file");
        };
        write("proc/sys/kernel/seccomp/actions_avail", "kill_process kill_thread trap errno\n");
        write("sys/kernel/security/lsm", "capability,yama\n");
        assert_eq!(sandbox(root.path()).found, "seccomp, no landlock");
        write("sys/kernel/security/lsm", "capability,landlock,yama\n");
        assert_eq!(sandbox(root.path()).verdict, Verdict::Good);
    }

    #[test]
    fn groups_are_good_if_they_can_limit_workers() {
        let root = tempfile::tempdir().expect("a directory");
        assert_eq!(groups(root.path()).found, "none");
        let controllers = root.path().join("sys/fs/cgroup/cgroup.controllers");
        fs::create_dir_all(controllers.parent().expect("it has one")).expect("a directory");
        fs::write(&controllers, "cpu io\n").expect("a file");
        assert_eq!(groups(root.path()).verdict, Verdict::Limited);
        fs::write(&controllers, "cpu memory pids\n").expect("a file");
        assert_eq!(groups(root.path()).verdict, Verdict::Good);
    }
}
