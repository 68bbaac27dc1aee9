//! The owner map, word by word.

use super::{Checker, Wrong};
use crate::format::GRANULE;
use crate::format::capacity::Extent;
use crate::format::slot_word::{Reference, SlotState};
use crate::mapping::exchange;
use crate::owner_map::RESERVED;
use crate::sync::Ordering;
use crate::tables::Seen;
use std::collections::HashMap;

/// What a word of the owner map turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Fault {
    /// A granule of the tables that is not marked as such.
    Unreserved,
    /// A value that no data granule can have.
    Impossible,
    /// Left behind by a capacity that is over.
    LeftBehind,
    /// Of a live capacity whose record does not list it.
    Unlisted,
}

impl Checker<'_> {
    pub(super) fn check_owners(&mut self) {
        let owners = self.pool.tables().owners();
        let mut extents: HashMap<Reference, Option<Vec<Extent>>> = HashMap::new();
        let mut faults: HashMap<Fault, Vec<(usize, u64)>> = HashMap::new();
        for (granule, word) in owners.words.iter().enumerate() {
            let value = word.load(Ordering::Acquire);
            if value == 0 && granule >= owners.first_data {
                continue;
            }
            if let Some(fault) = self.judge(granule, value, &mut extents) {
                faults.entry(fault).or_default().push((granule, value));
            }
        }
        // Whether a capacity that lists a granule has lost it is said where that capacity is checked.
        let (listed, all_readable) = self.listed_granules();
        for granules in faults.values_mut() {
            granules.retain(|(granule, _)| !listed[*granule]);
        }
        faults.retain(|_, granules| !granules.is_empty());
        for fault in [Fault::Unreserved, Fault::Impossible, Fault::LeftBehind, Fault::Unlisted] {
            if let Some(granules) = faults.get(&fault) {
                self.report_fault(fault, granules, all_readable);
            }
        }
    }

    fn judge(&self, granule: usize, word: u64, extents: &mut HashMap<Reference, Option<Vec<Extent>>>) -> Option<Fault> {
        let tables = self.pool.tables();
        let slots = tables.capacity_slots();
        if granule < tables.owners().first_data {
            return (word != RESERVED).then_some(Fault::Unreserved);
        }
        let Some(owner) = Reference::decode(word).filter(|owner| usize::from(owner.slot) < slots.count()) else {
            return Some(Fault::Impossible);
        };
        if slots.is_over(owner) {
            return Some(Fault::LeftBehind);
        }
        if !slots.is_current(owner) {
            return slots.load(owner.slot.into()).is_ok().then_some(Fault::Impossible);
        }
        if !matches!(slots.load(owner.slot.into()), Ok(SlotState::Live { .. })) {
            return None;
        }
        let listed = extents.entry(owner).or_insert_with(|| tables.capacity_of(owner).map(|record| record.extents));
        let granule = granule as u64;
        let unlisted = listed.as_ref().is_some_and(|extents| {
            !extents.iter().any(|extent| (u64::from(extent.first)..extent.end()).contains(&granule))
        });
        unlisted.then_some(Fault::Unlisted)
    }

    /// Which granules are in the record of some capacity; and whether all records can be read, because one that cannot
    /// might list what is in doubt.
    fn listed_granules(&self) -> (Vec<bool>, bool) {
        let tables = self.pool.tables();
        let mut listed = vec![false; tables.owners().words.len()];
        let mut all_readable = true;
        for slot in 0..tables.capacity_slots().count() {
            match tables.capacity(slot) {
                Seen::Free => {}
                Seen::Used(state, Ok(record)) if state.current() == Some(record.generation) => {
                    record.extents.iter().for_each(|extent| listed[extent.granules()].fill(true));
                }
                // Not written yet.
                Seen::Used(SlotState::Making { .. }, _) => {}
                Seen::Used(..) | Seen::BadWord(_) => all_readable = false,
            }
        }
        (listed, all_readable)
    }

    fn report_fault(&mut self, fault: Fault, granules: &[(usize, u64)], all_readable: bool) {
        let place = format!("owner map, granule {}", granules[0].0);
        let some = format!("{} granules, the first here, ", granules.len());
        let (wrong, right) = match fault {
            Fault::Unreserved => (Wrong::mendable(place, some + "are the pool's own but not marked so"), RESERVED),
            Fault::LeftBehind => {
                (Wrong::note(place, some + "were left behind by a capacity that is over; they count as free"), 0)
            }
            Fault::Impossible => (Wrong::mendable(place, some + "have an impossible owner and are in no capacity"), 0),
            Fault::Unlisted => (Wrong::mendable(place, some + "belong to a capacity that does not list them"), 0),
        };
        if right == 0 && !all_readable {
            let remedy = "see to the damaged capacities first; one of them might own these granules";
            return self.report(Wrong { remedy, ..wrong });
        }
        let pool = self.pool;
        self.mend(wrong, || {
            let words = pool.tables().owners().words;
            granules.iter().all(|(granule, value)| {
                if right == 0 {
                    pool.inner.backing.punch(*granule as u64 * GRANULE, GRANULE);
                }
                exchange(&words[*granule], *value, right).is_ok()
            })
        });
    }
}
