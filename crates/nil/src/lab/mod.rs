//! A rack of two hosts on this machine, for the demo, the benchmark and tests; and the instruments to measure with.
//!
//! ```text
//! Rack                  a pool on fleeting ground, a keeper, two agents
//!   ├ ground, memory    where the pool lies, whether there is room for it
//!   └ keeper            ends all processes of the rack, whatever happens
//! Shuttle               a guest on that rack, moved to and fro through the real agents and workers
//!   ├ observe, gaps     the blackout as the guest recorded it
//!   ├ view              the guest's memory, wherever it lies
//!   ├ pulse             its work and its pauses, millisecond by millisecond
//!   ├ backing           bytes copied, as the kernel sees it
//!   ├ verdict           what the guest says of its own memory and registers
//!   └ phases, figures   samples, medians, percentiles
//! Traveller             a guest whose memory goes between DRAM and pool with it
//!   ├ overhead          what nil itself takes for it
//!   └ yardstick         what a plain memcpy of as many bytes takes
//! Fleet                 several hosts, several pools
//!   ├ prey, vitals      the processes of it: to be killed, to be weighed
//!   ├ census            which guest runs where, and in which process, by everybody who knows
//!   ├ chronicle         what has happened to it
//!   ├ errand            an order to migrate, called off or not, and how it ended
//!   └ resident          a guest that rests most of the time, so that many fit
//! canary                whether the machine itself stood still meanwhile
//! ```
//!
//! Nothing here takes part in a handoff. The hosts of a rack run the same agents and workers as any other host.

pub(crate) mod backing;
pub(crate) mod canary;
pub(crate) mod census;
pub(crate) mod chronicle;
pub(crate) mod counters;
pub(crate) mod dice;
pub(crate) mod errand;
pub(crate) mod figures;
mod file_view;
pub(crate) mod fleet;
pub(crate) mod frequency;
pub(crate) mod gaps;
pub(crate) mod ground;
pub(crate) mod histogram;
pub(crate) mod interrupt;
pub(crate) mod keeper;
pub(crate) mod lock;
mod memory;
pub(crate) mod observe;
pub(crate) mod overhead;
pub(crate) mod phases;
pub(crate) mod prey;
pub(crate) mod progress;
pub(crate) mod pulse;
mod rack;
pub(crate) mod recorder;
pub(crate) mod resident;
pub(crate) mod shuttle;
pub(crate) mod soundness;
pub(crate) mod surroundings;
pub(crate) mod tally;
pub(crate) mod traveller;
pub(crate) mod verdict;
pub(crate) mod view;
pub(crate) mod vitals;
pub(crate) mod yardstick;

pub(crate) use rack::{PoolFate, Rack, RackPlan, Reach, Side};
pub(crate) use shuttle::{GuestPlan, Shuttle};
