//! What is left of a guest's way over several hosts when it comes to one of them.
//!
//! It travels with the arming for that guest ([`crate::order::ArmOrder`]), and the host goes on by itself once the guest
//! runs there. It comes from another machine: nothing of it is used before [`Onward::check`] has found that it follows
//! from the arming, and is bounded.

use crate::body::RouteBody;
use crate::error::{Error, Result};
use crate::name::HostName;
use nil_pool::{JobId, PoolId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use utoipa::ToSchema;

/// So many steps a plan has at most.
pub(crate) const MOST_STEPS: usize = 32;
/// So many times a guest is handed over at most, from the order to the end of its way.
pub(crate) const MOST_HANDOFFS: u8 = 16;
/// So many hosts may be avoided.
pub(crate) const MOST_AVOIDED: usize = 256;
/// So many steps that were tried in vain are kept in mind.
pub(crate) const MOST_FAILED: usize = 64;

/// Something that is done to a guest at one place, and is a job of that host's agent.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Step {
    /// Its home moves to another pool.
    Rehome {
        /// The host that runs it.
        at: HostName,
        /// The pool.
        to: PoolId,
    },
    /// It is handed over within the pool that is its home.
    Handoff {
        /// The host that runs it.
        from: HostName,
        /// The host that is to run it.
        to: HostName,
        /// That pool.
        over: PoolId,
    },
}

impl Step {
    /// The host whose agent does it.
    pub(crate) fn host(&self) -> &HostName {
        match self {
            Self::Rehome { at, .. } => at,
            Self::Handoff { from, .. } => from,
        }
    }
}

/// The rest of a guest's way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Onward {
    /// The number of the job that the host makes of it; whoever arms it follows that.
    pub(crate) job: JobId,
    /// Where to, and within which limits. Memory comes into the target's DRAM at last, all of it, or stays in the pool.
    pub(crate) way: RouteBody,
    /// The steps that were planned, from this host on.
    pub(crate) steps: Vec<Step>,
    /// Steps that were tried in vain.
    pub(crate) failed: Vec<Step>,
    /// How often the guest may be handed over still.
    pub(crate) handoffs: u8,
}

impl Onward {
    /// Whether the host `here` can go on like that with a guest whose home is the pool `home`.
    ///
    /// # Errors
    /// It does not follow from the arming, is too long, or has limits that make no sense; the sentence says which.
    pub(crate) fn check(&self, here: &HostName, home: PoolId) -> Result<()> {
        let bounds = [
            ("steps", self.steps.len(), MOST_STEPS),
            ("hosts to avoid", self.way.avoid().len(), MOST_AVOIDED),
            ("steps that failed", self.failed.len(), MOST_FAILED),
            ("handoffs", usize::from(self.handoffs), usize::from(MOST_HANDOFFS)),
        ];
        if let Some((what, many, most)) = bounds.into_iter().find(|(_, many, most)| many > most) {
            return Err(refused(format!("it has {many} {what}, and {most} are the most")));
        }
        self.way.check_limits()?;
        check_steps(&self.steps, here, home, self.way.to()).map_err(refused)?;
        if handoffs(&self.steps) > usize::from(self.handoffs) {
            return Err(refused(format!("it takes more handoffs than the {} that are left", self.handoffs)));
        }
        Ok(())
    }
}

/// How many of these are handoffs.
pub(crate) fn handoffs(steps: &[Step]) -> usize {
    steps.iter().filter(|step| matches!(step, Step::Handoff { .. })).count()
}

/// Whether these steps lead a guest from a host, and from its home there, to another one, and over no host twice.
pub(crate) fn check_steps(
    steps: &[Step],
    here: &HostName,
    home: PoolId,
    target: &HostName,
) -> std::result::Result<(), String> {
    let (mut at, mut lies, mut passed) = (here, home, BTreeSet::from([here]));
    for step in steps {
        if step.host() != at {
            return Err(format!("the guest is on host {at}, and host {} is to do the next step", step.host()));
        }
        match step {
            Step::Rehome { to, .. } if *to == lies => {
                return Err(format!("at {at}, the guest's home is pool {to} already"));
            }
            Step::Rehome { to, .. } => lies = *to,
            Step::Handoff { over, .. } if *over != lies => {
                return Err(format!(
                    "at {at}, the guest's home is pool {lies}, and it cannot be handed over in {over}"
                ));
            }
            Step::Handoff { to, .. } if !passed.insert(to) => {
                return Err(format!("it comes to host {to} twice"));
            }
            Step::Handoff { to, .. } => at = to,
        }
    }
    match steps.last() {
        Some(Step::Handoff { to, .. }) if to == target => Ok(()),
        _ => Err(format!("its last step does not hand the guest over to host {target}")),
    }
}

fn refused(why: impl std::fmt::Display) -> Error {
    Error::refused(format!("the way that the guest is to go from here cannot be gone: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::Route;
    use proptest::prelude::*;

    fn host(name: &str) -> HostName {
        name.parse().expect("a good name")
    }

    fn pool(number: u8) -> PoolId {
        PoolId::from_bytes([number; 16])
    }

    fn rehome(at: &str, to: u8) -> Step {
        Step::Rehome { at: host(at), to: pool(to) }
    }

    fn handoff(from: &str, to: &str, over: u8) -> Step {
        Step::Handoff { from: host(from), to: host(to), over: pool(over) }
    }

    /// From H, where the guest comes in pool 1, over I to Z.
    fn onward() -> Onward {
        Onward {
            job: JobId::random(),
            way: RouteBody::from(&Route::new("g".parse().expect("a good name"), host("Z"))),
            steps: vec![rehome("H", 2), handoff("H", "I", 2), rehome("I", 3), handoff("I", "Z", 3)],
            failed: Vec::new(),
            handoffs: 2,
        }
    }

    fn refusal(change: impl FnOnce(&mut Onward)) -> String {
        let mut onward = onward();
        change(&mut onward);
        onward.check(&host("H"), pool(1)).expect_err("it must be refused").to_string()
    }

    #[test]
    fn a_way_that_follows_from_the_arming_is_gone() {
        onward().check(&host("H"), pool(1)).expect("it can be gone");
    }

    #[test]
    fn a_way_that_does_not_follow_from_the_arming_is_refused_with_the_reason() {
        for (why, change) in [
            ("host I is to do the next step", (|it| it.steps = it.steps.split_off(2)) as fn(&mut Onward)),
            ("home is pool 01010101", |it| drop(it.steps.remove(0))),
            ("already", |it| it.steps[0] = rehome("H", 1)),
            ("host H twice", |it| it.steps[3] = handoff("I", "H", 3)),
            ("does not hand the guest over to host Z", |it| it.steps.truncate(3)),
            ("does not hand the guest over to host Z", |it| it.steps.clear()),
            ("host I is to do the next step", |it| it.steps[1] = handoff("H", "Z", 2)),
        ] {
            let said = refusal(change);
            assert!(said.contains(why), "`{why}` is missing in: {said}");
        }
        let elsewhere = onward().check(&host("I"), pool(1)).expect_err("it is another host's").to_string();
        assert!(elsewhere.contains("host H is to do"), "{elsewhere}");
    }

    #[test]
    fn a_way_without_bounds_is_refused() {
        let to_and_fro = |it: &mut Onward| it.steps = (0..40).map(|number| rehome("H", 2 + number % 2)).collect();
        assert!(refusal(to_and_fro).contains("40 steps, and 32"));
        assert!(refusal(|it| it.handoffs = 1).contains("more handoffs than the 1"));
        assert!(refusal(|it| it.handoffs = 17).contains("17 handoffs, and 16"));
        assert!(refusal(|it| it.failed = vec![rehome("H", 2); 65]).contains("65 steps that failed"));
        let everybody = Route { avoid: vec![host("X"); 257], ..Route::new("g".parse().expect("a name"), host("Z")) };
        assert!(refusal(|it| it.way = RouteBody::from(&everybody)).contains("257 hosts to avoid"));
        let endless = Route { deadline_us: u64::MAX, ..Route::new("g".parse().expect("a name"), host("Z")) };
        assert!(refusal(|it| it.way = RouteBody::from(&endless)).contains("deadline"));
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let name = || prop::sample::select(vec!["H", "I", "J", "Z"]);
        prop_oneof![
            (name(), 1u8..4).prop_map(|(at, to)| rehome(at, to)),
            (name(), name(), 1u8..4).prop_map(|(from, to, over)| handoff(from, to, over)),
        ]
    }

    proptest! {
        #[test]
        fn what_is_accepted_ends_at_the_target_and_passes_no_host_twice(
            steps in prop::collection::vec(any_step(), 0..8), handoffs: u8, wild: bool,
        ) {
            // Steps drawn at random hardly ever fit: half of the time those are taken that begin where the guest is.
            let (mut at, mut lies) = (host("H"), pool(1));
            let fits = |step: &Step| {
                let fits = wild || (*step.host() == at && match step {
                    Step::Rehome { to, .. } => *to != lies,
                    Step::Handoff { over, .. } => *over == lies,
                });
                match step {
                    Step::Rehome { to, .. } if fits => lies = *to,
                    Step::Handoff { to, .. } if fits => at = to.clone(),
                    Step::Rehome { .. } | Step::Handoff { .. } => {}
                }
                fits
            };
            let steps: Vec<Step> = { let mut fits = fits; steps.into_iter().filter(|step| fits(step)).collect() };
            let onward = Onward { steps, handoffs, ..onward() };
            if onward.check(&host("H"), pool(1)).is_ok() {
                let mut stops = vec![host("H")];
                for step in &onward.steps {
                    prop_assert_eq!(step.host(), stops.last().expect("a stop"));
                    if let Step::Handoff { to, .. } = step {
                        prop_assert!(!stops.contains(to));
                        stops.push(to.clone());
                    }
                }
                prop_assert_eq!(stops.last(), Some(&host("Z")));
                prop_assert!(stops.len() - 1 <= usize::from(handoffs.min(MOST_HANDOFFS)));
            }
        }

        #[test]
        fn what_is_understood_is_understood_again(steps in prop::collection::vec(any_step(), 0..8), handoffs: u8) {
            let onward = Onward { steps: steps.clone(), failed: steps, handoffs, ..onward() };
            let text = serde_json::to_vec(&onward).expect("a document");
            prop_assert_eq!(serde_json::from_slice::<Onward>(&text).expect("the same"), onward);
        }
    }
}
