//! `nil topo check`: migration namespaces, and what splits them.

use super::Output;
use super::source::Source;
use anyhow::Result;
use nil_fabric::{Critical, Element, Fabric, Namespace, Namespaces, Node, Picture, Planner, what_splits};
use serde::Serialize;
use std::fmt;
use std::process::ExitCode;

/// In larger fabrics, nobody counts how far hosts are from each other.
const MEASURED: usize = 1000;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// Name also the links whose loss cuts off a single host.
    #[arg(long)]
    all: bool,
}

pub(super) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let fabric = args.source.read()?;
    let picture = Picture::of(&fabric);
    output.print(&Checked::of(&fabric, &picture, args.all))?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Serialize)]
struct Checked<'a> {
    namespaces: Vec<NamespaceLine<'a>>,
    critical: Vec<CriticalLine>,
    /// Links that cut off a single host and are not named.
    single_links: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct NamespaceLine<'a> {
    number: usize,
    hosts: Vec<&'a str>,
    devices: Vec<&'a str>,
    /// Handoffs between the two hosts that are furthest from each other.
    #[serde(skip_serializing_if = "Option::is_none")]
    handoffs: Option<u32>,
}

#[derive(Debug, Serialize)]
struct CriticalLine {
    kind: &'static str,
    name: String,
    namespace: usize,
    /// The sizes of what it would fall into.
    parts: Vec<usize>,
    #[serde(skip)]
    told: String,
}

pub(super) fn namespace_lines<'a>(fabric: &'a Fabric, namespaces: &Namespaces) -> Vec<NamespaceLine<'a>> {
    let planner = (fabric.hosts().len() <= MEASURED).then(|| Planner::new(fabric));
    let line = |(number, space): (usize, &Namespace)| NamespaceLine {
        number,
        hosts: space.hosts.iter().map(|host| fabric.host(*host).name.as_str()).collect(),
        devices: space.devices.iter().map(|device| fabric.device(*device).name.as_str()).collect(),
        handoffs: planner.as_ref().map(|planner| {
            let far = space.hosts.iter().flat_map(|host| planner.handoffs_from(*host)).flatten();
            far.max().unwrap_or(0)
        }),
    };
    (1..).zip(namespaces.list()).map(line).collect()
}

impl<'a> Checked<'a> {
    fn of(fabric: &'a Fabric, picture: &Picture<'a>, all: bool) -> Self {
        let single = |one: &&Critical| !all && matches!(one.element, Element::Link(_)) && one.cut_off() == 1;
        let (single, told): (Vec<&Critical>, Vec<&Critical>) = picture.critical().iter().partition(single);
        let line = |one: &Critical| {
            let (kind, name) = match one.element {
                Element::Host(id) => ("host", fabric.name(Node::Host(id)).to_string()),
                Element::Device(id) => ("device", fabric.name(Node::Device(id)).to_string()),
                Element::Switch(id) => ("switch", fabric.name(Node::Switch(id)).to_string()),
                Element::Link(id) => ("link", fabric.link(id).ends.map(|end| fabric.name(end).to_string()).join(" – ")),
            };
            let parts = one.parts.iter().map(|part| part.hosts).collect();
            CriticalLine { kind, name, namespace: one.namespace + 1, parts, told: what_splits(fabric, one) }
        };
        let namespaces = namespace_lines(fabric, picture.namespaces());
        Self { namespaces, critical: told.into_iter().map(line).collect(), single_links: single.len() }
    }
}

impl fmt::Display for Checked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        for space in &self.namespaces {
            let (hosts, devices) = (space.hosts.len(), space.devices.len());
            write!(
                f,
                "namespace {}: {hosts} host{}, {devices} memory device{}",
                space.number,
                plural(hosts),
                plural(devices)
            )?;
            match space.handoffs {
                Some(0) => writeln!(f, "; it shares memory with nobody")?,
                Some(1) => writeln!(f, "; every host is one handoff from every other")?,
                Some(far) => writeln!(f, "; no host is more than {far} handoffs from any other")?,
                None => writeln!(f)?,
            }
        }
        if self.critical.is_empty() && self.single_links == 0 {
            return writeln!(
                f,
                "no host, device, switch or link is critical: whichever is lost, the rest stays together"
            );
        }
        if !self.critical.is_empty() {
            writeln!(f, "\ncritical:")?;
        }
        for line in &self.critical {
            writeln!(f, "  {}", line.told)?;
        }
        match self.single_links {
            0 => Ok(()),
            1 => writeln!(f, "  and 1 link, whose loss cuts off a single host (--all names it)"),
            many => {
                writeln!(f, "  and {many} links, the loss of each of which cuts off a single host (--all names them)")
            }
        }
    }
}
