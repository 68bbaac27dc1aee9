//! Programs that tests need and cargo cannot bring: installed with apt where that is allowed, else named.

use crate::command::{read, run, succeeds};
use crate::outcome::Outcome;
use crate::run::Run;
use anyhow::Result;
use std::time::Duration;

/// A program and the Debian package that has it.
struct Needed {
    program: &'static str,
    package: &'static str,
    purpose: &'static str,
}

const NEEDED: &[Needed] = &[
    Needed {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
        purpose: "the tests against QEMU, the benchmark's peer",
    },
    Needed { program: "criu", package: "criu", purpose: "the tests that hand processes over" },
    Needed { program: "chromium", package: "chromium", purpose: "the check of the page that agents serve" },
    Needed { program: "c++", package: "g++", purpose: "libFuzzer, which the fuzz targets are linked with" },
];

/// The step `packages`.
pub(crate) fn check(this: &Run) -> Result<Outcome> {
    let missing: Vec<&Needed> = NEEDED.iter().filter(|needed| !present(this, needed.program)).collect();
    if missing.is_empty() {
        return Ok(Outcome::passed("all present"));
    }
    let packages: Vec<&str> = missing.iter().map(|needed| needed.package).collect();
    let by_hand = format!("install with: sudo apt-get install {}", packages.join(" "));
    for needed in &missing {
        println!("{} is missing; it is for {}", needed.program, needed.purpose);
    }
    if !is_root(this) || !present(this, "apt-get") {
        return Ok(Outcome::skipped(format!("may not install packages here; {by_hand}")));
    }
    if let Err(error) = install(this, &packages) {
        return Ok(Outcome::skipped(format!("{error:#}; {by_hand}")));
    }
    Ok(Outcome::passed(format!("installed {}", packages.join(", "))))
}

/// Whether `program` starts.
pub(crate) fn present(this: &Run, program: &str) -> bool {
    succeeds(this.command(program).arg("--version"), Duration::from_secs(20))
}

fn is_root(this: &Run) -> bool {
    read(this.command("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

fn install(this: &Run, packages: &[&str]) -> Result<()> {
    run(this.command("apt-get").args(["update", "--quiet"]))?;
    run(this
        .command("apt-get")
        .args(["install", "--quiet", "--yes", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive"))
}
