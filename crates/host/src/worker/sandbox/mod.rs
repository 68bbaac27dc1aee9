//! The sandbox of a worker: what a guest could do that had taken its worker over.
//!
//! A worker puts itself into it when it has opened its pools and its socket, has one thread, and has touched nothing yet
//! that a guest, or another host, could have made. Every thread that it starts later is in it.
//!
//! | Layer | Leaves it |
//! |---|---|
//! | limits and privileges (`privileges.rs`) | no capability, no program that would gain one, no core dump, the lowest real-time priority |
//! | landlock (`files.rs`) | to open: `/dev/kvm`, `/dev/userfaultfd`; to read: its guest's image, and what it must know of itself and the machine |
//! | seccomp (`calls.rs`) | the system calls that it makes, no others: no new socket, program, process, no executable memory |
//!
//! What is open stays usable: the pools, the socket, the log. A pool that its host joins later, the agent opens for it
//! ([`crate::message::WorkerRequest::TakePools`]). A worker that makes another system call is killed
//! at once by the kernel, with `SIGSYS`; nothing else is touched, and its agent says so.
//!
//! A kernel that lacks a layer, or a user that may not use it, has less of it: the [`SandboxReport`] says what is missing.
//! It is for the person to decide, with [`SandboxMode::Required`], that this is not enough.

mod calls;
mod files;
mod privileges;
#[cfg(test)]
mod tests;

use super::WorkerSandbox;
use crate::config::SandboxMode;
use crate::error::{Error, Result};
use crate::report::{SandboxLayer, SandboxReport};
use std::fs;
use std::path::PathBuf;

/// Confines the calling process, which has no other thread yet. There is no way back.
///
/// # Errors
/// A layer is missing and `mode` requires all, or half a layer is in place and must not be taken for a whole.
pub(super) fn confine(wanted: &WorkerSandbox) -> Result<SandboxReport> {
    let WorkerSandbox { mode, readable, groups, lacks } = wanted;
    let mut report = SandboxReport { layers: Vec::new(), missing: lacks.clone() };
    enter(groups, &mut report);
    if *mode == SandboxMode::Off {
        return Ok(report);
    }
    // In this order: landlock and seccomp want no_new_privs, and seccomp forbids what the others need.
    note(&mut report, SandboxLayer::Capabilities, privileges::drop_all()?);
    note(&mut report, SandboxLayer::Landlock, files::restrict(readable)?);
    note(&mut report, SandboxLayer::Seccomp, calls::restrict()?);
    if *mode == SandboxMode::Required && !report.missing.is_empty() {
        return Err(Error::refused(format!(
            "its worker cannot be confined as `sandbox = \"required\"` asks: {}",
            report.missing.join("; ")
        )));
    }
    Ok(report)
}

/// Enters the control groups that the agent has made. Limits are wanted with the sandbox and without it.
fn enter(groups: &[PathBuf], report: &mut SandboxReport) {
    let entered = groups.iter().try_for_each(|group| {
        let processes = group.join("cgroup.procs");
        fs::write(&processes, "0").map_err(|error| Error::io("enter the group by", &processes, error))
    });
    match entered {
        Ok(()) if groups.is_empty() => {}
        Ok(()) => report.layers.push(SandboxLayer::Cgroup),
        Err(error) => report.missing.push(error.story()),
    }
}

/// How much of a layer there is.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Layer {
    Whole,
    /// What it lacks, in a sentence.
    Partial(String),
    /// Why there is none.
    Missing(String),
}

fn note(report: &mut SandboxReport, layer: SandboxLayer, found: Layer) {
    match found {
        Layer::Whole => report.layers.push(layer),
        Layer::Partial(lacks) => {
            report.layers.push(layer);
            report.missing.push(lacks);
        }
        Layer::Missing(why) => report.missing.push(why),
    }
}
