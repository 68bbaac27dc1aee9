//! What is known of the hosts and pools around, and the ways through them.

use crate::fabric::live_fabric;
use crate::itinerary::{MOST_STEPS, Step};
use crate::name::HostName;
use crate::report::HostReport;
use crate::survey::Survey;
use nil_fabric::{
    Begin, Bytes, CostModel, Duration, Fabric, HostId, Path, PathRequest, Planner, Rate, Step as FabricStep,
};
use nil_mover::{Budget, Pace};
use nil_pool::PoolId;

/// How many ways are looked at for one that nothing is known against.
const WAYS: usize = 32;

/// A way for a guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    /// `A –pool→ H –other→ Z`.
    pub(super) in_short: String,
    /// What it is predicted to take: microseconds.
    pub(super) predicted_us: u64,
}

/// What way is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// Where the guest runs.
    pub(super) from: &'a HostName,
    /// Which pool is its home.
    pub(super) home: PoolId,
    /// Where it is to run.
    pub(super) to: &'a HostName,
    /// Bytes of its memory.
    pub(super) memory_bytes: u64,
    /// Where that is.
    pub(super) memory: Whereabouts,
    /// What moving it may cost.
    pub(super) budget: Budget,
    /// Hosts that it must not pass.
    pub(super) avoid: &'a [HostName],
    /// Steps that have been tried in vain.
    pub(super) failed: &'a [Step],
}

/// Where a guest's memory is before it moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Whereabouts {
    /// All of it is in its host's DRAM.
    Dram,
    /// It is in its home, or a part of it is.
    Home,
}

/// The hosts and pools around.
#[derive(Debug)]
pub(super) struct Chart {
    fabric: Fabric,
    /// The hosts that are known, and do not answer.
    silent: Vec<HostName>,
}

impl Chart {
    /// Draws what the hosts of a survey say of themselves, and what the pools say of others.
    ///
    /// # Errors
    /// What they say contradicts itself, in a sentence.
    pub(super) fn of(survey: &Survey) -> Result<Self, String> {
        let silent = |host: &&HostReport| host.agent_pid.is_none() || host.silent.is_some();
        let silent = survey.hosts.iter().filter(silent).map(|host| host.name.clone()).collect();
        Ok(Self { fabric: live_fabric(survey).map_err(sentence)?, silent })
    }

    /// The quickest way against which nothing is known.
    ///
    /// # Errors
    /// There is none: why, in a sentence.
    pub(super) fn plan(&self, wanted: &Wanted<'_>) -> Result<Plan, String> {
        if self.silent.contains(wanted.to) {
            return Err(not_there(wanted.to));
        }
        let host = |name: &HostName| self.fabric.find_host(name.as_str()).map_err(|_| not_there(name));
        let (from, to) = (host(wanted.from)?, host(wanted.to)?);
        let home = self.fabric.find_device(&wanted.home.to_string()).map_err(sentence)?;
        let request = PathRequest {
            begin: match wanted.memory {
                Whereabouts::Dram => Begin::Dram,
                Whereabouts::Home => Begin::Device(home),
            },
            avoid_hosts: wanted.avoid.iter().filter_map(|name| self.fabric.find_host(name.as_str()).ok()).collect(),
            ..PathRequest::new(from, to, Bytes(wanted.memory_bytes))
        };
        let planner = Planner::with_model(&self.fabric, model_of(wanted.budget));
        let ways = planner.alternatives(&request, WAYS).map_err(sentence)?;
        let tried = ways.len();
        let mut plans = ways.into_iter().filter_map(|way| self.steps(&way, wanted.home));
        plans
            .find(|plan| plan.steps.len() <= MOST_STEPS && !plan.steps.iter().any(|step| wanted.failed.contains(step)))
            .ok_or_else(|| {
                let ways = if tried == 1 { "the only way".to_owned() } else { format!("each of {tried} ways") };
                format!("{ways} from {} to {} has a step that was tried in vain", wanted.from, wanted.to)
            })
    }

    /// A way as orders for agents. `None` if it names what is not on the chart, which it does not.
    fn steps(&self, way: &Path, home: PoolId) -> Option<Plan> {
        let (mut steps, mut lies) = (Vec::new(), home);
        let host = |id: HostId| self.fabric.host(id).name.as_str().parse::<HostName>().ok();
        for leg in &way.legs {
            match leg.step {
                // Decoupling into another pool than its home needs that as its home. The rest is the migration's.
                FabricStep::Decouple { at, into } | FabricStep::Relocate { at, to: into, .. } => {
                    let to = self.pool(into)?;
                    if to != lies {
                        steps.push(Step::Rehome { at: host(at)?, to });
                        lies = to;
                    }
                }
                FabricStep::Handoff { from, to, over } => {
                    steps.push(Step::Handoff { from: host(from)?, to: host(to)?, over: self.pool(over)? });
                }
                FabricStep::Recouple { .. } => {}
            }
        }
        let Duration(predicted_us) = way.time();
        Some(Plan { in_short: self.in_short(&steps), steps, predicted_us })
    }

    /// `A –pool→ H –other→ Z`.
    pub(super) fn in_short(&self, steps: &[Step]) -> String {
        let mut text = steps.first().map(|step| step.host().to_string()).unwrap_or_default();
        for step in steps {
            if let Step::Handoff { to, over, .. } = step {
                text.push_str(&format!(" –{}→ {to}", self.pool_name(*over)));
            }
        }
        text
    }

    /// What a person calls a pool.
    pub(super) fn pool_name(&self, pool: PoolId) -> String {
        let device = self.fabric.find_device(&pool.to_string()).ok();
        device.map_or_else(|| pool.to_string(), |device| self.fabric.device(device).name.to_string())
    }

    fn pool(&self, device: nil_fabric::DeviceId) -> Option<PoolId> {
        self.fabric.device(device).pool.as_ref()?.as_str().parse().ok()
    }
}

/// How fast memory moves within a budget. What hosts have measured is so at the default one.
fn model_of(budget: Budget) -> CostModel {
    let model = match budget.pace {
        Pace::Fast => CostModel::fast(),
        Pace::Paced { .. } => CostModel::default(),
    };
    budget.bandwidth.map_or(model.clone(), |most| model.within(Rate(most)))
}

fn not_there(host: &HostName) -> String {
    format!("host {host} does not answer: start its agent with `nil host run --name {host} --pool PATH`")
}

#[allow(clippy::needless_pass_by_value)] // it is the error arm of a Result
fn sentence(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::PoolReport;

    fn name(name: &str) -> HostName {
        name.parse().expect("a good name")
    }

    fn pools() -> [PoolId; 3] {
        [1u8, 2, 3].map(|number| PoolId::from_bytes([number; 16]))
    }

    fn host(called: &str, joined: &[PoolId]) -> HostReport {
        let pool = |id: &PoolId| PoolReport {
            id: *id,
            path: format!("/pools/{}", &id.to_string()[..2]).into(),
            slot: 0,
            free_bytes: 1 << 30,
            total_bytes: 2 << 30,
        };
        HostReport {
            name: name(called),
            id: None,
            agent_pid: Some(1),
            pools: joined.iter().map(pool).collect(),
            guests: 0,
            unattended: Vec::new(),
            silent: None,
            standing: None,
            lost_pools: Vec::new(),
            capabilities: None,
            resources: None,
        }
    }

    fn drawn(hosts: Vec<HostReport>) -> Chart {
        Chart::of(&Survey { guests: Vec::new(), hosts, elsewhere: Vec::new() }).expect("a chart")
    }

    /// A and Z have a pool each; H and I have both of them.
    fn chart() -> Chart {
        let [p, q, _] = pools();
        drawn(vec![host("A", &[p]), host("H", &[p, q]), host("I", &[p, q]), host("Z", &[q])])
    }

    fn plan(chart: &Chart, memory: Whereabouts, avoid: &[HostName], failed: &[Step]) -> Result<Plan, String> {
        let (from, to, home) = (name("A"), name("Z"), pools()[0]);
        let (memory_bytes, budget) = (64 << 20, Budget::default());
        chart.plan(&Wanted { from: &from, home, to: &to, memory_bytes, memory, budget, avoid, failed })
    }

    fn over(hop: &str) -> Vec<Step> {
        let [p, q, _] = pools();
        vec![
            Step::Handoff { from: name("A"), to: name(hop), over: p },
            Step::Rehome { at: name(hop), to: q },
            Step::Handoff { from: name(hop), to: name("Z"), over: q },
        ]
    }

    #[test]
    fn the_way_to_a_host_that_shares_no_pool_goes_over_one_that_has_both() {
        for memory in [Whereabouts::Home, Whereabouts::Dram] {
            let plan = plan(&chart(), memory, &[], &[]).expect("a way");
            assert_eq!((plan.steps, plan.in_short.as_str()), (over("H"), "A –01→ H –02→ Z"));
            assert!(plan.predicted_us > 0);
        }
    }

    #[test]
    fn a_way_at_full_speed_is_predicted_to_be_quicker_and_one_within_a_bandwidth_slower() {
        let time = |budget| {
            let (from, to) = (name("A"), name("Z"));
            let (home, memory) = (pools()[0], Whereabouts::Home);
            let wanted =
                Wanted { from: &from, home, to: &to, memory_bytes: 1 << 30, memory, budget, avoid: &[], failed: &[] };
            chart().plan(&wanted).expect("a way").predicted_us
        };
        let fast = time(Budget { pace: Pace::Fast, bandwidth: None });
        let slow = time(Budget { pace: Pace::default(), bandwidth: Some(1 << 20) });
        let usual = time(Budget::default());
        assert!(fast < usual && usual < slow, "{fast} {usual} {slow}");
    }

    #[test]
    fn a_step_that_was_tried_in_vain_is_gone_around() {
        for step in over("H") {
            let plan = plan(&chart(), Whereabouts::Home, &[], &[step]).expect("a way");
            assert_eq!(plan.steps, over("I"));
        }
        let all: Vec<Step> = over("H").into_iter().take(1).chain(over("I").into_iter().skip(1).take(1)).collect();
        let why = plan(&chart(), Whereabouts::Home, &[], &all).expect_err("no way is left");
        assert!(why.contains("tried in vain"), "{why}");
    }

    #[test]
    fn a_host_that_is_to_be_avoided_is() {
        let found = plan(&chart(), Whereabouts::Home, &[name("H")], &[]).expect("a way");
        assert_eq!(found.steps, over("I"));
        plan(&chart(), Whereabouts::Home, &[name("H"), name("I")], &[]).expect_err("no way is left");
    }

    #[test]
    fn a_host_that_does_not_answer_is_no_hop_and_no_target() {
        let [p, q, _] = pools();
        let silent = HostReport { silent: Some("it says nothing".to_owned()), ..host("H", &[]) };
        let gone = HostReport { agent_pid: None, ..host("I", &[]) };
        let chart = drawn(vec![host("A", &[p]), silent, gone, host("Z", &[q])]);
        let why = plan(&chart, Whereabouts::Home, &[], &[]).expect_err("nobody is in between");
        assert!(why.contains("share no memory"), "{why}");
        let target = HostReport { agent_pid: None, ..host("Z", &[]) };
        let chart = drawn(vec![host("A", &[p]), host("I", &[p, q]), target]);
        let why = plan(&chart, Whereabouts::Home, &[], &[]).expect_err("nobody is there");
        assert!(why.contains("nil host run --name Z"), "{why}");
    }

    #[test]
    fn a_guest_in_dram_whose_host_has_the_targets_pool_too_changes_its_home_there() {
        let [p, q, _] = pools();
        let chart = drawn(vec![host("A", &[p, q]), host("Z", &[q])]);
        let plan = plan(&chart, Whereabouts::Dram, &[], &[]).expect("a way");
        let steps =
            vec![Step::Rehome { at: name("A"), to: q }, Step::Handoff { from: name("A"), to: name("Z"), over: q }];
        assert_eq!(plan.steps, steps);
    }
}
