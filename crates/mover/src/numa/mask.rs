//! A set of nodes as the kernel's memory calls take it: one bit per node, in words of the machine.

use crate::topology::{IdList, NodeId};

/// Bits of a [`NodeMask`]: as many as there can be nodes.
pub(super) const MASK_BITS: usize = NodeId::LIMIT as usize;
/// Bits of one word; the kernel's words are `unsigned long`, which has 64 bits wherever nil runs.
const WORD_BITS: u32 = u64::BITS;

/// A set of nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub(super) struct NodeMask([u64; MASK_BITS / WORD_BITS as usize]);

impl Default for NodeMask {
    fn default() -> Self {
        Self([0; MASK_BITS / WORD_BITS as usize])
    }
}

impl NodeMask {
    pub(super) fn of(nodes: impl IntoIterator<Item = NodeId>) -> Self {
        let mut mask = Self::default();
        for node in nodes {
            mask.0[(node.get() / WORD_BITS) as usize] |= 1 << (node.get() % WORD_BITS);
        }
        mask
    }

    pub(super) fn contains(&self, node: NodeId) -> bool {
        self.0[(node.get() / WORD_BITS) as usize] >> (node.get() % WORD_BITS) & 1 == 1
    }

    pub(super) fn nodes(&self) -> IdList {
        (0..NodeId::LIMIT).filter_map(NodeId::new).filter(|node| self.contains(*node)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_has_a_bit_of_its_own() {
        for number in [0, 1, 63, 64, 1023] {
            let node = NodeId::new(number).expect("a node");
            let mask = NodeMask::of([node]);
            assert!(mask.contains(node));
            assert_eq!(mask.0.iter().map(|word| word.count_ones()).sum::<u32>(), 1);
            assert_eq!(mask.0[number as usize / 64], 1 << (number % 64));
            assert_eq!(mask.nodes().to_string(), number.to_string());
        }
    }
}
