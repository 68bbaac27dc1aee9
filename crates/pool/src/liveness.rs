//! Whether a host's process lives.
//!
//! On the kernel where it runs this is exact: a process is its id and its start time, and it is dead when no such
//! process is there (or only its zombie). Of a process of another kernel, or of another pid namespace, nothing can be
//! known from here but that its lease counts up.

use crate::error::{Error, Result};
use rustix::process::Pid;
use std::path::{Path, PathBuf};

/// What is known about a host.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Liveness {
    /// Its process runs on this kernel.
    Alive,
    /// Its process is gone for sure.
    Dead,
    /// It runs on another kernel; only its lease tells.
    Unknown,
}

/// A process, told apart from every other one that ever was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ProcessIdentity {
    /// Boot id of the kernel, with the inode number of the pid namespace XORed into its last eight bytes.
    pub(crate) kernel: [u8; 16],
    /// Start time in clock ticks since boot.
    pub(crate) started: u64,
    /// Process id in its namespace.
    pub(crate) pid: u32,
}

const PID_BITS: u32 = 22;
const START_BITS: u32 = 22;
const KERNEL_BITS: u32 = 20;

impl ProcessIdentity {
    /// This process.
    pub(crate) fn current() -> Result<Self> {
        let pid = std::process::id();
        let path = PathBuf::from("/proc/self/stat");
        let stat = std::fs::read_to_string(&path).map_err(|source| Error::NoIdentity { path: path.clone(), source })?;
        let malformed = || Error::NoIdentity { path, source: std::io::ErrorKind::InvalidData.into() };
        let (_, started) = parse_stat(&stat).ok_or_else(malformed)?;
        Ok(Self { kernel: current_kernel()?, started, pid })
    }

    /// Folds the identity into the 64 bits of a claim word; never 0, because no process has pid 0.
    pub(crate) fn claim_word(&self) -> u64 {
        let kernel = u64::from(crc32c::crc32c(&self.kernel)) & mask(KERNEL_BITS);
        let started = self.started & mask(START_BITS);
        kernel << (START_BITS + PID_BITS) | started << PID_BITS | u64::from(self.pid) & mask(PID_BITS)
    }

    /// Whether this process, seen from `here`, lives.
    pub(crate) fn liveness(&self, here: &Self) -> Liveness {
        if self.kernel != here.kernel {
            return Liveness::Unknown;
        }
        match process_start(self.pid) {
            Process::Gone => Liveness::Dead,
            Process::Started(started) if started == self.started => Liveness::Alive,
            Process::Started(_) => Liveness::Dead,
            Process::Hidden => Liveness::Unknown,
        }
    }
}

/// Whether the process of a claim word lives, seen from `here`; for slots whose record is not written yet.
pub(crate) fn claim_liveness(claim: u64, here: &ProcessIdentity) -> Liveness {
    if claim >> (START_BITS + PID_BITS) != here.claim_word() >> (START_BITS + PID_BITS) {
        return Liveness::Unknown;
    }
    let pid = u32::try_from(claim & mask(PID_BITS)).unwrap_or(0);
    match process_start(pid) {
        Process::Gone => Liveness::Dead,
        Process::Started(started) if started & mask(START_BITS) == claim >> PID_BITS & mask(START_BITS) => {
            Liveness::Alive
        }
        Process::Started(_) => Liveness::Dead,
        Process::Hidden => Liveness::Unknown,
    }
}

const fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

enum Process {
    Gone,
    Started(u64),
    Hidden,
}

fn process_start(pid: u32) -> Process {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    match stat.ok().as_deref().map(parse_stat) {
        Some(Some((b'Z' | b'X' | b'x', _))) => Process::Gone,
        Some(Some((_, started))) => Process::Started(started),
        // /proc may be mounted so that it hides other users' processes; a signal test tells whether there is one.
        Some(None) | None => {
            match i32::try_from(pid).ok().and_then(Pid::from_raw).map(rustix::process::test_kill_process) {
                None | Some(Err(rustix::io::Errno::SRCH)) => Process::Gone,
                Some(_) => Process::Hidden,
            }
        }
    }
}

/// State and start time of `/proc/PID/stat` (proc(5), fields 3 and 22); the command in parentheses may hold anything.
fn parse_stat(stat: &str) -> Option<(u8, u64)> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?.bytes().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

fn current_kernel() -> Result<[u8; 16]> {
    let path = PathBuf::from("/proc/sys/kernel/random/boot_id");
    let boot = std::fs::read_to_string(&path).map_err(|source| Error::NoIdentity { path: path.clone(), source })?;
    let boot = uuid::Uuid::parse_str(boot.trim())
        .map_err(|_| Error::NoIdentity { path, source: std::io::ErrorKind::InvalidData.into() })?;
    let path = PathBuf::from("/proc/self/ns/pid");
    let namespace = std::fs::metadata(&path).map_err(|source| Error::NoIdentity { path, source })?;
    let namespace = std::os::unix::fs::MetadataExt::ino(&namespace);
    Ok((boot.as_u128() ^ u128::from(namespace)).to_be_bytes())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives() {
        let me = ProcessIdentity::current().expect("an identity");
        assert_eq!(me.liveness(&me), Liveness::Alive);
        assert_eq!(claim_liveness(me.claim_word(), &me), Liveness::Alive);
    }

    #[test]
    fn a_process_id_that_was_given_to_another_process_is_dead() {
        let me = ProcessIdentity::current().expect("an identity");
        let former = ProcessIdentity { started: me.started + 1, ..me };
        assert_eq!(former.liveness(&me), Liveness::Dead);
        assert_eq!(claim_liveness(former.claim_word(), &me), Liveness::Dead);
    }

    #[test]
    fn a_killed_child_is_dead_before_and_after_it_is_reaped() {
        let me = ProcessIdentity::current().expect("an identity");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("a child");
        let Process::Started(started) = process_start(child.id()) else { panic!("the child lives") };
        let identity = ProcessIdentity { kernel: me.kernel, started, pid: child.id() };
        assert_eq!(identity.liveness(&me), Liveness::Alive);
        child.kill().expect("it can be killed");
        while identity.liveness(&me) == Liveness::Alive {
            std::thread::yield_now();
        }
        assert_eq!(identity.liveness(&me), Liveness::Dead);
        child.wait().expect("it can be reaped");
        assert_eq!(identity.liveness(&me), Liveness::Dead);
    }

    #[test]
    fn of_another_kernel_nothing_is_known() {
        let me = ProcessIdentity::current().expect("an identity");
        let elsewhere = ProcessIdentity { kernel: [7; 16], ..me };
        assert_eq!(elsewhere.liveness(&me), Liveness::Unknown);
        assert_eq!(claim_liveness(elsewhere.claim_word(), &me), Liveness::Unknown);
    }

    #[test]
    fn a_command_with_parentheses_does_not_confuse_the_start_time() {
        let stat = "12 (a) b) R 1 1 1 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1";
        assert_eq!(parse_stat(stat), Some((b'R', 4711)));
    }
}
