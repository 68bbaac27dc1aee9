//! The agent's HTTP API.
//!
//! ```text
//! server     sockets, connections, who calls                      limits     what a caller may use up
//! router     which request goes where, and who may ask it         roles      who may ask what
//! request    bodies and paths, bounded and understood             calls      from a request to the agent's threads and back
//! guests, moves, jobs, peers, …   one resource each
//! ```
//!
//! Nothing of this is on the path of a handoff, and no guest depends on it. Requests are served by one thread; what they
//! ask of the agent is done by others, so that nobody waits for anybody else's order. Every refusal is a [`Problem`].
//!
//! [`Problem`]: crate::problem::Problem

mod calls;
mod events;
mod guests;
mod host;
mod jobs;
mod limits;
mod metrics;
mod moves;
mod offers;
mod openapi;
mod patience;
mod peers;
mod placement;
mod problem;
mod rates;
mod request;
mod roles;
mod router;
mod server;
mod strict;
mod web;

pub use openapi::description;
pub(crate) use server::{Sockets, serve};
