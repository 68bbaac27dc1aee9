//! Whether there is memory for what is about to be started.
//!
//! Asked before anything is made: a tmpfs that runs full kills whoever touches the next page with SIGBUS, and a machine
//! that runs out of memory kills somebody else.

use nil_pool::Bytes;
use rustix::fs::statvfs;
use std::path::Path;

/// What agents, workers and the lab itself need besides the pool.
const HEADROOM: u64 = 128 << 20;

/// There is not enough memory.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "this needs {needed} of memory and there is {available} ({measured}); free some, or try a smaller guest with \
     --memory {suggestion}"
)]
pub(crate) struct TooLittle {
    needed: Bytes,
    available: Bytes,
    measured: &'static str,
    suggestion: String,
}

/// What is to be started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    /// Bytes of the guest's memory.
    pub(crate) guest: u64,
    /// Bytes of the pool that holds it.
    pub(crate) pool: u64,
    /// Bytes that are needed beside the pool.
    pub(crate) beside: u64,
}

impl Demand {
    /// Refuses when the machine has too little free memory.
    pub(crate) fn check_machine(self) -> anyhow::Result<()> {
        let meminfo = std::fs::read_to_string("/proc/meminfo")?;
        match available(&meminfo) {
            Some(available) => Ok(self.check(available, "MemAvailable in /proc/meminfo")?),
            None => Ok(()),
        }
    }

    /// Refuses when the file system of `directory` has too little room.
    pub(crate) fn check_file_system(self, directory: &Path) -> anyhow::Result<()> {
        let fs = statvfs(directory)?;
        let free = fs.f_bavail.saturating_mul(fs.f_frsize);
        let without_headroom = Self { pool: self.pool.saturating_sub(HEADROOM), beside: 0, ..self };
        Ok(without_headroom.check(free, "free on the file system of the pool")?)
    }

    fn check(self, available: u64, measured: &'static str) -> Result<(), TooLittle> {
        let needed = self.pool.saturating_add(self.beside).saturating_add(HEADROOM);
        if needed <= available {
            return Ok(());
        }
        Err(TooLittle {
            needed: Bytes(needed),
            available: Bytes(available),
            measured,
            suggestion: suggestion(needed.saturating_sub(self.guest), available),
        })
    }
}

/// `MemAvailable` in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The largest power of two that fits beside the `overhead`, or the smallest guest that makes sense.
fn suggestion(overhead: u64, available: u64) -> String {
    let room = available.saturating_sub(overhead).max(16 << 20);
    let power = 1_u64 << room.ilog2();
    let (count, unit) = if power >= 1 << 30 { (power >> 30, 'G') } else { (power >> 20, 'M') };
    format!("{count}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMAND: Demand = Demand { guest: 4 << 30, pool: (4 << 30) + (64 << 20), beside: 0 };

    #[test]
    fn a_guest_that_fits_is_let_through() {
        assert_eq!(DEMAND.check(5 << 30, "here"), Ok(()));
    }

    #[test]
    fn too_little_memory_is_refused_with_both_numbers_and_a_size_that_fits() {
        let refusal = DEMAND.check(3 << 30, "MemAvailable in /proc/meminfo").expect_err("too little");
        assert_eq!(
            refusal.to_string(),
            "this needs 4.1 GiB of memory and there is 3 GiB (MemAvailable in /proc/meminfo); free some, or try a \
             smaller guest with --memory 2G"
        );
    }

    #[test]
    fn memory_that_lies_beside_the_pool_counts() {
        let demand = Demand { beside: 4 << 30, ..DEMAND };
        assert!(demand.check(5 << 30, "here").is_err());
        assert_eq!(demand.check(9 << 30, "here"), Ok(()));
    }

    #[test]
    fn the_suggestion_is_never_absurd() {
        let refusal = DEMAND.check(0, "here").expect_err("nothing at all");
        assert!(refusal.to_string().ends_with("--memory 16M"), "{refusal}");
    }

    #[test]
    fn a_demand_beyond_all_memory_is_refused_and_does_not_overflow() {
        let demand = Demand { guest: u64::MAX - 1, pool: u64::MAX, beside: u64::MAX };
        assert!(demand.check(1 << 40, "here").is_err());
    }

    #[test]
    fn available_memory_is_read_as_the_kernel_writes_it() {
        let meminfo = "MemTotal:       24684096 kB\nMemFree:          100 kB\nMemAvailable:     2048 kB\n";
        assert_eq!(available(meminfo), Some(2 << 20));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
    }
}
