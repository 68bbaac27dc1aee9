//! Pictures of a fabric: for a terminal, for Graphviz, and to be shown to people.
//!
//! All of them are drawn from one [`Picture`]: the fabric, its namespaces, and what is critical in it.

mod dot;
mod layout;
mod svg;
mod text;

use crate::critical::{Critical, Element};
use crate::model::{Fabric, HostId, LinkId, Node};
use crate::namespaces::Namespaces;
use std::collections::BTreeSet;

/// Links whose loss cuts off one host only are as many as there are hosts. They are told, and not marked.
const MARKED: usize = 2;

/// A fabric with all that a picture of it shows.
pub struct Picture<'a> {
    fabric: &'a Fabric,
    namespaces: Namespaces,
    critical: Vec<Critical>,
    marked: BTreeSet<Element>,
}

impl<'a> Picture<'a> {
    /// Looks at the fabric.
    #[must_use]
    pub fn of(fabric: &'a Fabric) -> Self {
        let critical = fabric.critical();
        let is_marked = |one: &&Critical| !matches!(one.element, Element::Link(_)) || one.cut_off() >= MARKED;
        let marked = critical.iter().filter(is_marked).map(|one| one.element).collect();
        Self { fabric, namespaces: fabric.namespaces(), critical, marked }
    }

    /// The migration namespaces.
    #[must_use]
    pub fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// What is critical, the worst first.
    #[must_use]
    pub fn critical(&self) -> &[Critical] {
        &self.critical
    }

    fn is_marked(&self, node: Node) -> bool {
        self.marked.contains(&match node {
            Node::Host(id) => Element::Host(id),
            Node::Switch(id) => Element::Switch(id),
            Node::Device(id) => Element::Device(id),
        })
    }

    fn is_marked_link(&self, link: LinkId) -> bool {
        self.marked.contains(&Element::Link(link))
    }

    fn of_hosts(&self, hosts: impl Iterator<Item = HostId>) -> BTreeSet<usize> {
        hosts.map(|host| self.namespaces.of_host(host)).collect()
    }

    /// The fabric in a few words.
    #[must_use]
    pub fn caption(&self) -> String {
        let fabric = self.fabric;
        let counts = [
            (fabric.hosts().len(), "host", "hosts"),
            (fabric.switches().len(), "switch", "switches"),
            (fabric.devices().len(), "memory device", "memory devices"),
            (fabric.links().len(), "link", "links"),
            (self.namespaces.list().len(), "migration namespace", "migration namespaces"),
        ];
        let told = counts.into_iter().filter(|(number, ..)| *number > 0);
        let told: Vec<String> = told.map(|(number, one, many)| count(number, one, many)).collect();
        if told.is_empty() { "nothing".to_owned() } else { told.join(", ") }
    }
}

/// A number of things, in words.
fn count(number: usize, one: &str, many: &str) -> String {
    match number {
        0 => format!("no {many}"),
        1 => format!("1 {one}"),
        _ => format!("{number} {many}"),
    }
}

/// A part of one, in percent.
fn percent(part: u64, all: u64) -> u64 {
    u64::try_from((u128::from(part) * 100).checked_div(u128::from(all)).unwrap_or(0)).unwrap_or(100)
}

/// What is told about one critical part: what falls off, and from how many.
#[must_use]
pub fn what_splits(fabric: &Fabric, critical: &Critical) -> String {
    let what = match critical.element {
        Element::Host(id) => format!("host {}", fabric.name(Node::Host(id))),
        Element::Device(id) => format!("memory device {}", fabric.name(Node::Device(id))),
        Element::Switch(id) => format!("switch {}", fabric.name(Node::Switch(id))),
        Element::Link(id) => {
            let [a, b] = fabric.link(id).ends.map(|end| fabric.name(end));
            format!("link {a} – {b}")
        }
    };
    let named = |part: &crate::critical::Part| {
        let names: Vec<&str> = part.some.iter().map(|host| fabric.host(*host).name.as_str()).collect();
        let more = if part.hosts > names.len() { ", …" } else { "" };
        format!("{} ({}{more})", count(part.hosts, "host", "hosts"), names.join(", "))
    };
    const TOLD: usize = 4;
    let largest = critical.parts.first().map_or(0, |part| part.hosts);
    let off = &critical.parts[1..];
    let mut told: Vec<String> = off.iter().take(TOLD).map(named).collect();
    if off.len() > TOLD {
        told.push(format!("{} more", count(off.len() - TOLD, "part", "parts")));
    }
    format!("{what}: splits {} from {}", told.join(" and "), count(largest, "other", "others"))
}

#[cfg(test)]
mod tests;
