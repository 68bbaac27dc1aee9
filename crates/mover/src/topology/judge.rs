//! What a node is.
//!
//! A node without CPUs says of itself only that it has memory. Whether that is CXL memory, high-bandwidth memory or
//! something else is judged by what made it (a dax device that the kernel has taken as RAM, and what that is cut from)
//! and else by how fast it is beside the host's DRAM.

use super::dax::{DaxDevice, DaxDriver, DaxOrigin};
use super::node::NumaNode;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    /// CPUs with memory of their own.
    Dram,
    /// Memory without CPUs.
    Expander(Expander),
    /// CPUs without memory.
    Cpus,
    /// Neither.
    Empty,
}

/// What kind of memory a node without CPUs has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expander {
    /// CXL memory.
    Cxl,
    /// High-bandwidth memory.
    HighBandwidth,
    /// Persistent memory.
    Persistent,
    /// Nothing tells.
    Unknown,
}

/// Why a node is taken for what it is taken for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// The kernel has taken a dax device as RAM, and made this node of it.
    MadeOf {
        /// The device.
        device: String,
    },
    /// That device is cut from a region of CXL memory.
    CxlRegion {
        /// The region.
        region: String,
    },
    /// That device is persistent memory.
    Nvdimm,
    /// By the HMAT its memory takes longer to answer than the host's DRAM.
    Slower {
        /// Its own, in nanoseconds.
        latency_ns: u64,
        /// The DRAM's, in nanoseconds.
        dram_latency_ns: u64,
    },
    /// By the HMAT its memory gives more bytes per second than the host's DRAM.
    Wider {
        /// Its own, in megabytes per second.
        bandwidth_mb_s: u64,
        /// The DRAM's, in megabytes per second.
        dram_bandwidth_mb_s: u64,
    },
}

impl NodeKind {
    pub(super) fn at_first_sight(with_cpus: bool, with_memory: bool) -> Self {
        match (with_cpus, with_memory) {
            (true, true) => Self::Dram,
            (false, true) => Self::Expander(Expander::Unknown),
            (true, false) => Self::Cpus,
            (false, false) => Self::Empty,
        }
    }
}

/// The fastest DRAM of a host, as its own CPUs see it.
#[derive(Clone, Copy, Debug)]
struct Dram {
    latency_ns: Option<u64>,
    bandwidth_mb_s: Option<u64>,
}

/// Finds out what the nodes without CPUs are.
pub(super) fn judge_nodes(nodes: &mut [NumaNode], dax: &[DaxDevice]) {
    let figures = || nodes.iter().filter(|node| node.kind == NodeKind::Dram).filter_map(NumaNode::access_by_cpus);
    let dram = Dram {
        latency_ns: figures().filter_map(|access| access.read_latency_ns).min(),
        bandwidth_mb_s: figures().filter_map(|access| access.read_bandwidth_mb_s).max(),
    };
    for node in nodes.iter_mut().filter(|node| matches!(node.kind, NodeKind::Expander(_))) {
        let made_of: Vec<&DaxDevice> = dax
            .iter()
            .filter(|device| device.driver == DaxDriver::Kmem && device.target_node == Some(node.id))
            .collect();
        node.evidence = made_of.iter().flat_map(|device| by_origin(device)).chain(by_speed(node, dram)).collect();
        node.kind = NodeKind::Expander(expander(&node.evidence));
    }
}

fn by_origin(device: &DaxDevice) -> Vec<Evidence> {
    let made_of = Evidence::MadeOf { device: device.name.clone() };
    match &device.origin {
        DaxOrigin::Cxl(region) => vec![made_of, Evidence::CxlRegion { region: region.clone() }],
        DaxOrigin::Persistent => vec![made_of, Evidence::Nvdimm],
        DaxOrigin::Reserved | DaxOrigin::Unknown => vec![made_of],
    }
}

fn by_speed(node: &NumaNode, dram: Dram) -> Vec<Evidence> {
    let access = node.access_by_cpus();
    let slower = access.and_then(|access| access.read_latency_ns).zip(dram.latency_ns);
    let wider = access.and_then(|access| access.read_bandwidth_mb_s).zip(dram.bandwidth_mb_s);
    let slower = slower
        .filter(|(own, dram)| own > dram)
        .map(|(latency_ns, dram_latency_ns)| Evidence::Slower { latency_ns, dram_latency_ns });
    let wider = wider
        .filter(|(own, dram)| own > dram)
        .map(|(bandwidth_mb_s, dram_bandwidth_mb_s)| Evidence::Wider { bandwidth_mb_s, dram_bandwidth_mb_s });
    slower.into_iter().chain(wider).collect()
}

/// What made the node counts more than how fast it is.
fn expander(evidence: &[Evidence]) -> Expander {
    let any = |is: fn(&Evidence) -> bool| evidence.iter().any(is);
    if any(|evidence| matches!(evidence, Evidence::CxlRegion { .. })) {
        Expander::Cxl
    } else if any(|evidence| matches!(evidence, Evidence::Nvdimm)) {
        Expander::Persistent
    } else if any(|evidence| matches!(evidence, Evidence::Wider { .. })) {
        Expander::HighBandwidth
    } else {
        Expander::Unknown
    }
}

impl fmt::Display for NodeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Dram => "DRAM",
            Self::Expander(Expander::Cxl) => "CXL expander",
            Self::Expander(Expander::HighBandwidth) => "HBM expander",
            Self::Expander(Expander::Persistent) => "PMem expander",
            Self::Expander(Expander::Unknown) => "expander",
            Self::Cpus => "CPUs only",
            Self::Empty => "empty",
        })
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MadeOf { device } => write!(f, "made of {device}"),
            Self::CxlRegion { region } => write!(f, "cut from CXL {region}"),
            Self::Nvdimm => f.write_str("persistent memory (NVDIMM)"),
            Self::Slower { latency_ns, dram_latency_ns } => {
                write!(f, "{latency_ns} ns to read (DRAM: {dram_latency_ns} ns)")
            }
            Self::Wider { bandwidth_mb_s, dram_bandwidth_mb_s } => {
                write!(f, "{bandwidth_mb_s} MB/s (DRAM: {dram_bandwidth_mb_s} MB/s)")
            }
        }
    }
}
