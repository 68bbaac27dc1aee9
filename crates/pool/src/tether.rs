//! What ties a process to its host: it looks here before it runs a guest or writes to one.
//!
//! ```text
//!   beat:   lease += 1 ─ full fence ─ slot word still that of a life which nobody has fenced?
//!   fencer: slot word: Live(i) → Live(i+1) ─ full fence ─ lease still what was watched?
//! ```
//!
//! One of the two sees the other. So a fencer that finds the lease unmoved knows that nobody who beats before it runs has
//! got past this look since, nor will.
//!
//! The host's own agent may end and return: it retakes the entry (`Making`, then `Live` in the next life), and its
//! processes go on in that life. What tells this from fencing is the record, whose life the fencer leaves as it was, and the fence
//! word, which names the last life that was fenced.

use crate::error::{Error, Result};
use crate::format::fence::{FenceWord, decode_terms};
use crate::format::slot_word::SlotState;
use crate::ids::HostId;
use crate::lease::LeaseTerms;
use crate::ownership::{Epoch, HostSlot};
use crate::pool::Pool;
use crate::sync::{AtomicU64, Ordering, fence};
use crate::tables::Seen;

/// A process's tie to the host in whose name it acts.
#[derive(Debug)]
pub struct Tether {
    pool: Pool,
    slot: HostSlot,
    host: HostId,
    /// The slot word of the life that this process acts in.
    live: AtomicU64,
}

impl Tether {
    /// Ties this process to the host that has this slot now.
    ///
    /// # Errors
    /// [`Error::NoHost`]; [`Error::Fenced`].
    pub fn new(pool: &Pool, slot: HostSlot) -> Result<Self> {
        let found = if slot.index() < pool.tables().layout().hosts.count as usize {
            pool.tables().host(slot)
        } else {
            Seen::Free
        };
        match found {
            Seen::Used(SlotState::Live { generation }, Ok(record)) if record.incarnation == generation => {
                let live = AtomicU64::new(SlotState::Live { generation }.encode());
                Ok(Self { pool: pool.clone(), slot, host: record.id, live })
            }
            Seen::Used(SlotState::Live { .. }, Ok(_)) => Err(Error::Fenced),
            Seen::Used(..) | Seen::Free | Seen::BadWord(_) => Err(Error::NoHost { host: slot }),
        }
    }

    /// The pool in which the host has the slot.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The host's slot.
    #[must_use]
    pub fn slot(&self) -> HostSlot {
        self.slot
    }

    /// Whether the host has not been fenced. If not, this process runs nothing more and writes nothing more.
    #[inline]
    #[must_use]
    pub fn holds(&self) -> bool {
        let word = self.pool.tables().host_state_word(self.slot).load(Ordering::Acquire);
        word == self.live.load(Ordering::Relaxed) || self.goes_on(word)
    }

    /// Says that the host lives, and then looks whether it holds.
    #[must_use]
    pub fn beat(&self) -> bool {
        // Another host may have the entry by now, and its lease is its own.
        if !self.holds() {
            return false;
        }
        self.pool.tables().host_lease(self.slot).fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.holds()
    }

    /// The terms of the host's lease; the default ones where it does not say.
    #[must_use]
    pub fn terms(&self) -> LeaseTerms {
        let terms = self
            .life()
            .and_then(|life| decode_terms(self.pool.tables().host_terms(self.slot).load(Ordering::Acquire), life));
        terms.unwrap_or_default()
    }

    fn life(&self) -> Option<Epoch> {
        match SlotState::decode(self.live.load(Ordering::Relaxed)) {
            Ok(SlotState::Live { generation }) => u32::try_from(generation).ok().map(Epoch),
            _ => None,
        }
    }

    /// The slot word is another one: has the agent returned, or has the host been fenced? A signal handler may ask, too.
    #[cold]
    fn goes_on(&self, word: u64) -> bool {
        let tables = self.pool.tables();
        let Some(life) = self.life() else { return false };
        let fenced = FenceWord::decode(tables.host_fence(self.slot).load(Ordering::Acquire));
        if fenced.is_some_and(|fenced| fenced.life >= life) {
            return false;
        }
        match SlotState::decode(word) {
            // Its agent is about to enter its next life.
            Ok(SlotState::Making { host, generation }) => host == self.slot && generation > u64::from(life.0),
            Ok(SlotState::Live { generation }) => {
                let returned = tables.host_identity(self.slot) == Some((self.host, generation))
                    && tables.host_state_word(self.slot).load(Ordering::Acquire) == word;
                if returned && generation > u64::from(life.0) {
                    self.live.store(word, Ordering::Relaxed);
                }
                returned
            }
            Ok(SlotState::Free { .. } | SlotState::Unmaking { .. }) | Err(_) => false,
        }
    }
}
