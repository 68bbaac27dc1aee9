//! Which guest runs where, and in which process: by the pools, by the agents, and by the kernel.

use super::fleet::Fleet;
use super::prey::{self, Worker};
use super::resident::{Owner, Resident};
use anyhow::{anyhow, bail};
use nil_host::{GuestReport, GuestState};
use std::collections::{BTreeMap, BTreeSet};

/// What was found.
#[derive(Debug)]
pub(crate) struct Census {
    /// What every host says of its own guests, by their names.
    reports: BTreeMap<String, (usize, GuestReport)>,
    /// Workers that nobody has been found for.
    workers: Vec<Worker>,
}

impl Census {
    /// Asks everybody. The error is what does not fit, or not yet: an agent does not answer, has not adopted a worker, or
    /// claims a guest that another has, too.
    pub(crate) fn take(fleet: &Fleet) -> anyhow::Result<Self> {
        let mut reports = BTreeMap::new();
        for (index, host) in fleet.hosts().iter().enumerate() {
            let mut client = fleet.call(index)?;
            if let Some(unattended) = client.describe()?.unattended.first() {
                return Err(anyhow!("guest {unattended}: host {} has not adopted its worker", host.name()));
            }
            for report in client.ps()? {
                if report.host.as_deref() == Some(host.name().as_str()) {
                    let name = report.name.clone();
                    if reports.insert(name.clone(), (index, report)).is_some() {
                        return Err(anyhow!("guest {name}: two hosts say that they have it"));
                    }
                }
            }
        }
        Ok(Self { reports, workers: prey::workers(fleet.run_dir()) })
    }

    /// What its own host says of a guest.
    pub(crate) fn report(&self, guest: &str) -> Option<&GuestReport> {
        self.reports.get(guest).map(|(_, report)| report)
    }

    /// Who owns a guest. The error is what does not fit: it has one owner, which knows it and says that it runs at rest, and one
    /// worker, which is its owner's.
    pub(crate) fn settle(&mut self, fleet: &Fleet, guest: &Resident) -> anyhow::Result<Owner> {
        let name = guest.name().as_str();
        let owner = guest.owner(fleet)?;
        let host = fleet.hosts()[owner.host].name();
        let report = self.reports.get(name).filter(|(teller, _)| *teller == owner.host);
        let Some((_, report)) = report else { bail!("guest {name} is {host}'s, which does not know it") };
        if report.state != GuestState::Running || report.moving.is_some() {
            bail!("guest {name}: host {host} says it is {}: {:?}", report.state, report.detail);
        }
        let (own, others): (Vec<_>, _) = self.workers.drain(..).partition(|worker| worker.guest == guest.id());
        self.workers = others;
        match &own[..] {
            [worker] if worker.host == host.as_str() && report.worker_pid == Some(worker.pid) => Ok(owner),
            _ => bail!("guest {name} is {host}'s, in process {:?}; its workers are {own:?}", report.worker_pid),
        }
    }

    /// Fails when a worker is left that no guest was settled for, or a host has other sockets than those of `homes`.
    pub(crate) fn require_no_strays(
        &self,
        fleet: &Fleet,
        homes: &BTreeMap<usize, BTreeSet<String>>,
    ) -> anyhow::Result<()> {
        if let Some(stray) = self.workers.first() {
            bail!("process {} is a worker of host {} for a guest that does not need it", stray.pid, stray.host);
        }
        let nothing = BTreeSet::new();
        for (index, host) in fleet.hosts().iter().enumerate() {
            let at_home = homes.get(&index).unwrap_or(&nothing);
            let sockets: BTreeSet<String> = host.worker_sockets()?.iter().map(ToString::to_string).collect();
            if sockets != *at_home {
                bail!("host {} has the guests {at_home:?} and sockets of {sockets:?}", host.name());
            }
        }
        Ok(())
    }
}
