//! Cargo subcommands that the checks need: used where the machine has them, else installed under the target directory.
//!
//! Versions are fixed, so that a check does not change its mind overnight.

use crate::command::{run, succeeds};
use crate::run::Run;
use anyhow::{Result, anyhow};
use std::time::Duration;

/// A cargo subcommand from the registry.
pub(crate) struct Tool {
    subcommand: &'static str,
    package: &'static str,
    version: &'static str,
    features: &'static [&'static str],
}

pub(crate) const NEXTEST: Tool = Tool {
    subcommand: "nextest",
    package: "cargo-nextest",
    version: "0.9.151",
    features: &["--no-default-features", "--features=default-no-update"],
};

pub(crate) const DENY: Tool = Tool { subcommand: "deny", package: "cargo-deny", version: "0.20.2", features: &[] };

pub(crate) const FUZZ: Tool = Tool { subcommand: "fuzz", package: "cargo-fuzz", version: "0.13.2", features: &[] };

/// Makes sure that `tool` can be run through a command of `this` run; else an error that reads as a reason to skip.
pub(crate) fn ensure(this: &Run, tool: &Tool) -> Result<()> {
    if succeeds(this.cargo(tool.subcommand).arg("--version"), Duration::from_secs(20)) {
        return Ok(());
    }
    println!("{} is not installed; installing it into {}", tool.package, this.tools().display());
    run(this
        .cargo("install --locked --root")
        .arg(this.tools())
        .arg("--target-dir")
        .arg(this.tools().join("build"))
        .args(tool.features)
        .args(["--version", tool.version, tool.package])
        // The tools work for seconds and are built for minutes: build them fast rather than fast ones.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0"))
    .map_err(|_| anyhow!("{} {} cannot be installed; what cargo said is above", tool.package, tool.version))
}
