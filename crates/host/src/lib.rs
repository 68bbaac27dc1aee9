//! A host: the agent that joins pools, one worker process per guest, and the client that talks to them.
#![deny(unsafe_code)]

mod error;
mod name;
mod process;
mod run_dir;
mod wire;

pub use error::{Error, Result};
pub use name::{BadName, GuestName, HostName};
pub use run_dir::{HostDir, RunDir};
