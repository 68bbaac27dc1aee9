//! Compiles the test guests. Not part of any guest: crates/nil/build.rs and the tests of crates/vmm include it.
//!
//! Guests are static images without a C library, linked by their own script, so cargo runs a second time, for this
//! workspace, with flags of its own. Nothing of what the outer build was told (`RUSTFLAGS`, a coverage or clippy wrapper,
//! a target, a profile) may reach it: a guest instrumented for coverage or compiled for loom would not run.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Binaries of this workspace.
pub(crate) const GUESTS: [&str; 6] = ["demo", "pages", "registers", "rest", "tsc-gaps", "xadd"];

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What of the outer build's `CARGO…` and `RUST…` variables still holds inside: where the tools keep their things.
const KEPT: [&str; 4] = ["CARGO_HOME", "CARGO_NET_OFFLINE", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"];

/// Compiles all guests in the workspace `guests` with `cargo`, keeps what is built under `target`, and gives the directory
/// of the images, each named as its guest.
///
/// # Panics
/// When that fails; cargo has then said why.
pub(crate) fn compile(cargo: impl AsRef<OsStr>, rustc: Option<OsString>, guests: &Path, target: &Path) -> PathBuf {
    let mut command = Command::new(cargo);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        let of_the_outer_build = ["CARGO", "RUST", "LLVM_PROFILE"].iter().any(|prefix| name.starts_with(prefix));
        if of_the_outer_build && !KEPT.contains(&&*name) {
            command.env_remove(&*name);
        }
    }
    if let Some(rustc) = rustc {
        command.env("RUSTC", rustc);
    }
    let status = command
        .args(["build", "--quiet", "--release", "--locked", "--bins", "--target", TARGET])
        .arg("--manifest-path")
        .arg(guests.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target)
        // So that no configuration file's flags are used either.
        .env("CARGO_ENCODED_RUSTFLAGS", flags(guests).join("\x1F"))
        .current_dir(guests)
        .status();
    match status {
        Ok(status) if status.success() => target.join(TARGET).join("release"),
        Ok(status) => panic!("the test guests in {} could not be built ({status})", guests.display()),
        Err(error) => panic!("cargo could not be started to build the test guests: {error}"),
    }
}

fn flags(guests: &Path) -> Vec<String> {
    let script = guests.join("link.ld");
    let link_argument = |argument: &str| format!("-Clink-arg={argument}");
    let mut flags: Vec<String> =
        ["-Crelocation-model=static", "-Cpanic=abort", "-Ctarget-cpu=x86-64"].map(String::from).to_vec();
    flags.extend(["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"].map(link_argument));
    flags.push(link_argument(&format!("-Wl,-T,{}", script.display())));
    flags
}
