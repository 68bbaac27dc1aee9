//! Drives QEMU virtual machines over QMP: the peer that the benchmark measures nil against.
//!
//! A [`Peer`] is a guest that QEMU runs under KVM. It is handed from one QEMU process to the next, by QEMU's own means:
//! by reference (`memory-backend-file,share=on` and `x-ignore-shared`: both processes map the same file), by pre-copy or by
//! post-copy (the destination has a file of its own). The guest is the very image that nil boots, and it keeps its figures in its own
//! memory. This crate does not know them: it says which file the memory is, and between which two instants nobody ran.
//!
//! ```text
//! process    one QEMU process: started, killed and reaped on drop
//! qmp        the protocol on its control socket
//! migration  from one process to another
//! clock      QEMU's time stamps in the caller's clock
//! peer       a guest that is handed on and on
//! ```

#![forbid(unsafe_code)]

mod clock;
mod error;
mod migration;
mod peer;
mod process;
mod qmp;

pub use error::{Error, Result};
pub use migration::Transfer;
pub use peer::{Acceleration, Peer, PeerOptions, PeerSample, Stage, peer_sample};
pub use process::{Machine, Qemu};
pub use qmp::{Event, Qmp};
