//! A guest's protection: whether there is a whole commit where its words say that there is one.

use super::{Checker, Wrong};
use crate::control::GuestControl;
use crate::format::guest::GuestRecord;
use crate::format::protection::Standing;
use crate::format::slot_word::Reference;
use crate::ids::GuestSlot;

const NO_WAY_BACK: &str = "the guest runs, and cannot be brought back; `nil protect` it anew";

impl Checker<'_> {
    /// Whether the guest has a protection. What a live owner changes meanwhile is found once, and not again.
    pub(super) fn check_protection(&mut self, slot: GuestSlot, place: &str, record: &GuestRecord) -> bool {
        let reference = Reference { slot: slot.0, generation: record.generation };
        let guest = GuestControl::new(self.pool.clone(), reference, record.id);
        let protection = match guest.protection() {
            Ok(None) => return false,
            Ok(Some(protection)) => protection,
            Err(error) => {
                self.report(Wrong::error(place, error.to_string(), NO_WAY_BACK));
                return true;
            }
        };
        let whole = protection.settings().and_then(|_| protection.standing()).and_then(|standing| match standing {
            Standing::Idle(_) => Ok(()),
            Standing::Active(number) | Standing::Sealed(number) => match protection.require_whole(number) {
                // The next commit but one lies in the same place.
                Err(_) if protection.standing().is_ok_and(|now| now != standing) => Ok(()),
                result => result,
            },
        });
        if let Err(error) = whole {
            self.report(Wrong::error(place, error.to_string(), NO_WAY_BACK));
        }
        true
    }
}
