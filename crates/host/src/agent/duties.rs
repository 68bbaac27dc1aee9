//! What an agent does by itself, again and again: giving back what others have asked for, and what nobody needs.
//!
//! ```text
//! release asked ──▶ hold all of the guest's memory ──▶ recouple it ──▶ capacity released ──▶ hold lifted
//!                          │                              │ cannot (pinned, no DRAM): hold lifted, back to the pool,
//!                          │                              ▼                           tried again after a while
//!                          └ a migration under way stalls on the hold, and says so
//! ```

use super::Host;
use super::former::Former;
use super::jobs::Errand;
use super::offers::Demands;
use super::pinning::HOLDER;
use super::relocating::{Relocated, Relocation, has_nothing_pooled};
use crate::error::{Error, Result};
use crate::message::{Lane, Phase};
use crate::name::GuestName;
use nil_mover::{Budget, Direction, MoveOutcome, MovePlan, MoveRange};
use nil_pool::{GuestControl, Membership, Pin, Tag, reap_orphan_legs};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often to look whether there is something to do.
const ROUND: Duration = Duration::from_secs(1);
/// How long to leave a guest alone whose memory could not be given back.
const RESPITE: Duration = Duration::from_secs(60);
/// Why memory is held whose capacity is to be released.
const ASKED: &str = "the release of its capacity was asked for";

/// Capacities that could not be given back, and when that was found.
type InVain = Arc<Mutex<BTreeMap<Tag, Instant>>>;

impl Host {
    /// Does its duties until the agent ends.
    pub(super) fn attend(self: &Arc<Self>) {
        let (in_vain, mut demands, mut silent) = (InVain::default(), Demands::new(), BTreeSet::new());
        loop {
            std::thread::sleep(ROUND);
            lock(&in_vain).retain(|_, since| since.elapsed() < RESPITE);
            self.adopt_again(&mut silent);
            self.announce();
            let Some(_order) = self.orders.begin() else { return };
            self.settle_twins();
            self.answer_offers();
            self.enforce_demands(&mut demands);
            for (name, entry) in self.table.entries() {
                if entry.phase != Phase::Running || entry.job(Lane::PullBack).is_some() {
                    continue;
                }
                if let Err(error) = self.attend_to(&name, &entry.control, &in_vain) {
                    tracing::warn!("guest {name}: its room in the pool cannot be given back: {}", error.story());
                }
            }
        }
    }

    /// Does what is due for one guest; what takes long, on a thread of its own.
    fn attend_to(self: &Arc<Self>, name: &GuestName, control: &GuestControl, in_vain: &InVain) -> Result<()> {
        let tag = control.config()?.memory;
        let asked = self.is_asked_for(control, tag);
        // Mapped once: for many guests that is most of what this costs.
        let state = control.map_state()?;
        if asked && lock(in_vain).contains_key(&tag) {
            return Ok(());
        }
        if !asked && state.pins().list().iter().any(|pin| pin.owner == HOLDER && is_asked(pin)) {
            self.lift_holds_where(name, control, is_asked)?;
        }
        if !control.is_placed() {
            return Ok(());
        }
        if control.is_protected() {
            return if has_nothing_pooled(&state) { Ok(()) } else { self.bring_protected_home(name) };
        }
        if has_nothing_pooled(&state) {
            // Whoever occupies it now gives the capacity back; and if nobody does, nobody else would.
            self.tidy_idle(name, control);
            return Ok(());
        }
        if !asked {
            return Ok(());
        }
        let (name, control, in_vain) = (name.clone(), control.clone(), Arc::clone(in_vain));
        self.spawn("give back", move |host| {
            let Some(_order) = host.orders.begin() else { return };
            if let Err(error) = host.give_back(&name, &control) {
                tracing::warn!("guest {name}: its room in the pool cannot be given back: {}", error.story());
                lock(&in_vain).insert(tag, Instant::now());
            }
        })
    }

    /// On a thread of its own.
    fn bring_protected_home(self: &Arc<Self>, name: &GuestName) -> Result<()> {
        if self.table.find(name).is_none_or(|entry| entry.job(Lane::Main).is_some()) {
            return Ok(());
        }
        let name = name.clone();
        self.spawn("bring home", move |host| {
            let Some(_order) = host.orders.begin() else { return };
            if let Err(error) = host.bring_home(&name) {
                tracing::warn!("guest {name}: it cannot be protected, its memory stays in the pool: {}", error.story());
            }
        })
    }

    /// Whether somebody wants the capacity of a guest's memory to be released.
    fn is_asked_for(&self, control: &GuestControl, tag: Tag) -> bool {
        let Ok(membership) = self.pools.get(control.pool().id()) else { return false };
        membership.pool().find_capacity(tag).is_some_and(|capacity| capacity.release_asked)
    }

    /// Takes all memory of a guest out of the pool, because the capacity is wanted back.
    fn give_back(&self, name: &GuestName, control: &GuestControl) -> Result<()> {
        // Somebody pulls a part back: next time.
        let Ok(occupation) = self.table.occupy(name, Lane::PullBack, Errand::PullBack) else { return Ok(()) };
        tracing::info!("guest {name}: {ASKED}; its memory comes back into DRAM");
        let all = MoveRange { offset: 0, bytes: control.config()?.memory_bytes };
        let former = Former::of(control)?;
        self.hold(name, control, all, Some(ASKED))?;
        let (direction, budget) = (Direction::Recouple, Budget::default());
        let stall_timeout_us = MovePlan::STALL_TIMEOUT_US;
        let relocation = Relocation { direction, ranges: None, budget, node: None, stall_timeout_us, striping: None };
        match self.relocate(&occupation, &relocation, &mut |_| {}) {
            Ok(Relocated { outcome: MoveOutcome::Done, .. }) => {
                // If a migration is on, it stalls on the hold; whatever becomes of it gives the capacity back.
                self.tidy(&occupation);
                if !control.is_placed() {
                    self.lift_holds_where(name, control, is_asked)?;
                }
                return Ok(());
            }
            Ok(Relocated { outcome, .. }) => tracing::warn!("guest {name}: {}", reason(&outcome)),
            Err(error) => tracing::warn!("guest {name}: {}", error.story()),
        }
        // Whatever becomes of the hold, what has moved must go back. A hold that stays is lifted in the next round, if the
        // capacity is not asked for any more then.
        let lifted = self.lift_holds_where(name, control, is_asked);
        self.undo(&occupation, &relocation, &former, &mut |_| {})?;
        lifted?;
        Err(Error::refused("part of its memory could not be moved out of the pool"))
    }

    /// Releases the stripes of capacities that are gone.
    pub(super) fn reap_orphan_stripes(&self) {
        let all = self.pools.all();
        let members: Vec<&Membership> = all.iter().map(AsRef::as_ref).collect();
        match reap_orphan_legs(&members) {
            Ok(reaped) if reaped.is_empty() => {}
            Ok(reaped) => tracing::info!("released {} stripes of capacities that are gone", reaped.len()),
            Err(error) => tracing::warn!("stripes of capacities that are gone cannot be released: {error}"),
        }
    }
}

fn lock(in_vain: &InVain) -> MutexGuard<'_, BTreeMap<Tag, Instant>> {
    in_vain.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether that hold is one of ours.
fn is_asked(hold: &Pin) -> bool {
    hold.reason == ASKED
}

fn reason(outcome: &MoveOutcome) -> String {
    match outcome {
        MoveOutcome::Done => "it is done".to_owned(),
        MoveOutcome::Cancelled => "it was called off".to_owned(),
        MoveOutcome::Stalled(stall) => stall.to_string(),
    }
}
