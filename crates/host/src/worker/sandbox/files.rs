//! What a worker may open, by landlock (Documentation/userspace-api/landlock.rst).
//!
//! Files that are open already are not affected, nor are sockets with a path: that nobody connects to the agent's is for
//! the system call filter.

use super::Layer;
use crate::error::{Error, Result};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use std::path::{Path, PathBuf};

/// The newest that is made use of; an older kernel restricts what it can.
const NEWEST: ABI = ABI::V6;

/// What a worker looks up while it runs.
///
/// - of itself: its threads' places and statistics, its memory maps, pins and page tables;
/// - of the machine: which boot this is, its NUMA nodes and processors, its dax devices, KVM's settings, how many mappings it may have.
const LOOKED_UP: [&str; 9] = [
    "/proc/self",
    "/proc/sys/vm",
    "/proc/sys/kernel/random",
    "/sys/devices",
    "/sys/dev",
    "/sys/bus",
    "/sys/class",
    "/sys/module",
    "/sys/kernel/mm",
];
/// The devices that run guests and hold their stores back.
const DEVICES: [&str; 2] = ["/dev/kvm", "/dev/userfaultfd"];

/// Forbids the calling thread, and those that it starts, every file but these, TCP, and what lies outside of the sandbox.
pub(super) fn restrict(readable: &[PathBuf]) -> Result<Layer> {
    let status = rules(readable)
        .and_then(RulesetCreated::restrict_self)
        .map_err(|error| Error::refused(format!("landlock does not take the worker's rules: {error}")))?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Layer::Whole,
        RulesetStatus::PartiallyEnforced => {
            Layer::Partial("this kernel's landlock is older than 6.12 and restricts files only in part".to_owned())
        }
        RulesetStatus::NotEnforced => {
            Layer::Missing("this kernel has no landlock: the worker may open what its user may".to_owned())
        }
    })
}

fn rules(readable: &[PathBuf]) -> std::result::Result<RulesetCreated, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::ReadFile | AccessFs::WriteFile;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    for path in LOOKED_UP.iter().map(Path::new).chain(readable.iter().map(AsRef::as_ref)) {
        rules = allow(rules, path, read)?;
    }
    for device in DEVICES {
        rules = allow(rules, Path::new(device), write | AccessFs::IoctlDev)?;
    }
    Ok(rules)
}

/// Allows what is at or below a path. What is not there needs no permission.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> std::result::Result<RulesetCreated, RulesetError> {
    match PathFd::new(path) {
        Ok(opened) => {
            let folder = path.is_dir();
            let access = if folder { access } else { access & AccessFs::from_file(NEWEST) };
            rules.add_rule(PathBeneath::new(opened, access))
        }
        Err(_) => Ok(rules),
    }
}
