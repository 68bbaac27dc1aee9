//! Limits and privileges.
//!
//! A worker needs no capability:
//! - the mover's real-time priority ([`nil_mover`], `precedence.rs`) comes from `RLIMIT_RTPRIO` of 1. Only where that cannot be
//!   raised, and the worker has `CAP_SYS_NICE`, does that stay (for the worker's own threads: so says the call filter);
//! - `/dev/userfaultfd` is opened by its file permissions. Only where there is none, and the kernel gives userfaultfds to
//!   privileged processes alone, does `CAP_SYS_PTRACE` stay (`ptrace` itself is forbidden by the system call filter);
//! - policies and moves of its own pages among NUMA nodes need none.

use super::Layer;
use crate::error::{Error, Result};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};
use std::fs::{self, OpenOptions};

/// Lowers limits and gives every privilege up.
pub(super) fn drop_all() -> Result<Layer> {
    let failed = |errno: Errno| Error::io("confine", "/proc/self", errno.into());
    // A guest's memory must not end in a file.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).map_err(failed)?;
    let by_limit = permit_lowest_priority();
    set_no_new_privs(true).map_err(failed)?;
    let mut kept = needed();
    let held = capabilities(None).map_err(failed)?;
    if !by_limit {
        kept |= held.effective & CapabilitySet::SYS_NICE;
    }
    if held.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().difference(kept).iter() {
            match remove_capability_from_bounding_set(capability) {
                // This kernel does not know it.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }
    match clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let (effective, permitted) = (held.effective & kept, held.permitted & kept);
    let sets = CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(failed)?;
    Ok(Layer::Whole)
}

/// Lets the mover go first as far as it does; whether a limit of this process allows that now.
fn permit_lowest_priority() -> bool {
    setrlimit(Resource::Rtprio, Rlimit { current: Some(1), maximum: Some(1) }).is_ok()
}

/// The capabilities without which guests' memory could not be moved here.
fn needed() -> CapabilitySet {
    let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd");
    let for_all = fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").is_ok_and(|text| text.trim() == "1");
    if device.is_ok() || for_all { CapabilitySet::empty() } else { CapabilitySet::SYS_PTRACE }
}
