//! `nil topo show`: a fabric as text, as a picture, or for Graphviz.

use super::Output;
use super::source::Source;
use anyhow::{Context, Result};
use nil_fabric::{Device, Fabric, Host, Link, Picture, Switch};
use serde::Serialize;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// Write a picture into this file.
    #[arg(long, value_name = "OUT")]
    svg: Option<PathBuf>,
    /// Print the graph in the language of Graphviz.
    #[arg(long, conflicts_with = "svg")]
    dot: bool,
}

pub(super) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let fabric = args.source.read()?;
    let picture = Picture::of(&fabric);
    if let Some(out) = &args.svg {
        fs::write(out, picture.svg()).with_context(|| format!("{} cannot be written", out.display()))?;
        output.print(&Drawn { svg: out.clone(), caption: picture.caption() })?;
    } else if args.dot {
        output.print(&Graph { dot: picture.dot() })?;
    } else {
        output.print(&Shown { picture: &picture, fabric: &fabric, remark: args.source.remark() })?;
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Serialize)]
struct Drawn {
    svg: PathBuf,
    caption: String,
}

impl fmt::Display for Drawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: drawn in {}", self.caption, self.svg.display())
    }
}

#[derive(Debug, Serialize)]
struct Graph {
    dot: String,
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.dot)
    }
}

struct Shown<'a> {
    picture: &'a Picture<'a>,
    fabric: &'a Fabric,
    remark: Option<&'static str>,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.fabric.hosts().is_empty() {
            return writeln!(f, "no hosts; start one with `nil host run --name A --pool PATH`, or give a file");
        }
        f.write_str(&self.picture.text())?;
        match self.remark {
            Some(remark) => writeln!(f, "\n{remark}"),
            None => Ok(()),
        }
    }
}

#[derive(Serialize)]
struct FabricLine<'a> {
    hosts: &'a [Host],
    switches: &'a [Switch],
    devices: &'a [Device],
    links: Vec<LinkLine<'a>>,
    namespaces: Vec<super::check::NamespaceLine<'a>>,
}

#[derive(Serialize)]
struct LinkLine<'a> {
    between: [&'a str; 2],
    latency_ns: u64,
    bandwidth: u64,
    shared: bool,
}

impl Serialize for Shown<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let line = |link: &Link| LinkLine {
            between: link.ends.map(|end| self.fabric.name(end).as_str()),
            latency_ns: link.latency_ns,
            bandwidth: link.bandwidth.0,
            shared: link.shared,
        };
        let fabric = FabricLine {
            hosts: self.fabric.hosts(),
            switches: self.fabric.switches(),
            devices: self.fabric.devices(),
            links: self.fabric.links().iter().map(line).collect(),
            namespaces: super::check::namespace_lines(self.fabric, self.picture.namespaces()),
        };
        fabric.serialize(serializer)
    }
}
