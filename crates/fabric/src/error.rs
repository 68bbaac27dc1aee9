//! What can be wrong with a fabric, or with what is asked of it.

use crate::name::Name;
use crate::quantity::Bytes;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// What was wrong, with what, and what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A text that is not of the form that was expected.
    #[error("{what}: {why}")]
    Unreadable {
        /// The text: what it is, or where in it.
        what: String,
        /// What is wrong there.
        why: String,
    },
    /// A text that cannot be a name.
    #[error("`{text}` cannot be a name: {why}")]
    BadName {
        /// The text, cut short.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two things of one name.
    #[error("there are two things named {name}: hosts, switches and devices need names of their own")]
    Duplicate {
        /// The name.
        name: Name,
    },
    /// A name that nothing has.
    #[error("there is no {thing} named {name}{known}")]
    Unknown {
        /// What was looked for.
        thing: &'static str,
        /// The name.
        name: String,
        /// What there is instead, as half a sentence.
        known: String,
    },
    /// A link between things that cannot be linked.
    #[error("a link between {a} and {b}: {why}")]
    BadLink {
        /// One end.
        a: Name,
        /// The other end.
        b: Name,
        /// Why not.
        why: &'static str,
    },
    /// A figure that cannot be.
    #[error("{name}: {what}")]
    Implausible {
        /// Whose figure it is.
        name: Name,
        /// Which, and why it cannot be.
        what: String,
    },
    /// More of something than this crate takes.
    #[error("{found} {things}, and at most {most} are taken")]
    TooMany {
        /// Of what.
        things: &'static str,
        /// How many there are.
        found: u64,
        /// How many may be.
        most: u64,
    },
    /// No way from one host to another.
    #[error("no way for a guest of {memory} from {from} to {to}: {why}")]
    NoWay {
        /// Where the guest runs.
        from: Name,
        /// Where it was to go.
        to: Name,
        /// Its memory.
        memory: Bytes,
        /// What is in the way.
        why: String,
    },
}
