//! What this machine has: all hosts on it have the same.

use super::free_dram;
use crate::report::Resources;
use std::fs;
use std::num::NonZero;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// More CPUs than any machine has.
const MOST_CPUS: u32 = 1 << 16;

/// For how long the kernel is not asked again: it adds up a lot to tell it.
const FRESH: Duration = Duration::from_millis(200);

/// This machine, as it was lately.
#[derive(Debug, Default)]
pub(crate) struct Machine(Mutex<Option<(Instant, Resources)>>);

impl Machine {
    /// What it has, or had a moment ago.
    pub(crate) fn resources(&self) -> Resources {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *asked {
            Some((at, resources)) if at.elapsed() < FRESH => resources,
            _ => asked.insert((Instant::now(), Resources::of_this_machine())).1,
        }
    }
}

impl Resources {
    /// Those of this machine, now.
    #[must_use]
    pub(crate) fn of_this_machine() -> Self {
        let cpus = thread::available_parallelism().map_or(1, NonZero::get);
        let cpus = u32::try_from(cpus).unwrap_or(u32::MAX).clamp(1, MOST_CPUS);
        let dram_bytes = kib_of(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal:");
        let load = load_of(&fs::read_to_string("/proc/loadavg").unwrap_or_default());
        Self {
            cpus,
            load_permille: permille(load, cpus),
            dram_bytes,
            free_dram_bytes: free_dram().min(dram_bytes),
            into_pool: None,
            out_of_pool: None,
        }
    }

    /// What somebody else has told, as far as it is possible at all.
    pub(crate) fn plausible(self) -> Self {
        let dram_bytes = self.dram_bytes.min(1 << 60);
        let rate = |rate: Option<u64>| rate.filter(|rate| *rate > 0).map(|rate| rate.min(1 << 60));
        Self {
            cpus: self.cpus.clamp(1, MOST_CPUS),
            load_permille: self.load_permille.min(1000),
            dram_bytes,
            free_dram_bytes: self.free_dram_bytes.min(dram_bytes),
            into_pool: rate(self.into_pool),
            out_of_pool: rate(self.out_of_pool),
        }
    }

    /// The busy part of its CPUs, 0 to 1.
    pub(crate) fn load(&self) -> f64 {
        f64::from(self.load_permille) / 1000.0
    }
}

/// A line of `/proc/meminfo`, in bytes.
fn kib_of(meminfo: &str, key: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024).min(1 << 60)
}

/// How many tasks were running in the last minute.
fn load_of(loadavg: &str) -> f64 {
    let first = loadavg.split_whitespace().next();
    first.and_then(|number| number.parse().ok()).filter(|load: &f64| load.is_finite()).unwrap_or(0.0)
}

fn permille(load: f64, cpus: u32) -> u32 {
    // Between 0 and 1000.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let permille = (load / f64::from(cpus.max(1)) * 1000.0).round().clamp(0.0, 1000.0) as u32;
    permille
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_tells_is_read_and_nonsense_is_nothing() {
        assert_eq!(kib_of("MemTotal:       16 kB\nMemFree: 1 kB\n", "MemTotal:"), 16 << 10);
        assert_eq!(kib_of("MemTotal: x", "MemTotal:"), 0);
        assert_eq!((load_of("1.5 1 1"), load_of(""), load_of("nan 1")), (1.5, 0.0, 0.0));
        assert_eq!((permille(1.5, 4), permille(9.0, 4), permille(-1.0, 4)), (375, 1000, 0));
    }

    #[test]
    fn this_machine_has_something_and_what_others_tell_is_bounded() {
        let here = Resources::of_this_machine();
        assert!(here.cpus > 0 && here.dram_bytes >= here.free_dram_bytes && here.free_dram_bytes > 0, "{here:?}");
        assert_eq!(here.plausible(), here);
        let told = Resources {
            cpus: 0,
            load_permille: u32::MAX,
            dram_bytes: 1,
            free_dram_bytes: 2,
            into_pool: Some(0),
            out_of_pool: Some(u64::MAX),
        };
        let possible = Resources {
            cpus: 1,
            load_permille: 1000,
            dram_bytes: 1,
            free_dram_bytes: 1,
            into_pool: None,
            out_of_pool: Some(1 << 60),
        };
        assert_eq!(told.plausible(), possible);
    }
}
