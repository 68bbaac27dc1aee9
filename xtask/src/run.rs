//! One run of the checks: where things lie, and the surroundings that every program started by it finds.
//!
//! Each program gets a temporary folder and a nil run directory that belong to this run alone, and a marker in its
//! environment. So a run does not meddle with agents that a developer has running, and what it leaves behind is told
//! apart from what was there before (see [`crate::tidy`]).

use crate::metadata::{self, Metadata};
use crate::tidy::Before;
use anyhow::{Context, Result};
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

/// The environment variable that marks what a run started; its value is the process id of the run.
pub(crate) const MARKER: &str = "NIL_CI_RUN";

pub(crate) struct Run {
    /// Root of the repository.
    pub(crate) root: PathBuf,
    /// Cargo's target directory, wherever it was put.
    pub(crate) target: PathBuf,
    /// How the machine looked when the run began.
    pub(crate) before: Before,
    scratch: Scratch,
}

impl Run {
    pub(crate) fn begin() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let metadata = Metadata::read(&manifest)?;
        let before = Before::take(&metadata.workspace_root);
        Ok(Self { root: metadata.workspace_root, target: metadata.target_directory, before, scratch: Scratch::make()? })
    }

    /// A program to be started at the root of the repository, in the surroundings of this run.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(&self.root)
            .env(MARKER, process::id().to_string())
            .env("TMPDIR", self.temporary())
            .env("NIL_RUN_DIR", self.scratch.0.join("run"))
            .env("PATH", self.path());
        // `cargo run` describes xtask in these; build scripts of others that watch them would be run anew each time.
        for (name, _) in env::vars_os() {
            let name_text = name.to_string_lossy();
            if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_") {
                command.env_remove(&name);
            }
        }
        command
    }

    /// A cargo command, `words` separated by blanks.
    pub(crate) fn cargo(&self, words: &str) -> Command {
        let mut command = self.command(metadata::cargo());
        command.args(words.split_whitespace());
        command
    }

    /// Where tools are installed that the machine lacks.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// The temporary folder of everything this run starts.
    pub(crate) fn temporary(&self) -> PathBuf {
        self.scratch.0.join("tmp")
    }

    fn path(&self) -> std::ffi::OsString {
        let inherited = env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(self.tools().join("bin")).chain(env::split_paths(&inherited));
        env::join_paths(folders).unwrap_or(inherited)
    }
}

/// A folder that goes with the run. Its name is short, because Unix sockets in it have paths of at most 107 bytes.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> Result<Self> {
        let folder = env::temp_dir().join(format!("nil-ci-{}", process::id()));
        fs::create_dir_all(folder.join("tmp")).with_context(|| format!("{}: cannot be made", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{}: cannot be removed: {error}", self.0.display());
        }
    }
}
