//! Mistakes made on purpose, one at a time, to see that the tests notice.

use super::places::Place;
use crate::persist::Point;
use std::ops::Range;
use std::panic::Location;

/// One thing that is left out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Mutation {
    /// A write-back.
    Forget(Point),
    /// The write-back of the words in these bytes of the pool.
    ForgetWords(Range<u64>),
    /// The dropping of lines in these bytes of the pool before they are looked at.
    Trust(Range<u64>),
    /// The wait for a write-back.
    Hurry(Point),
    /// The fences of a source file.
    LiftFences(&'static str),
    /// The release orderings of a source file.
    Weaken(&'static str),
}

impl Mutation {
    pub(super) fn forgets(&self, point: Point, line: Place) -> bool {
        match self {
            Self::Forget(forgotten) => *forgotten == point,
            Self::ForgetWords(words) => point == Point::Word && words.contains(&line.offset),
            Self::Trust(_) | Self::Hurry(_) | Self::LiftFences(_) | Self::Weaken(_) => false,
        }
    }

    pub(super) fn trusts(&self, line: Place) -> bool {
        matches!(self, Self::Trust(lines) if lines.contains(&line.offset))
    }

    pub(super) fn hurries(&self, point: Point) -> bool {
        *self == Self::Hurry(point)
    }

    pub(super) fn lifts(&self, by: &Location<'_>) -> bool {
        matches!(self, Self::LiftFences(file) if is_in(by, file))
    }

    pub(super) fn weakens(&self, by: &Location<'_>) -> bool {
        matches!(self, Self::Weaken(file) if is_in(by, file))
    }
}

fn is_in(by: &Location<'_>, file: &str) -> bool {
    std::path::Path::new(by.file()).ends_with(file)
}
