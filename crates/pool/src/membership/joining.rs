//! How a host comes into a pool: its entry claimed, what its last holder left settled, the name won.

use super::{HostIdentity, Journal, Membership};
use crate::create::now;
use crate::error::{Error, Result};
use crate::exclusion::Exclusion;
use crate::format::host::{HostKind, HostRecord};
use crate::format::journal::Intent;
use crate::format::slot_word::{Reference, SlotState};
use crate::format::text::encode_name;
use crate::ids::HostId;
use crate::liveness::{Liveness, claim_liveness};
use crate::mapping::{exchange, settle};
use crate::ownership::HostSlot;
use crate::pool::Pool;
use crate::recovery::Actor;
use crate::slots::Contest;
use crate::sync::{AtomicU64, Ordering, fence};
use crate::tables::Seen;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a joiner watches the lease of a namesake on another kernel before it takes it for dead.
const LEASE_WATCH: Duration = Duration::from_millis(500);

impl Pool {
    /// Joins as a host: retakes the slot that the same host had, finishing or undoing what it left half done, or takes a
    /// free one.
    ///
    /// # Errors
    /// [`Error::AlreadyJoined`], [`Error::NameTaken`], [`Error::HostTableFull`], [`Error::BadText`],
    /// [`Error::OpenedReadOnly`].
    pub fn join(&self, identity: &HostIdentity) -> Result<Membership> {
        self.require_write()?;
        encode_name("host name", &identity.name)?;
        self.refuse_namesakes(identity)?;
        let slot = match self.retake_slot(identity)? {
            Some(slot) => slot,
            None => self.take_slot()?,
        };
        self.enter(slot, identity)
    }

    /// Before anything is written: is a live host of this name or id here?
    fn refuse_namesakes(&self, identity: &HostIdentity) -> Result<()> {
        for host in self.hosts().into_iter().filter(|host| host.damage.is_none()) {
            let same_id = host.id == identity.id;
            if !same_id && host.name != identity.name {
                continue;
            }
            let alive = match host.liveness {
                Liveness::Alive => true,
                Liveness::Dead => false,
                Liveness::Unknown => !same_id || self.lease_moves(host.slot),
            };
            match (alive, same_id) {
                (false, _) => {}
                (true, true) => return Err(Error::AlreadyJoined { id: host.id, name: host.name, pid: host.pid }),
                (true, false) => return Err(Error::NameTaken { name: host.name, pid: host.pid }),
            }
        }
        Ok(())
    }

    /// Whether a host on another kernel counts its lease up while we watch.
    fn lease_moves(&self, slot: HostSlot) -> bool {
        let lease = self.tables().host_lease(slot);
        let (before, start) = (lease.load(Ordering::Relaxed), Instant::now());
        while start.elapsed() < LEASE_WATCH {
            if lease.load(Ordering::Relaxed) != before {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    /// Claims the slot that this host had before.
    fn retake_slot(&self, identity: &HostIdentity) -> Result<Option<HostSlot>> {
        let tables = self.tables();
        for slot in tables.host_slots() {
            let Seen::Used(SlotState::Live { .. }, Ok(record)) = tables.host(slot) else { continue };
            if record.id != identity.id {
                continue;
            }
            let claim = tables.host_claim(slot).load(Ordering::Acquire);
            if exchange(tables.host_claim(slot), claim, self.inner.here.claim_word()).is_err() {
                return Err(Error::AlreadyJoined { id: record.id, name: record.name, pid: record.pid });
            }
            return Ok(Some(slot));
        }
        Ok(None)
    }

    /// Claims a slot that nobody holds, or whose holder is dead and answers for no guest.
    fn take_slot(&self) -> Result<HostSlot> {
        let tables = self.tables();
        for may_evict in [false, true] {
            for slot in tables.host_slots() {
                let claim = tables.host_claim(slot).load(Ordering::Acquire);
                let vacant = match tables.host(slot) {
                    Seen::Free | Seen::Used(SlotState::Making { .. }, _) => true,
                    Seen::Used(_, Ok(record)) => {
                        (may_evict || record.kind == HostKind::Tool) && self.guest_of_host(slot).is_none()
                    }
                    Seen::Used(_, Err(_)) | Seen::BadWord(_) => false,
                };
                if !vacant || (claim != 0 && claim_liveness(claim, &self.inner.here) != Liveness::Dead) {
                    continue;
                }
                if self.claim_entry(slot, claim) {
                    return Ok(slot);
                }
            }
        }
        Err(Error::HostTableFull { hosts: tables.layout().hosts.count })
    }

    /// Claims an entry whose claim was this. A dead process's is for processes of its kernel to claim, whose caches agree.
    fn claim_entry(&self, slot: HostSlot, claim: u64) -> bool {
        let word = self.tables().host_claim(slot);
        let mine = self.inner.here.claim_word();
        match self.tables().door(slot) {
            Some(door) if claim == 0 => {
                let comes_in = pass(door);
                if comes_in {
                    settle(word, mine);
                }
                comes_in
            }
            Some(_) | None => exchange(word, claim, mine).is_ok(),
        }
    }

    /// Gives a claimed entry up.
    pub(super) fn unclaim_entry(&self, slot: HostSlot) {
        settle(self.tables().host_claim(slot), 0);
        if let Some([_, door]) = self.tables().door(slot) {
            settle(door, 0);
        }
    }

    /// The slot is claimed: settle what its last holder left, write the entry, win the name, go live.
    fn enter(&self, slot: HostSlot, identity: &HostIdentity) -> Result<Membership> {
        let release = |error| {
            self.unclaim_entry(slot);
            error
        };
        let exclusion = Exclusion::new(self, slot);
        let _turn = exclusion.enter().map_err(release)?;
        let actor = Actor::new(self, slot);
        actor.recover();
        let made = self.begin_incarnation(slot).map_err(release)?;
        let record = HostRecord {
            id: identity.id,
            name: identity.name.clone(),
            kind: identity.kind,
            kernel: self.inner.here.kernel,
            incarnation: made.generation,
            started: self.inner.here.started,
            joined: now(),
            pid: self.inner.here.pid,
            address: identity.address.clone(),
        };
        self.tables().write_host(slot, &record);
        let mut journal = Journal { slot, incarnation: made.generation, sequence: 0 };
        journal.write(self, Intent::Idle);
        journal.write(self, Intent::Idle);
        fence(Ordering::SeqCst);
        let slots = self.tables().hosts();
        let contest = slots.contest(made, self.namesakes(identity));
        if contest != Contest::Won || !slots.commit(made, slot) {
            slots.abort(made, slot);
            return Err(release(Error::NameTaken { name: identity.name.clone(), pid: 0 }));
        }
        Ok(Membership {
            pool: self.of_member(identity.id, &exclusion),
            identity: identity.clone(),
            slot,
            incarnation: made.generation,
            left: false,
            journal: Mutex::new(journal),
            exclusion: Arc::clone(&exclusion),
            granule_hint: AtomicUsize::new(self.tables().layout().first_data_granule() + slot.index() * 64),
            slot_hint: AtomicUsize::new(slot.index() * 64),
        })
    }

    /// Moves a claimed slot to `Making` with the next incarnation, from whatever its last holder left.
    fn begin_incarnation(&self, slot: HostSlot) -> Result<Reference> {
        let word = self.tables().host_state_word(slot);
        let what = || format!("host slot {slot}");
        let before = word.load(Ordering::Acquire);
        let state = SlotState::decode(before).map_err(|bad| Error::DamagedWord { what: what(), word: bad.0 })?;
        let last = match state {
            SlotState::Free { generation }
            | SlotState::Live { generation }
            | SlotState::Making { generation, .. }
            | SlotState::Unmaking { generation, .. } => generation,
        };
        // Incarnations are handed out as 32-bit epochs.
        let generation = last + 1;
        let index = u16::try_from(slot.index()).map_err(|_| Error::NoHost { host: slot })?;
        if u32::try_from(generation).is_err() {
            return Err(Error::UsedUp { what: what() });
        }
        exchange(word, before, SlotState::Making { host: slot, generation }.encode())
            .map_err(|word| Error::DamagedWord { what: what(), word })?;
        Ok(Reference { slot: index, generation })
    }

    /// Hosts that carry this name or id and may be alive.
    fn namesakes<'a>(&'a self, identity: &'a HostIdentity) -> impl Iterator<Item = Reference> + 'a {
        self.tables().host_slots().filter_map(move |slot| {
            let Seen::Used(state, Ok(record)) = self.tables().host(slot) else { return None };
            let generation = state.current().filter(|current| *current == record.incarnation)?;
            let same = record.name == identity.name || record.id == identity.id;
            let dead = matches!(state, SlotState::Live { .. }) && self.liveness(slot) == Liveness::Dead;
            let slot = u16::try_from(slot.index()).ok()?;
            (same && !dead).then_some(Reference { slot, generation })
        })
    }
}

/// Comes in by a door that nobody has passed, or not: of all that come at once at most one does. It takes loads and stores only
/// (the splitter of Moir and Anderson, Science of Computer Programming 25, 1).
fn pass([candidate, door]: [&AtomicU64; 2]) -> bool {
    // Whoever it is, for this once.
    let mine =
        HostId::random().to_bytes().into_iter().fold(1, |number: u64, byte| number.rotate_left(8) ^ u64::from(byte));
    settle(candidate, mine);
    fence(Ordering::SeqCst);
    if door.load(Ordering::Acquire) != 0 {
        return false;
    }
    settle(door, 1);
    fence(Ordering::SeqCst);
    candidate.load(Ordering::Acquire) == mine
}
