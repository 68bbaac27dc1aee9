//! The fabric as the living hosts make it: who has joined which pool.
//!
//! Hosts of this machine are known by their agents. Hosts of other machines are known by the pools' host tables, which tell
//! their names and whether they are cordoned, and by what their agents have told those of this one: CPUs, DRAM, load, which
//! other pools they have joined (no host of this machine need have those), and whoever else is there. A host whose agent
//! tells nothing counts as one with one CPU and no DRAM, so that no plan relies on it for more than a handoff.

use crate::name::HostName;
use crate::report::{HostReport, JoinedPool, Life, PoolReport, Resources};
use crate::survey::Survey;
use nil_fabric::{Bytes, Fabric, Host, LiveHost, LivePool, Name, PoolUuid, Rate, Result};
use nil_pool::{Access, HostId, HostInfo, HostKind, Liveness, Pool, PoolId};
use std::collections::BTreeMap;

/// Puts together what the hosts of a survey have joined.
///
/// # Errors
/// Two hosts, or a host and a pool, have the same name.
pub fn live_fabric(survey: &Survey) -> Result<Fabric> {
    fabric_of(survey, |_, has| has.load())
}

/// The same, with hosts of this machine as busy as `load` says: the part of the CPUs that they have, 0 to 1.
pub(crate) fn fabric_of(survey: &Survey, load: impl Fn(&HostName, &Resources) -> f64) -> Result<Fabric> {
    let mut pools: BTreeMap<PoolId, &PoolReport> = BTreeMap::new();
    for pool in survey.hosts.iter().flat_map(|host| &host.pools) {
        pools.entry(pool.id).or_insert(pool);
    }
    let tables: BTreeMap<PoolId, Vec<HostInfo>> =
        pools.values().filter_map(|pool| Some((pool.id, host_table(pool)?))).collect();
    let cordoned = |id: HostId| tables.values().flatten().any(|host| host.id == id && host.cordoned);
    let here = Resources::of_this_machine();
    let mut hosts: BTreeMap<String, LiveHost> = BTreeMap::new();
    for report in &survey.hosts {
        let has = report.resources.map_or(here, Resources::plausible);
        let load = load(&report.name, &has).clamp(0.0, 1.0);
        let host = host(report.name.as_str().parse()?, &has, load, report.id.is_some_and(cordoned));
        let pools = report.pools.iter().map(|pool| uuid(pool.id)).collect::<Result<_>>()?;
        hosts.insert(report.name.to_string(), LiveHost { host, pools });
    }
    for (pool, table) in &tables {
        for entry in table.iter().filter(|entry| lives_elsewhere(entry, survey)) {
            let Ok(name) = entry.name.parse::<Name>() else { continue };
            let known = survey.elsewhere.iter().find(|known| known.id == entry.id);
            let has = known.and_then(|known| known.resources).map_or(NOTHING_TOLD, Resources::plausible);
            let unseen = || LiveHost { host: host(name.clone(), &has, has.load(), false), pools: Vec::new() };
            let seen = hosts.entry(entry.name.clone()).or_insert_with(unseen);
            // It may be cordoned in one of its pools alone.
            seen.host.cordoned |= entry.cordoned;
            seen.pools.push(uuid(*pool)?);
        }
    }
    let mut joined: BTreeMap<PoolId, JoinedPool> =
        pools.values().map(|pool| (pool.id, JoinedPool::from((*pool).clone()))).collect();
    for known in survey.elsewhere.iter().filter(|known| known.life != Life::Gone) {
        for pool in &known.joined {
            let Ok(name) = known.name.as_str().parse::<Name>() else { continue };
            let has = known.resources.map_or(NOTHING_TOLD, Resources::plausible);
            let unseen = || LiveHost { host: host(name.clone(), &has, has.load(), known.cordoned), pools: Vec::new() };
            let seen = hosts.entry(known.name.to_string()).or_insert_with(unseen);
            seen.host.cordoned |= known.cordoned;
            let id = uuid(pool.id)?;
            if !seen.pools.contains(&id) {
                seen.pools.push(id);
            }
            joined.entry(pool.id).or_insert_with(|| pool.clone());
        }
    }
    let taken: Vec<String> = hosts.keys().cloned().collect();
    let hosts: Vec<LiveHost> = hosts.into_values().collect();
    let mut described: Vec<LivePool> = Vec::new();
    for pool in joined.values() {
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

/// What a host is taken to have whose agent tells nothing.
const NOTHING_TOLD: Resources =
    Resources { cpus: 1, load_permille: 0, dram_bytes: 0, free_dram_bytes: 0, into_pool: None, out_of_pool: None };

fn host(name: Name, has: &Resources, load: f64, cordoned: bool) -> Host {
    let Resources { cpus, dram_bytes, free_dram_bytes, .. } = *has;
    Host {
        name,
        rack: None,
        cpus,
        dram: Bytes(dram_bytes),
        dram_free: Bytes(free_dram_bytes),
        load,
        into_pool: has.into_pool.map(Rate),
        out_of_pool: has.out_of_pool.map(Rate),
        cordoned,
    }
}

fn uuid(pool: PoolId) -> Result<PoolUuid> {
    pool.to_string().parse()
}

/// A pool is called as its file is, unless something else is.
fn pool_name(pool: &JoinedPool, taken: impl Fn(&Name) -> bool) -> Result<Name> {
    let file = pool.name.parse::<Name>().ok();
    match file.filter(|name| !taken(name)) {
        Some(name) => Ok(name),
        None => pool.id.to_string().parse(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{KnownHost, Life};
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
            standing: None,
            lost_pools: Vec::new(),
            capabilities: None,
            resources: None,
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
        let fabric = live_fabric(&Survey { guests: Vec::new(), hosts, elsewhere: Vec::new() }).expect("a fabric");
        assert_eq!(fabric.devices()[0].name.as_str(), "pool");
        assert_eq!(fabric.devices()[0].free, Bytes(1 << 30));
        assert_eq!(fabric.namespaces().list().len(), 2);
        assert!(fabric.hosts()[0].cpus >= 1);
    }

    #[test]
    fn a_pool_that_is_called_as_a_host_is_known_by_its_uuid() {
        let id: PoolId = "5e1f0b1c-0000-4000-8000-00000000000a".parse().expect("a uuid");
        let hosts = vec![report("A", &[(id, "/pools/A")])];
        let fabric = live_fabric(&Survey { guests: Vec::new(), hosts, elsewhere: Vec::new() }).expect("a fabric");
        assert_eq!(fabric.devices()[0].name.as_str(), id.to_string());
    }

    #[test]
    fn a_host_of_another_machine_has_what_its_agent_tells() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("pool");
        let options = nil_pool::CreateOptions { size: Some(64 << 20), ..nil_pool::CreateOptions::default() };
        let pool = Pool::create(&path, &options).expect("a pool");
        let (id, kind) = (HostId::random(), HostKind::Agent);
        let identity = nil_pool::HostIdentity { id, name: "Z".into(), kind, address: None };
        let _far = pool.join(&identity).expect("a membership");
        let hosts = || vec![report("A", &[(pool.id(), &path.display().to_string())])];
        let has = Resources {
            cpus: 48,
            load_permille: 250,
            dram_bytes: 64 << 30,
            free_dram_bytes: 9 << 30,
            into_pool: Some(1 << 30),
            out_of_pool: None,
        };
        let known = |resources| KnownHost {
            name: "Z".parse().expect("a good name"),
            id,
            here: false,
            life: Life::Elsewhere,
            standing: crate::report::HostStanding::Alive,
            cordoned: false,
            address: None,
            pools: vec![pool.id()],
            guests: 0,
            resources,
            joined: Vec::new(),
        };
        let told = |elsewhere| {
            let fabric = live_fabric(&Survey { guests: Vec::new(), hosts: hosts(), elsewhere }).expect("a fabric");
            let far = fabric.host(fabric.find_host("Z").expect("the host")).clone();
            (far.cpus, far.dram, far.dram_free, far.load, far.into_pool)
        };
        assert_eq!(told(vec![known(Some(has))]), (48, Bytes(64 << 30), Bytes(9 << 30), 0.25, Some(Rate(1 << 30))));
        let nothing = (1, Bytes(0), Bytes(0), 0.0, None);
        assert_eq!((told(vec![known(None)]), told(Vec::new())), (nothing, nothing));
    }
}
