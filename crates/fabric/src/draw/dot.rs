//! A fabric for Graphviz.

use super::Picture;
use crate::model::{Node, SwitchId};
use crate::name::Name;
use std::collections::BTreeMap;
use std::fmt::Write;

/// What is critical.
const CRITICAL: &str = "#c2410c";

impl Picture<'_> {
    /// The fabric as a graph in the language of Graphviz: `dot -Tsvg` lays it out.
    #[must_use]
    pub fn dot(&self) -> String {
        let mut text = String::from("graph fabric {\n  layout=dot; rankdir=TB; fontname=\"sans-serif\";\n");
        text.push_str("  node [fontname=\"sans-serif\" fontsize=11 style=filled fillcolor=white color=\"#94a3b8\"];\n");
        text.push_str("  edge [color=\"#94a3b8\"];\n");
        let mut racks: BTreeMap<Option<&Name>, Vec<Node>> = BTreeMap::new();
        let hosts = self.fabric.host_ids().map(Node::Host);
        let switches = (0..self.fabric.switches().len()).map(|at| Node::Switch(SwitchId::at(at)));
        let devices = self.fabric.device_ids().map(Node::Device);
        for node in hosts.chain(switches).chain(devices) {
            racks.entry(self.fabric.rack(node)).or_default().push(node);
        }
        for (rack, nodes) in racks {
            let indent = if let Some(rack) = rack {
                let _ = writeln!(text, "  subgraph \"cluster {rack}\" {{\n    label=\"{rack}\"; color=\"#cbd5e1\";");
                "    "
            } else {
                "  "
            };
            for node in nodes {
                let _ = writeln!(text, "{indent}{}", self.node(node));
            }
            if rack.is_some() {
                text.push_str("  }\n");
            }
        }
        for id in self.fabric.link_ids() {
            let link = self.fabric.link(id);
            let [a, b] = link.ends.map(|end| self.fabric.name(end));
            let mut looks = vec![format!("tooltip=\"{} ns, {}\"", link.latency_ns, link.bandwidth)];
            if !link.shared {
                looks.push("style=dotted".to_owned());
            }
            if self.is_marked_link(id) {
                looks.push(format!("color=\"{CRITICAL}\" penwidth=2"));
            }
            let _ = writeln!(text, "  \"{a}\" -- \"{b}\" [{}];", looks.join(" "));
        }
        text.push_str("}\n");
        text
    }

    fn node(&self, node: Node) -> String {
        let name = self.fabric.name(node);
        let looks = match node {
            Node::Host(id) if self.fabric.host(id).cordoned => {
                "shape=box style=\"filled,dashed\" fillcolor=\"#f1f5f9\""
            }
            Node::Host(_) => "shape=box",
            Node::Switch(_) => "shape=box fillcolor=\"#334155\" fontcolor=white",
            Node::Device(_) => "shape=cylinder fillcolor=\"#eef2ff\"",
        };
        let critical = if self.is_marked(node) { format!(" color=\"{CRITICAL}\" penwidth=2") } else { String::new() };
        format!("\"{name}\" [{looks}{critical}];")
    }
}
