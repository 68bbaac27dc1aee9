//! Moves live memory between a host's DRAM and the pool while the guest in it runs.
//!
//! - [`MovePlan`], [`Budget`]: what is to move, and what it may cost the guest.
//! - [`MoveControl`]: how a move is called off or slowed down from outside.
//! - [`MoveProgress`], [`MoveReport`], [`Stall`]: what became of it.
//! - [`topology`]: what memory the host has; [`numa`]: memory on its nodes, which the kernel moves.
#![deny(unsafe_code)]

mod controller;
mod loss;
pub mod numa;
mod order;
mod plan;
mod report;
mod shares;
mod undeclared;
pub mod topology;

pub use plan::{Budget, Direction, MoveControl, MovePlan, MoveRange, Pace};
pub use report::{ChunkSizes, MoveOutcome, MoveProgress, MoveReport, Stall, StallFigures, StallReason, UndeclaredPin};
pub use shares::fair_shares;
pub use undeclared::{LockedMemory, PinWatch, Undeclared, Undetectable, undeclared_pins};
