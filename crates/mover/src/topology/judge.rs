//! What a node or a device is, and what nil can use it for.
//!
//! A node without CPUs says of itself only that it has memory. Whether that is CXL memory, high-bandwidth memory or
//! something else is judged by what made it (a dax device that the kernel has taken as RAM, and what that is cut from)
//! and else by how fast it is beside the host's DRAM.

use super::dax::{DaxDevice, DaxDriver, DaxOrigin};
use super::ids::NodeId;
use super::{NumaNode, Topology};
use nil_pool::Tag;
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

/// What nil can use memory for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryUse {
    /// Guests' memory while it is not in a pool: this host's own.
    Private,
    /// A pool lies on it: shared with the hosts that have it too.
    Pool,
    /// It is the capacity with this tag, which a pool knows: shared.
    Capacity(Tag),
    /// Nothing of nil's is there; a pool could be made.
    Candidate,
    /// Nothing, as it is.
    Unusable(Unusable),
}

/// Why memory cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unusable {
    /// It is online as system RAM.
    OnlineAsRam,
    /// Programs cannot map it, for another driver has it, or none.
    NotMappable,
    /// It can only be mapped in steps that are larger than a granule.
    Coarse,
    /// It has no size.
    NoSize,
}

/// Something that a person should know, and do something about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Warning {
    /// A dax device is online as system RAM.
    OnlineAsRam {
        /// The device.
        device: String,
        /// The node that it has become.
        node: Option<NodeId>,
    },
    /// A dax device that no program can map.
    NotMappable {
        /// The device.
        device: String,
        /// What has it.
        driver: DaxDriver,
    },
    /// A dax device that can only be mapped in steps larger than a granule.
    Coarse {
        /// The device.
        device: String,
        /// Its step.
        align_bytes: u64,
    },
    /// A CXL memory device that no region uses.
    Idle {
        /// The memory device.
        device: String,
        /// What it has.
        bytes: u64,
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

impl NumaNode {
    /// What nil can use its memory for; `None` when it has none.
    #[must_use]
    pub fn memory_use(&self) -> Option<MemoryUse> {
        self.has_memory().then_some(MemoryUse::Private)
    }
}

impl DaxDevice {
    /// What nil can use it for, given what was found on it and the tags of all pools that were found anywhere.
    #[must_use]
    pub fn memory_use(&self, found: Found, known: &[Tag]) -> MemoryUse {
        match (&self.driver, self.tag.filter(|tag| known.contains(tag))) {
            (DaxDriver::Kmem, _) => MemoryUse::Unusable(Unusable::OnlineAsRam),
            (DaxDriver::Other(_) | DaxDriver::Nothing, _) => MemoryUse::Unusable(Unusable::NotMappable),
            (DaxDriver::DeviceDax, _) if found == Found::Pool => MemoryUse::Pool,
            (DaxDriver::DeviceDax, Some(tag)) => MemoryUse::Capacity(tag),
            (DaxDriver::DeviceDax, None) if self.size_bytes.unwrap_or(0) == 0 => MemoryUse::Unusable(Unusable::NoSize),
            (DaxDriver::DeviceDax, None) if self.coarse_align_bytes().is_some() => {
                MemoryUse::Unusable(Unusable::Coarse)
            }
            (DaxDriver::DeviceDax, None) => MemoryUse::Candidate,
        }
    }
}

/// What was found on a device by looking at its first bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// A pool.
    Pool,
    /// Nothing of nil's, or nobody looked.
    Nothing,
}

/// What a person should know about a host's memory.
pub(super) fn warnings(topology: &Topology) -> Vec<Warning> {
    let of_dax = topology.dax.iter().flatten().filter_map(|device| {
        let name = device.name.clone();
        match &device.driver {
            DaxDriver::Kmem => Some(Warning::OnlineAsRam { device: name, node: device.target_node }),
            DaxDriver::Other(_) | DaxDriver::Nothing => {
                // A region without capacity keeps a device of size 0 as a seed; that one is as it should be.
                let seed = device.size_bytes == Some(0);
                (!seed).then(|| Warning::NotMappable { device: name, driver: device.driver.clone() })
            }
            DaxDriver::DeviceDax => {
                device.coarse_align_bytes().map(|align_bytes| Warning::Coarse { device: name, align_bytes })
            }
        }
    });
    let of_cxl = topology.cxl.iter().flat_map(|cxl| {
        let idle = cxl
            .memory_devices
            .iter()
            .filter(|device| !cxl.regions.iter().any(|region| region.memory_devices.contains(&device.name)));
        idle.filter_map(|device| {
            let bytes = device.ram_bytes.unwrap_or(0).saturating_add(device.pmem_bytes.unwrap_or(0));
            (bytes > 0).then(|| Warning::Idle { device: device.name.clone(), bytes })
        })
    });
    of_dax.chain(of_cxl).collect()
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
            Self::CxlRegion { region } => write!(f, "which is cut from the CXL {region}"),
            Self::Nvdimm => f.write_str("which is persistent memory"),
            Self::Slower { latency_ns, dram_latency_ns } => {
                write!(f, "{latency_ns} ns to read, DRAM {dram_latency_ns} ns")
            }
            Self::Wider { bandwidth_mb_s, dram_bandwidth_mb_s } => {
                write!(f, "{bandwidth_mb_s} MB/s, DRAM {dram_bandwidth_mb_s} MB/s")
            }
        }
    }
}

impl fmt::Display for MemoryUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Private => "private",
            Self::Pool => "shared: a pool",
            Self::Capacity(_) => "shared: a capacity",
            Self::Candidate => "free for a pool",
            Self::Unusable(Unusable::OnlineAsRam) => "not for nil: online as RAM",
            Self::Unusable(Unusable::NotMappable) => "not for nil: cannot be mapped",
            Self::Unusable(Unusable::Coarse) => "not for nil: aligned too coarsely",
            Self::Unusable(Unusable::NoSize) => "not for nil: has no size",
        })
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnlineAsRam { device, node } => {
                write!(f, "{device} is online as system RAM")?;
                if let Some(node) = node {
                    write!(f, " (node {node})")?;
                }
                write!(
                    f,
                    ": it cannot be a pool, and shared capacity must never be onlined; \
                     `daxctl reconfigure-device --mode=devdax --force {device}` takes it back"
                )
            }
            Self::NotMappable { device, driver } => {
                match driver {
                    DaxDriver::Nothing => write!(f, "{device} has no driver")?,
                    driver => write!(f, "{device} belongs to the driver {driver}")?,
                }
                write!(
                    f,
                    ", so it cannot be mapped; `daxctl reconfigure-device --mode=devdax {device}` makes it mappable"
                )
            }
            Self::Coarse { device, align_bytes } => {
                let align = nil_pool::Bytes(*align_bytes);
                write!(
                    f,
                    "{device} can only be mapped in steps of {align}, nil needs 2 MiB; \
                     `daxctl reconfigure-device --align 2M {device}` changes that"
                )
            }
            Self::Idle { device, bytes } => {
                let bytes = nil_pool::Bytes(*bytes);
                write!(f, "{device} has {bytes} that no region uses; `cxl create-region -m {device}` puts them to use")
            }
        }
    }
}
