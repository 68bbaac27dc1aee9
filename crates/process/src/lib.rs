//! Moves processes by reference: memory of a process that runs goes into a pool and back, and what is left goes by CRIU.
//!
//! - [`Home`]: a capacity for the memory of one process.
//! - [`Guard`]: watches a process while any of its memory is in the pool, and moves it there and back.
//! - [`hand_over`]: stops a process, has [`Criu`] dump and restore it without that memory, and lets it go on.
//!
//! Linux on x86-64, 6.9 or later; what the process and the kernel must be like is in `docs/processes.md`.
#![deny(unsafe_code)]

mod calls;
mod criu;
mod error;
mod frame;
mod guard;
mod handoff;
mod helper;
mod home;
mod maps;
mod moving;
mod suitable;
mod tracee;

pub use criu::{Criu, Pages};
pub use error::{Error, Result};
pub use guard::{Guard, Leave};
pub use handoff::{HandoffReport, hand_over};
pub use home::Home;
pub use maps::Stays;
pub use moving::MoveReport;
