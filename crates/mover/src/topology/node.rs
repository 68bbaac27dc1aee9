//! NUMA nodes: their CPUs, their memory, and how far it is.
//!
//! Sources: `Documentation/ABI/stable/sysfs-devices-node`, `Documentation/admin-guide/mm/numaperf.rst` (access classes,
//! which the kernel fills from the HMAT or from CXL's CDAT), `Documentation/ABI/testing/sysfs-kernel-mm-memory-tiers`.

use super::ids::{IdList, NodeId};
use super::judge::{Evidence, NodeKind};
use super::tree::{Dir, Tree};
use serde::{Deserialize, Serialize};

const NODES: &str = "sys/devices/system/node";
const TIERS: &str = "sys/devices/virtual/memory_tiering";
/// CPUs that are plausible: more than `NR_CPUS` can be.
const CPU_LIMIT: u32 = 1 << 16;
const KIB: u64 = 1 << 10;

/// A NUMA node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NumaNode {
    /// Its number.
    pub id: NodeId,
    /// What it is.
    pub kind: NodeKind,
    /// Why it is taken for that, where that is not plain.
    pub evidence: Vec<Evidence>,
    /// Its CPUs.
    pub cpus: IdList,
    /// Its memory; `None` when it has none, or when the kernel does not tell how much.
    pub memory: Option<NodeMemory>,
    /// How far other nodes' memory is, in the SLIT's unit: 10 is its own.
    pub distances: Vec<NodeDistance>,
    /// What access to its memory costs, by class, where firmware tells.
    pub access: Vec<NodeAccess>,
    /// The kernel's memory tier: the lower, the faster.
    pub tier: Option<u32>,
}

/// Memory of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeMemory {
    /// All of it.
    pub total_bytes: u64,
    /// What nobody uses, page cache not counted.
    pub free_bytes: u64,
}

/// How far a node's memory is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeDistance {
    /// Whose memory.
    pub to: NodeId,
    /// 10 for the nearest.
    pub distance: u32,
}

/// What access to a node's memory costs its nearest initiators. A figure that firmware does not give is `None`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeAccess {
    /// 0: the nearest initiators of any kind; 1: the nearest with CPUs.
    pub class: u32,
    /// The nodes whose access it is.
    pub initiators: IdList,
    /// Nanoseconds.
    pub read_latency_ns: Option<u64>,
    /// Nanoseconds.
    pub write_latency_ns: Option<u64>,
    /// Megabytes per second.
    pub read_bandwidth_mb_s: Option<u64>,
    /// Megabytes per second.
    pub write_bandwidth_mb_s: Option<u64>,
}

impl NumaNode {
    /// Whether it has memory.
    #[must_use]
    pub fn has_memory(&self) -> bool {
        matches!(self.kind, NodeKind::Dram | NodeKind::Expander(_))
    }

    /// What access costs the nearest CPUs; that of any other initiator when the kernel does not tell them apart.
    #[must_use]
    pub fn access_by_cpus(&self) -> Option<&NodeAccess> {
        self.access.iter().max_by_key(|access| match access.class {
            1 => 2,
            0 => 1,
            _ => 0,
        })
    }
}

/// All nodes that are online. Those without CPUs are taken for expanders of no known kind.
pub(super) fn read(tree: &Tree<'_>) -> Vec<NumaNode> {
    let dir = tree.dir(NODES);
    let online = dir.list("online", NodeId::LIMIT).unwrap_or_else(|| {
        dir.remark("online", "does not say which nodes there are; those that have a directory are taken");
        dir.numbered("node").iter().filter_map(|entry| NodeId::new(*entry.numbers.first()?)).collect()
    });
    let lists = Lists {
        has_memory: dir.list("has_memory", NodeId::LIMIT),
        has_cpu: dir.list("has_cpu", NodeId::LIMIT),
        tiers: read_tiers(tree),
        online,
    };
    lists.online.nodes().map(|id| read_node(&dir.at(format!("node{id}")), id, &lists)).collect()
}

/// What stands beside the nodes about all of them.
struct Lists {
    online: IdList,
    has_memory: Option<IdList>,
    has_cpu: Option<IdList>,
    tiers: Vec<(u32, IdList)>,
}

fn read_node(dir: &Dir<'_>, id: NodeId, lists: &Lists) -> NumaNode {
    let cpus = dir.required_list("cpulist", CPU_LIMIT);
    let memory = read_memory(dir, id);
    let with_cpus = cpus.as_ref().map_or_else(|| in_list(lists.has_cpu.as_ref(), id), |cpus| !cpus.is_empty());
    let with_memory = match &lists.has_memory {
        Some(list) => list.contains(id.get()),
        None => memory.is_some_and(|memory| memory.total_bytes > 0),
    };
    NumaNode {
        id,
        kind: NodeKind::at_first_sight(with_cpus, with_memory),
        evidence: Vec::new(),
        cpus: cpus.unwrap_or_default(),
        memory: memory.filter(|_| with_memory),
        distances: read_distances(dir, &lists.online),
        access: dir
            .numbered("access")
            .into_iter()
            .filter_map(|class| read_access(&class.dir, &class.numbers))
            .collect(),
        tier: lists.tiers.iter().find(|(_, nodes)| nodes.contains(id.get())).map(|(tier, _)| *tier),
    }
}

fn in_list(list: Option<&IdList>, id: NodeId) -> bool {
    list.is_some_and(|list| list.contains(id.get()))
}

/// Lines such as `Node 0 MemTotal:       19491032 kB`.
fn read_memory(dir: &Dir<'_>, id: NodeId) -> Option<NodeMemory> {
    let text = dir.required_text("meminfo")?;
    let figure = |name: &str| {
        let line = text.lines().find_map(|line| line.split_once(':').filter(|(label, _)| label.ends_with(name)));
        let bytes = line.and_then(|(label, value)| {
            let of_this_node = label.split_whitespace().nth(1) == Some(id.to_string().as_str());
            let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
            kib.checked_mul(KIB).filter(|_| of_this_node)
        });
        if bytes.is_none() {
            dir.remark("meminfo", format!("has no line 'Node {id} {name}: … kB'"));
        }
        bytes
    };
    let (total, free) = (figure("MemTotal"), figure("MemFree"));
    let memory = NodeMemory { total_bytes: total?, free_bytes: free? };
    if memory.free_bytes > memory.total_bytes {
        dir.remark("meminfo", "says that more memory is free than there is");
        return None;
    }
    Some(memory)
}

/// One number for each node that is online, in their order.
fn read_distances(dir: &Dir<'_>, online: &IdList) -> Vec<NodeDistance> {
    let Some(text) = dir.text("distance") else { return Vec::new() };
    let distances: Option<Vec<u32>> = text.split_whitespace().map(|number| number.parse().ok()).collect();
    let nodes: Vec<NodeId> = online.nodes().collect();
    match distances {
        Some(distances) if distances.len() == nodes.len() => {
            nodes.into_iter().zip(distances).map(|(to, distance)| NodeDistance { to, distance }).collect()
        }
        _ => {
            dir.remark("distance", format!("is not {} numbers, one for each node that is online", nodes.len()));
            Vec::new()
        }
    }
}

fn read_access(dir: &Dir<'_>, numbers: &[u32]) -> Option<NodeAccess> {
    let &[class] = numbers else { return None };
    let dir = dir.at("initiators");
    let initiators = dir.numbered("node").iter().filter_map(|entry| NodeId::new(*entry.numbers.first()?)).collect();
    let access = NodeAccess {
        class,
        initiators,
        read_latency_ns: dir.figure("read_latency"),
        write_latency_ns: dir.figure("write_latency"),
        read_bandwidth_mb_s: dir.figure("read_bandwidth"),
        write_bandwidth_mb_s: dir.figure("write_bandwidth"),
    };
    // A node that is only an initiator has the directory too, without figures.
    let figures =
        [access.read_latency_ns, access.write_latency_ns, access.read_bandwidth_mb_s, access.write_bandwidth_mb_s];
    figures.iter().any(Option::is_some).then_some(access)
}

fn read_tiers(tree: &Tree<'_>) -> Vec<(u32, IdList)> {
    let tiers = tree.dir(TIERS).numbered("memory_tier");
    tiers.iter().filter_map(|tier| Some((*tier.numbers.first()?, tier.dir.list("nodelist", NodeId::LIMIT)?))).collect()
}
