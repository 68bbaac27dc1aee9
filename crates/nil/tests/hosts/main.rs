//! Agents, workers and the commands that talk to them, as real processes.

mod agents;
mod crashes;
mod guests;
#[path = "../kvm/mod.rs"]
mod kvm;
mod playground;
mod refusals;
