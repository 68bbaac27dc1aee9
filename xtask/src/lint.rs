//! What the compiler and its companions say without running anything: formatting, lints, documentation.

use crate::command::{read, run};
use crate::outcome::Outcome;
use crate::run::Run;
use anyhow::Result;

/// How to format each workspace of this repository: the crates, the guests that run in a VM, the fuzz targets. The last
/// two are one package each; with `--all` the crates that they use would be formatted along.
const WORKSPACES: [&str; 3] =
    ["fmt --all", "fmt --manifest-path guests/Cargo.toml", "fmt --manifest-path fuzz/Cargo.toml"];

/// The step `fmt`.
pub(crate) fn format(this: &Run) -> Result<Outcome> {
    if let Err(reason) = component(this, "rustfmt") {
        return Ok(Outcome::skipped(reason));
    }
    let mut wrong = Vec::new();
    for format in WORKSPACES {
        if run(this.cargo(format).arg("--check")).is_err() {
            wrong.push(format!("not formatted; run: cargo {format}"));
        }
    }
    Outcome::of_findings(&wrong, format!("{} workspaces", WORKSPACES.len()))
}

/// The step `clippy`. The fuzz targets are compiled by the step `fuzz`.
pub(crate) fn clippy(this: &Run) -> Result<Outcome> {
    if let Err(reason) = component(this, "clippy") {
        return Ok(Outcome::skipped(reason));
    }
    run(&mut this.cargo("clippy --locked --workspace --all-targets -- -D warnings"))?;
    run(this
        .cargo("clippy --locked --workspace --manifest-path guests/Cargo.toml --target-dir")
        .arg(this.target.join("guests-clippy"))
        .args(["--", "-D", "warnings"]))?;
    Ok(Outcome::passed("crates and guests"))
}

/// The step `docs`.
pub(crate) fn docs(this: &Run) -> Result<Outcome> {
    run(this.cargo("doc --locked --workspace --no-deps").env("RUSTDOCFLAGS", "-D warnings"))?;
    Ok(Outcome::passed("all crates"))
}

/// Makes sure that `cargo fmt` or `cargo clippy` is there, installing it if rustup is; else the reason to skip.
fn component(this: &Run, name: &str) -> Result<(), String> {
    let subcommand = if name == "rustfmt" { "fmt" } else { name };
    if read(this.cargo(subcommand).arg("--version")).is_ok() {
        return Ok(());
    }
    run(this.command("rustup").args(["component", "add", name]))
        .map_err(|error| format!("{name} is not installed ({error:#}); install it with: rustup component add {name}"))
}
