//! What a process costs, as the kernel tells.

use anyhow::Context;
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// What a process has used and holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Vitals {
    /// Time of all its threads on a CPU, since it began.
    pub(crate) cpu: Duration,
    pub(crate) threads: u64,
    pub(crate) open_files: usize,
}

/// What of a process's memory is in use, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Footprint {
    /// Nobody else's.
    pub(crate) private: u64,
    /// Its part of what it shares with others: programs, and pools.
    pub(crate) proportional: u64,
}

impl Vitals {
    /// Of a living process.
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the process has ended")?;
        let (cpu, threads) = read_stat(&stat, rustix::param::clock_ticks_per_second())
            .with_context(|| format!("/proc/{pid}/stat is not what it should be"))?;
        Ok(Self { cpu, threads, open_files: fs::read_dir(format!("/proc/{pid}/fd"))?.count() })
    }
}

/// Time on a CPU of each kind of thread of a living process, by the threads' name. A thread that has ended is not counted.
pub(crate) fn cpu_by_thread(pid: u32) -> anyhow::Result<BTreeMap<String, Duration>> {
    let mut times = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("the process has ended")? {
        let task = task?.path();
        // One that ends just now has no name and no time.
        let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
        let schedstat = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
        let nanoseconds = schedstat.split_ascii_whitespace().next().and_then(|field| field.parse().ok()).unwrap_or(0);
        *times.entry(name.trim().to_owned()).or_default() += Duration::from_nanos(nanoseconds);
    }
    Ok(times)
}

impl Footprint {
    /// Of a living process.
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("the process has ended")?;
        Ok(read_rollup(&rollup))
    }
}

/// Time on a CPU, and threads: fields 14, 15 and 20 of `/proc/PID/stat`. Field 2, the name, may hold spaces and
/// parentheses, so count from its end.
fn read_stat(stat: &str, ticks_per_second: u64) -> Option<(Duration, u64)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number.checked_sub(3)?)?.parse::<u64>().ok();
    let ticks = field(14)?.checked_add(field(15)?)?;
    let cpu = Duration::from_nanos(ticks.checked_mul(1_000_000_000 / ticks_per_second.max(1))?);
    Some((cpu, field(20)?))
}

fn read_rollup(rollup: &str) -> Footprint {
    let bytes = |name: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        kib.unwrap_or(0).saturating_mul(1024)
    };
    Footprint { private: bytes("Private_Clean") + bytes("Private_Dirty"), proportional: bytes("Pss") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_and_threads_are_found_behind_a_hostile_name() {
        let stat = "7 (a) R (b) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 9 0 12 1000 200";
        assert_eq!(read_stat(stat, 100), Some((Duration::from_secs(2), 9)));
        assert_eq!(read_stat("7 (cut) S 1", 100), None);
    }

    #[test]
    fn memory_is_read_as_the_kernel_writes_it() {
        let rollup =
            "5500-7ffe ---p 0 00:00 0 [rollup]\nRss: 9 kB\nPss:  4 kB\nPrivate_Clean: 1 kB\nPrivate_Dirty: 2 kB\n";
        assert_eq!(read_rollup(rollup), Footprint { private: 3 << 10, proportional: 4 << 10 });
        assert_eq!(read_rollup(""), Footprint::default());
    }

    #[test]
    fn this_process_has_used_some_time_and_has_some_files_open() {
        let vitals = Vitals::of(std::process::id()).expect("it lives");
        assert!(vitals.threads >= 1 && vitals.open_files >= 3, "{vitals:?}");
        assert!(Footprint::of(std::process::id()).expect("it lives").private > 0);
        let times = cpu_by_thread(std::process::id()).expect("it lives");
        assert!(times.values().any(|time| !time.is_zero()), "{times:?}");
    }
}
