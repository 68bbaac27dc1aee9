//! A guest's placement map and pin table, and whether its memory capacity agrees with them.
//!
//! | the map says                        | the memory capacity | finding                                        |
//! |-------------------------------------|---------------------|------------------------------------------------|
//! | every granule local                 | absent              | none: the guest is in its host's DRAM          |
//! | every granule local                 | there               | note: kept from a move that was cut short; or  |
//! |                                     |                     | none: the guest is protected, it is its image  |
//! | some granule mixed or pooled        | there               | none                                           |
//! | some granule mixed or pooled        | absent              | error: its contents are gone                   |
//! | a word that is no placement         | any                 | error                                          |
//!
//! A capacity that has the tag of a guest's memory and is not that memory (see `guests.rs`) counts as absent.
//!
//! Only a guest of which it is certain that nobody runs it (lost, or vacant and its creator dead) is mended: a worker outlives its agent, so
//! that its host is dead does not say that its memory is at rest, or that what its devices pinned is free.

use super::{Checker, Severity, Wrong};
use crate::format::guest::GuestRecord;
use crate::format::pin::PINS;
use crate::ids::GuestSlot;
use crate::liveness::Liveness;
use crate::ownership::Ownership;
use crate::pins::{PinSeen, PinTable};
use crate::placement::PlacementMap;
use crate::state::StateArea;

/// How often the granules are counted before the count is believed over a worker that moves them meanwhile.
const COUNTS: usize = 8;
const GONE: &str = "what they held is gone; destroy the guest";
const KEPT: &str = "the owner's agent or `nil vm stop` releases it";

/// Who may be changing a guest's map and pins at this moment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hands {
    /// Nobody: it is vacant or lost.
    None,
    /// Perhaps a worker whose agent is gone.
    Orphaned,
    /// The worker of a live host.
    Live,
}

impl Checker<'_> {
    /// `has_capacity` is whether its memory capacity is there.
    pub(super) fn check_placement(
        &mut self,
        slot: GuestSlot,
        place: &str,
        record: &GuestRecord,
        state: &StateArea,
        has_capacity: bool,
    ) {
        let (hands, map) = (self.hands_on(slot, record), state.placement());
        let is_image = self.check_protection(slot, place, record);
        self.check_granules_placed(place, record, &map, has_capacity, is_image);
        self.check_away(place, &map, hands);
        self.check_pins(place, &state.pins(), hands);
    }

    fn hands_on(&self, slot: GuestSlot, record: &GuestRecord) -> Hands {
        match self.pool.ownership_in(slot.index()).load() {
            // Its creator may be about to boot it.
            Ok(Ownership::Vacant) if self.pool.host_may_live(record.creator) => Hands::Live,
            Ok(Ownership::Vacant | Ownership::Lost { .. }) => Hands::None,
            Ok(
                Ownership::Owned { host, .. }
                | Ownership::Offered { source: host, .. }
                | Ownership::Frozen { source: host, .. }
                | Ownership::Taken { taker: host, .. },
            ) => {
                if self.pool.liveness(host) == Liveness::Dead {
                    Hands::Orphaned
                } else {
                    Hands::Live
                }
            }
            Err(_) => Hands::Live,
        }
    }

    fn check_granules_placed(
        &mut self,
        place: &str,
        record: &GuestRecord,
        map: &PlacementMap,
        has_capacity: bool,
        is_image: bool,
    ) {
        let summary = map.summary();
        if let Some(bad) = (0..map.granules()).find_map(|granule| map.get(granule).err()) {
            let what = format!(
                "{} words of its placement map are damaged, the first of granule {} ({:#018x})",
                summary.damaged, bad.granule, bad.word
            );
            self.report(Wrong::error(place, what, "what those granules hold cannot be told; destroy the guest"));
        }
        let needy = summary.mixed + summary.pooled;
        if has_capacity && !is_image && needy == 0 && summary.damaged == 0 {
            let what = format!("its memory capacity {} holds none of its granules", record.memory());
            self.report(Wrong {
                remedy: KEPT,
                ..Wrong::note(place, format!("{what}: kept from a move that was cut short"))
            });
        }
        let in_pool = (0..map.granules())
            .find(|granule| map.get(*granule).is_ok_and(|placed| !matches!(placed.place, crate::Place::Local { .. })));
        if let Some(granule) = in_pool.filter(|_| !has_capacity) {
            let what = format!(
                "{needy} of its granules, the first {granule}, are in the pool, but its memory capacity {} is not there",
                record.memory()
            );
            self.report(Wrong::error(place, what, GONE));
        }
    }

    /// The count of granules that are away is never too low; too high it is left by a worker that died.
    fn check_away(&mut self, place: &str, map: &PlacementMap, hands: Hands) {
        let tries = if hands == Hands::None { 1 } else { COUNTS };
        let low = || {
            let before = map.away();
            let counted = map.summary().away();
            (before.max(map.away()) < counted).then_some((before, counted))
        };
        // A worker that moves granules while they are counted makes a count wrong, but hardly every one.
        let mut lows = (0..tries).map(|_| low());
        if lows.all(|low| low.is_some()) {
            let what = format!("its count of granules away from the pool is too low ({})", map.away());
            let remedy = "a handoff would lose memory; stop the guest, or recouple it, before it is handed over";
            return self.report(Wrong::error(place, what, remedy));
        }
        let (away, counted) = (map.away(), map.summary().away());
        if away <= counted {
            return;
        }
        let what = format!("its count of granules away from the pool is {away}, but {counted} are");
        match hands {
            Hands::None => {
                let wrong = Wrong { severity: Severity::Note, ..Wrong::mendable(place, what) };
                self.mend(wrong, || map.recount() == counted);
            }
            Hands::Orphaned | Hands::Live if away > map.granules() as u64 => {
                let remedy = "no handoff is possible; stop the guest";
                self.report(Wrong::error(place, what, remedy));
            }
            Hands::Orphaned => {
                self.report(Wrong::note(place, format!("{what}: a move is under way, or was cut short")));
            }
            Hands::Live => {}
        }
    }

    fn check_pins(&mut self, place: &str, pins: &PinTable, hands: Hands) {
        for entry in (0..PINS).filter_map(|entry| u16::try_from(entry).ok()) {
            match (pins.look(entry), hands) {
                (PinSeen::Free | PinSeen::Held(_), _) | (PinSeen::Taking { .. }, Hands::Orphaned | Hands::Live) => {}
                (PinSeen::Taking { host }, Hands::None) => {
                    let what = format!("its pin entry {entry} was being written when its worker on host {host} died");
                    let wrong = Wrong { severity: Severity::Note, ..Wrong::mendable(place, what) };
                    self.mend(wrong, || pins.free(entry));
                }
                (PinSeen::Damaged { why }, Hands::None) => {
                    let wrong = Wrong::mendable(place, format!("its pin entry {entry} is damaged: {why}"));
                    self.mend(wrong, || pins.free(entry));
                }
                (PinSeen::Damaged { why }, Hands::Orphaned | Hands::Live) => {
                    let what =
                        format!("its pin entry {entry} is damaged, so that all of its memory counts as pinned: {why}");
                    self.report(Wrong::error(
                        place,
                        what,
                        "stop the guest; what is pinned while it runs cannot be told",
                    ));
                }
            }
        }
    }
}
