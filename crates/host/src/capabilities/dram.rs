//! How much DRAM of this machine is still free for guests: what the kernel could give, within what the agent's control
//! groups permit. Workers are started by the agent and count towards the same groups.

use std::fs;
use std::path::{Path, PathBuf};

/// A limit of cgroup v1 above this is none.
const NO_LIMIT: u64 = 1 << 60;

/// Bytes that a guest on this machine could still have.
#[must_use]
pub(crate) fn free_dram() -> u64 {
    let available = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text)).unwrap_or(0);
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let rooms = groups_of(&groups).into_iter().filter_map(|group| room(&group));
    rooms.fold(available, u64::min)
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A control group that may limit memory.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Group {
    path: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Version {
    V1,
    V2,
}

/// The groups of `/proc/PID/cgroup` that may limit memory, with all of their ancestors: a limit holds for what is below it.
fn groups_of(text: &str) -> Vec<Group> {
    let mut groups = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (version, roots): (_, &[&str]) = match controllers {
            "" => (Version::V2, &["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]),
            listed if listed.split(',').any(|it| it == "memory") => (Version::V1, &["/sys/fs/cgroup/memory"]),
            _ => continue,
        };
        for root in roots {
            let ancestors = Path::new(path.trim_start_matches('/')).ancestors();
            groups.extend(ancestors.map(|below| Group { path: Path::new(root).join(below), version }));
        }
    }
    groups
}

/// Bytes that a group could still use; `None` when it sets no limit.
fn room(group: &Group) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(group.path.join(name)).ok();
    let (limit, usage, reclaimable) = match group.version {
        Version::V1 => ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        Version::V2 => ("memory.max", "memory.current", "inactive_file"),
    };
    left(&read(limit)?, &read(usage)?, &read("memory.stat").unwrap_or_default(), reclaimable)
}

/// What a limit leaves, if it is one. Pages of files that nobody uses are given up when memory is short.
fn left(limit: &str, usage: &str, stat: &str, reclaimable: &str) -> Option<u64> {
    let limit = limit.trim().parse::<u64>().ok().filter(|&limit| limit < NO_LIMIT)?;
    let usage = usage.trim().parse::<u64>().ok()?;
    let field = |line: &str| line.split_once(' ').filter(|(name, _)| *name == reclaimable)?.1.trim().parse().ok();
    let reclaimable = stat.lines().find_map(field).unwrap_or(0);
    Some(limit.saturating_sub(usage.saturating_sub(reclaimable)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_from_meminfo() {
        let text = "MemTotal:  24576000 kB\nMemFree:  1 kB\nMemAvailable:   2048 kB\nBuffers: 7 kB\n";
        assert_eq!(available(text), Some(2 << 20));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
        assert_eq!(available("MemAvailable: 99999999999999999999 kB\n"), None);
    }

    #[test]
    fn a_limit_leaves_what_is_not_used_and_what_can_be_reclaimed() {
        let stat = "anon 5\ninactive_file 300\ntotal_inactive_file 7\n";
        assert_eq!(left("1000\n", "800\n", stat, "inactive_file"), Some(500));
        assert_eq!(left("1000\n", "5000\n", "", "inactive_file"), Some(0));
        assert_eq!(left("max\n", "800\n", stat, "inactive_file"), None);
        assert_eq!(left("9223372036854771712\n", "800\n", stat, "total_inactive_file"), None);
    }

    #[test]
    fn a_group_is_limited_by_all_above_it() {
        let paths =
            |text: &str| groups_of(text).into_iter().map(|it| it.path.display().to_string()).collect::<Vec<_>>();
        let v1 = paths("9:name=systemd:/\n4:memory:/a/b\n");
        assert_eq!(v1, ["/sys/fs/cgroup/memory/a/b", "/sys/fs/cgroup/memory/a", "/sys/fs/cgroup/memory/"]);
        assert!(paths("0::/nil\n").contains(&"/sys/fs/cgroup/nil".to_owned()));
        assert!(paths("nonsense\n1:cpu:/x\n").is_empty());
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(free_dram() > 0);
    }
}
