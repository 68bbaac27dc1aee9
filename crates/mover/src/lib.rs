//! Moves live memory between a host's DRAM and the pool while the guest in it runs.
//!
//! - [`GuestMemory`]: a guest's memory in the process that runs it; [`Move`]: a move of it.
//! - [`MovePlan`], [`Budget`]: what is to move, and what it may cost the guest.
//! - [`MoveControl`]: how a move is called off or slowed down from outside.
//! - [`MoveProgress`], [`MoveReport`], [`Stall`]: what became of it.
//! - [`topology`]: what memory the host has; [`numa`]: memory on its nodes, which the kernel moves.
#![deny(unsafe_code)]

mod barrier;
mod chunk;
mod controller;
mod copy;
mod dram;
mod equipment;
mod error;
mod heat;
mod lookout;
mod loss;
mod lost;
mod memory;
mod moving;
pub mod numa;
mod order;
mod pagemap;
mod plan;
mod precedence;
mod rehoming;
mod report;
mod shares;
mod sides;
pub mod topology;
mod turn;
mod undeclared;
mod userfault;

pub use chunk::HOLDER;
pub use error::{Error, Hole, Result};
pub use heat::{Heat, Sampling};
pub use lost::{LostMemory, Waited};
pub use memory::{Closed, GuestMemory, Unreached};
pub use moving::Move;
pub use plan::{Budget, Direction, MoveControl, MovePlan, MoveRange, Pace};
pub use rehoming::NewHome;
pub use report::{ChunkSizes, MoveOutcome, MoveProgress, MoveReport, Stall, StallFigures, StallReason, UndeclaredPin};
pub use shares::fair_shares;
pub use undeclared::{LockedMemory, PinWatch, Undeclared, Undetectable, undeclared_pins};
pub use userfault::Userfault;
