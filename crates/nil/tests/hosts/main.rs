//! Agents, workers and the commands that talk to them, as real processes.

mod agents;
mod crashes;
mod guests;
mod playground;
mod refusals;
