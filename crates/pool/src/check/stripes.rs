//! Striped capacities against their legs, and legs against what they are of, as far as the other pools are at hand.

use super::{Checker, Severity, Wrong};
use crate::format::capacity::CapacityRecord;
use crate::format::slot_word::Reference;
use crate::format::stripe::{Composition, Leg, Stripe, Whole};
use crate::legs::Standing;

const LOST: &str = "bring back the pool as it was; else release the striped capacity and what uses it";
const ORPHAN: &str =
    "an agent that has joined both pools releases it when it starts; or release it with nil capacity release --pool";

impl Checker<'_> {
    pub(super) fn check_composition(&mut self, reference: Reference, record: &CapacityRecord, place: &str) {
        match &record.composition {
            Composition::Plain => {}
            Composition::Striped(stripe) => self.check_stripe(record, stripe, place),
            Composition::LegOf(whole) => self.check_leg(reference, *whole, place),
        }
    }

    fn check_stripe(&mut self, record: &CapacityRecord, stripe: &Stripe, place: &str) {
        for (&Leg { pool, tag, weight }, bytes) in stripe.legs.iter().zip(stripe.leg_bytes(record.bytes)) {
            let stripe = format!("its stripe {tag} of weight {weight} in pool {pool}");
            let Some(at) = self.pool.at_hand(pool) else {
                let mut note = Wrong::note(place, format!("{stripe} was not checked: that pool is not at hand"));
                note.remedy = "check again with that pool: --pool PATH";
                self.report(note);
                continue;
            };
            let leg = at.capacity_by_tag(tag).and_then(|leg| at.tables().capacity_of(leg));
            if let Some(flaw) = self.pool.flaw_of_leg(record, leg.as_ref(), bytes) {
                let what = format!("{stripe} at {} {flaw}", at.path().display());
                self.report(Wrong::error(place, what, LOST));
            }
        }
    }

    fn check_leg(&mut self, reference: Reference, whole: Whole, place: &str) {
        let Whole { pool, tag } = whole;
        match self.pool.standing(reference, whole) {
            Standing::Needed | Standing::BeingMade(_) => {}
            Standing::Unknown => {
                let what = format!("it is a stripe of capacity {tag} in pool {pool}, which is not at hand");
                let remedy = "check again with that pool: --pool PATH";
                self.report(Wrong { severity: Severity::Note, place: place.to_owned(), what, remedy });
            }
            Standing::Orphan => {
                let what = format!("it is a stripe of capacity {tag} in pool {pool}, which is gone");
                self.report(Wrong { severity: Severity::Warning, place: place.to_owned(), what, remedy: ORPHAN });
            }
        }
    }
}
