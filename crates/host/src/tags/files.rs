//! Files that may hold a pool, or are named after a tag.

use super::{PlaceKind, Stretch, TagPlace, TagsFound};
use nil_pool::Tag;
use std::fs;
use std::path::{Path, PathBuf};

/// How many files are looked at, at most.
const MOST_FILES: usize = 10_000;

/// The regular files in these directories and in the directories there, in the order of their names. Links are not
/// followed, so that nothing is found twice.
pub(super) fn below(directories: &[PathBuf], unseen: &mut Vec<String>) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for directory in directories {
        collect(directory, 2, &mut files, unseen);
    }
    files.sort();
    files.dedup();
    if files.len() > MOST_FILES {
        unseen.push(format!("{} of {} files", files.len() - MOST_FILES, files.len()));
        files.truncate(MOST_FILES);
    }
    files
}

fn collect(directory: &Path, depth: u32, files: &mut Vec<PathBuf>, unseen: &mut Vec<String>) {
    let entries = match directory.read_dir() {
        Ok(entries) => entries,
        Err(error) => return unseen.push(format!("{}: {error}", directory.display())),
    };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_file() {
            files.push(entry.path());
        } else if kind.is_dir() && depth > 1 {
            collect(&entry.path(), depth - 1, files, unseen);
        }
    }
}

/// The files that are named after a tag: `TAG`, or `TAG.something`.
pub(super) fn find(tag: Tag, files: &[PathBuf], found: &mut TagsFound) {
    let name = tag.to_string();
    for path in files.iter().filter(|path| path.file_stem().is_some_and(|stem| stem.eq_ignore_ascii_case(&name))) {
        let Ok(metadata) = fs::metadata(path) else { continue };
        let bytes = metadata.len();
        found.places.push(TagPlace {
            kind: PlaceKind::File,
            path: Some(path.clone()),
            bytes: Some(bytes),
            pool: None,
            stretches: vec![Stretch { path: path.clone(), offset: 0, bytes }],
            unusable: None,
            evidence: vec![format!("its name, on {}", file_system(path))],
        });
    }
}

/// What file system a file lies on, by the number that it gives itself (`linux/magic.h`, `famfs.h`).
fn file_system(path: &Path) -> String {
    let Ok(statfs) = rustix::fs::statfs(path) else { return "a file system that does not answer".to_owned() };
    let known = match statfs.f_type {
        0x0102_1994 => "tmpfs",
        0x9584_58f6 => "hugetlbfs",
        0x87b2_82ff => "famfs",
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x794c_7630 => "overlayfs",
        other => return format!("a file system of type {other:#x}"),
    };
    known.to_owned()
}
