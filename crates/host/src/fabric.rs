//! The fabric as the living hosts make it: who has joined which pool.
//!
//! Hosts of this machine are known by their agents, and all of them have this machine's CPUs and DRAM. Hosts of other
//! machines are known by the pools' host tables, which tell their names and whether they are cordoned, and no more: they
//! count as hosts with one CPU and no DRAM, so that no plan relies on them for more than a handoff.

use crate::name::HostName;
use crate::report::{HostReport, PoolReport};
use crate::survey::Survey;
use nil_fabric::{Bytes, Fabric, Host, LiveHost, LivePool, Name, PoolUuid, Result};
use nil_pool::{Access, HostId, HostInfo, HostKind, Liveness, Pool, PoolId};
use std::collections::BTreeMap;
use std::fs;
use std::num::NonZero;
use std::thread;

/// Puts together what the hosts of a survey have joined.
///
/// # Errors
/// Two hosts, or a host and a pool, have the same name.
pub fn live_fabric(survey: &Survey) -> Result<Fabric> {
    let load = Machine::this().load;
    fabric_of(survey, |_, _| load)
}

/// The same, with hosts of this machine as busy as `load` says: the part of so many CPUs, 0 to 1.
pub(crate) fn fabric_of(survey: &Survey, load: impl Fn(&HostName, u32) -> f64) -> Result<Fabric> {
    let mut pools: BTreeMap<PoolId, &PoolReport> = BTreeMap::new();
    for pool in survey.hosts.iter().flat_map(|host| &host.pools) {
        pools.entry(pool.id).or_insert(pool);
    }
    let tables: BTreeMap<PoolId, Vec<HostInfo>> =
        pools.values().filter_map(|pool| Some((pool.id, host_table(pool)?))).collect();
    let cordoned = |id: HostId| tables.values().flatten().any(|host| host.id == id && host.cordoned);
    let machine = Machine::this();
    let mut hosts: BTreeMap<String, LiveHost> = BTreeMap::new();
    for report in &survey.hosts {
        let load = load(&report.name, machine.cpus).clamp(0.0, 1.0);
        let host = machine.host(report.name.as_str().parse()?, load, report.id.is_some_and(cordoned));
        let pools = report.pools.iter().map(|pool| uuid(pool.id)).collect::<Result<_>>()?;
        hosts.insert(report.name.to_string(), LiveHost { host, pools });
    }
    for (pool, table) in &tables {
        for entry in table.iter().filter(|entry| lives_elsewhere(entry, survey)) {
            let Ok(name) = entry.name.parse::<Name>() else { continue };
            let unknown = || LiveHost { host: elsewhere(name.clone(), entry.cordoned), pools: Vec::new() };
            hosts.entry(entry.name.clone()).or_insert_with(unknown).pools.push(uuid(*pool)?);
        }
    }
    let taken: Vec<String> = hosts.keys().cloned().collect();
    let hosts: Vec<LiveHost> = hosts.into_values().collect();
    let mut described: Vec<LivePool> = Vec::new();
    for pool in pools.values() {
        let name =
            pool_name(pool, |name| taken.contains(&name.to_string()) || described.iter().any(|one| one.name == *name));
        let size = Bytes(pool.total_bytes.max(pool.free_bytes));
        described.push(LivePool { id: uuid(pool.id)?, name: name?, size, free: Bytes(pool.free_bytes) });
    }
    Fabric::from_pools(&hosts, &described)
}

/// The hosts that a pool knows; nothing if it cannot be looked at from here.
fn host_table(pool: &PoolReport) -> Option<Vec<HostInfo>> {
    Pool::open(&pool.path, Access::ReadOnly).ok().filter(|open| open.id() == pool.id).map(|open| open.hosts())
}

fn lives_elsewhere(entry: &HostInfo, survey: &Survey) -> bool {
    // One of this machine whose agent does not run has no identity that we could ask for.
    let is_it = |host: &HostReport| host.id == Some(entry.id) || host.name.as_str() == entry.name;
    let known = survey.hosts.iter().any(is_it);
    !known && entry.kind == HostKind::Agent && entry.liveness != Liveness::Dead && entry.damage.is_none()
}

fn elsewhere(name: Name, cordoned: bool) -> Host {
    Host { name, rack: None, cpus: 1, dram: Bytes(0), dram_free: Bytes(0), load: 0.0, cordoned }
}

fn uuid(pool: PoolId) -> Result<PoolUuid> {
    pool.to_string().parse()
}

/// A pool is called as its file is, unless something else is.
fn pool_name(pool: &PoolReport, taken: impl Fn(&Name) -> bool) -> Result<Name> {
    let file = pool.path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<Name>().ok());
    match file.filter(|name| !taken(name)) {
        Some(name) => Ok(name),
        None => pool.id.to_string().parse(),
    }
}

/// What all hosts of this machine have.
struct Machine {
    cpus: u32,
    dram: Bytes,
    dram_free: Bytes,
    load: f64,
}

impl Machine {
    fn this() -> Self {
        let cpus = thread::available_parallelism().map_or(1, NonZero::get);
        let cpus = u32::try_from(cpus).unwrap_or(u32::MAX).clamp(1, 1 << 16);
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let dram = kib_of(&meminfo, "MemTotal:");
        let load = load_of(&fs::read_to_string("/proc/loadavg").unwrap_or_default());
        Self {
            cpus,
            dram: Bytes(dram),
            dram_free: Bytes(kib_of(&meminfo, "MemAvailable:").min(dram)),
            load: (load / f64::from(cpus)).clamp(0.0, 1.0),
        }
    }

    fn host(&self, name: Name, load: f64, cordoned: bool) -> Host {
        let Self { cpus, dram, dram_free, .. } = *self;
        Host { name, rack: None, cpus, dram, dram_free, load, cordoned }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn report(name: &str, pools: &[(PoolId, &str)]) -> HostReport {
        let pools = pools.iter().map(|(id, path)| PoolReport {
            id: *id,
            path: PathBuf::from(path),
            slot: 0,
            free_bytes: 1 << 30,
            total_bytes: 2 << 30,
        });
        HostReport {
            name: name.parse().expect("a good name"),
            id: None,
            agent_pid: Some(1),
            pools: pools.collect(),
            guests: 0,
            unattended: Vec::new(),
            silent: None,
            capabilities: None,
        }
    }

    #[test]
    fn hosts_that_joined_one_pool_share_it_by_whatever_path() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("pool");
        let options = nil_pool::CreateOptions { size: Some(64 << 20), ..nil_pool::CreateOptions::default() };
        let id = Pool::create(&path, &options).expect("a pool").id();
        let path = path.display().to_string();
        let hosts = vec![report("A", &[(id, &path)]), report("B", &[(id, "/elsewhere/it")]), report("C", &[])];
        let fabric = live_fabric(&Survey { guests: Vec::new(), hosts }).expect("a fabric");
        assert_eq!(fabric.devices()[0].name.as_str(), "pool");
        assert_eq!(fabric.devices()[0].free, Bytes(1 << 30));
        assert_eq!(fabric.namespaces().list().len(), 2);
        assert!(fabric.hosts()[0].cpus >= 1);
    }

    #[test]
    fn a_pool_that_is_called_as_a_host_is_known_by_its_uuid() {
        let id: PoolId = "5e1f0b1c-0000-4000-8000-00000000000a".parse().expect("a uuid");
        let hosts = vec![report("A", &[(id, "/pools/A")])];
        let fabric = live_fabric(&Survey { guests: Vec::new(), hosts }).expect("a fabric");
        assert_eq!(fabric.devices()[0].name.as_str(), id.to_string());
    }

    #[test]
    fn what_the_kernel_tells_is_read_and_nonsense_is_nothing() {
        assert_eq!(kib_of("MemTotal:       16 kB\nMemFree: 1 kB\n", "MemTotal:"), 16 << 10);
        assert_eq!(kib_of("MemTotal: x", "MemTotal:"), 0);
        assert_eq!((load_of("1.5 1 1"), load_of(""), load_of("nan 1")), (1.5, 0.0, 0.0));
    }
}
