//! Taking a host's right to run and to write, step by step, by whichever peer is first.
//!
//! ```text
//!  slot word    Live(i) ──cas──▶ Live(i+1)                               declare: elects one fencer
//!  fence word            … ──cas──▶ Fencing(by, i) ──cas──▶ Fenced(by, i)
//!                                       │ fence command, or the time in which the host stops by itself
//!                                       └ `by` dies: another peer's Fencing(by', i)
//! ```
//!
//! From `Fenced(i)` on nobody acts in the name of that life any more, and its guests may be taken. A host that joins anew has
//! another life, about which the word says nothing.

use crate::error::{Error, Result};
use crate::format::fence::{FenceWord, decode_any_terms, decode_terms, encode_presence, encode_terms};
use crate::format::host::HostKind;
use crate::format::slot_word::SlotState;
use crate::ids::GuestSlot;
use crate::lease::LeaseTerms;
use crate::liveness::Liveness;
use crate::mapping::{exchange, put};
use crate::membership::Membership;
use crate::ownership::{Epoch, HostSlot, Ownership};
use crate::pool::Pool;
use crate::presence;
use crate::recovery::{Actor, Recovered};
use crate::sync::{Ordering, fence};
use crate::tables::Seen;
use crate::tether::Tether;
use serde::Serialize;

#[cfg(all(test, not(loom)))]
mod tests;

/// How far a host's present life has been fenced.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fence {
    /// Not at all.
    Standing,
    /// Somebody has declared the host dead, and has not said who.
    Declared,
    /// A host is about to fence it.
    Fencing,
    /// It has been fenced: its guests may be taken.
    Fenced,
}

/// What a peer can know of a host's present life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Life {
    /// Its epoch.
    pub epoch: Epoch,
    /// How far it has been fenced.
    pub fence: Fence,
    /// Who fences it, or has.
    pub fencer: Option<HostSlot>,
    /// Its lease.
    pub lease: u64,
    /// The terms of its lease; `None` when it does not say: then its processes rely on nothing, and it is not to be fenced
    /// by its lease.
    pub terms: Option<LeaseTerms>,
}

impl Pool {
    /// A host's present life; `None` when there is no such host, or none that can be read.
    #[must_use]
    pub fn life(&self, slot: HostSlot) -> Option<Life> {
        let tables = self.tables();
        if slot.index() >= tables.layout().hosts.count as usize {
            return None;
        }
        let Seen::Used(SlotState::Live { generation }, Ok(record)) = tables.host(slot) else { return None };
        let epoch = Epoch(u32::try_from(record.incarnation).ok()?);
        let word = FenceWord::decode(tables.host_fence(slot).load(Ordering::Acquire)).filter(|word| word.life == epoch);
        let fence = match word {
            _ if generation == record.incarnation => Fence::Standing,
            None => Fence::Declared,
            Some(FenceWord { is_done: false, .. }) => Fence::Fencing,
            Some(FenceWord { is_done: true, .. }) => Fence::Fenced,
        };
        Some(Life {
            epoch,
            fence,
            fencer: word.map(|word| word.by).filter(|_| fence != Fence::Standing),
            lease: tables.host_lease(slot).load(Ordering::Acquire),
            terms: decode_terms(tables.host_terms(slot).load(Ordering::Acquire), epoch),
        })
    }

    /// The present lives of all agents' hosts, and their slots.
    #[must_use]
    pub fn lives(&self) -> Vec<(HostSlot, Life)> {
        let tables = self.tables();
        let agent =
            |slot: &HostSlot| matches!(tables.host(*slot), Seen::Used(_, Ok(record)) if record.kind == HostKind::Agent);
        tables.host_slots().filter(agent).filter_map(|slot| Some((slot, self.life(slot)?))).collect()
    }

    /// The ownership words of all guests, and their slots.
    #[must_use]
    pub fn ownerships(&self) -> Vec<(GuestSlot, Ownership)> {
        let tables = self.tables();
        let slots = tables.guest_slots();
        let word = |slot: usize| {
            slots.load(slot).ok()?.current()?;
            let word = self.ownership_in(slot).load().ok()?;
            Some((GuestSlot(u16::try_from(slot).ok()?), word))
        };
        (0..slots.count()).filter_map(word).collect()
    }

    /// Whether no process is left that could act in the host's name. It needs the same kernel, and a host all of whose
    /// processes say that they are there.
    #[must_use]
    pub fn is_dead_for_sure(&self, slot: HostSlot) -> bool {
        let Some(life) = self.life(slot) else { return false };
        let said = self.tables().host_presence(slot).load(Ordering::Acquire);
        let backing = &self.inner.backing;
        let Ok((device, inode)) = presence::file_number(backing) else { return false };
        said == encode_presence(device, inode, life.epoch)
            && self.liveness(slot) == Liveness::Dead
            && presence::is_held(backing, self.tables().layout().hosts.at(slot.index())).is_ok_and(|held| !held)
    }

    /// Lets others on this kernel see that a process of the host is left, for as long as this pool is open. False where there are
    /// no locks by which they could.
    ///
    /// # Errors
    /// [`Error::System`] when the lock is not to be had.
    pub fn show_presence(&self, slot: HostSlot) -> Result<bool> {
        presence::hold(&self.inner.backing, self.tables().layout().hosts.at(slot.index()))
    }
}

impl Membership {
    /// A tie of this process to its host.
    ///
    /// # Errors
    /// [`Error::Fenced`].
    pub fn tether(&self) -> Result<Tether> {
        Tether::new(self.pool(), self.slot())
    }

    /// Says how this host beats, and that peers may fence it when it does not. Every process that acts in its name must
    /// have a [`Tether`] by now, and look at it at least once in every interval. While guests are left that an earlier
    /// agent's workers run, by earlier terms, the expiry does not get shorter. Returns what holds.
    ///
    /// # Errors
    /// [`Error::Fenced`].
    pub fn announce_lease(&self, wanted: LeaseTerms) -> Result<LeaseTerms> {
        self.require_unfenced()?;
        let _turn = self.exclusive()?;
        let word = self.pool().tables().host_terms(self.slot());
        let earlier = decode_any_terms(word.load(Ordering::Acquire));
        let bound_by = earlier.filter(|_| self.pool().guest_of_host(self.slot()).is_some());
        let expiry = bound_by.map_or(0, LeaseTerms::expiry_ms).max(wanted.expiry_ms());
        let terms = LeaseTerms::new(wanted.interval_ms(), expiry)?;
        put(word, encode_terms(terms, self.epoch()), Ordering::Release);
        Ok(terms)
    }

    /// Says that every process of this host shows its presence ([`Pool::show_presence`]), this one as well. Where that cannot
    /// be, peers go by the lease alone.
    ///
    /// # Errors
    /// [`Error::System`] when the lock is not to be had.
    pub fn announce_presence(&self) -> Result<()> {
        if !self.pool().show_presence(self.slot())? {
            return Ok(());
        }
        let (device, inode) = presence::file_number(&self.pool().inner.backing)?;
        let _turn = self.exclusive()?;
        let word = self.pool().tables().host_presence(self.slot());
        put(word, encode_presence(device, inode, self.epoch()), Ordering::Release);
        Ok(())
    }

    /// Declares a host dead: from now on every process of it that looks stops. Of several peers one succeeds, and is the fencer.
    /// `life` is what was watched.
    ///
    /// # Errors
    /// [`Error::HostNotDead`] when it lives another life by now, or somebody else was first; [`Error::Fenced`].
    pub fn declare_dead(&self, slot: HostSlot, life: Epoch) -> Result<()> {
        self.require_unfenced()?;
        // Should it have the turn, this is its end.
        let _turn = self.exclusive_over(slot)?;
        if slot == self.slot() || self.pool().life(slot).is_none_or(|now| now.epoch != life) {
            return Err(Error::HostNotDead { host: slot });
        }
        let generation = u64::from(life.0);
        let (live, dead) = (SlotState::Live { generation }, SlotState::Live { generation: generation + 1 });
        let word = self.pool().tables().host_state_word(slot);
        exchange(word, live.encode(), dead.encode()).map_err(|_| Error::HostNotDead { host: slot })?;
        // The other half is in `Tether::beat`.
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Begins to fence a host that has been declared dead; or goes on where `instead_of`, whom the caller knows to be dead
    /// or fenced, has stopped. Then: make sure that it has stopped, and [`Membership::finish_fencing`].
    ///
    /// # Errors
    /// [`Error::HostNotDead`] when it has not been declared dead, or somebody else fences it; [`Error::Fenced`].
    pub fn begin_fencing(&self, slot: HostSlot, life: Epoch, instead_of: Option<HostSlot>) -> Result<()> {
        self.require_unfenced()?;
        let _turn = self.exclusive()?;
        let not_dead = Error::HostNotDead { host: slot };
        let word = self.pool().tables().host_fence(slot);
        let before = word.load(Ordering::Acquire);
        match self.pool().life(slot) {
            Some(now) if now.epoch == life && now.fence == Fence::Declared => {}
            Some(now) if now.epoch == life && now.fence == Fence::Fencing => {
                let by = now.fencer;
                if by != Some(self.slot()) && by != instead_of {
                    return Err(not_dead);
                }
            }
            Some(_) | None => return Err(not_dead),
        }
        let mine = FenceWord { life, by: self.slot(), is_done: false };
        exchange(word, before, mine.encode()).map_err(|_| not_dead)
    }

    /// Settles what the host left half done, and says that its guests may be taken. The caller knows that the host does
    /// nothing more.
    ///
    /// # Errors
    /// [`Error::HostNotDead`] when this host does not fence it; [`Error::Fenced`].
    pub fn finish_fencing(&self, slot: HostSlot, life: Epoch) -> Result<Recovered> {
        self.require_unfenced()?;
        let _turn = self.exclusive()?;
        let mine = FenceWord { life, by: self.slot(), is_done: false };
        let word = self.pool().tables().host_fence(slot);
        let not_dead = Error::HostNotDead { host: slot };
        if word.load(Ordering::Acquire) != mine.encode() || self.pool().life(slot).is_none_or(|now| now.epoch != life) {
            return Err(not_dead);
        }
        let recovered = Actor::new(self.pool(), slot).recover();
        exchange(word, mine.encode(), FenceWord { is_done: true, ..mine }.encode()).map_err(|_| not_dead)?;
        Ok(recovered)
    }
}
