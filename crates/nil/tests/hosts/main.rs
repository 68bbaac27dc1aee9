//! Agents, workers and the commands that talk to them, as real processes.

mod agents;
mod capacities;
mod certificates;
mod compatibility;
mod configuration;
mod crashes;
mod drains;
mod guests;
mod holds;
mod hops;
mod http;
mod jobs;
mod journeys;
#[path = "../kvm/mod.rs"]
mod kvm;
mod losses;
mod move_crashes;
mod moves;
mod networks;
mod playground;
mod protections;
mod refusals;
mod rehomings;
mod routes;
mod sandboxes;
mod seeing;
mod silences;
mod standstills;
mod stripes;
mod takeovers;
mod topo;
mod two_pools;
mod witness;
