//! The fabric: which hosts share which memory, over what; and the plans that follow from it.
//!
//! ```text
//! TOML, cxl list, live pools, generated ──▶ Fabric ──▶ namespaces(), critical()      what hangs together, and by what
//!                                              │
//!                                              └────▶ Planner ──▶ path(), alternatives()      one guest from A to Z
//!                                                             ──▶ drain(), rebalance()        many guests, in waves
//! ```
//!
//! Two hosts are *neighbours by reference* when both reach one memory device over links whose memory can be shared: a
//! guest whose memory lies there goes from one to the other by a handoff, and nothing is copied. Between hosts that are
//! not neighbours it goes by several handoffs, and at each host between two of them its memory is relocated from one
//! device to the next.
//!
//! Host–host edges are never written out: there would be a quadratic number of them. Everything works on hosts,
//! devices and *switch clusters* (switches that reach each other), whose edges are the links of the fabric.
//!
//! Pure: no I/O, no clock, no randomness that is not seeded. The same fabric gives the same answers, in the same order.

#![forbid(unsafe_code)]

mod alternatives;
mod cost;
mod critical;
mod cxl;
mod depth_first;
mod drain;
mod draw;
mod error;
mod explain;
mod generate;
mod guest;
mod ledger;
mod model;
mod name;
mod namespaces;
mod path;
mod plan;
mod planner;
mod pools;
mod quantity;
mod rebalance;
mod routes;
mod rows;
mod schedule;
mod schema;
mod search;
mod sharing;
#[cfg(test)]
mod testing;

pub use cost::{Copied, Copying, Cost, CostModel, Limit, Measured, Relocation};
pub use critical::{Critical, Element, Part};
pub use draw::{Picture, what_splits};
pub use error::{Error, Result};
pub use generate::Shape;
pub use guest::{Guest, Limits, Memory};
pub use model::{Builder, Device, DeviceId, Fabric, Host, HostId, Link, LinkId, Node, Switch, SwitchId};
pub use name::{Name, PoolUuid};
pub use namespaces::{Namespace, Namespaces};
pub use path::{Begin, End, Leg, Path, PathRequest, Step};
pub use plan::{Evenness, Left, Move, Plan, Wave};
pub use planner::Planner;
pub use pools::{LiveHost, LivePool};
pub use quantity::{Bytes, Duration, Rate};
pub use rebalance::{Balance, Rebalance};
pub use routes::Route;
