//! A depth-first walk through a graph, and what falls apart where: Tarjan's low points, without recursion.
//!
//! The vertices are numbered in the order of the walk, so that each subtree is a range of numbers. Of a vertex that is
//! taken away, every subtree that does not reach above it becomes a piece of its own; all else of its component stays
//! together. (R. Tarjan, Depth-first search and linear graph algorithms, 1972.)

use crate::rows::Rows;
use std::ops::Range;

/// An edge as one of its ends sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Edge {
    pub(crate) to: u32,
    /// The same at both ends, and of no other edge: two edges between the same vertices are no bridges.
    pub(crate) id: u32,
}

const NONE: u32 = u32::MAX;

/// The walk.
#[derive(Debug)]
pub(crate) struct DepthFirst {
    /// When each vertex was come to.
    entered: Vec<u32>,
    /// The end of its subtree.
    left: Vec<u32>,
    /// The earliest vertex that its subtree reaches over one more edge.
    low: Vec<u32>,
    parent: Vec<u32>,
    parent_edge: Vec<u32>,
    /// The vertices, as they were come to.
    order: Vec<u32>,
    /// The number at which each vertex's component begins, by number.
    root: Vec<u32>,
    /// The children of each vertex, in the order of the walk.
    children: Rows<u32>,
}

impl DepthFirst {
    /// Walks through all of the graph. `edges` has a row per vertex, and each edge in two rows.
    pub(crate) fn walk(vertices: usize, edges: &Rows<Edge>) -> Self {
        let mut walk = Self {
            entered: vec![NONE; vertices],
            left: vec![0; vertices],
            low: vec![NONE; vertices],
            parent: vec![NONE; vertices],
            parent_edge: vec![NONE; vertices],
            order: Vec::with_capacity(vertices),
            root: Vec::with_capacity(vertices),
            children: Rows::group(0, []),
        };
        // Where each vertex on the way down has come to among its edges.
        let mut next: Vec<usize> = (0..vertices).map(|vertex| edges.range(vertex).start).collect();
        for first in 0..vertices {
            if walk.entered[first] == NONE {
                walk.tree(first, edges, &mut next);
            }
        }
        let children = walk.order.iter().filter(|vertex| walk.parent[**vertex as usize] != NONE);
        walk.children = Rows::group(vertices, children.map(|child| (walk.parent[*child as usize] as usize, *child)));
        walk
    }

    fn tree(&mut self, first: usize, edges: &Rows<Edge>, next: &mut [usize]) {
        let root = self.now();
        let mut vertex = first;
        self.enter(vertex, root);
        loop {
            if next[vertex] < edges.range(vertex).end {
                let edge = *edges.at(next[vertex]);
                next[vertex] += 1;
                let to = edge.to as usize;
                if self.entered[to] == NONE {
                    self.parent[to] = number(vertex);
                    self.parent_edge[to] = edge.id;
                    vertex = to;
                    self.enter(vertex, root);
                } else if edge.id != self.parent_edge[vertex] {
                    self.low[vertex] = self.low[vertex].min(self.entered[to]);
                }
                continue;
            }
            self.left[vertex] = self.now();
            if self.parent[vertex] == NONE {
                return;
            }
            let parent = self.parent[vertex] as usize;
            self.low[parent] = self.low[parent].min(self.low[vertex]);
            vertex = parent;
        }
    }

    fn enter(&mut self, vertex: usize, root: u32) {
        self.entered[vertex] = self.now();
        self.low[vertex] = self.now();
        self.order.push(number(vertex));
        self.root.push(root);
    }

    fn now(&self) -> u32 {
        number(self.order.len())
    }

    /// The vertices, as they were come to.
    pub(crate) fn order(&self) -> &[u32] {
        &self.order
    }

    /// The numbers of the vertex's component.
    pub(crate) fn component(&self, vertex: usize) -> Range<u32> {
        let root = self.root[self.entered[vertex] as usize];
        root..self.left[self.order[root as usize] as usize]
    }

    pub(crate) fn entered(&self, vertex: usize) -> u32 {
        self.entered[vertex]
    }

    /// The subtrees that fall off when the vertex is taken away, in ascending order. What is left of the component stays
    /// together; of a root's, nothing is left.
    pub(crate) fn cut_off(&self, vertex: usize) -> Vec<Range<u32>> {
        let is_root = self.parent[vertex] == NONE;
        let cut = |child: &&u32| is_root || self.low[**child as usize] >= self.entered[vertex];
        self.children.row(vertex).iter().filter(cut).map(|child| self.subtree(*child as usize)).collect()
    }

    /// The subtree that falls off with each edge that is a bridge: (edge, lower end).
    pub(crate) fn bridges(&self) -> impl Iterator<Item = (u32, usize)> {
        let bridge = |vertex: &usize| {
            let parent = self.parent[*vertex];
            parent != NONE && self.low[*vertex] > self.entered[parent as usize]
        };
        (0..self.parent.len()).filter(bridge).map(|vertex| (self.parent_edge[vertex], vertex))
    }

    /// The numbers of a vertex and all below it.
    pub(crate) fn subtree(&self, vertex: usize) -> Range<u32> {
        self.entered[vertex]..self.left[vertex]
    }
}

fn number(at: usize) -> u32 {
    u32::try_from(at).expect("the builder takes fewer than 2^32 things")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(vertices: usize, pairs: &[(u32, u32)]) -> DepthFirst {
        let both = pairs
            .iter()
            .zip(0..)
            .flat_map(|(&(a, b), id)| [(a as usize, Edge { to: b, id }), (b as usize, Edge { to: a, id })]);
        DepthFirst::walk(vertices, &Rows::group(vertices, both))
    }

    #[test]
    fn a_bridge_is_found_and_a_double_edge_is_none() {
        let bridges = |pairs: &[_]| walk(3, pairs).bridges().map(|(edge, _)| edge).collect::<Vec<_>>();
        assert_eq!(bridges(&[(0, 1), (1, 2)]), [0, 1]);
        assert_eq!(bridges(&[(0, 1), (1, 2), (1, 2)]), [0]);
        assert_eq!(bridges(&[(0, 1), (1, 2), (2, 0)]), [0; 0]);
    }

    #[test]
    fn what_hangs_at_a_vertex_only_is_cut_off_with_it() {
        // A triangle 0 1 2, and 3 and 4 at 2.
        let walk = walk(5, &[(0, 1), (1, 2), (2, 0), (2, 3), (3, 4)]);
        let cut: Vec<u32> = walk.cut_off(2).into_iter().flatten().map(|at| walk.order()[at as usize]).collect();
        assert_eq!(cut, [3, 4]);
        assert!(walk.cut_off(1).is_empty());
    }

    #[test]
    fn a_chain_of_a_hundred_thousand_needs_no_stack() {
        let pairs: Vec<(u32, u32)> = (0..99_999).map(|at| (at, at + 1)).collect();
        assert_eq!(walk(100_000, &pairs).bridges().count(), 99_999);
    }
}
