//! All hosts and guests of a run directory at a glance.
//!
//! Every agent tells what it knows: exactly about its own guests, and as far as the pools say about those of others. A
//! guest's own host is believed before others. A host whose agent does not run is asked for by its workers' sockets.

use crate::client::Client;
use crate::error::{Error, Result};
use crate::message::{WorkerReply, WorkerRequest};
use crate::name::{GuestName, HostName};
use crate::report::{GuestReport, GuestState, HostReport, HostStanding, KnownHost, Life, known};
use crate::run_dir::{HostDir, RunDir};
use crate::wire::Connection;
use nil_pool::{GuestId, PoolId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long an agent may take to say what it knows.
pub const PATIENCE_WITH_AGENTS: Duration = Duration::from_secs(2);
/// How long a worker may take to say that it lives.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the hosts of a run directory say, put together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Survey {
    /// The guests, by name.
    pub guests: Vec<GuestReport>,
    /// The hosts, by name.
    pub hosts: Vec<HostReport>,
    /// Hosts of other machines, by name, as those of this one know them.
    #[serde(default)]
    pub elsewhere: Vec<KnownHost>,
}

impl Survey {
    /// Asks every host of the run directory.
    ///
    /// # Errors
    /// The run directory cannot be read. A host that does not answer is part of the picture, not an error.
    pub fn take(run_dir: &RunDir) -> Result<Self> {
        let mut hosts = Vec::new();
        let mut guests: BTreeMap<GuestId, GuestReport> = BTreeMap::new();
        let mut elsewhere: BTreeMap<HostName, KnownHost> = BTreeMap::new();
        let mut standings: BTreeMap<HostName, HostStanding> = BTreeMap::new();
        for dir in run_dir.hosts()? {
            let Asked { host, guests: reports, known } = ask(&dir).unwrap_or_else(|error| match error {
                Error::HostGone { .. } => Asked::of(unattended(&dir, None)),
                error => Asked::of(unattended(&dir, Some(error.story()))),
            });
            for seen in known.iter().filter(|known| !known.here) {
                let worst = standings.entry(seen.name.clone()).or_default();
                *worst = seen.standing.max(*worst);
            }
            for known in known.into_iter().filter(|known| known.life != Life::Gone) {
                let best = elsewhere.entry(known.name.clone()).or_insert_with(|| known.clone());
                join(best, known);
            }
            for report in reports {
                let first_hand = report.host.as_deref() == Some(host.name.as_str());
                if first_hand || !guests.contains_key(&report.id) {
                    guests.insert(report.id, report);
                }
            }
            hosts.push(host);
        }
        for host in &mut hosts {
            host.standing = standings.get(&host.name).copied();
        }
        let mut guests: Vec<GuestReport> = guests.into_values().collect();
        for guest in &mut guests {
            note_missing_agent(guest, &hosts);
        }
        guests.sort_by(|a, b| a.name.cmp(&b.name));
        elsewhere.retain(|name, _| hosts.iter().all(|host| host.name != *name));
        Ok(Self { guests, hosts, elsewhere: elsewhere.into_values().collect() })
    }

    /// The guest of that name or identity.
    ///
    /// # Errors
    /// There is none, or there are several.
    pub fn guest(&self, name_or_id: &str) -> Result<&GuestReport> {
        let matches = |guest: &&GuestReport| guest.name == name_or_id || guest.id.to_string() == name_or_id;
        let found: Vec<&GuestReport> = self.guests.iter().filter(matches).collect();
        match found[..] {
            [guest] => Ok(guest),
            [] => {
                let names = self.guests.iter().map(|guest| &guest.name);
                Err(Error::UnknownGuest { name: name_or_id.to_owned(), known: known("guest", names) })
            }
            _ => {
                let ids: Vec<String> = found.iter().map(|guest| guest.id.to_string()).collect();
                Err(Error::refused(format!(
                    "there are {} guests named {name_or_id}, in different pools; say which by its id: {}",
                    found.len(),
                    ids.join(", ")
                )))
            }
        }
    }

    /// The name of the host that is responsible for a guest.
    ///
    /// # Errors
    /// The pool names none, or it has no directory here.
    pub fn host_of(&self, guest: &GuestReport) -> Result<HostName> {
        let Some(name) = guest.host.as_deref() else {
            return Err(Error::refused(format!(
                "no host is responsible for guest {}; see `nil pool check`",
                guest.name
            )));
        };
        self.host(name).map(|host| host.name.clone())
    }

    /// The host of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn host(&self, name: &str) -> Result<&HostReport> {
        self.hosts.iter().find(|host| host.name.as_str() == name).ok_or_else(|| {
            let names = self.hosts.iter().map(|host| &host.name);
            Error::UnknownHost { name: name.to_owned(), known: known("host", names) }
        })
    }

    /// The hosts whose agents run and have joined a pool.
    pub fn members(&self, pool: PoolId) -> impl Iterator<Item = &HostReport> {
        self.hosts.iter().filter(move |host| host.pools.iter().any(|joined| joined.id == pool))
    }
}

/// What one host says.
struct Asked {
    host: HostReport,
    guests: Vec<GuestReport>,
    /// The hosts that it knows.
    known: Vec<KnownHost>,
}

impl Asked {
    /// A host that says nothing.
    fn of(host: HostReport) -> Self {
        Self { host, guests: Vec::new(), known: Vec::new() }
    }
}

fn ask(dir: &HostDir) -> Result<Asked> {
    let mut client = Client::connect(dir)?;
    client.set_patience(Some(PATIENCE_WITH_AGENTS));
    Ok(Asked { host: client.describe()?, guests: client.ps()?, known: client.hosts()? })
}

/// Adds what another host knows of the same one.
fn join(known: &mut KnownHost, more: KnownHost) {
    known.resources = known.resources.or(more.resources);
    known.address = known.address.take().or(more.address);
    known.cordoned |= more.cordoned;
    known.standing = known.standing.max(more.standing);
    let new: Vec<PoolId> = more.pools.into_iter().filter(|pool| !known.pools.contains(pool)).collect();
    known.pools.extend(new);
    known.guests = known.guests.max(more.guests);
    if known.joined.is_empty() {
        known.joined = more.joined;
    }
}

/// A host whose agent does not run, or does not answer, as its workers show it.
fn unattended(dir: &HostDir, silent: Option<String>) -> HostReport {
    let sockets = dir.worker_sockets().unwrap_or_default();
    let alive: Vec<GuestName> = sockets.into_iter().filter(|guest| worker_lives(dir, guest)).collect();
    HostReport {
        name: dir.name().clone(),
        id: None,
        agent_pid: None,
        pools: Vec::new(),
        guests: alive.len(),
        unattended: alive,
        silent,
        standing: None,
        lost_pools: Vec::new(),
        capabilities: None,
        resources: None,
    }
}

fn worker_lives(dir: &HostDir, guest: &GuestName) -> bool {
    let status = || -> Result<WorkerReply> {
        let mut worker = Connection::call(&dir.worker_socket(guest), "a worker")?;
        worker.set_patience(Some(PATIENCE))?;
        worker.send(&WorkerRequest::Watch)?;
        worker.expect()
    };
    status().is_ok()
}

/// Says so if the agent of a guest's host does not run, and whether its worker does.
fn note_missing_agent(guest: &mut GuestReport, hosts: &[HostReport]) {
    let Some(host) = hosts.iter().find(|host| Some(host.name.as_str()) == guest.host.as_deref()) else { return };
    if host.agent_pid.is_some() || guest.state == GuestState::Lost {
        return;
    }
    // What the others see of the host.
    let plight = guest.detail.take().map_or_else(String::new, |plight| format!("; {plight}"));
    if let Some(silent) = &host.silent {
        let lives = host.unattended.iter().any(|name| name.as_str() == guest.name);
        guest.state = if lives { guest.state } else { GuestState::Unclear };
        guest.detail = Some(format!("its host's agent does not answer: {silent}{plight}"));
        return;
    }
    let start = format!("start it with `nil host run --name {} --pool PATH`", host.name);
    if host.unattended.iter().any(|name| name.as_str() == guest.name) {
        guest.detail = Some(format!("its host's agent is not running; {start}{plight}"));
    } else {
        guest.state = GuestState::Unclear;
        guest.detail = Some(format!("its worker and its host's agent are not running; {start}{plight}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(name: &str, host: Option<&str>) -> GuestReport {
        GuestReport {
            name: name.to_owned(),
            id: GuestId::random(),
            kind: nil_pool::GuestKind::Vm,
            host: host.map(str::to_owned),
            state: GuestState::Running,
            detail: None,
            memory_bytes: 2 << 20,
            vcpus: 1,
            cpu_model: None,
            epoch: Some(1),
            uptime_s: Some(0),
            pool: "/pool".into(),
            worker_pid: None,
            memory: None,
            moving: None,
            move_limit: None,
            memory_address: None,
            sandbox: None,
            protection: None,
        }
    }

    fn host(name: &str, unattended: &[&str]) -> HostReport {
        HostReport {
            name: name.parse().expect("a good name"),
            id: None,
            agent_pid: None,
            pools: Vec::new(),
            guests: unattended.len(),
            unattended: unattended.iter().map(|name| name.parse().expect("a good name")).collect(),
            silent: None,
            standing: None,
            lost_pools: Vec::new(),
            capabilities: None,
            resources: None,
        }
    }

    #[test]
    fn an_unknown_guest_is_answered_with_the_known_ones() {
        let survey =
            Survey { guests: vec![guest("a", None), guest("b", None)], hosts: Vec::new(), elsewhere: Vec::new() };
        let error = survey.guest("c").expect_err("unknown");
        assert_eq!(error.to_string(), "there is no guest named c; known: a, b");
    }

    #[test]
    fn of_two_guests_of_one_name_one_is_chosen_by_its_id() {
        let survey =
            Survey { guests: vec![guest("a", None), guest("a", None)], hosts: Vec::new(), elsewhere: Vec::new() };
        assert!(survey.guest("a").is_err());
        let id = survey.guests[1].id;
        assert_eq!(survey.guest(&id.to_string()).expect("by its id").id, id);
    }

    #[test]
    fn an_empty_run_directory_knows_no_guest_and_no_host() {
        let dir = tempfile::tempdir().expect("a directory");
        let survey = Survey::take(&RunDir::at(dir.path())).expect("an empty survey");
        let error = survey.guest("a").expect_err("unknown");
        assert_eq!(error.to_string(), "there is no guest named a; no guest is known");
        assert!(survey.host("A").is_err());
    }

    #[test]
    fn an_agent_that_takes_the_call_and_says_nothing_is_reported_and_not_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let run_dir = RunDir::at(dir.path());
        let host = run_dir.host(&"A".parse().expect("a good name"));
        host.prepare().expect("a host's directory");
        let _silent = std::os::unix::net::UnixListener::bind(host.agent_socket()).expect("a socket");
        let survey = Survey::take(&run_dir).expect("a survey");
        let silent = survey.host("A").expect("the host is known").silent.clone();
        assert!(silent.is_some_and(|why| why.contains("in time")), "{:?}", survey.hosts);
    }

    #[test]
    fn a_guest_without_agent_runs_on_and_one_without_worker_is_unclear() {
        let hosts = [host("A", &["a"])];
        let (mut runs, mut gone) = (guest("a", Some("A")), guest("b", Some("A")));
        note_missing_agent(&mut runs, &hosts);
        note_missing_agent(&mut gone, &hosts);
        assert_eq!((runs.state, gone.state), (GuestState::Running, GuestState::Unclear));
        assert!(runs.detail.expect("a reason").contains("nil host run --name A"));
    }
}
