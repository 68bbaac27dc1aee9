//! A control group for each worker (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/).
//!
//! ```text
//! v2   BASE/agent                  the agent itself, where limits are set: a group with limits holds no process of its own
//!      BASE/HOST.GUEST             a worker; memory.max, pids.max
//! v1   OWN/HOST.GUEST              a worker, in the hierarchies of memory and pids
//! ```
//!
//! Groups are made below the agent's own, and only if that was delegated to it (systemd says so by an attribute of the
//! directory) or if limits are asked for: elsewhere they are somebody else's. The worker enters its groups by itself,
//! before anything else; the agent removes them when it has ended.

use crate::config::WorkerConfig;
use crate::error::{Error, Result};
use crate::name::{GuestName, HostName};
use std::fs;
use std::path::{Path, PathBuf};

/// Where the kernel tells which groups a process is in, and where their hierarchies are mounted.
const OWN: &str = "/proc/self/cgroup";
const MOUNTS: &str = "/proc/self/mountinfo";
/// The group into which the agent goes, or systemd puts it (`DelegateSubgroup=`), to make room for limits.
const AGENT: &str = "agent";
/// How systemd marks a directory that is delegated (systemd.resource-control(5)).
const DELEGATED: [&str; 2] = ["trusted.delegate", "user.delegate"];

/// What a worker may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Limits {
    /// Bytes.
    pub(super) memory: Option<u64>,
    /// Threads.
    pub(super) threads: Option<u64>,
}

/// The hierarchies of which one can hold workers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Groups {
    host: HostName,
    hierarchies: Vec<Hierarchy>,
}

/// A hierarchy, and the group in it below which workers' groups are made.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Hierarchy {
    kind: Kind,
    base: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Unified,
    Memory,
    Threads,
}

impl Limits {
    /// Those of a guest, by what the configuration says.
    pub(super) fn of(config: &WorkerConfig, memory_bytes: u64, vcpus: u32) -> Self {
        Self {
            // Memory that moves is on both sides, and both may be charged to the worker.
            memory: config.memory.map(|beside| memory_bytes.saturating_mul(2).saturating_add(beside)),
            threads: config.threads.map(|beside| u64::from(beside) + u64::from(vcpus)),
        }
    }
}

impl Groups {
    /// Those that the agent may use: none if nothing was delegated to it, and no limits are asked for.
    pub(super) fn find(host: &HostName, config: &WorkerConfig) -> Self {
        let wanted = config.memory.is_some() || config.threads.is_some();
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let hierarchies = hierarchies(&read(OWN), &read(MOUNTS))
            .into_iter()
            .filter(|hierarchy| match hierarchy.kind {
                Kind::Unified => wanted || is_delegated(&hierarchy.base),
                Kind::Memory => config.memory.is_some(),
                Kind::Threads => config.threads.is_some(),
            })
            .collect();
        Self { host: host.clone(), hierarchies }
    }

    /// Makes a guest's groups. What limits cannot be set, and why, comes beside them, in sentences.
    pub(super) fn make(&self, guest: &GuestName, limits: Limits) -> (Vec<PathBuf>, Vec<String>) {
        let (mut made, mut unmet) = (Vec::new(), Vec::new());
        let mut left = limits;
        for hierarchy in &self.hierarchies {
            match self.make_one(hierarchy, guest, &mut left) {
                Ok(group) => made.push(group),
                Err(error) => unmet.push(error.story()),
            }
        }
        unmet.extend(left.memory.map(|_| "its memory is not limited: there is no control group for that".to_owned()));
        unmet
            .extend(left.threads.map(|_| "its threads are not limited: there is no control group for that".to_owned()));
        (made, unmet)
    }

    /// Takes from `left` what it has limited.
    fn make_one(&self, hierarchy: &Hierarchy, guest: &GuestName, left: &mut Limits) -> Result<PathBuf> {
        let group = self.group(hierarchy, guest);
        // One of that name that is left over holds no process: its worker is dead.
        let _ = fs::remove_dir(&group);
        match hierarchy.kind {
            Kind::Unified => {
                let controllers = controllers(&hierarchy.base);
                let wanted = [("memory", left.memory, "memory.max"), ("pids", left.threads, "pids.max")];
                let wanted: Vec<_> = wanted
                    .into_iter()
                    .filter_map(|(controller, limit, file)| Some((controller, limit?, file)))
                    .filter(|(controller, ..)| controllers.iter().any(|known| known == controller))
                    .collect();
                if !wanted.is_empty() {
                    enable(&hierarchy.base, &wanted.iter().map(|(name, ..)| format!("+{name}")).collect::<Vec<_>>())?;
                }
                create(&group)?;
                for (controller, limit, file) in wanted {
                    write(&group.join(file), limit)?;
                    match controller {
                        "memory" => left.memory = None,
                        _ => left.threads = None,
                    }
                }
            }
            Kind::Memory => {
                create(&group)?;
                if let Some(limit) = left.memory.take() {
                    write(&group.join("memory.limit_in_bytes"), limit)?;
                }
            }
            Kind::Threads => {
                create(&group)?;
                if let Some(limit) = left.threads.take() {
                    write(&group.join("pids.max"), limit)?;
                }
            }
        }
        Ok(group)
    }

    /// Removes a guest's groups, whose worker has ended.
    pub(super) fn remove(&self, guest: &GuestName) {
        for hierarchy in &self.hierarchies {
            let group = self.group(hierarchy, guest);
            match fs::remove_dir(&group) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                // A worker that has come for the same guest is in it.
                Err(error) => tracing::debug!("{} stays: {error}", group.display()),
            }
        }
    }

    fn group(&self, hierarchy: &Hierarchy, guest: &GuestName) -> PathBuf {
        hierarchy.base.join(format!("{}.{guest}", self.host))
    }
}

/// Lets groups below `base` be limited. A group with limited ones below holds no process itself: the agent steps aside.
fn enable(base: &Path, controllers: &[String]) -> Result<()> {
    let switch = base.join("cgroup.subtree_control");
    let enable = || fs::write(&switch, controllers.join(" "));
    if enable().is_ok() {
        return Ok(());
    }
    let aside = base.join(AGENT);
    create(&aside)?;
    write(&aside.join("cgroup.procs"), std::process::id().into())?;
    enable().map_err(|error| Error::io("limit groups by", &switch, error))
}

fn controllers(base: &Path) -> Vec<String> {
    let text = fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

fn create(group: &Path) -> Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(Error::io("make the group", group, error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn write(file: &Path, value: u64) -> Result<()> {
    fs::write(file, value.to_string()).map_err(|error| Error::io("write", file, error))
}

fn is_delegated(base: &Path) -> bool {
    let mut value = [0; 4];
    DELEGATED
        .iter()
        .any(|name| rustix::fs::getxattr(base, *name, &mut value[..]).is_ok_and(|length| &value[..length] == b"1"))
}

/// The agent's own groups, by what the kernel tells of them (proc_pid_cgroup(5), proc_pid_mountinfo(5)).
fn hierarchies(own: &str, mounts: &str) -> Vec<Hierarchy> {
    let mut found = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let kind = match controllers {
            "" if id == "0" => Kind::Unified,
            _ if controllers.split(',').any(|name| name == "memory") => Kind::Memory,
            _ if controllers.split(',').any(|name| name == "pids") => Kind::Threads,
            _ => continue,
        };
        if let Some(base) = mounted(kind, Path::new(path), mounts) {
            found.push(Hierarchy { kind, base });
        }
    }
    found
}

/// Where a group is in the file system, if its hierarchy is mounted.
fn mounted(kind: Kind, group: &Path, mounts: &str) -> Option<PathBuf> {
    let (kind_of_fs, option) = match kind {
        Kind::Unified => ("cgroup2", None),
        Kind::Memory => ("cgroup", Some("memory")),
        Kind::Threads => ("cgroup", Some("pids")),
    };
    mounts.lines().find_map(|line| {
        let (place, what) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, point) = (place.next()?, place.next()?);
        let mut what = what.split(' ');
        let (found, options) = (what.next()?, what.nth(1)?);
        let is_it = found == kind_of_fs && option.is_none_or(|option| options.split(',').any(|one| one == option));
        let inside = group.strip_prefix(root).ok().filter(|_| is_it)?;
        let group = Path::new(point).join(inside);
        let is_agent = kind == Kind::Unified && inside.file_name().is_some_and(|name| name == AGENT);
        Some(if is_agent { group.parent()?.to_path_buf() } else { group })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTED: &str = "24 1 0:21 / /proc rw - proc proc rw\n\
        31 30 0:27 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        32 30 0:28 /unit /sys/fs/cgroup/pids rw,relatime shared:7 - cgroup cgroup rw,pids\n\
        33 30 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    fn groups(base: &Path, kind: Kind) -> Groups {
        let host = "A".parse().expect("a good name");
        Groups { host, hierarchies: vec![Hierarchy { kind, base: base.to_path_buf() }] }
    }

    fn guest() -> GuestName {
        "g".parse().expect("a good name")
    }

    #[test]
    fn an_agents_own_groups_are_found_where_they_are_mounted() {
        let own = "9:name=systemd:/\n8:pids:/unit/a\n4:memory:/service\n1:cpu,cpuacct:/\n0::/nil.slice\nrubbish\n";
        let found = hierarchies(own, MOUNTED);
        let expected = [
            (Kind::Threads, "/sys/fs/cgroup/pids/a"),
            (Kind::Memory, "/sys/fs/cgroup/memory/service"),
            (Kind::Unified, "/sys/fs/cgroup/unified/nil.slice"),
        ];
        assert_eq!(found, expected.map(|(kind, base)| Hierarchy { kind, base: base.into() }));
    }

    #[test]
    fn an_agent_that_stands_aside_makes_groups_beside_itself() {
        let found = hierarchies("0::/nil.service/agent\n", MOUNTED);
        assert_eq!(found[0].base, Path::new("/sys/fs/cgroup/unified/nil.service"));
    }

    #[test]
    fn a_group_that_is_not_mounted_here_is_not_used() {
        assert_eq!(hierarchies("8:pids:/elsewhere\n0::/x\n", MOUNTED).len(), 1);
        assert_eq!(hierarchies("0::/x\n", ""), []);
    }

    #[test]
    fn limits_are_written_where_the_controllers_are() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("cgroup.controllers"), "cpu memory pids\n").expect("written");
        let limits = Limits { memory: Some(1 << 30), threads: Some(7) };
        let (made, unmet) = groups(dir.path(), Kind::Unified).make(&guest(), limits);
        assert_eq!((made, unmet), (vec![dir.path().join("A.g")], vec![]));
        let read = |file: &str| fs::read_to_string(dir.path().join(file)).expect("a file");
        assert_eq!(read("cgroup.subtree_control"), "+memory +pids");
        assert_eq!([read("A.g/memory.max"), read("A.g/pids.max")], ["1073741824", "7"]);
    }

    #[test]
    fn a_limit_that_nobody_can_set_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let limits = Limits { memory: Some(1 << 30), threads: Some(7) };
        let (made, unmet) = groups(dir.path(), Kind::Threads).make(&guest(), limits);
        assert_eq!(made.len(), 1);
        assert_eq!(unmet, ["its memory is not limited: there is no control group for that"]);
        let (made, unmet) = groups(&dir.path().join("gone"), Kind::Memory).make(&guest(), Limits::default());
        assert!(made.is_empty() && unmet[0].contains("gone"), "{unmet:?}");
    }

    #[test]
    fn a_guest_may_use_its_memory_twice_and_what_is_configured_beside() {
        let config = WorkerConfig { memory: Some(5), threads: Some(3), ..WorkerConfig::default() };
        assert_eq!(Limits::of(&config, 10, 2), Limits { memory: Some(25), threads: Some(5) });
        assert_eq!(Limits::of(&WorkerConfig::default(), 10, 2), Limits::default());
    }

    #[test]
    fn a_group_is_removed_with_its_worker_and_its_absence_is_no_fault() {
        let dir = tempfile::tempdir().expect("a directory");
        let groups = groups(dir.path(), Kind::Unified);
        groups.make(&guest(), Limits::default());
        groups.remove(&guest());
        assert!(!dir.path().join("A.g").exists());
        groups.remove(&guest());
    }
}
