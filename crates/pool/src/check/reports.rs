//! The ring of reports. Nothing depends on it, so nothing in it is worse than a note.

use super::{Checker, Wrong};
use crate::format::slot_word::SlotState;
use crate::liveness::Liveness;
use crate::mapping::exchange;
use crate::sync::Ordering;

/// An entry in which nothing ever was.
const EMPTY: SlotState = SlotState::Free { generation: 0 };

impl Checker<'_> {
    pub(super) fn check_reports(&mut self) {
        let Some(entries) = self.pool.tables().report_slots() else { return };
        for entry in self.pool.report_entries() {
            let word = entries.word(entry);
            let found = word.load(Ordering::Acquire);
            let what = match (SlotState::decode(found), self.pool.report_in(entry)) {
                (Ok(SlotState::Making { host, .. }), _) if self.pool.liveness(host) == Liveness::Dead => {
                    format!("host {host} died while it wrote a report; the entry will be reused")
                }
                (_, Err(_)) if word.load(Ordering::Acquire) != found => continue,
                (_, Err(source)) => format!("the report there is damaged, and left out: {source}"),
                (_, Ok(_)) => continue,
            };
            self.mend(Wrong::note(format!("report {entry}"), what), || exchange(word, found, EMPTY.encode()).is_ok());
        }
    }
}
