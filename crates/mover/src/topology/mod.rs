//! What memory a host has: its NUMA nodes, its dax devices, its CXL devices, and what nil can use each for.
//!
//! [`Topology::read`] takes it from sysfs below any directory, so that a recorded tree is read like a live one. It never
//! fails: a kernel without NUMA, dax or CXL lacks the files, and what is not as the kernel documents it is set down as a
//! [`Remark`] and otherwise taken as not there. The result is plain data with the units in its names.
//!
//! Memory has one of two classes (`nil_pool::Class`): **private** to the host are its nodes, with CPUs or without;
//! **shared** is what a pool lies in. A dax device that programs can map may become a pool; one that the kernel has taken
//! as RAM cannot, and shared capacity must never get there, for the kernel would take it for its own.

mod cxl;
mod dax;
#[cfg(test)]
mod fixtures;
mod ids;
mod judge;
mod nd;
mod node;
mod tree;
mod usage;

pub use cxl::{Cxl, Decoder, DecoderKind, DynamicPartition, MemoryDevice, Region};
pub use dax::{DaxDevice, DaxDriver, DaxOrigin, DaxRegion, Extent};
pub use ids::{BadList, IdList, NodeId};
pub use judge::{Evidence, Expander, NodeKind};
pub use nd::NdDevice;
pub use node::{NodeAccess, NodeDistance, NodeMemory, NumaNode};
pub use tree::Remark;
pub use usage::{Found, MemoryUse, Unusable, Warning};

use serde::{Deserialize, Serialize};
use std::path::Path;
use tree::Tree;

/// The memory of a host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Topology {
    /// NUMA nodes that are online, ascending.
    pub nodes: Vec<NumaNode>,
    /// Dax devices; `None` when the kernel has no dax bus.
    pub dax: Option<Vec<DaxDevice>>,
    /// CXL devices; `None` when the kernel has no CXL bus.
    pub cxl: Option<Cxl>,
    /// What is not as the kernel documents it.
    pub remarks: Vec<Remark>,
}

impl Topology {
    /// Reads it from `sys` below `root`: of this host, that is `/`.
    #[must_use]
    pub fn read(root: &Path) -> Self {
        let tree = Tree::new(root);
        let mut nodes = node::read(&tree);
        let dax = tree.dir("sys/bus/dax").exists().then(|| dax::read(&tree));
        let cxl = cxl::read(&tree);
        judge::judge_nodes(&mut nodes, dax.as_deref().unwrap_or_default());
        Self { nodes, dax, cxl, remarks: tree.into_remarks() }
    }

    /// What a person should know about it, with what to do.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        usage::warnings(self)
    }

    /// Whether firmware tells what access to any node's memory costs.
    #[must_use]
    pub fn has_figures(&self) -> bool {
        self.nodes.iter().any(|node| !node.access.is_empty())
    }
}
