//! The page that a person reads.

use super::super::Table;
use super::{Backing, FoundPool, Inspection};
use nil_mover::topology::{Cxl, DaxDevice, DaxOrigin, MemoryUse, NumaNode};
use nil_pool::Bytes;
use std::fmt;

/// Where there is nothing to say.
const NONE: &str = "-";

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_nodes(f)?;
        if let Some(devices) = self.topology.dax.as_ref().filter(|devices| !devices.is_empty()) {
            write!(f, "\n{}", self.dax_table(devices))?;
        }
        if let Some(cxl) = &self.topology.cxl {
            write_cxl(f, cxl, self.topology.dax.as_deref().unwrap_or_default())?;
        }
        if !self.pools.is_empty() {
            write!(f, "\n{}", pool_table(&self.pools))?;
        }
        self.write_uses(f)?;
        self.write_absences(f)?;
        for warning in &self.warnings {
            writeln!(f, "warning: {}", warning.message)?;
        }
        for remark in &self.topology.remarks {
            writeln!(f, "odd: {remark}")?;
        }
        Ok(())
    }
}

impl Inspection {
    fn write_nodes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = &self.topology.nodes;
        if nodes.is_empty() {
            return writeln!(f, "the kernel tells of no NUMA nodes (it may be built without CONFIG_NUMA)");
        }
        let heading = ["NODE", "KIND", "CPUS", "MEMORY", "FREE", "LATENCY", "BANDWIDTH", "DISTANCE", "FOR NIL"];
        let mut table = Table::new(heading);
        for node in nodes {
            table.row(self.node_row(node));
        }
        write!(f, "{table}")?;
        for node in nodes.iter().filter(|node| !node.evidence.is_empty()) {
            let evidence: Vec<String> = node.evidence.iter().map(ToString::to_string).collect();
            writeln!(f, "node {} ({}): {}", node.id, node.kind, evidence.join("; "))?;
        }
        Ok(())
    }

    fn node_row(&self, node: &NumaNode) -> [String; 9] {
        let access = node.access_by_cpus();
        let distances: Vec<String> = node.distances.iter().map(|distance| distance.distance.to_string()).collect();
        [
            node.id.to_string(),
            node.kind.to_string(),
            text_or_none(node.cpus.to_string()),
            bytes(node.memory.map(|memory| memory.total_bytes)),
            bytes(node.memory.map(|memory| memory.free_bytes)),
            or_none(access.and_then(|access| access.read_latency_ns).map(|latency| format!("{latency} ns"))),
            or_none(access.and_then(|access| access.read_bandwidth_mb_s).map(|bandwidth| format!("{bandwidth} MB/s"))),
            text_or_none(distances.join(" ")),
            or_none(self.node_uses.get(&node.id).map(ToString::to_string)),
        ]
    }

    fn dax_table(&self, devices: &[DaxDevice]) -> Table<7> {
        let mut table = Table::new(["DAX", "SIZE", "ALIGN", "DRIVER", "MADE OF", "NEAR NODE", "FOR NIL"]);
        for device in devices {
            table.row([
                device.name.clone(),
                bytes(device.size_bytes),
                bytes(device.align_bytes),
                device.driver.to_string(),
                made_of(&device.origin),
                or_none(device.numa_node.map(|node| node.to_string())),
                or_none(self.dax_uses.get(&device.name).map(ToString::to_string)),
            ]);
        }
        table
    }

    /// Which memory nil can use, and how.
    fn write_uses(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        if !self.node_uses.is_empty() {
            let nodes: Vec<String> = self.node_uses.keys().map(ToString::to_string).collect();
            writeln!(f, "guests' own memory (private):  node {}", nodes.join(", "))?;
        }
        for pool in &self.pools {
            let shared = match pool.backing {
                Backing::Device => "shared by the hosts that have the device",
                Backing::File => "shared by the hosts of this machine, or of those that mount the file",
            };
            writeln!(f, "pool:                          {} ({shared})", pool.path.display())?;
        }
        for device in self.topology.dax.iter().flatten() {
            let path = device.device_path();
            match self.dax_uses.get(&device.name) {
                Some(MemoryUse::Candidate) => {
                    let tagged = device.tag.map_or_else(String::new, |tag| format!(" (tagged {tag})"));
                    writeln!(f, "could become a pool:           `nil pool create {}`{tagged}", path.display())?;
                }
                Some(MemoryUse::Capacity(tag)) => {
                    writeln!(f, "capacity of a pool:            {} ({tag})", path.display())?;
                }
                Some(MemoryUse::Private | MemoryUse::Pool | MemoryUse::Unusable(_)) | None => {}
            }
        }
        Ok(())
    }

    /// What a person might look for in vain.
    fn write_absences(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let topology = &self.topology;
        if !topology.nodes.is_empty() && !topology.has_figures() {
            writeln!(f, "not there: latency and bandwidth of the nodes (the kernel has no HMAT from the firmware)")?;
        }
        match &topology.dax {
            None => writeln!(f, "not there: dax devices (this kernel has no dax bus)")?,
            Some(devices) if devices.is_empty() => writeln!(f, "not there: dax devices")?,
            Some(_) => {}
        }
        match &topology.cxl {
            None => writeln!(f, "not there: CXL devices (this kernel has no CXL bus)")?,
            Some(cxl) if cxl.memory_devices.is_empty() => writeln!(f, "not there: CXL memory devices")?,
            Some(_) => {}
        }
        if self.pools.is_empty() {
            writeln!(
                f,
                "not there: pools on dax devices; `nil pool list` looks for files, --pool PATH shows one here"
            )?;
        }
        Ok(())
    }
}

fn write_cxl(f: &mut fmt::Formatter<'_>, cxl: &Cxl, dax: &[DaxDevice]) -> fmt::Result {
    if !cxl.memory_devices.is_empty() {
        let mut table = Table::new(["CXL", "SERIAL", "RAM", "PMEM", "DYNAMIC", "NEAR NODE", "FIRMWARE"]);
        for device in &cxl.memory_devices {
            let dynamic: Vec<u64> = device.dynamic.iter().filter_map(|partition| partition.size_bytes).collect();
            table.row([
                device.name.clone(),
                or_none(device.serial.map(|serial| format!("{serial:#x}"))),
                some_bytes(device.ram_bytes),
                some_bytes(device.pmem_bytes),
                some_bytes(dynamic.into_iter().reduce(u64::saturating_add)),
                or_none(device.numa_node.map(|node| node.to_string())),
                or_none(device.firmware_version.clone()),
            ]);
        }
        write!(f, "\n{table}")?;
    }
    if !cxl.regions.is_empty() {
        let mut table = Table::new(["REGION", "SIZE", "MODE", "WAYS", "GRANULARITY", "CXL", "DAX"]);
        for region in &cxl.regions {
            let origin = DaxOrigin::Cxl(region.name.clone());
            let cut: Vec<&str> =
                dax.iter().filter(|device| device.origin == origin).map(|device| device.name.as_str()).collect();
            table.row([
                region.name.clone(),
                bytes(region.size_bytes),
                or_none(region.mode.clone()),
                or_none(region.interleave_ways.map(|ways| ways.to_string())),
                bytes(region.interleave_granularity_bytes),
                text_or_none(region.memory_devices.join(" ")),
                text_or_none(cut.join(" ")),
            ]);
        }
        write!(f, "\n{table}")?;
    }
    Ok(())
}

fn pool_table(pools: &[FoundPool]) -> Table<5> {
    let mut table = Table::new(["POOL", "PATH", "SIZE", "FREE", "LABEL"]);
    for pool in pools {
        table.row([
            pool.id.to_string(),
            pool.path.display().to_string(),
            Bytes(pool.total_bytes).to_string(),
            Bytes(pool.free_bytes).to_string(),
            pool.label.clone(),
        ]);
    }
    table
}

fn made_of(origin: &DaxOrigin) -> String {
    match origin {
        DaxOrigin::Cxl(region) => format!("CXL {region}"),
        DaxOrigin::Persistent => "persistent memory".to_owned(),
        DaxOrigin::Reserved => "reserved by firmware".to_owned(),
        DaxOrigin::Unknown => NONE.to_owned(),
    }
}

fn bytes(bytes: Option<u64>) -> String {
    or_none(bytes.map(|bytes| Bytes(bytes).to_string()))
}

/// Nothing is not worth a figure.
fn some_bytes(some: Option<u64>) -> String {
    bytes(some.filter(|bytes| *bytes != 0))
}

fn or_none(text: Option<String>) -> String {
    text.unwrap_or_else(|| NONE.to_owned())
}

fn text_or_none(text: String) -> String {
    or_none(Some(text).filter(|text| !text.is_empty()))
}
