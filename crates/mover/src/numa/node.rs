//! A node that memory can be placed on, and the placing.

use super::mask::NodeMask;
use super::pages::{self, NodeMove, Span};
use super::{NumaError, syscalls};
use crate::topology::{IdList, NodeId};
use rustix::process::Pid;
use std::path::Path;

/// Where the kernel lists its nodes.
const NODES: &str = "/sys/devices/system/node";

/// A node of this host that has memory which this process may use. Looked up once; that memory can still be full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Node {
    id: NodeId,
}

impl Node {
    /// Looks a node up by its number.
    ///
    /// # Errors
    /// [`NumaError::NoSuchNode`], [`NumaError::NoMemory`] or [`NumaError::NotAllowed`], each with the nodes that there are
    /// instead; [`NumaError::Unsupported`] on a kernel without NUMA.
    pub fn with_memory(number: u32) -> Result<Self, NumaError> {
        let allowed = syscalls::allowed().map_err(|errno| NumaError::of_call("learn which nodes there are", errno))?;
        Nodes::here(&allowed).find(number)
    }

    /// Its number.
    #[must_use]
    pub const fn id(self) -> NodeId {
        self.id
    }

    /// New pages of the range come from this node, or not at all. Pages that are there already stay where they are.
    /// Whole pages.
    ///
    /// # Errors
    /// [`NumaError::NotWholePages`], or [`NumaError::Refused`] with the kernel's reason.
    pub fn bind(self, start: *const u8, bytes: usize) -> Result<(), NumaError> {
        self.set_policy(Span::new(start, bytes)?, Existing::Stay)
    }

    /// Binds the range, and brings its pages over that are elsewhere; the program goes on meanwhile and waits only for
    /// pages that are just on their way. What would not come is told, and is no error. Whole pages.
    ///
    /// # Errors
    /// [`NumaError::NotWholePages`], or [`NumaError::Refused`] with the kernel's reason.
    pub fn bring(self, start: *const u8, bytes: usize) -> Result<NodeMove, NumaError> {
        let span = Span::new(start, bytes)?;
        let before = pages::locate(span)?;
        self.set_policy(span, Existing::Move)?;
        pages::settle(span, self.id, &before)
    }

    fn set_policy(self, span: Span, existing: Existing) -> Result<(), NumaError> {
        if span.is_empty() {
            return Ok(());
        }
        let (flags, action) = match existing {
            Existing::Stay => (0, "bind"),
            Existing::Move => (syscalls::MOVE, "move to a node"),
        };
        let mode = syscalls::BIND | syscalls::STATIC_NODES;
        syscalls::mbind(span.start(), span.bytes(), mode, &NodeMask::of([self.id]), flags)
            .map_err(|errno| NumaError::on_range(action, span.start(), span.bytes(), errno))
    }
}

/// What becomes of the pages that are there already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Existing {
    Stay,
    Move,
}

/// New pages of the range come from the node with this number, or not at all: [`Node::with_memory`] and [`Node::bind`].
///
/// # Errors
/// Those of both.
pub fn bind(start: *const u8, bytes: usize, node: u32) -> Result<(), NumaError> {
    Node::with_memory(node)?.bind(start, bytes)
}

/// New pages of the range come from wherever the process's own policy says, as if it had never been bound. Whole pages.
///
/// # Errors
/// [`NumaError::NotWholePages`], or [`NumaError::Refused`] with the kernel's reason.
pub(crate) fn unbind(start: *const u8, bytes: usize) -> Result<(), NumaError> {
    let span = Span::new(start, bytes)?;
    syscalls::mbind(span.start(), span.bytes(), syscalls::DEFAULT, &NodeMask::of([]), 0)
        .map_err(|errno| NumaError::on_range("unbind", span.start(), span.bytes(), errno))
}

/// The nodes to which the page at an address is bound; `None` when it is not bound to any.
///
/// # Errors
/// [`NumaError::Refused`] when nothing is mapped there.
pub fn bound_to(address: *const u8) -> Result<Option<IdList>, NumaError> {
    let (mode, nodes) = syscalls::policy_at(address.addr())
        .map_err(|errno| NumaError::on_range("learn the memory policy of", address.addr(), 1, errno))?;
    Ok((mode & !syscalls::STATIC_NODES == syscalls::BIND).then(|| nodes.nodes()))
}

/// Moves all memory of a process that is on a node of `from` to `to`: its heap and stacks, and what it alone has mapped
/// of files, so a pool too that it is alone with. Its policies are left as they are. Returns how many pages would not
/// come.
///
/// # Errors
/// [`NumaError::Failed`] when there is no such process, or it is another user's.
pub fn migrate_process(process: Pid, from: &IdList, to: Node) -> Result<u64, NumaError> {
    syscalls::migrate_pages(process, &NodeMask::of(from.nodes()), &NodeMask::of([to.id]))
        .map_err(|errno| NumaError::of_call("move a process to a node", errno))
}

/// The nodes of a host, as far as a request for one is judged by them.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Nodes {
    online: IdList,
    with_memory: IdList,
    allowed: IdList,
}

impl Nodes {
    fn here(allowed: &NodeMask) -> Self {
        let allowed = allowed.nodes();
        let list = |name: &str| {
            let text = std::fs::read_to_string(Path::new(NODES).join(name)).ok()?;
            IdList::parse(&text, NodeId::LIMIT).ok()
        };
        // Without /sys, what the process may use is all that is known to be there.
        let with_memory = list("has_memory").unwrap_or_else(|| allowed.clone());
        let online = list("online").unwrap_or_else(|| with_memory.clone());
        Self { online, with_memory, allowed }
    }

    fn find(&self, number: u32) -> Result<Node, NumaError> {
        let with_memory = || self.with_memory.clone();
        let known = NodeId::new(number).filter(|_| self.online.contains(number));
        let Some(node) = known else {
            return Err(NumaError::NoSuchNode { node: number, with_memory: with_memory() });
        };
        if !self.with_memory.contains(number) {
            return Err(NumaError::NoMemory { node, with_memory: with_memory() });
        }
        if !self.allowed.contains(number) {
            return Err(NumaError::NotAllowed { node, allowed: self.allowed.clone() });
        }
        Ok(Node { id: node })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numa::where_is;

    /// Huge pages must not make two parts of a test one page.
    const ALIGN: usize = 2 << 20;
    const BYTES: usize = 4 * ALIGN;

    /// Memory that nobody has touched yet: so much that the allocator maps it anew, and unmaps it when it is dropped.
    struct Fresh(Vec<u8>);

    impl Fresh {
        fn new() -> Self {
            Self(vec![0; 64 << 20])
        }

        fn part(&mut self) -> &mut [u8] {
            let skip = self.0.as_ptr().addr().next_multiple_of(ALIGN) - self.0.as_ptr().addr();
            &mut self.0[skip..][..BYTES]
        }
    }

    fn touch(part: &mut [u8]) {
        part.iter_mut().step_by(rustix::param::page_size()).for_each(|byte| *byte = 1);
    }

    fn list(text: &str) -> IdList {
        IdList::parse(text, NodeId::LIMIT).expect("a list")
    }

    fn a_node_here() -> Node {
        let nodes = syscalls::allowed().expect("NUMA").nodes();
        Node::with_memory(nodes.iter().next().expect("a node")).expect("it has memory")
    }

    #[test]
    fn pages_of_a_bound_range_come_from_its_node() {
        let mut memory = Fresh::new();
        let part = memory.part();
        let node = a_node_here();
        node.bind(part.as_ptr(), BYTES).expect("bind");
        assert_eq!(where_is(part.as_ptr(), BYTES).expect("query").absent_bytes, BYTES as u64);
        touch(part);
        let whereabouts = where_is(part.as_ptr(), BYTES).expect("query");
        assert_eq!((whereabouts.on(node.id()), whereabouts.absent_bytes), (BYTES as u64, 0));
    }

    #[test]
    fn a_bound_range_says_so_of_itself() {
        let mut memory = Fresh::new();
        let part = memory.part();
        let node = a_node_here();
        assert_eq!(bound_to(part.as_ptr()), Ok(None));
        node.bind(part.as_ptr(), BYTES).expect("bind");
        assert_eq!(bound_to(part.as_ptr()), Ok(Some([node.id()].into_iter().collect())));
    }

    #[test]
    fn bringing_pages_to_where_they_are_moves_none() {
        let mut memory = Fresh::new();
        let part = memory.part();
        let node = a_node_here();
        node.bind(part.as_ptr(), BYTES).expect("bind");
        touch(&mut part[..BYTES / 2]);
        let moved = node.bring(part.as_ptr(), BYTES).expect("bring");
        let half = BYTES as u64 / 2;
        assert_eq!(
            moved,
            NodeMove { moved_bytes: 0, already_there_bytes: half, absent_bytes: half, refused: Vec::new() }
        );
        assert_eq!(part[0], 1);
    }

    #[test]
    fn a_node_that_is_not_there_is_refused_by_name() {
        let online = std::fs::read_to_string("/sys/devices/system/node/online").expect("a kernel with nodes");
        let online = list(&online);
        let absent = (0..).find(|number| !online.contains(*number)).expect("fewer than all");
        let mut memory = Fresh::new();
        let error = bind(memory.part().as_ptr(), BYTES, absent).expect_err("no such node");
        assert!(matches!(error, NumaError::NoSuchNode { node, .. } if node == absent), "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("no NUMA node {absent}")) && text.contains("it has memory on node"), "{text}");
    }

    #[test]
    fn each_reason_against_a_node_is_told_apart() {
        let host = Nodes { online: list("0-3"), with_memory: list("0,2-3"), allowed: list("0,2") };
        assert_eq!(host.find(2).map(Node::id).ok(), NodeId::new(2));
        let refusals: Vec<String> =
            [4, 1024, 1, 3].map(|node| host.find(node).expect_err("refused").to_string()).to_vec();
        insta::assert_snapshot!(refusals.join("\n"), @r"
        this host has no NUMA node 4; it has memory on nodes 0,2-3
        this host has no NUMA node 1024; it has memory on nodes 0,2-3
        NUMA node 1 has no memory; this host has memory on nodes 0,2-3
        this process may not use memory of NUMA node 3, but of nodes 0,2; widen cpuset.mems of its cgroup, or choose one of these
        ");
    }

    #[test]
    fn a_range_that_is_not_whole_pages_is_refused() {
        let mut memory = Fresh::new();
        let error = a_node_here().bind(memory.part().as_ptr(), BYTES - 1).expect_err("half a page");
        assert!(matches!(error, NumaError::NotWholePages { .. }), "{error}");
    }

    #[test]
    fn a_range_that_is_not_mapped_is_refused_with_the_reason() {
        let mut memory = Fresh::new();
        let start = memory.part().as_ptr();
        drop(memory);
        let error = a_node_here().bind(start, BYTES).expect_err("nothing there");
        assert!(error.to_string().ends_with("part of it is not mapped"), "{error}");
    }

    #[test]
    fn a_process_that_is_on_the_node_already_has_nothing_to_move() {
        let node = a_node_here();
        assert_eq!(migrate_process(rustix::process::getpid(), &[node.id()].into_iter().collect(), node), Ok(0));
    }
}
