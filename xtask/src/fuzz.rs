//! The step `fuzz`: every target is built and run for a short time.
//!
//! libFuzzer's instrumentation needs unstable compiler flags: a nightly toolchain where there is one, else the stable
//! one told to accept them.

use crate::command::{run, succeeds};
use crate::metadata::{self, Metadata};
use crate::outcome::Outcome;
use crate::run::Run;
use crate::{debian, tools};
use anyhow::{Result, bail};
use std::process::Command;
use std::time::Duration;

const SECONDS_PER_TARGET: u32 = 10;

pub(crate) fn check(this: &Run) -> Result<Outcome> {
    if !debian::present(this, "c++") {
        return Ok(Outcome::skipped("no C++ compiler, which libFuzzer needs; install with: apt-get install g++"));
    }
    if let Err(error) = tools::ensure(this, &tools::FUZZ) {
        return Ok(Outcome::skipped(error.to_string()));
    }
    let targets = targets(this)?;
    let compiler = Compiler::find(this);
    run(&mut cargo_fuzz(this, compiler, "build"))?;
    for target in &targets {
        println!("\nfuzzing {target} for {SECONDS_PER_TARGET} s");
        run(cargo_fuzz(this, compiler, "run").arg(target).args([
            "--".to_owned(),
            format!("-max_total_time={SECONDS_PER_TARGET}"),
            "-print_final_stats=1".to_owned(),
            // Only the end, and what was found: each new input would be a line.
            "-verbosity=0".to_owned(),
        ]))?;
    }
    Ok(Outcome::passed(format!("{} targets, {SECONDS_PER_TARGET} s each, {}", targets.len(), compiler.name())))
}

/// What accepts the flags.
#[derive(Clone, Copy)]
enum Compiler {
    Nightly,
    UnlockedStable,
}

impl Compiler {
    fn find(this: &Run) -> Self {
        let mut probe = this.command("rustup");
        probe.args(["run", "nightly", "cargo", "--version"]).env("RUSTUP_AUTO_INSTALL", "0");
        if succeeds(&mut probe, Duration::from_secs(20)) { Self::Nightly } else { Self::UnlockedStable }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Nightly => "nightly toolchain",
            Self::UnlockedStable => "stable toolchain with unstable flags",
        }
    }
}

fn cargo_fuzz(this: &Run, compiler: Compiler, action: &str) -> Command {
    let mut command = match compiler {
        Compiler::Nightly => {
            let mut command = this.command("rustup");
            // `cargo run` names the toolchain's own cargo here; cargo-fuzz would call it instead of nightly's.
            command.args(["run", "nightly", "cargo"]).env_remove("CARGO");
            command
        }
        Compiler::UnlockedStable => {
            let mut command = this.command(metadata::cargo());
            command.env("RUSTC_BOOTSTRAP", "1");
            command
        }
    };
    command.args(["fuzz", action, "--target-dir"]).arg(this.target.join("fuzz"));
    command
}

fn targets(this: &Run) -> Result<Vec<String>> {
    let metadata = Metadata::read(&this.root.join("fuzz/Cargo.toml"))?;
    let programs = metadata.packages.iter().flat_map(|package| &package.targets).filter(|target| target.is_product());
    let names: Vec<String> = programs.map(|target| target.name.clone()).collect();
    if names.is_empty() {
        bail!("fuzz/Cargo.toml has no targets: no decoder is fuzzed");
    }
    Ok(names)
}
