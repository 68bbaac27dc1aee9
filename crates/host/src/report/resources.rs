//! What a host has for guests, for those who plan.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a host has, and how much of that is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Resources {
    /// Its CPUs.
    pub cpus: u32,
    /// The part of them that was busy in the last minute, in thousandths.
    pub load_permille: u32,
    /// Bytes of its DRAM.
    pub dram_bytes: u64,
    /// Bytes of that which guests could still have.
    pub free_dram_bytes: u64,
    /// Bytes per second at which guests' memory went from its DRAM into pools lately, at the default budget; `None` when
    /// nothing was measured.
    #[serde(default)]
    pub into_pool: Option<u64>,
    /// The same for the way out of pools.
    #[serde(default)]
    pub out_of_pool: Option<u64>,
}
