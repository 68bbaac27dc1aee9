//! nil's pool.
mod ownership;
pub mod sync;
pub use ownership::{BadOwnership, Epoch, HostSlot, Ownership, OwnershipWord};
