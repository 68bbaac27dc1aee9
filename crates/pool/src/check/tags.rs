//! The tag index, word by word.

use super::{Checker, Wrong};
use crate::format::slot_word::{Reference, SlotState};
use crate::mapping::exchange;
use crate::sync::Ordering;
use crate::tag_index::BUCKET;

impl Checker<'_> {
    pub(super) fn check_tags(&mut self) {
        let tables = self.pool.tables();
        let index = tables.tags();
        for (position, word) in index.words.iter().enumerate() {
            let value = word.load(Ordering::Acquire);
            if value == 0 {
                continue;
            }
            let place = format!("tag index, word {position}");
            let Some(reference) =
                Reference::decode(value).filter(|found| usize::from(found.slot) < index.capacities.count())
            else {
                self.mend(Wrong::mendable(place, "it refers to no possible capacity"), || {
                    exchange(word, value, 0).is_ok()
                });
                continue;
            };
            if index.capacities.is_over(reference) {
                let wrong = Wrong::note(place, "it refers to a capacity that is over; the word counts as empty");
                self.mend(wrong, || exchange(word, value, 0).is_ok());
                continue;
            }
            let Some(record) = tables.capacity_of(reference) else { continue };
            let live = matches!(index.capacities.load(reference.slot.into()), Ok(SlotState::Live { .. }));
            if live && !index.buckets(record.tag).contains(&(position / BUCKET)) {
                let wrong = Wrong::mendable(place, format!("tag {} does not belong here", record.tag));
                self.mend(wrong, || exchange(word, value, 0).is_ok());
            }
        }
    }
}
