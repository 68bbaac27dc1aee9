//! A host's membership in a pool: its slot, its lease, its journal.
//!
//! ```text
//! claim word   0 ──cas──► process ──────────────────────────────► 0      who may write the entry and the journal
//! slot word      Free(g) ─► Making(g+1) ─► Live(g+1) ─► Free(g+1)        what the entry says
//! ```
//!
//! The claim word is a lock that survives its holder: it names the process, so whoever finds it can tell whether the
//! holder is dead, and take it over by compare-and-swap.

use crate::create::now;
use crate::error::{Error, Result};
use crate::exclusion::{Exclusion, Exclusive};
use crate::format::address::HostAddress;
use crate::format::host::{HostFlags, HostKind, HostRecord};
use crate::format::journal::{Entry, Intent};
use crate::format::slot_word::{Reference, SlotState};
use crate::format::text::encode_name;
use crate::ids::HostId;
use crate::liveness::{Liveness, claim_liveness};
use crate::mapping::{exchange, settle};
use crate::ownership::{Epoch, HostSlot};
use crate::pool::Pool;
use crate::recovery::{Actor, Recovered};
use crate::slots::Contest;
use crate::sync::{AtomicU64, Ordering, fence};
use crate::tables::Seen;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a joiner watches the lease of a namesake on another kernel before it takes it for dead.
const LEASE_WATCH: Duration = Duration::from_millis(500);

/// Who wants to join.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostIdentity {
    /// Its name for life.
    pub id: HostId,
    /// Its name for people.
    pub name: String,
    /// What it is.
    pub kind: HostKind,
    /// Where its agent answers other machines.
    pub address: Option<HostAddress>,
}

impl HostIdentity {
    /// An identity for one command of a tool: random, named after its process.
    #[must_use]
    pub fn tool() -> Self {
        let id = HostId::random();
        let name = format!("tool-{}-{}", std::process::id(), &id.to_string()[..8]);
        Self { id, name, kind: HostKind::Tool, address: None }
    }
}

/// The right to change a pool in a host's name. A tool's membership ends when it is dropped; an agent's only by
/// [`Membership::leave`], so that one that crashes and returns finds its guests again.
#[derive(Debug)]
pub struct Membership {
    pool: Pool,
    identity: HostIdentity,
    slot: HostSlot,
    incarnation: u64,
    left: bool,
    journal: Mutex<Journal>,
    exclusion: Arc<Exclusion>,
    pub(crate) granule_hint: AtomicUsize,
    pub(crate) slot_hint: AtomicUsize,
}

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
    fn unclaim_entry(&self, slot: HostSlot) {
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

    /// A guest whose ownership word names this host.
    pub(crate) fn guest_of_host(&self, host: HostSlot) -> Option<Reference> {
        let tables = self.tables();
        let slots = tables.guest_slots();
        (0..slots.count()).find_map(|slot| {
            let generation = slots.load(slot).ok()?.current()?;
            let word = self.ownership_in(slot).load().ok()?;
            word.hosts().contains(&Some(host)).then_some(Reference { slot: u16::try_from(slot).ok()?, generation })
        })
    }
}

impl Membership {
    /// The host's slot.
    #[must_use]
    pub fn slot(&self) -> HostSlot {
        self.slot
    }

    /// The host's incarnation.
    ///
    /// # Panics
    /// Never: [`Pool::join`] refuses incarnations past 32 bits.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        Epoch(u32::try_from(self.incarnation).expect("join hands out 32-bit incarnations"))
    }

    /// Who joined.
    #[must_use]
    pub fn identity(&self) -> &HostIdentity {
        &self.identity
    }

    /// The pool.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Counts the lease up: "I am alive". Then [`Membership::is_fenced`] is to be asked, as a [`crate::Tether`] does.
    pub fn beat(&self) {
        if self.is_fenced() {
            return;
        }
        self.pool.tables().host_lease(self.slot).fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// No other host changes the pool's tables as long as this lives. Nothing where compare-and-swap does it.
    ///
    /// # Errors
    /// [`Error::PoolBusy`].
    pub(crate) fn exclusive(&self) -> Result<Exclusive> {
        self.exclusion.enter()
    }

    /// The same, without waiting for a host that the caller knows to do nothing more.
    ///
    /// # Errors
    /// [`Error::PoolBusy`].
    pub(crate) fn exclusive_over(&self, dead: HostSlot) -> Result<Exclusive> {
        self.exclusion.enter_over(Some(dead))
    }

    /// Refuses what is not done where the hosts' caches do not agree.
    pub(crate) fn require_coherent(&self, what: &'static str) -> Result<()> {
        self.pool.require_coherent(what)
    }

    /// Whether a peer has declared this host dead. Then it must run nothing more.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        let live = SlotState::Live { generation: self.incarnation }.encode();
        self.pool.tables().host_state_word(self.slot).load(Ordering::Acquire) != live
    }

    pub(crate) fn require_unfenced(&self) -> Result<()> {
        if self.is_fenced() { Err(Error::Fenced) } else { Ok(()) }
    }

    /// Declares a host dead whose lease has expired by the caller's own clock, so that it loses the right to run its
    /// guests, and settles what it left half done. `epoch` is the incarnation that was watched.
    ///
    /// # Errors
    /// [`Error::HostNotDead`] when the host is alive on this kernel, or has joined anew meanwhile.
    pub fn fence_host(&self, slot: HostSlot, epoch: Epoch) -> Result<Recovered> {
        if self.pool.liveness(slot) == Liveness::Alive {
            return Err(Error::HostNotDead { host: slot });
        }
        self.declare_dead(slot, epoch)?;
        self.begin_fencing(slot, epoch, None)?;
        self.finish_fencing(slot, epoch)
    }

    /// Finishes or undoes what a host that is dead for sure left half done.
    ///
    /// # Errors
    /// [`Error::HostNotDead`], [`Error::NoHost`].
    pub fn recover_host(&self, slot: HostSlot) -> Result<Recovered> {
        if self.pool.host(slot).is_none() {
            return Err(Error::NoHost { host: slot });
        }
        match self.pool.liveness(slot) {
            Liveness::Dead => {
                let _turn = self.exclusive()?;
                Ok(Actor::new(&self.pool, slot).recover())
            }
            Liveness::Alive | Liveness::Unknown => Err(Error::HostNotDead { host: slot }),
        }
    }

    /// Has no more guests come to a host, until [`Membership::uncordon`]. Those that it has stay. Any member may do this
    /// for any host, dead ones too; it stays so when the host returns to its entry.
    ///
    /// # Errors
    /// [`Error::NoHost`], [`Error::Damaged`].
    pub fn cordon(&self, host: HostSlot) -> Result<()> {
        self.change_flags(host, HostFlags::with_cordon)
    }

    /// Lets guests come to a host again.
    ///
    /// # Errors
    /// As for [`Membership::cordon`].
    pub fn uncordon(&self, host: HostSlot) -> Result<()> {
        self.change_flags(host, HostFlags::without_cordon)
    }

    /// Says whether this host's agent takes guests of fenced hosts by itself.
    ///
    /// # Errors
    /// As for [`Membership::cordon`].
    pub fn announce_takeover(&self, takes_over: bool) -> Result<()> {
        self.change_flags(self.slot, |flags| flags.with_takeover(takes_over))
    }

    fn change_flags(&self, host: HostSlot, change: impl Fn(HostFlags) -> HostFlags) -> Result<()> {
        self.require_unfenced()?;
        let _turn = self.exclusive()?;
        let tables = self.pool.tables();
        if host.index() >= tables.layout().hosts.count as usize {
            return Err(Error::NoHost { host });
        }
        let id = match tables.host(host) {
            Seen::Used(_, Ok(record)) => record.id,
            Seen::Used(_, Err(source)) => return Err(Error::Damaged { what: format!("host record {host}"), source }),
            Seen::Free | Seen::BadWord(_) => return Err(Error::NoHost { host }),
        };
        let word = tables.host_flags(host);
        let mut before = word.load(Ordering::Acquire);
        // Should another host come to the entry meanwhile, the word says nothing about it.
        while let Err(found) = exchange(word, before, change(HostFlags::decode(before, id)).encode()) {
            before = found;
        }
        Ok(())
    }

    /// Ends the membership.
    ///
    /// # Errors
    /// [`Error::HostHoldsGuest`] while an ownership word names this host; then it stays a member.
    pub fn leave(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let turn = self.exclusive()?;
        if let Some(guest) = self.pool.guest_of_host(self.slot) {
            return Err(Error::HostHoldsGuest { host: self.slot, guest: self.pool.guest_name(guest) });
        }
        self.left = true;
        let generation = self.incarnation;
        let (live, free) = (SlotState::Live { generation }, SlotState::Free { generation });
        let tables = self.pool.tables();
        exchange(tables.host_state_word(self.slot), live.encode(), free.encode()).map_err(|_| Error::Fenced)?;
        // The ticket is the entry's: it is given back before somebody else has the entry.
        drop(turn);
        self.pool.unclaim_entry(self.slot);
        Ok(())
    }

    /// Number of the newest entry of the journal.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn journal_sequence(&self) -> u64 {
        self.locked_journal().sequence
    }

    /// Forgets later entries, for a test that has taken the pool back to that time.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn rewind_journal(&self, sequence: u64) {
        self.locked_journal().sequence = sequence;
    }

    /// The journal, in which whoever changes the pool's tables notes what it is about to do; no other host does so meanwhile.
    ///
    /// # Errors
    /// [`Error::PoolBusy`].
    pub(crate) fn journal(&self) -> Result<Notes<'_>> {
        let turn = self.exclusive()?;
        Ok(Notes { journal: self.locked_journal(), _turn: turn })
    }

    fn locked_journal(&self) -> MutexGuard<'_, Journal> {
        // Whoever panicked with the journal in hand has left a valid entry in it.
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if self.identity.kind == HostKind::Tool && !self.left {
            // Nothing can be done about a refusal; the process's death makes the slot free for others.
            let _ = self.end();
        }
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

/// A host's journal, in the host's turn.
#[derive(Debug)]
pub(crate) struct Notes<'a> {
    journal: MutexGuard<'a, Journal>,
    _turn: Exclusive,
}

impl Deref for Notes<'_> {
    type Target = Journal;

    fn deref(&self) -> &Journal {
        &self.journal
    }
}

impl DerefMut for Notes<'_> {
    fn deref_mut(&mut self) -> &mut Journal {
        &mut self.journal
    }
}

/// The writing end of a host's journal.
#[derive(Debug)]
pub(crate) struct Journal {
    slot: HostSlot,
    incarnation: u64,
    sequence: u64,
}

impl Journal {
    /// Notes what is about to be done; it is in the pool before anything that comes after.
    pub(crate) fn write(&mut self, pool: &Pool, intent: Intent) {
        self.sequence += 1;
        let entry = Entry { sequence: self.sequence, incarnation: self.incarnation, intent };
        pool.tables().write_journal(self.slot, &entry);
    }
}
