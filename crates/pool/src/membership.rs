//! A host's membership in a pool: its slot, its lease, its journal.
//!
//! ```text
//! claim word   0 ──cas──► process ──────────────────────────────► 0      who may write the entry and the journal
//! slot word      Free(g) ─► Making(g+1) ─► Live(g+1) ─► Free(g+1)        what the entry says
//! ```
//!
//! The claim word is a lock that survives its holder: it names the process, so whoever finds it can tell whether the
//! holder is dead, and take it over by compare-and-swap.

mod joining;
mod journal;

use crate::error::{Error, Result};
use crate::exclusion::{Exclusion, Exclusive};
use crate::format::address::HostAddress;
use crate::format::host::{HostFlags, HostKind};
use crate::format::slot_word::{Reference, SlotState};
use crate::ids::HostId;
use crate::liveness::Liveness;
use crate::mapping::exchange;
use crate::ownership::{Epoch, HostSlot};
use crate::pool::Pool;
use crate::recovery::{Actor, Recovered};
use crate::sync::{Ordering, fence};
use crate::tables::Seen;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) use journal::{Journal, Notes};

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
