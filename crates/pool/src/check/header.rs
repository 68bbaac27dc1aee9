//! The two header copies.

use super::{Checker, Wrong};
use crate::create::write_header;
use crate::format::header::{COMPAT_REPORTS, HEADER_BYTES, Header};
use crate::format::layout::{HEADER_A, HEADER_B};

impl Checker<'_> {
    pub(super) fn check_headers(&mut self) {
        let (mapping, good) = (self.pool.tables().mapping(), self.pool.header());
        for (name, at) in [("header A", HEADER_A), ("header B", HEADER_B)] {
            let what = match Header::decode(&mapping.read::<HEADER_BYTES>(at)) {
                Ok(copy) if copy == good => continue,
                Ok(copy) if copy.generation < good.generation => "it is older than the other copy".to_owned(),
                Ok(_) => "it differs from the other copy".to_owned(),
                Err(reason) => format!("it is not valid: {reason}"),
            };
            self.mend(Wrong::mendable(name, what), || {
                write_header(mapping, at, &good.encode());
                true
            });
        }
        if good.compat & COMPAT_REPORTS != 0 && good.layout.reports.is_none() {
            let what = "it says that there are reports, and not where; the pool keeps none";
            self.report(Wrong::note("header", what));
        }
        if good.unknown_compat() != 0 {
            let what = format!("the pool has features that this nil ignores (compat {:#x})", good.unknown_compat());
            self.report(Wrong::note("header", what));
        }
    }
}
