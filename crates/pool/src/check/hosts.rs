//! Host entries and journals.

use super::{Checker, Wrong};
use crate::format::host::{HostKind, HostRecord};
use crate::format::journal::Intent;
use crate::format::slot_word::SlotState;
use crate::liveness::{Liveness, claim_liveness};
use crate::mapping::exchange;
use crate::ownership::HostSlot;
use crate::recovery::Actor;
use crate::sync::Ordering;
use crate::tables::Seen;

impl Checker<'_> {
    pub(super) fn check_hosts(&mut self) {
        let mut living: Vec<(HostSlot, HostRecord)> = Vec::new();
        for slot in self.pool.tables().host_slots() {
            let place = format!("host {slot}");
            match self.pool.tables().host(slot) {
                Seen::Free => {}
                Seen::BadWord(word) => {
                    let what = format!("its slot word {word:#018x} is not a valid one");
                    self.report(Wrong::error(place, what, "the slot stays out of use; other hosts are not affected"));
                }
                Seen::Used(SlotState::Making { .. }, _) => self.check_joining(slot, place),
                Seen::Used(state, Err(source)) => {
                    self.check_damaged_host(slot, state, format!("its record is damaged: {source}"));
                }
                Seen::Used(state, Ok(record)) => {
                    self.check_incarnation(slot, state, &record);
                    let liveness = self.pool.liveness(slot);
                    self.check_unfinished(slot, &record, liveness);
                    self.check_dead(slot, state, &record, liveness);
                    if liveness != Liveness::Dead {
                        let namesake =
                            living.iter().find(|(_, other)| other.name == record.name || other.id == record.id);
                        if let Some((other, _)) = namesake {
                            let what = format!("it has the same name or UUID as host {other}, and both may be alive");
                            self.report(Wrong::error(place, what, "stop one of the two"));
                        }
                        living.push((slot, record));
                    }
                }
            }
        }
    }

    /// A joiner that died leaves its slot claimed; the next joiner takes it over.
    fn check_joining(&mut self, slot: HostSlot, place: String) {
        let claim = self.pool.tables().host_claim(slot).load(Ordering::Acquire);
        if claim == 0 || claim_liveness(claim, &self.pool.inner.here) == Liveness::Dead {
            self.report(Wrong::note(place, "a host died while it joined here; the next to join takes the slot over"));
        }
    }

    fn check_damaged_host(&mut self, slot: HostSlot, state: SlotState, what: String) {
        let (tables, place) = (self.pool.tables(), format!("host {slot}"));
        let claim = tables.host_claim(slot).load(Ordering::Acquire);
        let abandoned = claim == 0 || claim_liveness(claim, &self.pool.inner.here) == Liveness::Dead;
        let (SlotState::Live { generation }, true, None) = (state, abandoned, self.pool.guest_of_host(slot)) else {
            let remedy =
                "stop the host and let it join again; if guests name it, only their owner's return settles them";
            return self.report(Wrong::error(place, what, remedy));
        };
        self.mend(Wrong::mendable(place, what), || {
            Actor::new(self.pool, slot).recover();
            exchange(tables.host_state_word(slot), state.encode(), SlotState::Free { generation }.encode()).is_ok()
                && (claim == 0 || exchange(tables.host_claim(slot), claim, 0).is_ok())
        });
    }

    fn check_incarnation(&mut self, slot: HostSlot, state: SlotState, record: &HostRecord) {
        let place = format!("host {slot}");
        match state.current() {
            Some(current) if current == record.incarnation => {}
            Some(current) if current > record.incarnation => {
                self.report(Wrong::note(place, format!("'{}' was declared dead by a peer", record.name)));
            }
            Some(_) | None => {
                self.check_damaged_host(
                    slot,
                    state,
                    "its record is from a later incarnation than its slot word".to_owned(),
                );
            }
        }
    }

    fn check_unfinished(&mut self, slot: HostSlot, record: &HostRecord, liveness: Liveness) {
        let (actor, place) = (Actor::new(self.pool, slot), format!("host {slot}"));
        if self.pool.tables().journal(slot).iter().all(Result::is_err) {
            let remedy = "let the host leave and join again; what it left half done is found and named on its own";
            self.report(Wrong::error(&place, "both entries of its journal are damaged", remedy));
        }
        let Some(intent) = actor.pending() else { return };
        let doing = match intent {
            Intent::Idle => return,
            Intent::AddCapacity(_) => "adding a capacity",
            Intent::ReleaseCapacity(_) => "releasing a capacity",
            Intent::CreateGuest { .. } => "creating a guest",
            Intent::DestroyGuest { .. } => "destroying a guest",
        };
        match liveness {
            Liveness::Alive => {}
            Liveness::Unknown => {
                let what = format!("'{}', on another kernel, is {doing}, or died over it", record.name);
                self.report(Wrong::note(place, what));
            }
            Liveness::Dead => {
                let wrong = Wrong::mendable(place, format!("'{}' died while {doing}", record.name));
                self.mend(wrong, || !actor.recover().is_nothing());
            }
        }
    }

    fn check_dead(&mut self, slot: HostSlot, state: SlotState, record: &HostRecord, liveness: Liveness) {
        if liveness != Liveness::Dead {
            return;
        }
        let (tables, place) = (self.pool.tables(), format!("host {slot}"));
        match record.kind {
            HostKind::Agent => {
                let what = format!("'{}' died without leaving; it retakes its slot when it returns", record.name);
                self.report(Wrong::note(place, what));
            }
            HostKind::Tool => {
                let wrong = Wrong::note(place, format!("the command '{}' died; its slot will be reused", record.name));
                let pool = self.pool;
                self.mend(wrong, || {
                    let SlotState::Live { generation } = state else { return false };
                    let claim = tables.host_claim(slot).load(Ordering::Acquire);
                    let settled = Actor::new(pool, slot).pending().is_none() && pool.guest_of_host(slot).is_none();
                    let free = SlotState::Free { generation }.encode();
                    settled
                        && exchange(tables.host_state_word(slot), state.encode(), free).is_ok()
                        && exchange(tables.host_claim(slot), claim, 0).is_ok()
                });
            }
        }
    }
}
