//! The step `tidy`: what a run left behind on the machine and in the repository.
//!
//! Processes are known by the marker that [`Run`] puts into their environment; temporary files by lying in the run's
//! own folder; shared memory and mounts by bearing nil's name (or that of the crate `tempfile`), not having been there
//! before, and not being in use by a process of somebody else.

use crate::command::read;
use crate::outcome::Outcome;
use crate::run::{MARKER, Run};
use anyhow::Result;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{self, Command};
use std::thread;
use std::time::{Duration, Instant};

/// How long a process that is ending gets to end.
const GRACE: Duration = Duration::from_secs(5);

/// How things were when the run began.
pub(crate) struct Before {
    /// `git status`, unless this is no checkout.
    status: Option<String>,
    shared_memory: BTreeSet<String>,
    mounts: BTreeSet<String>,
}

impl Before {
    pub(crate) fn take(root: &Path) -> Self {
        Self { status: git_status(root), shared_memory: shared_memory(), mounts: mounts() }
    }
}

pub(crate) fn check(this: &Run) -> Result<Outcome> {
    let mut left = processes_left();
    left.extend(names_in(&this.temporary()).into_iter().map(|name| format!("temporary file {name}")));
    left.extend(shared_memory_left(&this.before));
    left.extend(mounts().difference(&this.before.mounts).map(|mount| format!("mount {mount}")));
    left.extend(sources_ignored(this));
    left.extend(locks_not_committed(this));
    let status = git_status(&this.root);
    if status != this.before.status {
        left.push(format!("the checkout changed; git status now says: {}", status.as_deref().unwrap_or("nothing")));
    }
    Outcome::of_findings(&left, "nothing left behind").map(|outcome| match status {
        Some(_) => outcome,
        None => outcome.without("clean tree: this is no git checkout"),
    })
}

/// Processes that this run started and that outlive the grace.
fn processes_left() -> Vec<String> {
    let deadline = Instant::now() + GRACE;
    loop {
        let left = marked_processes();
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn marked_processes() -> Vec<String> {
    let marker = format!("{MARKER}={}", process::id());
    let mut found = Vec::new();
    for id in names_in(Path::new("/proc")).into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
        let environment = fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == marker.as_bytes()) {
            let words = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&words).replace('\0', " ");
            found.push(format!("process {id}: {}", line.trim_end()));
        }
    }
    found
}

/// Files of nil's in `/dev/shm` that were not there before, except those that somebody else maps.
fn shared_memory_left(before: &Before) -> Vec<String> {
    let now = shared_memory();
    let new: Vec<&String> = now.difference(&before.shared_memory).collect();
    if new.is_empty() {
        return Vec::new();
    }
    let mut mapped = String::new();
    for id in names_in(Path::new("/proc")) {
        mapped.push_str(&fs::read_to_string(format!("/proc/{id}/maps")).unwrap_or_default());
    }
    new.into_iter()
        .map(|name| format!("/dev/shm/{name}"))
        .filter(|path| !mapped.contains(path.as_str()))
        .map(|path| format!("shared memory {path}"))
        .collect()
}

fn shared_memory() -> BTreeSet<String> {
    let is_ours = |name: &String| name.contains("nil") || name.starts_with(".tmp");
    names_in(Path::new("/dev/shm")).into_iter().filter(is_ours).collect()
}

fn mounts() -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(1));
    points.filter(|point| point.contains("nil")).map(str::to_owned).collect()
}

fn git_status(root: &Path) -> Option<String> {
    read(Command::new("git").args(["status", "--porcelain"]).current_dir(root)).ok()
}

/// Source files that a rule in `.gitignore` hides, so that nobody else would ever get them.
fn sources_ignored(this: &Run) -> Vec<String> {
    let mut command = this.command("git");
    command.args(["ls-files", "--others", "--ignored", "--exclude-standard", "--", "*.rs", "*.toml", "*.md"]);
    let ignored = read(&mut command).unwrap_or_default();
    let sources = ignored.lines().filter(|path| !is_built(&this.root, path));
    sources.map(|path| format!("source {path}, which .gitignore hides from git")).collect()
}

/// Lock files that differ from the commit although no manifest does: the commit has manifests that its lock files do not
/// fit, and cargo mended that on the way to this program, where `--locked` cannot notice it any more.
fn locks_not_committed(this: &Run) -> Vec<String> {
    let changed = |files: &str| {
        let mut command = this.command("git");
        read(command.args(["diff", "--name-only", "HEAD", "--", files])).unwrap_or_default()
    };
    if !changed("*Cargo.toml").is_empty() {
        return Vec::new();
    }
    changed("*Cargo.lock").lines().map(|lock| format!("{lock}, which the commit has in an older state")).collect()
}

/// Whether `path`, relative to `root`, lies in a folder that cargo or cargo-fuzz fills.
fn is_built(root: &Path, path: &str) -> bool {
    let built = |folder: &Path| folder.join("CACHEDIR.TAG").exists() || folder == root.join("target");
    root.join(path).ancestors().take_while(|folder| *folder != root).any(built)
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_bears_the_marker_is_found_until_it_ends() {
        let mut child =
            Command::new("sleep").arg("60").env(MARKER, process::id().to_string()).spawn().expect("sleep starts");
        let found = || marked_processes().iter().any(|line| line.contains(&format!("process {}:", child.id())));
        // The kernel shows the environment only a moment after the program was started.
        let deadline = Instant::now() + GRACE;
        while !found() {
            assert!(Instant::now() < deadline, "the process is not found");
        }
        child.kill().expect("sleep is ours to kill");
        child.wait().expect("sleep ends");
        assert_eq!(marked_processes(), [""; 0]);
    }

    #[test]
    fn only_what_cargo_builds_may_be_ignored() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository");
        assert!(is_built(root, "target/debug/build/generated.rs"));
        assert!(!is_built(root, "crates/migrate/src/target/wait.rs"));
    }

    #[test]
    fn a_new_file_of_nils_in_shared_memory_is_found() {
        let before = Before { status: None, shared_memory: shared_memory(), mounts: mounts() };
        let file = format!("/dev/shm/nil-xtask-test-{}", process::id());
        fs::write(&file, "left").expect("/dev/shm is writable");
        let left = shared_memory_left(&before);
        fs::remove_file(&file).expect("it was just written");
        assert!(left.contains(&format!("shared memory {file}")), "{left:?}");
    }
}
