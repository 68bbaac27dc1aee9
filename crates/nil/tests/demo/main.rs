//! `nil demo`, `nil bench handoff` and `nil bench move` as a person runs them: as processes, with all that they start and leave behind.
//!
//! Every run has a directory for temporary files of its own, so that what it leaves behind shows. Tests that need KVM say
//! `skipped:` and why on a machine without it.

mod corruption;
#[path = "../kvm/mod.rs"]
mod kvm;
mod leftovers;
mod moves;
mod runs;
mod stage;
