//! Other programs that nil uses, or is measured against.

use super::Finding;
use std::process::{Command, Stdio};

/// A program, what it prints its version with, what it is for, and the Debian package.
const PROGRAMS: [(&str, &str, &str, &str); 3] = [
    ("qemu-system-x86_64", "QEMU", "benchmarks measure it beside nil", "qemu-system-x86"),
    ("criu", "CRIU", "processes and containers are frozen and restored with it", "criu"),
    ("cxl", "cxl", "`nil topo` reads what `cxl list -vvv` prints", "ndctl cxl"),
];

pub(super) fn check() -> Vec<Finding> {
    PROGRAMS
        .iter()
        .map(|&(program, about, purpose, package)| match version(program) {
            Some(version) => Finding::good(about, version),
            None => Finding::absent(about, format!("not installed; {purpose}"))
                .cured_by(format!("on Debian: apt-get install {package}")),
        })
        .collect()
}

/// The first line of what it says of its version.
fn version(program: &str) -> Option<String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_there_has_no_version() {
        assert_eq!(version("/nonexistent/program"), None);
        assert!(version("cargo").is_some_and(|version| version.starts_with("cargo ")));
    }
}
