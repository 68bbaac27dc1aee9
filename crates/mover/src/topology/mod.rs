//! What memory a host has.

mod ids;

pub use ids::{BadList, IdList, NodeId};
