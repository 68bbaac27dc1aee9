//! Lists of numbers as the kernel writes them (`0-3,8`), and the numbers of nodes.

use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::ops::RangeInclusive;

/// The number of a NUMA node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(u32);

impl NodeId {
    /// One more than the highest that a kernel may be built for (`CONFIG_NODES_SHIFT` is at most 10).
    pub const LIMIT: u32 = 1 << 10;

    /// Wraps a number; `None` when no kernel has that many nodes.
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        if number < Self::LIMIT { Some(Self(number)) } else { None }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A set of small numbers, kept as ranges that ascend and do not touch. Displays itself as the kernel writes it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct IdList {
    ranges: Vec<RangeInclusive<u32>>,
}

/// Why a text is no list.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadList {
    /// A part that is neither a number nor a range.
    #[error("'{0}' is neither a number nor a range such as 0-3")]
    Syntax(String),
    /// A number that no kernel has.
    #[error("{number} is above {highest}, the highest that a kernel can have")]
    TooHigh {
        /// The number.
        number: u32,
        /// The highest that is plausible.
        highest: u32,
    },
}

impl IdList {
    /// Parses `0-3,8`; an empty text is an empty list. Numbers from `limit` on are refused, so that nobody walks through
    /// four thousand million nodes that a broken file promises.
    ///
    /// # Errors
    /// [`BadList`] with the part that is wrong.
    pub fn parse(text: &str, limit: u32) -> Result<Self, BadList> {
        let mut ranges = Vec::new();
        for part in text.trim().split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let syntax = || BadList::Syntax(excerpt(part));
            let number = |digits: &str| digits.trim().parse::<u32>().map_err(|_| syntax());
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(syntax());
            }
            if last >= limit {
                return Err(BadList::TooHigh { number: last, highest: limit.saturating_sub(1) });
            }
            ranges.push(first..=last);
        }
        Ok(Self::of_ranges(ranges))
    }

    /// Sorts, and joins ranges that touch.
    fn of_ranges(mut ranges: Vec<RangeInclusive<u32>>) -> Self {
        ranges.sort_by_key(|range| *range.start());
        let mut joined: Vec<RangeInclusive<u32>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(last) if *range.start() <= last.end().saturating_add(1) => {
                    *last = *last.start()..=*last.end().max(range.end());
                }
                _ => joined.push(range),
            }
        }
        Self { ranges: joined }
    }

    /// All numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.ranges.iter().cloned().flatten()
    }

    /// All numbers as nodes. Numbers that are no node's are left out.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.iter().take_while(|number| *number < NodeId::LIMIT).filter_map(NodeId::new)
    }

    /// Whether the number is in it.
    #[must_use]
    pub fn contains(&self, number: u32) -> bool {
        self.ranges.iter().any(|range| range.contains(&number))
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many numbers are in it.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.ranges.iter().map(|range| u64::from(range.end() - range.start()) + 1).sum()
    }
}

impl FromIterator<NodeId> for IdList {
    fn from_iter<I: IntoIterator<Item = NodeId>>(nodes: I) -> Self {
        Self::of_ranges(nodes.into_iter().map(|node| node.get()..=node.get()).collect())
    }
}

impl fmt::Display for IdList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.ranges.iter().map(|range| match (range.start(), range.end()) {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        });
        f.pad(&parts.collect::<Vec<_>>().join(","))
    }
}

impl Serialize for IdList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IdList {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text, u32::MAX).map_err(serde::de::Error::custom)
    }
}

/// As much of a text as is fit to be shown: control characters escaped, 40 characters at most.
pub(crate) fn excerpt(text: &str) -> String {
    const SHOWN: usize = 40;
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_displays_itself_as_the_kernel_writes_it() {
        for (text, canonical) in [("", ""), ("0\n", "0"), ("0-1", "0-1"), ("8,0-3", "0-3,8"), ("0,1,2-5,4-9", "0-9")] {
            assert_eq!(IdList::parse(text, 1024).expect("a list").to_string(), canonical);
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in ["x", "1-", "-1", "3-1", "0-3-5", "0x1", "99999999999"] {
            assert!(matches!(IdList::parse(text, 1024), Err(BadList::Syntax(_))), "{text}");
        }
        assert_eq!(IdList::parse("0-4294967295", 1024), Err(BadList::TooHigh { number: u32::MAX, highest: 1023 }));
    }

    #[test]
    fn members_are_counted_and_found() {
        let list = IdList::parse("0-3,8", 1024).expect("a list");
        assert_eq!((list.count(), list.contains(3), list.contains(4)), (5, true, false));
        assert_eq!(list.iter().collect::<Vec<_>>(), [0, 1, 2, 3, 8]);
    }

    #[test]
    fn a_number_that_no_kernel_has_is_no_node() {
        assert_eq!(NodeId::new(1023).map(NodeId::get), Some(1023));
        assert_eq!(NodeId::new(1024), None);
    }
}
