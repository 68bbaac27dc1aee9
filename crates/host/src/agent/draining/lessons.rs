//! What was learnt by trying to send guests away: who refused which, how often each was tried.

use super::{ATTEMPTS, PATIENCE};
use crate::name::{GuestName, HostName};
use crate::outlook::Lessons;
use crate::report::{PlannedMove, Stay};
use nil_pool::GuestId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// What is known of the guests that did not go at once.
#[derive(Debug, Default)]
pub(super) struct Experience(BTreeMap<GuestId, Trial>);

#[derive(Debug)]
struct Trial {
    guest: GuestName,
    attempts: u32,
    /// Since when something else is being done with it.
    busy_since: Option<Instant>,
    /// Hosts that are not to be tried now.
    refused_by: BTreeSet<HostName>,
    last: String,
}

impl Trial {
    fn is_given_up(&self) -> bool {
        self.attempts >= ATTEMPTS || self.busy_since.is_some_and(|since| since.elapsed() > PATIENCE)
    }
}

impl Experience {
    fn trial(&mut self, one: &PlannedMove, why: String) -> &mut Trial {
        let trial = self.0.entry(one.id).or_insert_with(|| Trial {
            guest: one.guest.clone(),
            attempts: 0,
            busy_since: None,
            refused_by: BTreeSet::new(),
            last: String::new(),
        });
        trial.last = why;
        trial
    }

    /// A guest did not go where it was to go.
    pub(super) fn failed(&mut self, one: &PlannedMove, why: String) {
        let trial = self.trial(one, why);
        trial.attempts += 1;
        trial.busy_since = None;
        trial.refused_by.insert(one.to.clone());
    }

    /// A guest could not go, because something else is being done with it.
    pub(super) fn busy(&mut self, one: &PlannedMove, why: String) {
        self.trial(one, why).busy_since.get_or_insert_with(Instant::now);
    }

    /// What the next plan must keep to.
    pub(super) fn lessons(&self) -> Lessons {
        Lessons {
            refusals: self.0.iter().map(|(id, trial)| (*id, trial.refused_by.clone())).collect(),
            given_up: self.0.iter().filter(|(_, trial)| trial.is_given_up()).map(|(id, _)| *id).collect(),
        }
    }

    /// Lets a guest be sent where it was refused before. Whether there is such a place, and it is still worth trying.
    pub(super) fn forgive(&mut self, id: GuestId) -> bool {
        match self.0.get_mut(&id) {
            Some(trial) if !trial.is_given_up() => !std::mem::take(&mut trial.refused_by).is_empty(),
            Some(_) | None => false,
        }
    }

    /// The guests that are not tried any more.
    pub(super) fn given_up(&self) -> impl Iterator<Item = Stay> {
        self.0.iter().filter(|(_, trial)| trial.is_given_up()).map(|(id, trial)| Stay {
            guest: trial.guest.clone(),
            id: *id,
            why: String::new(),
        })
    }

    /// Adds to what a plan says of guests that stay what came of trying.
    pub(super) fn explain(&self, left: Vec<Stay>) -> Vec<Stay> {
        let explained = |mut stay: Stay| {
            if let Some(trial) = self.0.get(&stay.id) {
                let tried = match trial.attempts {
                    0 => trial.last.clone(),
                    1 => format!("it was tried once: {}", trial.last),
                    attempts => format!("it was tried {attempts} times, and at last: {}", trial.last),
                };
                stay.why = if stay.why.is_empty() { tried } else { format!("{}; {tried}", stay.why) };
            }
            stay
        };
        left.into_iter().map(explained).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(to: &str) -> PlannedMove {
        PlannedMove {
            guest: "g".parse().expect("a good name"),
            id: GuestId::from_bytes([7; 16]),
            from: "A".parse().expect("a good name"),
            to: to.parse().expect("a good name"),
            way: format!("A –pool→ {to}"),
            handoffs: 1,
            memory_bytes: 2 << 20,
            copied_bytes: 0,
            rehomed: false,
            predicted_us: 1,
        }
    }

    fn left() -> Vec<Stay> {
        vec![Stay { guest: planned("B").guest, id: planned("B").id, why: "there is no room".into() }]
    }

    #[test]
    fn who_refuses_a_guest_is_not_tried_again_until_nobody_else_is_left() {
        let mut experience = Experience::default();
        experience.failed(&planned("B"), "B is full".into());
        experience.failed(&planned("C"), "C is full".into());
        let refused = experience.lessons().refusals[&planned("B").id].clone();
        assert_eq!(refused.iter().map(HostName::as_str).collect::<Vec<_>>(), ["B", "C"]);
        assert!(experience.forgive(planned("B").id), "there is somewhere to try again");
        assert!(!experience.forgive(planned("B").id), "nobody has refused it since");
        let why = experience.explain(left())[0].why.clone();
        assert_eq!(why, "there is no room; it was tried 2 times, and at last: C is full");
    }

    #[test]
    fn a_guest_that_is_refused_again_and_again_is_given_up() {
        let mut experience = Experience::default();
        for _ in 0..ATTEMPTS {
            assert!(experience.lessons().given_up.is_empty());
            experience.failed(&planned("B"), "B is full".into());
        }
        assert_eq!(experience.lessons().given_up, BTreeSet::from([planned("B").id]));
        assert!(!experience.forgive(planned("B").id));
        assert_eq!(experience.given_up().count(), 1);
    }

    #[test]
    fn a_guest_that_is_busy_costs_no_attempt() {
        let mut experience = Experience::default();
        (0..2 * ATTEMPTS).for_each(|_| experience.busy(&planned("B"), "it is being recoupled".into()));
        assert!(experience.lessons().given_up.is_empty());
        assert!(experience.lessons().refusals[&planned("B").id].is_empty());
        assert_eq!(experience.explain(left())[0].why, "there is no room; it is being recoupled");
    }
}
