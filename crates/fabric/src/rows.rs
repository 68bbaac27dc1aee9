//! Lists of lists in two allocations.

use std::ops::Range;

/// Rows of different lengths, one behind the other.
#[derive(Clone, Debug)]
pub(crate) struct Rows<T> {
    starts: Vec<u32>,
    items: Vec<T>,
}

impl<T> Rows<T> {
    /// `count` rows, each with those items that name it, in the order given.
    pub(crate) fn group(count: usize, items: impl IntoIterator<Item = (usize, T)>) -> Self {
        let mut items: Vec<(usize, T)> = items.into_iter().collect();
        items.sort_by_key(|(row, _)| *row);
        let mut starts = vec![0_u32; count + 1];
        for (row, _) in &items {
            starts[row + 1] += 1;
        }
        for row in 0..count {
            starts[row + 1] += starts[row];
        }
        Self { starts, items: items.into_iter().map(|(_, item)| item).collect() }
    }

    pub(crate) fn row(&self, row: usize) -> &[T] {
        &self.items[self.range(row)]
    }

    /// Where a row lies among all items.
    pub(crate) fn range(&self, row: usize) -> Range<usize> {
        self.starts[row] as usize..self.starts[row + 1] as usize
    }

    pub(crate) fn at(&self, item: usize) -> &T {
        &self.items[item]
    }
}
