//! The dependency direction: which crate of this repository may use which.
//!
//! The table below is `docs/architecture.md` in code. Dependencies of every kind count, those of tests too, so that a
//! crate can always be built and tested with nothing above it.

use crate::metadata::{Metadata, Package};
use crate::outcome::Outcome;
use crate::run::Run;
use anyhow::Result;

/// Each crate with all that it may depend on.
const PERMITTED: &[(&str, &[&str])] = &[
    ("nil-pool", &[]),
    ("nil-fabric", &[]),
    ("nil-guest-abi", &[]),
    ("nil-qemu", &[]),
    ("nil-migrate", &["nil-pool"]),
    ("nil-mover", &["nil-pool"]),
    ("nil-process", &["nil-pool", "nil-mover"]),
    ("nil-vmm", &["nil-pool", "nil-migrate", "nil-mover", "nil-guest-abi"]),
    ("nil-host", &["nil-pool", "nil-fabric", "nil-migrate", "nil-mover", "nil-vmm"]),
    (
        "nil",
        &[
            "nil-pool",
            "nil-fabric",
            "nil-migrate",
            "nil-mover",
            "nil-guest-abi",
            "nil-vmm",
            "nil-process",
            "nil-qemu",
            "nil-host",
        ],
    ),
    ("xtask", &[]),
];

/// The step: reads the manifests and compares.
pub(crate) fn check(this: &Run) -> Result<Outcome> {
    let metadata = Metadata::read(&this.root.join("Cargo.toml"))?;
    let mut wrong = edges_not_permitted(&metadata.packages);
    wrong.extend(crates_unknown(&metadata.packages));
    Outcome::of_findings(&wrong, format!("{} crates", metadata.packages.len()))
}

/// Dependencies between crates of this repository that the table does not have.
fn edges_not_permitted(packages: &[Package]) -> Vec<String> {
    let mut wrong = Vec::new();
    for package in packages {
        let permitted = permitted(&package.name).unwrap_or_default();
        for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_some()) {
            if !permitted.contains(&dependency.name.as_str()) {
                wrong.push(format!(
                    "{} must not depend on {}: docs/architecture.md has no such arrow",
                    package.name, dependency.name
                ));
            }
        }
    }
    wrong
}

/// Crates that the table does not know, and entries of the table that are no crate.
fn crates_unknown(packages: &[Package]) -> Vec<String> {
    let unlisted = packages.iter().filter(|package| permitted(&package.name).is_none()).map(|package| {
        format!("{} stands in no table: add it to docs/architecture.md and xtask/src/deps.rs", package.name)
    });
    let gone = PERMITTED
        .iter()
        .filter(|(name, _)| !packages.iter().any(|package| package.name == *name))
        .map(|(name, _)| format!("{name} is in the table of xtask/src/deps.rs, but is no crate of the workspace"));
    unlisted.chain(gone).collect()
}

fn permitted(package: &str) -> Option<&'static [&'static str]> {
    PERMITTED.iter().find(|(name, _)| *name == package).map(|(_, permitted)| *permitted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Dependency;

    fn package(name: &str, dependencies: &[&str]) -> Package {
        let dependencies =
            dependencies.iter().map(|name| Dependency { name: (*name).to_owned(), path: Some("crates".into()) });
        Package {
            name: name.to_owned(),
            manifest_path: "Cargo.toml".into(),
            dependencies: dependencies.collect(),
            targets: Vec::new(),
        }
    }

    #[test]
    fn an_edge_that_points_upwards_is_found() {
        let wrong = edges_not_permitted(&[package("nil-pool", &["nil-migrate"])]);
        assert_eq!(wrong, ["nil-pool must not depend on nil-migrate: docs/architecture.md has no such arrow"]);
    }

    #[test]
    fn an_edge_of_the_table_is_no_finding() {
        assert_eq!(edges_not_permitted(&[package("nil-vmm", &["nil-pool", "nil-migrate"])]), [""; 0]);
    }

    #[test]
    fn a_crate_from_a_registry_is_no_edge() {
        let mut pool = package("nil-pool", &["nil-migrate"]);
        pool.dependencies[0].path = None;
        assert_eq!(edges_not_permitted(&[pool]), [""; 0]);
    }

    #[test]
    fn a_crate_that_stands_in_no_table_is_found_with_all_its_edges() {
        let stranger = [package("nil-stranger", &["nil-pool"])];
        assert_eq!(edges_not_permitted(&stranger).len(), 1);
        assert!(crates_unknown(&stranger).iter().any(|line| line.starts_with("nil-stranger stands in no table")));
    }

    #[test]
    fn an_entry_of_the_table_that_is_no_crate_is_found() {
        let all_but_one: Vec<_> = PERMITTED.iter().skip(1).map(|(name, _)| package(name, &[])).collect();
        assert_eq!(crates_unknown(&all_but_one).len(), 1);
    }

    #[test]
    fn the_table_has_no_cycle() {
        let mut built: Vec<&str> = Vec::new();
        while let Some((name, _)) = PERMITTED
            .iter()
            .find(|(name, below)| !built.contains(name) && below.iter().all(|crate_| built.contains(crate_)))
        {
            built.push(name);
        }
        assert_eq!(built.len(), PERMITTED.len(), "only {built:?} can be built one after the other");
    }
}
