//! Memory on the NUMA nodes of one host: where it is, where it is to come from, and how the kernel moves it.
//!
//! Between nodes nothing needs to be copied by hand: the kernel moves a page behind its address while the program runs,
//! huge pages whole, and vCPUs find the page again through KVM's notifier. What nil adds is that the memory is *bound*
//! (`MPOL_BIND`), so that pages which are touched for the first time come from the node too, and automatic balancing does
//! not carry any of them back.
//!
//! - [`bind`] and [`Node::bind`]: new pages of a range come from this node.
//! - [`Node::bring`]: that, and the pages that are elsewhere come over.
//! - [`where_is`]: how much of a range is on which node; [`bound_to`]: to which its pages are bound.
//! - [`migrate_process`]: all memory of a process.
//!
//! A [`Node`] has been looked up: it is there, it has memory, and this process may have it. Ranges are whole pages of
//! this process; the functions are safe, for none of them changes what memory holds (see `syscalls`). A policy belongs to
//! the mapping: it moves along with `mremap`, and is gone where another mapping is laid over it.

mod carrier;
mod mask;
mod node;
mod pages;
mod syscalls;
#[cfg(test)]
mod tests;

pub(crate) use carrier::NodeCarrier;
pub(crate) use node::unbind;
pub use node::{Node, bind, bound_to, migrate_process};
pub use pages::{NodeMove, Refused, Whereabouts, where_is};

use pages::bytes_elsewhere;

use crate::topology::{IdList, NodeId};
use rustix::io::Errno;

/// Why memory could not be placed on a node.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NumaError {
    /// There is no such node.
    #[error("this host has no NUMA node {node}; it has memory on {}", nodes(.with_memory))]
    NoSuchNode {
        /// What was asked for.
        node: u32,
        /// The nodes that have memory.
        with_memory: IdList,
    },
    /// The node has CPUs, but no memory.
    #[error("NUMA node {node} has no memory; this host has memory on {}", nodes(.with_memory))]
    NoMemory {
        /// What was asked for.
        node: NodeId,
        /// The nodes that have memory.
        with_memory: IdList,
    },
    /// The process's cpuset keeps it from the node.
    #[error(
        "this process may not use memory of NUMA node {node}, but of {}; widen cpuset.mems of its cgroup, or choose one of these",
        nodes(.allowed)
    )]
    NotAllowed {
        /// What was asked for.
        node: NodeId,
        /// The nodes that it may use.
        allowed: IdList,
    },
    /// The node has no room.
    #[error(
        "NUMA node {node} has no room for {} more of the guest's memory; free some there (`nil host inspect` shows how \
         much there is), or name another node",
        nil_pool::Bytes(*.bytes)
    )]
    Full {
        /// The node.
        node: NodeId,
        /// What was to come at that moment.
        bytes: u64,
    },
    /// The range does not consist of whole pages.
    #[error("{bytes:#x} bytes at {start:#x} are not whole pages; memory is placed on nodes by the page")]
    NotWholePages {
        /// Where it begins.
        start: usize,
        /// Its length.
        bytes: usize,
    },
    /// The kernel knows no nodes.
    #[error(
        "this kernel is built without NUMA support (CONFIG_NUMA), so memory cannot be placed on a node; leave the node out"
    )]
    Unsupported,
    /// The kernel refused.
    #[error("cannot {action} the {bytes:#x} bytes at {start:#x}: {errno}{}", advice(*.errno))]
    Refused {
        /// What was tried.
        action: &'static str,
        /// Where.
        start: usize,
        /// How much.
        bytes: usize,
        /// Why not.
        errno: Errno,
    },
    /// The kernel refused something that concerns no range.
    #[error("cannot {action}: {errno}{}", advice(*.errno))]
    Failed {
        /// What was tried.
        action: &'static str,
        /// Why not.
        errno: Errno,
    },
}

fn nodes(list: &IdList) -> String {
    match list.count() {
        0 => "no node that it would name".to_owned(),
        1 => format!("node {list}"),
        _ => format!("nodes {list}"),
    }
}

/// What a person can do about an errno whose own text does not say it.
fn advice(errno: Errno) -> &'static str {
    match errno {
        Errno::FAULT => "; part of it is not mapped",
        Errno::PERM => "; the process needs CAP_SYS_NICE, or its sandbox (seccomp) forbids memory policies",
        Errno::NOMEM => "; the node has too little free memory",
        _ => "",
    }
}

impl NumaError {
    /// Of a call that failed on a range.
    fn on_range(action: &'static str, start: usize, bytes: usize, errno: Errno) -> Self {
        match errno {
            Errno::NOSYS => Self::Unsupported,
            errno => Self::Refused { action, start, bytes, errno },
        }
    }

    /// Of a call that concerns no range.
    fn of_call(action: &'static str, errno: Errno) -> Self {
        match errno {
            Errno::NOSYS => Self::Unsupported,
            errno => Self::Failed { action, errno },
        }
    }
}
