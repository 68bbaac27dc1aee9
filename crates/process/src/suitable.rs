//! Whether a process can be moved by reference at all; asked before anything is done to it.

use crate::error::{Error, Result};
use std::fs;

/// `O_DIRECT` in `/proc/PID/fdinfo`.
const DIRECT: u32 = 0o40000;

pub(crate) fn refused(pid: i32, why: &str) -> Error {
    Error::Refused { pid, why: why.to_owned() }
}

/// # Errors
/// [`Error::Refused`] with the first reason against it; [`Error::Gone`].
pub(crate) fn check(pid: i32) -> Result<()> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(|_| Error::Gone { pid })?;
    let is = |name, values: &[&str]| field(&status, name).is_none_or(|value| values.contains(&value));
    if !is("Tgid:", &[&pid.to_string()]) {
        return Err(refused(pid, "it is a thread; name the process"));
    }
    if !is("TracerPid:", &["0"]) {
        return Err(refused(pid, "somebody else traces it; end that (strace, a debugger)"));
    }
    if !is("Seccomp:", &["0"]) {
        return Err(refused(pid, "it has a seccomp filter, which might kill it for nil's system calls"));
    }
    if field(&status, "State:").is_some_and(|state| state.starts_with(['Z', 'X', 'T'])) {
        return Err(refused(pid, "it is stopped, or has ended; continue it"));
    }
    if field(&status, "x86_Thread_features:").is_some_and(|features| features.contains("shstk")) {
        return Err(refused(pid, "it has a shadow stack"));
    }
    descriptors(pid)
}

fn descriptors(pid: i32) -> Result<()> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"));
    let entries =
        entries.map_err(|error| refused(pid, &format!("its descriptors cannot be read: {error}; run as root")))?;
    for entry in entries.flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        if ["io_uring", "userfaultfd"].iter().any(|kind| target.to_string_lossy().contains(kind)) {
            return Err(refused(pid, &format!("it has {} open, which holds on to its pages", target.display())));
        }
        let number = entry.file_name();
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", number.to_string_lossy())).unwrap_or_default();
        let flags = field(&info, "flags:").and_then(|flags| u32::from_str_radix(flags, 8).ok());
        if flags.is_some_and(|flags| flags & DIRECT != 0) {
            return Err(refused(
                pid,
                &format!("it has {} open with O_DIRECT, which writes behind page tables", target.display()),
            ));
        }
    }
    Ok(())
}

/// What stands behind a name in a file of `/proc`.
pub(crate) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}
