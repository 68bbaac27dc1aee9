//! What the agent says of its host and of the guests that it knows.

use super::Host;
use super::jobs::Errand;
use super::pinning::HOLDER;
use super::table::Entry;
use crate::error::Result;
use crate::message::{Lane, Phase};
use crate::name::GuestName;
use crate::report::{
    GuestReport, GuestState, HostReport, HostStanding, MemoryReport, PoolReport, ProtectionReport, ProtectionState,
    Takeover, describe,
};
use nil_pool::{
    GRANULE, GuestControl, GuestId, GuestInfo, GuestSlot, HostSlot, Membership, Ownership, PoolId, Standing, StateArea,
};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

impl Host {
    pub(crate) fn describe(&self) -> HostReport {
        HostReport {
            name: self.dir.name().clone(),
            id: Some(self.id),
            agent_pid: Some(std::process::id()),
            pools: self.pools.reports(),
            lost_pools: self.pools.lost(),
            guests: self.count_guests(),
            unattended: Vec::new(),
            silent: None,
            standing: None,
            capabilities: Some(self.capabilities()),
            resources: Some(self.resources()),
        }
    }

    pub(crate) fn pool_reports(&self) -> Vec<PoolReport> {
        self.pools.reports()
    }

    /// Every guest in the host's pools, those of other hosts as the pool has them.
    pub(crate) fn list(&self) -> Vec<GuestReport> {
        self.list_where(|_| true)
    }

    /// The names of all guests in the host's pools.
    pub(crate) fn guest_names(&self) -> Vec<String> {
        let names = |membership: Arc<Membership>| membership.pool().bare_guests().map(|it| it.name).collect::<Vec<_>>();
        self.pools.all().into_iter().flat_map(names).collect()
    }

    /// How many guests there may be to list.
    pub(crate) fn most_guests(&self) -> usize {
        self.pools.all().iter().map(|membership| membership.pool().guests_in_use()).sum()
    }

    /// Those that are meant.
    pub(crate) fn list_where(&self, is_meant: impl Fn(&GuestInfo) -> bool) -> Vec<GuestReport> {
        let mut found = Vec::new();
        for membership in self.pools.all() {
            let guests: Vec<_> = membership.pool().bare_guests().filter(&is_meant).collect();
            found.extend(guests.into_iter().map(|guest| (Arc::clone(&membership), guest)));
        }
        let entries: HashMap<GuestId, Entry> = self.table.entries().into_iter().map(|(_, it)| (it.id, it)).collect();
        let mut names = HashMap::new();
        let mut reports: Vec<GuestReport> = Vec::new();
        for (membership, guest) in self.without_twins(found) {
            let entry = entries.get(&guest.id);
            reports.push(self.describe_guest(&membership, &guest, entry, |slot| {
                let at = (membership.pool().id(), slot);
                names.entry(at).or_insert_with(|| membership.pool().host_name(slot)).clone()
            }));
        }
        reports.sort_by(|a, b| a.name.cmp(&b.name));
        reports
    }

    /// How many guests are this host's: those that it is responsible for, and those with a worker here that has them still.
    fn count_guests(&self) -> usize {
        let mut ours: HashSet<(PoolId, GuestSlot)> = HashSet::new();
        for membership in self.pools.all() {
            let (pool, me) = (membership.pool(), membership.slot());
            ours.extend(pool.responsible_hosts().filter(|(_, host)| *host == me).map(|(slot, _)| (pool.id(), slot)));
        }
        let entries = self.table.entries().into_iter().filter(|(_, entry)| entry.phase != Phase::Armed);
        ours.extend(entries.map(|(_, entry)| (entry.control.pool().id(), entry.control.slot())));
        ours.len()
    }

    /// One guest with a worker here.
    pub(super) fn report(&self, name: &GuestName, entry: &Entry) -> Option<GuestReport> {
        let membership = self.pools.get(entry.control.pool().id()).ok()?;
        let guest = membership.pool().find_guest(name.as_str())?;
        Some(self.describe_guest(&membership, &guest, Some(entry), |slot| membership.pool().host_name(slot)))
    }

    /// `entry` is that of its worker here, if it has one; `name_of` a host of its pool says how that is called.
    fn describe_guest(
        &self,
        membership: &Membership,
        guest: &GuestInfo,
        entry: Option<&Entry>,
        name_of: impl FnOnce(HostSlot) -> Option<String>,
    ) -> GuestReport {
        let me = membership.slot();
        let responsible = guest.ownership.and_then(Ownership::responsible);
        let entry = entry.filter(|entry| entry.phase != Phase::Armed);
        let (state, detail) = match entry {
            Some(entry) => (state_of_phase(entry.phase), detail(entry)),
            None => {
                let (state, detail) = self.state_of_word(guest, responsible == Some(me));
                (state, detail.or_else(|| self.plight_of(membership, responsible?)))
            }
        };
        let control = membership.pool().guest(guest.slot, guest.id).ok();
        let view = control.as_ref().and_then(|control| Some((control, self.views.view(control, guest.state?)?)));
        GuestReport {
            name: guest.name.clone(),
            id: guest.id,
            kind: guest.kind,
            host: if entry.is_some() { Some(self.dir.name().to_string()) } else { responsible.and_then(name_of) },
            state,
            detail,
            memory_bytes: guest.memory_bytes,
            vcpus: guest.vcpus,
            cpu_model: view.as_ref().and_then(|(_, view)| view.model.clone()),
            epoch: guest.ownership.and_then(epoch),
            uptime_s: age(guest.created),
            pool: membership.pool().path().to_path_buf(),
            worker_pid: entry.map(|entry| entry.worker.id().pid),
            memory: view.as_ref().and_then(|(control, view)| memory_of(control, &view.area).ok()),
            memory_address: entry.and_then(|entry| entry.memory_address),
            sandbox: entry.map(|entry| entry.sandbox.clone()),
            protection: match entry {
                Some(entry) => entry.protection.clone(),
                None => view.as_ref().and_then(|(control, _)| protection_of(control)),
            },
            move_limit: entry.and_then(|entry| entry.move_limit),
            moving: entry.and_then(|entry| entry.moving.clone()),
        }
    }
}

impl Host {
    /// What is to be said of a host of ours that may be dead.
    fn plight_of(&self, membership: &Membership, slot: HostSlot) -> Option<String> {
        let sight = self.vigil.sight(membership.pool().id(), slot)?;
        let (standing, name) = (HostStanding::of(sight), membership.pool().host_name(slot)?);
        match standing {
            HostStanding::Alive | HostStanding::Late => None,
            HostStanding::Suspect => Some(format!("the lease of host {name} stands still")),
            HostStanding::Expired | HostStanding::Dead if self.takeover == Takeover::Ask => {
                Some(format!("host {name} is {standing}; `nil takeover {name}` fences it and takes its guests"))
            }
            HostStanding::Fencing => Some(format!("host {name} is being fenced")),
            HostStanding::Expired | HostStanding::Dead | HostStanding::Fenced => {
                Some(format!("host {name} is {standing}"))
            }
        }
    }

    /// What a guest without a worker here is doing: by its word, and by how its worker ended if we have seen that.
    fn state_of_word(&self, guest: &GuestInfo, ours: bool) -> (GuestState, Option<String>) {
        let (state, detail) = state_of_word(guest.ownership, ours);
        match (state, self.endings().get(&guest.id)) {
            (GuestState::Lost, Some(ending)) => {
                (state, Some(format!("its worker died while it ran: it {ending}; {KEPT}")))
            }
            _ => (state, detail),
        }
    }
}

/// What a person can do about a guest that is lost.
const KEPT: &str = "its memory is kept until `nil vm stop`";

/// Where a guest's memory lies, as the pool has it.
pub(super) fn memory_report(control: &GuestControl) -> Result<MemoryReport> {
    memory_of(control, &control.map_state()?)
}

/// The same, by the guest's state area.
fn memory_of(control: &GuestControl, state: &StateArea) -> Result<MemoryReport> {
    let summary = state.placement().summary();
    let bytes = |granules: u64| granules * GRANULE;
    let total = control.config()?.memory_bytes;
    let (holds, pins) = state.pins().list().into_iter().partition::<Vec<_>, _>(|pin| pin.owner == HOLDER);
    let report = MemoryReport::new(bytes(summary.pooled), bytes(summary.mixed), total, control.is_placed());
    Ok(MemoryReport { pins: pins.len(), holds: holds.len(), ..report })
}

/// How a guest of another host is protected, as the pool has it.
fn protection_of(control: &GuestControl) -> Option<ProtectionReport> {
    let protection = control.protection().ok()??;
    let standing = protection.standing().ok()?;
    let state = match standing {
        Standing::Active(_) | Standing::Sealed(_) => ProtectionState::Active,
        Standing::Idle(_) => ProtectionState::Suspended,
    };
    Some(ProtectionReport::new(state, protection.settings().ok()?, standing.number()))
}

/// What is being done with a guest, and what its worker says, in a sentence.
fn detail(entry: &Entry) -> Option<String> {
    let moving = entry.moving.as_ref().map(describe);
    let errand = entry.job(Lane::Main).or(entry.job(Lane::PullBack)).map(|job| &job.errand);
    // What moves says of itself which way; where the guest is to go, it does not say.
    let errand = errand.filter(|errand| moving.is_none() || matches!(errand, Errand::Migration { .. }));
    let parts: Vec<String> =
        [entry.detail.clone(), errand.map(ToString::to_string), moving].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// Seconds since a moment given in nanoseconds since 1970; `None` when that lies ahead.
fn age(created: u64) -> Option<u64> {
    let created = UNIX_EPOCH + Duration::from_nanos(created);
    created.elapsed().ok().map(|age| age.as_secs())
}

fn epoch(word: Ownership) -> Option<u32> {
    word.epoch().map(|epoch| epoch.0)
}

pub(super) fn state_of_phase(phase: Phase) -> GuestState {
    match phase {
        Phase::Empty | Phase::Starting | Phase::Armed => GuestState::Starting,
        Phase::Running => GuestState::Running,
        Phase::Leaving | Phase::Released | Phase::TornDown => GuestState::Migrating,
        Phase::Halted => GuestState::Stopped,
        Phase::Ended => GuestState::Stopping,
    }
}

/// What a guest without a worker here is doing, by its word alone.
fn state_of_word(word: Option<Ownership>, ours: bool) -> (GuestState, Option<String>) {
    match word {
        None => (GuestState::Unclear, Some("its ownership word is damaged; see `nil pool check`".to_owned())),
        Some(Ownership::Vacant) => (GuestState::Starting, None),
        Some(Ownership::Lost { .. }) => (GuestState::Lost, Some(format!("its worker died while it ran; {KEPT}"))),
        Some(Ownership::Owned { .. }) if ours => {
            (GuestState::Unclear, Some("it has no worker; its host is about to see why".to_owned()))
        }
        Some(Ownership::Frozen { .. }) if ours => (
            GuestState::Unclear,
            Some("it is frozen, its state is whole; its host is about to take it back".to_owned()),
        ),
        Some(Ownership::Owned { .. }) => (GuestState::Running, None),
        Some(Ownership::Offered { .. } | Ownership::Frozen { .. }) => (GuestState::Migrating, None),
        Some(word @ Ownership::Taken { .. }) => (GuestState::Migrating, Some(word.to_string())),
    }
}
