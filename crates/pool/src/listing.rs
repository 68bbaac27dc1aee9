//! What is in a pool, as validated copies for people and programs to read.

use crate::arm::Arm;
use crate::fencing::Life;
use crate::forced::Demanded;
use crate::format::BadRecord;
use crate::format::address::HostAddress;
use crate::format::answers::Answer;
use crate::format::capacity::{Class, Extent};
use crate::format::guest::{GuestKind, Region};
use crate::format::header::Coherence;
use crate::format::host::{HostFlags, HostKind, HostRecord};
use crate::format::slot_word::{Reference, SlotState};
use crate::format::stripe::Composition;
use crate::ids::{CapacitySlot, GuestId, GuestSlot, HostId, Tag};
use crate::liveness::Liveness;
use crate::ownership::{HostSlot, Ownership};
use crate::placement::PlacementSummary;
use crate::pool::Pool;
use crate::sync::Ordering;
use crate::tables::Seen;

/// A host entry. When `damage` is set, fields that could not be read have empty values.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostInfo {
    /// Its slot.
    pub slot: HostSlot,
    /// Its name for life.
    pub id: HostId,
    /// Its name for people.
    pub name: String,
    /// What it is.
    pub kind: HostKind,
    /// How many times the slot has been joined; a smaller one than a worker's own means that it was fenced.
    pub incarnation: u64,
    /// Counted up by the host.
    pub lease: u64,
    /// Its process.
    pub pid: u32,
    /// Nanoseconds since 1970 when it joined.
    pub joined: u64,
    /// Where its agent answers other machines.
    pub address: Option<HostAddress>,
    /// Whether no guests are to come to it.
    pub cordoned: bool,
    /// Whether its agent takes guests of fenced hosts by itself.
    pub takes_over: bool,
    /// Whether it lives.
    pub liveness: Liveness,
    /// Its present life, if it can be read.
    pub life: Option<Life>,
    /// What is wrong with the entry.
    pub damage: Option<String>,
}

/// A capacity. When `damage` is set, fields that could not be read have empty values.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CapacityInfo {
    /// Its slot.
    pub slot: CapacitySlot,
    /// Its name.
    pub tag: Tag,
    /// Who may see it.
    pub class: Class,
    /// How the caches of those who see it agree.
    pub coherence: Coherence,
    /// Its size.
    pub bytes: u64,
    /// The hosts that may use it; all if empty.
    pub access: Vec<HostId>,
    /// What those hosts have answered to the offer of it, in the same order.
    pub answers: Vec<Answer>,
    /// Its granules; none if it is striped.
    pub extents: Vec<Extent>,
    /// What it is composed of.
    pub composition: Composition,
    /// For people.
    pub label: String,
    /// Nanoseconds since 1970 at creation.
    pub created: u64,
    /// The guest that uses it.
    pub user: Option<String>,
    /// Whether somebody wants it, or a leg of it that is at hand, to be released.
    pub release_asked: bool,
    /// That somebody takes it away from the guest that uses it.
    pub demanded: Option<Demanded>,
    /// The host that is adding or releasing it at this moment.
    pub changed_by: Option<HostSlot>,
    /// What is wrong with it.
    pub damage: Option<String>,
}

/// A guest. When `damage` is set, fields that could not be read have empty values.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestInfo {
    /// Its slot.
    pub slot: GuestSlot,
    /// Its name for life.
    pub id: GuestId,
    /// Its name for people.
    pub name: String,
    /// What it is.
    pub kind: GuestKind,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// The tag of its memory capacity, which exists while a part of the memory is in the pool.
    pub memory: Tag,
    /// How many vCPUs it has.
    pub vcpus: u32,
    /// Bits whose meaning is the VMM's.
    pub features: u64,
    /// Nanoseconds since 1970 at creation.
    pub created: u64,
    /// Who owns it; `None` when the word is damaged.
    pub ownership: Option<Ownership>,
    /// How far a target is with its preparations; `None` when the word is damaged.
    pub arm: Option<Arm>,
    /// Where its memory lies when it is in the pool.
    pub placement: Vec<Region>,
    /// How much of its memory is where; `None` when that cannot be read.
    pub places: Option<PlacementSummary>,
    /// How many parts of its memory are pinned; `None` when that cannot be read.
    pub pins: Option<usize>,
    /// The capacity of its state area.
    pub state: Option<Tag>,
    /// The host that is creating or destroying it at this moment.
    pub changed_by: Option<HostSlot>,
    /// What is wrong with it.
    pub damage: Option<String>,
}

impl Pool {
    /// All hosts, live or dead.
    #[must_use]
    pub fn hosts(&self) -> Vec<HostInfo> {
        self.tables().host_slots().filter_map(|slot| self.host(slot)).collect()
    }

    /// The host in a slot.
    #[must_use]
    pub fn host(&self, slot: HostSlot) -> Option<HostInfo> {
        let tables = self.tables();
        if slot.index() >= tables.layout().hosts.count as usize {
            return None;
        }
        let mut info = HostInfo {
            slot,
            id: HostId::from_bytes([0; 16]),
            name: String::new(),
            kind: HostKind::Agent,
            incarnation: 0,
            lease: tables.host_lease(slot).load(Ordering::Relaxed),
            pid: 0,
            joined: 0,
            address: None,
            cordoned: false,
            takes_over: false,
            liveness: self.liveness(slot),
            life: self.life(slot),
            damage: None,
        };
        match tables.host(slot) {
            Seen::Free => return None,
            Seen::BadWord(word) => info.damage = Some(bad_word(word)),
            // Somebody is joining, and has not got to its record yet.
            Seen::Used(SlotState::Making { .. }, _) => return None,
            Seen::Used(_, Err(source)) => info.damage = Some(bad_record(source)),
            Seen::Used(state, Ok(record)) => {
                let flags = HostFlags::decode(tables.host_flags(slot).load(Ordering::Acquire), record.id);
                info.incarnation = state.current().unwrap_or(record.incarnation);
                info.id = record.id;
                info.name = record.name;
                info.kind = record.kind;
                info.pid = record.pid;
                info.joined = record.joined;
                info.address = record.address;
                info.cordoned = flags.cordoned();
                info.takes_over = flags.takes_over();
            }
        }
        Some(info)
    }

    /// The name of the host in a slot, if it can be read. Whether it lives is not asked.
    #[must_use]
    pub fn host_name(&self, slot: HostSlot) -> Option<String> {
        self.host_record(slot).map(|record| record.name)
    }

    /// Whether no guests are to come to the host in a slot.
    #[must_use]
    pub fn is_cordoned(&self, slot: HostSlot) -> bool {
        let flags =
            |record: HostRecord| HostFlags::decode(self.tables().host_flags(slot).load(Ordering::Acquire), record.id);
        self.host_record(slot).is_some_and(|record| flags(record).cordoned())
    }

    fn host_record(&self, slot: HostSlot) -> Option<HostRecord> {
        if slot.index() >= self.tables().layout().hosts.count as usize {
            return None;
        }
        match self.tables().host(slot) {
            Seen::Free | Seen::BadWord(_) | Seen::Used(SlotState::Making { .. }, _) => None,
            Seen::Used(_, record) => record.ok(),
        }
    }

    /// Which host is responsible for the guest in which slot, by the guests' words alone. Guests that nobody is responsible
    /// for are left out.
    pub fn responsible_hosts(&self) -> impl Iterator<Item = (GuestSlot, HostSlot)> + '_ {
        let tables = self.tables();
        let slots = 0..u16::try_from(tables.layout().guests.count).unwrap_or(u16::MAX);
        slots.filter_map(|slot| {
            let state = tables.guest_slots().load(slot.into());
            let responsible = self.ownership_in(slot.into()).load().ok()?.responsible()?;
            (!matches!(state, Ok(SlotState::Free { .. }))).then_some((GuestSlot(slot), responsible))
        })
    }

    /// How many places of the guest table are in use.
    #[must_use]
    pub fn guests_in_use(&self) -> usize {
        let slots = self.tables().guest_slots();
        (0..slots.count()).filter(|slot| !matches!(slots.load(*slot), Ok(SlotState::Free { .. }))).count()
    }

    /// All capacities, those too that are being added or released.
    #[must_use]
    pub fn capacities(&self) -> Vec<CapacityInfo> {
        let slots = 0..u16::try_from(self.tables().layout().capacities.count).unwrap_or(u16::MAX);
        slots.filter_map(|slot| self.capacity(CapacitySlot(slot))).collect()
    }

    /// The capacity in a slot.
    #[must_use]
    pub fn capacity(&self, slot: CapacitySlot) -> Option<CapacityInfo> {
        let tables = self.tables();
        if slot.index() >= tables.layout().capacities.count as usize {
            return None;
        }
        let mut info = CapacityInfo {
            slot,
            tag: Tag::from_bytes([0; 16]),
            class: Class::Private,
            coherence: Coherence::Hardware,
            bytes: 0,
            access: Vec::new(),
            answers: Vec::new(),
            extents: Vec::new(),
            composition: Composition::Plain,
            label: String::new(),
            created: 0,
            user: None,
            release_asked: false,
            demanded: None,
            changed_by: None,
            damage: None,
        };
        match tables.capacity(slot.index()) {
            Seen::Free => return None,
            Seen::BadWord(word) => info.damage = Some(bad_word(word)),
            Seen::Used(SlotState::Making { generation, .. }, record)
                if record.as_ref().map_or(0, |record| record.generation) != generation =>
            {
                return None;
            }
            Seen::Used(_, Err(source)) => info.damage = Some(bad_record(source)),
            Seen::Used(state, Ok(record)) => {
                info.user = tables.user_of(slot.index()).map(|guest| self.guest_name(guest));
                info.changed_by = state.changed_by();
                if state.current() != Some(record.generation) {
                    info.damage = Some("its record belongs to an earlier use of the slot".to_owned());
                }
                info.release_asked = self.is_release_asked(slot, &record);
                let reference = Reference { slot: slot.0, generation: record.generation };
                info.answers = self.answers(reference, &record);
                info.demanded = self.demand_of(reference, record.tag);
                info.tag = record.tag;
                info.class = record.class;
                info.coherence = record.coherence;
                info.bytes = record.bytes;
                info.access = record.access;
                info.extents = record.extents;
                info.composition = record.composition;
                info.label = record.label;
                info.created = record.created;
            }
        }
        Some(info)
    }

    /// All guests, those too that are being created or destroyed.
    #[must_use]
    pub fn guests(&self) -> Vec<GuestInfo> {
        self.bare_guests().map(|info| self.with_state(info)).collect()
    }

    /// All guests, without what stands in their state areas.
    pub fn bare_guests(&self) -> impl Iterator<Item = GuestInfo> {
        let slots = 0..u16::try_from(self.tables().layout().guests.count).unwrap_or(u16::MAX);
        slots.filter_map(|slot| self.guest_info(GuestSlot(slot)))
    }

    /// Adds what stands in a guest's state area, if it can be read.
    fn with_state(&self, mut info: GuestInfo) -> GuestInfo {
        let record = self.tables().guest_record(info.slot.index()).ok().filter(|record| record.id == info.id);
        if let Some(state) = record.and_then(|record| self.state_of(&record).ok()) {
            info.places = Some(state.placement().summary());
            info.pins = Some(state.pins().list().len());
        }
        info
    }

    fn guest_info(&self, slot: GuestSlot) -> Option<GuestInfo> {
        let tables = self.tables();
        let word = |offset| tables.mapping().word(tables.guest_at(slot.index()) + offset).load(Ordering::Acquire);
        let mut info = GuestInfo {
            slot,
            id: GuestId::from_bytes([0; 16]),
            name: String::new(),
            kind: GuestKind::Vm,
            memory_bytes: 0,
            memory: Tag::from_bytes([0; 16]),
            vcpus: 0,
            features: 0,
            created: 0,
            ownership: Ownership::decode(word(crate::format::guest::OWNERSHIP)).ok(),
            arm: Arm::decode(word(crate::format::guest::ARM)).ok(),
            placement: Vec::new(),
            places: None,
            pins: None,
            state: None,
            changed_by: None,
            damage: None,
        };
        match tables.guest(slot.index()) {
            Seen::Free => return None,
            Seen::BadWord(word) => info.damage = Some(bad_word(word)),
            Seen::Used(SlotState::Making { generation, .. }, record)
                if record.as_ref().map_or(0, |record| record.generation) != generation =>
            {
                return None;
            }
            Seen::Used(_, Err(source)) => info.damage = Some(bad_record(source)),
            Seen::Used(state, Ok(record)) => {
                info.changed_by = state.changed_by();
                if info.ownership.is_none() || info.arm.is_none() {
                    info.damage = Some("its ownership or arm word is not a valid one".to_owned());
                }
                if state.current() != Some(record.generation) {
                    info.damage = Some("its record belongs to an earlier use of the slot".to_owned());
                }
                info.memory = record.memory();
                info.id = record.id;
                info.name = record.name;
                info.kind = record.kind;
                info.memory_bytes = record.memory_bytes;
                info.vcpus = record.vcpus;
                info.features = record.features;
                info.created = record.created;
                info.placement = record.placement;
                info.state = Some(record.state);
            }
        }
        Some(info)
    }

    /// A host by name or UUID; a live one rather than a dead one of the same name.
    #[must_use]
    pub fn find_host(&self, name_or_uuid: &str) -> Option<HostInfo> {
        let id = name_or_uuid.parse().ok();
        let mut found = self.hosts();
        found.retain(|host| host.damage.is_none() && (host.name == name_or_uuid || Some(host.id) == id));
        found.into_iter().max_by_key(|host| (host.liveness == Liveness::Alive, host.joined))
    }

    /// A guest by name or UUID.
    #[must_use]
    pub fn find_guest(&self, name_or_uuid: &str) -> Option<GuestInfo> {
        let id = name_or_uuid.parse().ok();
        let wanted = |guest: &GuestInfo| guest.name == name_or_uuid || Some(guest.id) == id;
        let found = self.bare_guests().find(|guest| guest.damage.is_none() && wanted(guest));
        found.map(|info| self.with_state(info))
    }

    /// A capacity by its tag.
    #[must_use]
    pub fn find_capacity(&self, tag: Tag) -> Option<CapacityInfo> {
        self.capacity(CapacitySlot(self.capacity_by_tag(tag)?.slot))
    }

    /// The name of a guest for a message; its slot when the name cannot be read.
    pub(crate) fn guest_name(&self, guest: Reference) -> String {
        self.tables()
            .guest_record(guest.slot.into())
            .map_or_else(|_| GuestSlot(guest.slot).to_string(), |record| record.name)
    }
}

fn bad_word(word: u64) -> String {
    format!("its slot word {word:#018x} is not a valid one")
}

fn bad_record(source: BadRecord) -> String {
    format!("its record is damaged: {source}")
}
