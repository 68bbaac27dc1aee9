//! `nil topo generate`: a fabric that nobody has built.

use super::Output;
use anyhow::Result;
use nil_fabric::{Fabric, Shape};
use serde::Serialize;
use std::fmt;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many racks.
    #[arg(long, default_value_t = 4, value_name = "N")]
    racks: u32,
    /// How many hosts in each.
    #[arg(long, default_value_t = 16, value_name = "N")]
    hosts: u32,
    /// How many memory devices in each.
    #[arg(long, default_value_t = 4, value_name = "N")]
    devices: u32,
    /// Which of all such fabrics: loads and free memory depend on it.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
}

pub(super) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let Args { racks, hosts, devices, seed } = *args;
    let fabric = Fabric::generate(&Shape { racks, hosts, devices, seed })?;
    output.print(&Generated { toml: fabric.to_toml() })?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Serialize)]
struct Generated {
    toml: String,
}

impl fmt::Display for Generated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.toml)
    }
}
