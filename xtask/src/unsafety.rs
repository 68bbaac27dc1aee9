//! The step `unsafe`: where `unsafe` may stand.
//!
//! A crate either forbids it, or is listed here with the modules that hold it; each of those is small enough to be read
//! whole. A listed module without any `unsafe` is a finding too, so that the list stays true.

use crate::metadata::{Metadata, Package};
use crate::outcome::Outcome;
use crate::run::Run;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// Crates that cannot do without, with the modules (paths under `src`) that hold it.
const HOLDERS: &[(&str, &[&str])] = &[
    (
        "nil",
        &[
            "cli/worker/violation.rs",
            "lab/canary.rs",
            "lab/file_view.rs",
            "lab/ground.rs",
            "lab/view.rs",
            "lab/yardstick.rs",
        ],
    ),
    ("nil-guest-abi", &["control.rs"]),
    ("nil-migrate", &["tsc.rs"]),
    (
        "nil-mover",
        &[
            "chunk.rs",
            "copy.rs",
            "dram.rs",
            "lost.rs",
            "lost/tests.rs",
            "memory.rs",
            "moving/tests/storm.rs",
            "numa/syscalls.rs",
            "pagemap.rs",
            "precedence.rs",
            "userfault.rs",
        ],
    ),
    (
        "nil-pool",
        &[
            "capacities.rs",
            "capacity_mapping.rs",
            "control.rs",
            "deadman.rs",
            "loss.rs",
            "mapping.rs",
            "medium/atomic.rs",
            "persist.rs",
            "presence.rs",
            "protection/mod.rs",
            "protection/tests.rs",
            "sections.rs",
            "state.rs",
        ],
    ),
    ("nil-process", &["tracee.rs"]),
    ("nil-vmm", &["kernel_mode.rs", "kick.rs", "memory.rs", "protect/dirty.rs", "vcpu.rs"]),
];

pub(crate) fn check(this: &Run) -> Result<Outcome> {
    let metadata = Metadata::read(&this.root.join("Cargo.toml"))?;
    let mut wrong = Vec::new();
    let mut modules = 0;
    for package in &metadata.packages {
        match HOLDERS.iter().find(|(name, _)| *name == package.name) {
            None => wrong.extend(roots_that_permit(package)?),
            Some((_, holders)) => {
                modules += holders.len();
                wrong.extend(misplaced(package, holders)?);
            }
        }
    }
    let root = format!("{}/", this.root.display());
    let wrong: Vec<String> = wrong.iter().map(|finding| finding.replace(&root, "")).collect();
    Outcome::of_findings(&wrong, format!("in {modules} modules of {} crates", HOLDERS.len()))
}

/// Libraries and programs of a crate without `unsafe` that do not forbid it.
fn roots_that_permit(package: &Package) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for target in package.targets.iter().filter(|target| target.is_product()) {
        if !forbids(&source(&target.src_path)?) {
            wrong.push(format!("{} must say #![forbid(unsafe_code)]", target.src_path.display()));
        }
    }
    Ok(wrong)
}

/// Modules that hold `unsafe` and may not, or may and do not.
fn misplaced(package: &Package, holders: &[&str]) -> Result<Vec<String>> {
    let folder = package.folder().join("src");
    let mut wrong = Vec::new();
    for file in rust_files(&folder)? {
        let module = file.strip_prefix(&folder).unwrap_or(&file).to_string_lossy().into_owned();
        let listed = holders.contains(&module.as_str());
        match (uses(&source(&file)?), listed) {
            (Some(line), false) => wrong.push(format!(
                "{}:{line}: unsafe code outside the modules that xtask/src/unsafety.rs lists for {}",
                file.display(),
                package.name
            )),
            (None, true) => wrong.push(format!(
                "{} holds no unsafe code: take it from the list in xtask/src/unsafety.rs",
                file.display()
            )),
            (Some(_), true) | (None, false) => {}
        }
    }
    Ok(wrong)
}

fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("{}: cannot be listed", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn source(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("{}: cannot be read", file.display()))
}

fn forbids(source: &str) -> bool {
    source.lines().any(|line| line.trim() == "#![forbid(unsafe_code)]")
}

/// The first line that uses `unsafe`, counted from 1.
fn uses(source: &str) -> Option<usize> {
    source.lines().position(|line| line.split("//").next().is_some_and(opens_unsafe)).map(|index| index + 1)
}

/// Whether the word stands in this code, followed by what may follow it.
fn opens_unsafe(code: &str) -> bool {
    const FOLLOWS: [&str; 6] = [" {", " fn", " impl", " trait", " extern", "("];
    code.match_indices("unsafe").any(|(at, word)| {
        let whole = !code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_');
        whole && FOLLOWS.iter().any(|follows| code[at + word.len()..].starts_with(follows))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_attribute_itself_forbids() {
        assert!(forbids("//! A crate.\n\n#![forbid(unsafe_code)]\n"));
        assert!(!forbids("// #![forbid(unsafe_code)]\n#![deny(unsafe_code)]\n"));
    }

    #[test]
    fn every_form_of_unsafe_is_found_on_its_line() {
        assert_eq!(uses("fn f() {\n    unsafe { g() }\n}"), Some(2));
        assert_eq!(uses("unsafe impl Send for A {}"), Some(1));
        assert_eq!(uses("#[unsafe(no_mangle)]"), Some(1));
    }

    #[test]
    fn talk_of_unsafe_is_not_its_use() {
        assert_eq!(uses("let done = unshare_unsafe(flags);"), None);
        assert_eq!(uses("// unsafe { }\n#![deny(unsafe_code)]\n//! an unsafe fn would do"), None);
    }
}
