//! A pool: opening it, and looking at it.

use crate::backing::Backing;
use crate::bytes::Bytes;
use crate::control::GuestControl;
use crate::error::{Error, Result};
use crate::exclusion::{Exclusion, Exclusive};
use crate::fencing::Fence;
use crate::format::GRANULE;
use crate::format::header::{BadHeader, Coherence, HEADER_BYTES, Header};
use crate::format::layout::{HEADER_A, HEADER_B};
use crate::format::slot_word::{Reference, SlotState};
use crate::ids::{GuestId, GuestSlot, HostId, PoolId, Tag};
use crate::liveness::{Liveness, ProcessIdentity, claim_liveness};
use crate::mapping::{Access, Mapping};
use crate::ownership::HostSlot;
use crate::persist;
use crate::sync::Ordering;
use crate::tables::{Seen, Tables};
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// An open pool. Clones share one mapping of its tables, and their companions.
#[derive(Clone, Debug)]
pub struct Pool {
    pub(crate) inner: Arc<Inner>,
    /// Pools in which legs of this one's capacities are looked up. A companion's own companions are not kept here, so
    /// that two pools may be each other's.
    companions: Arc<Mutex<Vec<Arc<Inner>>>>,
    /// The host in whose name memory is mapped.
    acting: Option<HostId>,
    /// A member's way to its turn.
    exclusion: Option<Arc<Exclusion>>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) backing: Backing,
    pub(crate) header: Header,
    pub(crate) tables: Tables,
    pub(crate) access: Access,
    pub(crate) here: ProcessIdentity,
}

/// How full a pool is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Usage {
    /// Bytes of the whole pool.
    pub total: u64,
    /// Bytes of the pool's own tables.
    pub tables: u64,
    /// Bytes that belong to a capacity.
    pub used: u64,
    /// Bytes that a new capacity may have.
    pub free: u64,
    /// Capacities in use.
    pub capacities: u32,
    /// Guests.
    pub guests: u32,
    /// Host entries in use.
    pub hosts: u32,
}

impl Pool {
    /// Opens a pool. Everything is validated first; what is refused is never written to.
    ///
    /// # Errors
    /// [`Error`] with the reason and the remedy.
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        let backing = Backing::open(path, access)?;
        let (header, _) = read_headers(&backing)?.into_usable(&backing)?;
        Self::attach(backing, header, access)
    }

    /// Opens a pool in a file or device that somebody else has opened, for reading and writing, at `path`. For a process
    /// that may not open it itself.
    ///
    /// # Errors
    /// As [`Pool::open`].
    pub fn open_file(file: File, path: &Path) -> Result<Self> {
        let backing = Backing::adopt(file, path)?;
        let (header, _) = read_headers(&backing)?.into_usable(&backing)?;
        Self::attach(backing, header, Access::ReadWrite)
    }

    /// Maps the tables of a pool whose header has been validated.
    pub(crate) fn attach(mut backing: Backing, header: Header, access: Access) -> Result<Self> {
        if backing.size() < header.size {
            let (has, wanted) = (Bytes(backing.size()), Bytes(header.size));
            return Err(Error::Truncated { path: backing.path().to_owned(), has, wanted });
        }
        let features = header.unknown_ro_compat();
        if access == Access::ReadWrite && features != 0 {
            return Err(Error::ReadOnlyFeatures { path: backing.path().to_owned(), features });
        }
        if header.coherence == Coherence::Software {
            persist::begin_software_coherence();
            backing.stop_punching();
        }
        let length = usize::try_from(header.layout.data)
            .map_err(|_| backing.failed("map the tables of", rustix::io::Errno::NOMEM))?;
        let mapping = Mapping::map(&backing, 0, length, access)?;
        let tables = Tables::new(mapping, header.layout);
        let here = ProcessIdentity::current()?;
        Ok(Self::over(Arc::new(Inner { backing, header, tables, access, here })))
    }

    fn over(inner: Arc<Inner>) -> Self {
        Self { inner, companions: Arc::default(), acting: None, exclusion: None }
    }

    /// The same pool in the name of a host, which may map what it is on the access list of.
    ///
    /// # Errors
    /// [`Error::NoHost`].
    pub fn on_behalf_of(&self, host: HostSlot) -> Result<Self> {
        let info = self.host(host).filter(|info| info.damage.is_none()).ok_or(Error::NoHost { host })?;
        Ok(self.acting_as(info.id))
    }

    pub(crate) fn acting_as(&self, host: HostId) -> Self {
        Self { acting: Some(host), ..self.clone() }
    }

    /// The pool of a member.
    pub(crate) fn of_member(&self, host: HostId, exclusion: &Arc<Exclusion>) -> Self {
        Self { exclusion: Some(Arc::clone(exclusion)), ..self.acting_as(host) }
    }

    /// Keeps other hosts from changing the tables; nothing for a process that is no member, and where compare-and-swap decides.
    ///
    /// # Errors
    /// [`Error::PoolBusy`].
    pub(crate) fn turn(&self) -> Result<Option<Exclusive>> {
        self.exclusion.as_ref().map(Exclusion::enter).transpose()
    }

    pub(crate) fn acting(&self) -> Option<HostId> {
        self.acting
    }

    /// Keeps another pool open, so that stripes of this one's capacities that lie there are found. It replaces an
    /// earlier companion of the same name.
    pub fn add_companion(&self, other: &Self) {
        if other.id() == self.id() {
            return;
        }
        let mut companions = self.companions.lock().unwrap_or_else(PoisonError::into_inner);
        companions.retain(|companion| companion.header.id != other.id());
        companions.push(Arc::clone(&other.inner));
    }

    /// The companion with this name; this pool and the other companions are its companions then.
    #[must_use]
    pub fn companion(&self, id: PoolId) -> Option<Self> {
        let companions = self.companions.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let found = companions.iter().find(|companion| companion.header.id == id)?;
        let found = Self::over(Arc::clone(found));
        companions.into_iter().map(Self::over).for_each(|companion| found.add_companion(&companion));
        found.add_companion(self);
        Some(found)
    }

    /// This pool or the companion with this name.
    pub(crate) fn at_hand(&self, id: PoolId) -> Option<Self> {
        if id == self.id() {
            return Some(self.clone());
        }
        let companions = self.companions.lock().unwrap_or_else(PoisonError::into_inner);
        companions.iter().find(|companion| companion.header.id == id).map(|inner| Self::over(Arc::clone(inner)))
    }

    /// The pool's name.
    #[must_use]
    pub fn id(&self) -> PoolId {
        self.inner.header.id
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.inner.backing.path()
    }

    /// Whether its memory is no more: the file was cut short or removed with its device, or the device is gone. Then it says nothing
    /// any more, and what is written to it reaches nobody. Known from the first access on that has failed.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.inner.tables.is_lost()
    }

    /// The validated header, as it was when the pool was opened.
    #[must_use]
    pub fn header(&self) -> Header {
        self.inner.header.clone()
    }

    /// How its hosts' caches agree.
    #[must_use]
    pub fn coherence(&self) -> Coherence {
        self.inner.header.coherence
    }

    /// How the pool was opened.
    #[must_use]
    pub fn access(&self) -> Access {
        self.inner.access
    }

    pub(crate) fn tables(&self) -> &Tables {
        &self.inner.tables
    }

    /// Refuses what is not done where the hosts' caches do not agree.
    pub(crate) fn require_coherent(&self, what: &'static str) -> Result<()> {
        match self.coherence() {
            Coherence::Hardware => Ok(()),
            Coherence::Software => Err(Error::NotCoherent { path: self.path().to_owned(), what }),
        }
    }

    /// Whether a host changes the pool's tables no more, whatever it was doing: its process is dead for sure, or somebody has
    /// declared it dead.
    pub(crate) fn is_out(&self, slot: HostSlot) -> bool {
        #[cfg(all(test, not(loom)))]
        if crate::medium::has_died(slot.index()) {
            return true;
        }
        let claim = self.tables().host_claim(slot).load(Ordering::Acquire);
        let declared = || self.life(slot).is_some_and(|life| life.fence != Fence::Standing);
        (claim != 0 && claim_liveness(claim, &self.inner.here) == Liveness::Dead) || declared()
    }

    pub(crate) fn require_write(&self) -> Result<()> {
        match self.inner.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(Error::OpenedReadOnly),
        }
    }

    /// Counts the whole owner map and the tables.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let tables = self.tables();
        let (total, own) = (self.inner.header.size, self.inner.header.layout.data);
        let free = tables.owners().free() * GRANULE;
        let in_use = |slots: crate::slots::Slots<'_>| {
            let used = (0..slots.count()).filter(|slot| !matches!(slots.load(*slot), Ok(SlotState::Free { .. })));
            u32::try_from(used.count()).unwrap_or(u32::MAX)
        };
        let hosts = tables.host_slots().filter(|slot| tables.host(*slot) != Seen::Free).count();
        Usage {
            total,
            tables: own,
            used: total - own - free,
            free,
            capacities: in_use(tables.capacity_slots()),
            guests: in_use(tables.guest_slots()),
            hosts: u32::try_from(hosts).unwrap_or(u32::MAX),
        }
    }

    /// Whether the process behind a host slot lives.
    #[must_use]
    pub fn liveness(&self, slot: HostSlot) -> Liveness {
        let tables = self.tables();
        if slot.index() >= tables.layout().hosts.count as usize {
            return Liveness::Dead;
        }
        match tables.host(slot) {
            Seen::Free => Liveness::Dead,
            Seen::Used(SlotState::Live { .. }, Ok(record)) => {
                let process = ProcessIdentity { kernel: record.kernel, started: record.started, pid: record.pid };
                process.liveness(&self.inner.here)
            }
            Seen::Used(..) | Seen::BadWord(_) => {
                claim_liveness(tables.host_claim(slot).load(Ordering::Acquire), &self.inner.here)
            }
        }
    }

    /// A handle on the guest with this id in this slot.
    ///
    /// # Errors
    /// [`Error::GuestGone`] when the slot holds another guest now; [`Error::Damaged`]; [`Error::OpenedReadOnly`].
    pub fn guest(&self, slot: GuestSlot, id: GuestId) -> Result<GuestControl> {
        self.require_write()?;
        let gone = Error::GuestGone { id, slot };
        if slot.index() >= self.tables().layout().guests.count as usize {
            return Err(gone);
        }
        match self.tables().guest(slot.index()) {
            Seen::Used(SlotState::Live { generation }, Ok(record)) if record.id == id => {
                Ok(GuestControl::new(self.clone(), Reference { slot: slot.0, generation }, id))
            }
            Seen::Used(SlotState::Live { .. }, Err(source)) => {
                Err(Error::Damaged { what: format!("guest record {slot}"), source })
            }
            Seen::BadWord(word) => Err(Error::DamagedWord { what: format!("guest slot {slot}"), word }),
            Seen::Used(..) | Seen::Free => Err(gone),
        }
    }

    /// The live capacity with this tag.
    pub(crate) fn capacity_by_tag(&self, tag: Tag) -> Option<Reference> {
        let slots = self.tables().capacity_slots();
        self.tables().with_tag(tag).find(|reference| {
            matches!(slots.load(reference.slot.into()), Ok(SlotState::Live { generation }) if generation == reference.generation)
        })
    }
}

/// Both header copies as they were found.
pub(crate) struct Headers {
    pub(crate) copies: [Result<Header, BadHeader>; 2],
}

/// Which copy of the header was used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Copy {
    First,
    Second,
}

impl Headers {
    /// The valid copy, the newer if both are.
    pub(crate) fn into_usable(self, backing: &Backing) -> Result<(Header, Copy)> {
        match self.copies {
            [Ok(first), Ok(second)] if second.generation > first.generation => Ok((second, Copy::Second)),
            [Ok(first), _] => Ok((first, Copy::First)),
            // A first copy that says "newer" or "incompatible" is believed: the second may be an old one.
            [
                Err(BadHeader::Foreign | BadHeader::Checksum | BadHeader::Field(_) | BadHeader::Layout(_)),
                Ok(second),
            ] => Ok((second, Copy::Second)),
            [Err(BadHeader::Foreign), Err(second)] if second != BadHeader::Foreign => Err(not_a_pool(backing, second)),
            [Err(first), _] => Err(not_a_pool(backing, first)),
        }
    }
}

fn not_a_pool(backing: &Backing, reason: BadHeader) -> Error {
    Error::NotAPool { path: backing.path().to_owned(), reason }
}

/// Reads both copies, as far as the file reaches; nothing beyond its end is touched.
pub(crate) fn read_headers(backing: &Backing) -> Result<Headers> {
    if backing.size() < GRANULE {
        return Ok(Headers { copies: [first_of_short(backing), Err(BadHeader::Foreign)] });
    }
    let length = usize::try_from(GRANULE).map_err(|_| backing.failed("map", rustix::io::Errno::NOMEM))?;
    let mapping = Mapping::map(backing, 0, length, Access::ReadOnly)?;
    // Nobody knows yet whether the caches agree.
    [HEADER_A, HEADER_B].into_iter().for_each(|at| persist::refresh_now(mapping.at(at, HEADER_BYTES, 8), HEADER_BYTES));
    Ok(Headers { copies: [HEADER_A, HEADER_B].map(|at| Header::decode(&mapping.read::<HEADER_BYTES>(at))) })
}

/// The header of a file that is shorter than a granule: for the message only.
fn first_of_short(backing: &Backing) -> Result<Header, BadHeader> {
    use std::os::unix::fs::FileExt;
    let mut bytes = [0; HEADER_BYTES];
    backing.file().read_exact_at(&mut bytes, 0).map_err(|_| BadHeader::Foreign)?;
    Header::decode(&bytes)
}
