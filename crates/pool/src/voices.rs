//! Who owns a guest: one word by compare-and-swap, or what each host says in a line of its own.
//!
//! Where the hosts' caches agree it is the [`OwnershipWord`]. Where they do not, each guest has a line for each host, which nobody
//! else writes; the guest's ownership is what is said of the latest epoch. For a host that is gone whoever is to deal with that speaks. Only the claim of a handoff has two sides:
//!
//! ```text
//! source                                   target
//! Frozen                                   sees Frozen; loads the state
//! …                                        Claiming
//! Cancelling                               look again:  Frozen          Owned(target, e+1)
//! look at the target, until it is none of               anything else   Yielded
//!   Claiming: Owned   it has it
//!             else    Owned(source, e+1)
//! ```
//!
//! Each says what it wants before it looks at the other, so at least one of two sees the other, and the target gives way. One that
//! is known to be gone *before* it is looked at changes its mind no more: then Claiming is nothing, and Cancelling is Frozen.
//! `tests/software_claim.rs` searches this exhaustively; `medium/tests/software` runs this code.
//!
//! The processes of one host share its lines, and each change is a compare-and-swap among them.

use crate::error::Result;
use crate::fencing::Fence;
use crate::format::lines::Said;
use crate::ownership::{BadOwnership, Epoch, HostSlot, Ownership, OwnershipWord};
use crate::pool::Pool;
use crate::sync::{AtomicU64, Ordering, fence, load_cached, yield_now};
use std::time::{Duration, Instant};

/// How long a source waits for a target that has begun to claim: two stores and a look. It may ask again.
const PATIENCE: Duration = Duration::from_millis(100);

/// Who owns a guest.
#[derive(Clone, Copy, Debug)]
pub struct GuestOwnership<'a> {
    word: &'a OwnershipWord,
    lines: Option<GuestLines<'a>>,
}

/// What the hosts say of one guest.
#[derive(Clone, Copy, Debug)]
struct GuestLines<'a> {
    pool: &'a Pool,
    slot: usize,
    generation: u64,
}

impl<'a> GuestOwnership<'a> {
    /// Of the guest of this generation in this slot.
    pub(crate) fn new(pool: &'a Pool, slot: usize, generation: u64) -> Self {
        let lines = pool.tables().layout().lines.map(|_| GuestLines { pool, slot, generation });
        Self { word: pool.tables().ownership_word(slot), lines }
    }

    /// Who owns it now; what was written before by whoever has said so is visible afterwards.
    ///
    /// # Errors
    /// [`BadOwnership`] when the pool holds no valid word here.
    #[inline]
    pub fn load(&self) -> Result<Ownership, BadOwnership> {
        match &self.lines {
            None => self.word.load(),
            Some(lines) => lines.load(),
        }
    }

    /// Changes it from `from` to `to`, if it still is `from`; all that was written before becomes visible with it. Returns
    /// whether it did, once that is in the pool's memory; if not, it was something else and is unchanged.
    #[inline]
    pub fn transition(&self, from: Ownership, to: Ownership) -> bool {
        match &self.lines {
            None => self.word.transition(from, to),
            Some(lines) => lines.transition(from, to),
        }
    }
}

impl GuestLines<'_> {
    fn line(&self, host: HostSlot) -> Option<[&AtomicU64; 2]> {
        self.pool.tables().guest_line(self.slot, host)
    }

    fn said(&self, host: HostSlot) -> Result<Said, BadOwnership> {
        let Some([word, generation]) = self.line(host) else { return Ok(Said::Nothing) };
        // In this order: the word is nothing when the generation changes.
        if generation.load(Ordering::Acquire) == self.generation {
            Said::decode(word.load(Ordering::Acquire))
        } else {
            Ok(Said::Nothing)
        }
    }

    fn load(&self) -> Result<Ownership, BadOwnership> {
        Ok(self.latest()?.map_or(Ownership::Vacant, |(_, _, ownership)| ownership))
    }

    /// What is said of the latest epoch, and by whom.
    fn latest(&self) -> Result<Option<(Epoch, HostSlot, Ownership)>, BadOwnership> {
        let mut latest: Option<(Epoch, HostSlot, Ownership)> = None;
        for (host, [word, generation]) in self.pool.tables().refreshed_guest_lines(self.slot) {
            if load_cached(generation, Ordering::Acquire) != self.generation {
                continue;
            }
            let said = Said::decode(load_cached(word, Ordering::Acquire))?.ownership();
            if let Some((epoch, ownership)) =
                said.filter(|(epoch, _)| latest.is_none_or(|(latest, ..)| *epoch > latest))
            {
                latest = Some((epoch, host, ownership));
            }
        }
        Ok(latest)
    }

    /// Who says that the guest's ownership is this; nobody when it is not.
    fn speaker_of(&self, ownership: Ownership) -> Option<HostSlot> {
        let (_, speaker, said) = self.latest().ok()??;
        (said == ownership).then_some(speaker)
    }

    /// Says something else in a host's name, if it says `before` now.
    fn say(&self, host: HostSlot, before: Said, now: Said) -> bool {
        let Some([word, generation]) = self.line(host) else { return false };
        crate::fault::step();
        let written = generation.load(Ordering::Acquire);
        if written != self.generation {
            // It speaks of a guest that is over.
            if before != Said::Nothing || written > self.generation {
                return false;
            }
            word.store(0, Ordering::Release);
            generation.store(self.generation, Ordering::Release);
        }
        word.compare_exchange(before.encode(), now.encode(), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn transition(&self, from: Ownership, to: Ownership) -> bool {
        // Several hosts may want to speak for one that is gone.
        let turn = match to {
            Ownership::Taken { .. } | Ownership::Lost { .. } | Ownership::Frozen { .. } => self.pool.turn(),
            Ownership::Owned { .. } | Ownership::Offered { .. } | Ownership::Vacant => Ok(None),
        };
        if turn.is_err() {
            return false;
        }
        if from == Ownership::Vacant {
            let is_first = |host| self.say_anew(host, to);
            return self.load() == Ok(from) && (to == from || to.responsible().is_some_and(is_first));
        }
        let Some(speaker) = self.speaker_of(from) else { return false };
        match (from, to) {
            (Ownership::Frozen { target, .. }, Ownership::Owned { host, .. })
                if host == target && speaker != target =>
            {
                self.claim(speaker, target, from, to)
            }
            (Ownership::Frozen { source, target, .. }, Ownership::Owned { host, .. }) if host == source => {
                speaker == source && self.cancel(source, target, from, to)
            }
            (_, Ownership::Taken { taker, .. }) => self.say_anew(taker, to),
            (_, Ownership::Vacant) => from
                .epoch()
                .is_some_and(|epoch| self.say(speaker, Said::Is(from), Said::Ended { host: speaker, epoch })),
            _ => self.say(speaker, Said::Is(from), Said::Is(to)),
        }
    }

    /// Says it in the name of a host that has said something else about the guest before, or nothing.
    fn say_anew(&self, host: HostSlot, now: Ownership) -> bool {
        self.said(host).is_ok_and(|before| self.say(host, before, Said::Is(now)))
    }

    fn claim(&self, source: HostSlot, target: HostSlot, from: Ownership, to: Ownership) -> bool {
        let Some(epoch) = from.epoch() else { return false };
        let Ok(mine) = self.said(target) else { return false };
        if !self.is_left_by(source, from) {
            return false;
        }
        let claiming = Said::Claiming { target, epoch };
        if !self.say(target, mine, claiming) {
            return false;
        }
        fence(Ordering::SeqCst);
        let is_left = self.is_left_by(source, from);
        let outcome = if is_left { Said::Is(to) } else { Said::Yielded { target, epoch } };
        self.say(target, claiming, outcome) && is_left
    }

    /// Whether the source leaves the guest to the target.
    fn is_left_by(&self, source: HostSlot, frozen: Ownership) -> bool {
        match self.said(source) {
            Ok(Said::Is(said)) => said == frozen,
            // If it is gone, what it says from then on is its last word.
            Ok(Said::Cancelling { .. }) if self.pool.is_gone(source) => {
                let last = self.said(source).ok().and_then(Said::ownership);
                last.is_some_and(|(_, said)| said == frozen)
            }
            Ok(_) | Err(_) => false,
        }
    }

    fn cancel(&self, source: HostSlot, target: HostSlot, from: Ownership, to: Ownership) -> bool {
        let Some(epoch) = from.epoch() else { return false };
        let cancelling = Said::Cancelling { source, target, epoch };
        // Somebody may have begun it and died, or lost patience.
        if self.said(source) != Ok(cancelling) && !self.say(source, Said::Is(from), cancelling) {
            return false;
        }
        fence(Ordering::SeqCst);
        let start = Instant::now();
        loop {
            let said = self.said(target);
            match said {
                Ok(Said::Claiming { epoch: claimed, .. }) if claimed == epoch => {
                    if self.pool.is_gone(target) && self.said(target) == said {
                        break;
                    }
                    if start.elapsed() > PATIENCE || crate::fault::is_alone() {
                        return false;
                    }
                    yield_now();
                }
                Ok(said) if said.ownership().is_some_and(|(later, _)| later > epoch) => return false,
                Ok(_) => break,
                Err(_) => return false,
            }
        }
        self.say(source, cancelling, Said::Is(to))
    }
}

impl Pool {
    /// Who owns the guest that is in this slot now.
    pub(crate) fn ownership_in(&self, slot: usize) -> GuestOwnership<'_> {
        let generation =
            self.tables().layout().lines.and_then(|_| self.tables().guest_slots().load(slot).ok()?.current());
        GuestOwnership::new(self, slot, generation.unwrap_or(0))
    }

    /// Whether no process acts in a host's name any more, nor in that of its guests: each is dead for sure, or it has been fenced.
    pub(crate) fn is_gone(&self, host: HostSlot) -> bool {
        #[cfg(all(test, not(loom)))]
        if crate::medium::has_died(host.index()) {
            return true;
        }
        self.is_dead_for_sure(host) || self.life(host).is_some_and(|life| life.fence == Fence::Fenced)
    }
}
