//! A fabric in a terminal: namespace by namespace, its hosts and its devices.

use super::{Picture, count, percent};
use crate::model::{DeviceId, HostId, Node, SwitchId};
use crate::sharing::Sharing;
use std::fmt::Write;

/// Of so many names, the others are counted.
const NAMED: usize = 6;

impl Picture<'_> {
    /// Tables of hosts and devices. What is critical has an exclamation mark.
    #[must_use]
    pub fn text(&self) -> String {
        let sharing = Sharing::of(self.fabric);
        let mut text = format!("{}\n", self.caption());
        let mut reached = vec![false; self.fabric.devices().len()];
        for (number, space) in (1..).zip(self.namespaces.list()) {
            let devices = count(space.devices.len(), "memory device", "memory devices");
            let _ = writeln!(text, "\nnamespace {number}: {}, {devices}", count(space.hosts.len(), "host", "hosts"));
            text.push_str(&self.hosts(&sharing, &space.hosts));
            if !space.devices.is_empty() {
                text.push('\n');
                text.push_str(&self.devices(&sharing, &space.devices));
            }
            for device in &space.devices {
                reached[device.index()] = true;
            }
        }
        let alone: Vec<DeviceId> = self.fabric.device_ids().filter(|device| !reached[device.index()]).collect();
        if !alone.is_empty() {
            text.push_str("\nreached by no host so that it could be shared:\n");
            text.push_str(&self.devices(&sharing, &alone));
        }
        let switches = (0..self.fabric.switches().len()).map(|at| self.mark(Node::Switch(SwitchId::at(at))));
        let switches: Vec<String> = switches.collect();
        if !switches.is_empty() {
            let _ = writeln!(text, "\nswitches: {}", switches.join(" "));
        }
        if !self.marked.is_empty() {
            text.push_str("\n! its loss splits a namespace; `nil topo check` tells how\n");
        }
        text
    }

    fn mark(&self, node: Node) -> String {
        let mark = if self.is_marked(node) { "!" } else { "" };
        format!("{}{mark}", self.fabric.name(node))
    }

    fn hosts(&self, sharing: &Sharing, hosts: &[HostId]) -> String {
        let mut rows = vec![["HOST", "RACK", "CPUS", "LOAD", "DRAM FREE", "SHARES"].map(str::to_owned)];
        for id in hosts {
            let host = self.fabric.host(*id);
            let mut reached: Vec<DeviceId> = sharing.reached_by(*id).collect();
            reached.sort_unstable();
            reached.dedup();
            let names: Vec<&str> =
                reached.iter().take(NAMED).map(|device| self.fabric.device(*device).name.as_str()).collect();
            let more =
                if reached.len() > NAMED { format!(" and {} more", reached.len() - NAMED) } else { String::new() };
            let shares = if names.is_empty() { "nothing".to_owned() } else { format!("{}{more}", names.join(" ")) };
            rows.push([
                self.mark(Node::Host(*id)),
                host.rack.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
                host.cpus.to_string(),
                if host.cordoned { "cordoned".to_owned() } else { format!("{:.0} %", host.load * 100.0) },
                format!("{} of {}", host.dram_free, host.dram),
                shares,
            ]);
        }
        columns(&rows)
    }

    fn devices(&self, sharing: &Sharing, devices: &[DeviceId]) -> String {
        let mut rows = vec![["DEVICE", "RACK", "USED", "FREE", "BANDWIDTH", "HOSTS", "POOL"].map(str::to_owned)];
        for id in devices {
            let device = self.fabric.device(*id);
            let mut hosts: Vec<HostId> = sharing.reaching(*id).collect();
            hosts.sort_unstable();
            hosts.dedup();
            let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
            rows.push([
                self.mark(Node::Device(*id)),
                or_dash(device.rack.as_ref().map(ToString::to_string)),
                format!("{} %", percent(device.size.0 - device.free.0, device.size.0)),
                format!("{} of {}", device.free, device.size),
                device.bandwidth.to_string(),
                hosts.len().to_string(),
                or_dash(device.pool.as_ref().map(ToString::to_string)),
            ]);
        }
        columns(&rows)
    }
}

/// Cells in columns, indented.
fn columns<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(text, "  {}", cells.join("  ").trim_end());
    }
    text
}
