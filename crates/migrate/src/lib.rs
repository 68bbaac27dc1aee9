//! How a guest changes hosts by reference: the protocol, who acts when, and what becomes of a guest whose host died.
//!
//! - [`protocol`]: pure. Which change of the ownership word is legal, who may make it, what each side does next.
//! - [`recovery`]: pure. What to do with a guest whose workers or hosts died. [`rescue`] carries it out.
//! - [`rehoming`]: pure. Which of a guest's two records counts while its home moves from one pool to another.
//! - [`Source`], [`Target`]: the drivers, shared by a worker's vCPU threads and its coordinator thread.
//! - [`Part`]: what the drivers know of a guest. This crate has no knowledge of any one kind of guest.
//! - [`HandoffReport`]: what a handoff cost.
//!
//! The page `docs/handoff.md` tells the whole story; the table of crash points stands in [`protocol`].
#![deny(unsafe_code)]

pub mod countdown;
mod error;
pub mod gate;
mod part;
pub mod protocol;
pub mod recovery;
pub mod rehoming;
mod report;
pub mod rescue;
pub mod source;
pub mod target;
pub mod tsc;

/// The version of the handoff protocol: what the words in the pool mean to both sides, and who does what next.
pub const PROTOCOL_VERSION: u32 = 1;

pub use error::{Error, Result};
pub use part::Part;
pub use protocol::Handoff;
pub use recovery::{Liveness, Resolution, recover};
pub use report::{HandoffReport, Phases};
pub use source::{Freeze, Outcome, Reason, Source, Ticket};
pub use target::{Landing, Preload, Refusal, Seat, Target, TornDown, WaitStyle};
