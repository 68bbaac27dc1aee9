//! What `cargo metadata` tells about a workspace, as far as it is needed here.

use crate::command;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A workspace and its members; packages from registries are left out.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    pub(crate) workspace_root: PathBuf,
    pub(crate) target_directory: PathBuf,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) manifest_path: PathBuf,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// Where it lies, for a package that comes from this repository.
    pub(crate) path: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) kind: Vec<String>,
    pub(crate) src_path: PathBuf,
}

impl Metadata {
    /// Reads the workspace that `manifest` belongs to. Needs no network.
    pub(crate) fn read(manifest: &Path) -> Result<Self> {
        let text = command::read(
            Command::new(cargo())
                .args(["metadata", "--no-deps", "--format-version=1", "--offline", "--manifest-path"])
                .arg(manifest),
        )?;
        serde_json::from_str(&text).with_context(|| format!("{}: cargo metadata is not understood", manifest.display()))
    }
}

impl Package {
    /// The folder that holds its manifest.
    pub(crate) fn folder(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(&self.manifest_path)
    }
}

impl Target {
    /// Whether this is a program or a library that others use, rather than a test, bench, example or build script.
    pub(crate) fn is_product(&self) -> bool {
        self.kind.iter().any(|kind| matches!(kind.as_str(), "lib" | "bin" | "proc-macro"))
    }
}

/// The cargo that runs this program, else the one on the path.
pub(crate) fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}
