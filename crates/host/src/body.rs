//! What is sent to agents to order something of a guest whose name stands in the path. Only what has no default must be
//! there, and what is not known is refused.

use crate::error::Result;
use crate::name::{GuestName, HostName};
use crate::order::{
    GuestRange, Migrate, MoveMemory, PinMemory, ProtectGuest, Rehome, Route, Settling, Striping, check_costs,
    check_deadline,
};
use nil_mover::{Budget, Direction, MovePlan};
use nil_pool::{OutputRule, PoolId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `POST /v1/guests/{name}/migrations`
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MigrationBody {
    /// The host that is to run the guest.
    to: HostName,
    /// How long the guest may stand frozen before the source takes it back, in microseconds: 1 ms to 60 s.
    #[serde(default = "frozen_us")]
    deadline_us: u64,
    /// What becomes of memory that is in DRAM now.
    #[serde(default = "settling")]
    settling: Settling,
    /// What decoupling and recoupling may cost the guest.
    #[serde(default)]
    budget: Budget,
    /// How long they may wait for memory that cannot move, in microseconds.
    #[serde(default = "stall_timeout_us")]
    stall_timeout_us: u64,
    /// Over which pools memory that is decoupled is spread; none is the guest's own pool alone.
    #[serde(default)]
    striping: Option<Striping>,
    /// How long the whole of it may take before it is called off, in microseconds; none is no limit.
    #[serde(default)]
    time_limit_us: Option<u64>,
}

/// `POST /v1/guests/{name}/moves`
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MoveBody {
    /// Which way the memory goes.
    direction: Direction,
    /// Which part; none is all of it. A part that is recoupled is held until the same part is decoupled.
    #[serde(default)]
    range: Option<GuestRange>,
    /// What it may cost the guest.
    #[serde(default)]
    budget: Budget,
    /// The NUMA node that recoupled memory is to come to.
    #[serde(default)]
    node: Option<u32>,
    /// How long to wait for memory that cannot move, in microseconds.
    #[serde(default = "stall_timeout_us")]
    stall_timeout_us: u64,
    /// Why a part is pulled back, for those who wait for it.
    #[serde(default)]
    reason: Option<String>,
    /// Over which pools memory that is decoupled is spread; none is the guest's own pool alone.
    #[serde(default)]
    striping: Option<Striping>,
    /// How long the whole of it may take before it is called off, in microseconds; none is no limit.
    #[serde(default)]
    time_limit_us: Option<u64>,
}

/// `PUT /v1/guests/{name}/protection`
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProtectionBody {
    /// How long from one commit to the next, in microseconds: 1 ms to 1 hour.
    #[serde(default = "interval_us")]
    interval_us: u64,
    /// What becomes of its output before the commit that follows it.
    #[serde(default)]
    output: OutputRule,
    /// Bytes of each of the two redo logs; none is an eighth of the memory, and 64 MiB at least. It counts only where the
    /// guest is not protected yet.
    #[serde(default)]
    log_bytes: Option<u64>,
}

fn interval_us() -> u64 {
    25_000
}

impl ProtectionBody {
    pub(crate) fn order(self, guest: GuestName) -> ProtectGuest {
        let Self { interval_us, output, log_bytes } = self;
        ProtectGuest { guest, interval_us, output, log_bytes }
    }
}

impl From<&ProtectGuest> for ProtectionBody {
    fn from(order: &ProtectGuest) -> Self {
        let ProtectGuest { interval_us, output, log_bytes, .. } = *order;
        Self { interval_us, output, log_bytes }
    }
}

/// `POST /v1/guests/{name}/rehomings`
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RehomingBody {
    /// The pool that is to be the guest's home.
    pool: PoolId,
    /// What moving its memory may cost the guest.
    #[serde(default)]
    budget: Budget,
    /// How long to wait for memory that cannot move, in microseconds.
    #[serde(default = "stall_timeout_us")]
    stall_timeout_us: u64,
    /// How long the whole of it may take before it is called off, in microseconds; none is no limit.
    #[serde(default)]
    time_limit_us: Option<u64>,
}

/// `POST /v1/guests/{name}/routes`
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RouteBody {
    /// The host that is to run the guest, with which its own need not share a pool.
    to: HostName,
    /// How long the guest may stand frozen at each handoff before the source takes it back, in microseconds.
    #[serde(default = "frozen_us")]
    deadline_us: u64,
    /// What becomes of memory that is in DRAM now.
    #[serde(default = "settling")]
    settling: Settling,
    /// What moving its memory may cost the guest.
    #[serde(default)]
    budget: Budget,
    /// How long each leg may wait for memory that cannot move, in microseconds.
    #[serde(default = "stall_timeout_us")]
    stall_timeout_us: u64,
    /// Hosts that it must not pass.
    #[serde(default)]
    avoid: Vec<HostName>,
    /// How long the whole of it may take before it is called off, in microseconds; none is no limit.
    #[serde(default)]
    time_limit_us: Option<u64>,
}

/// `POST /v1/guests/{name}/pins`
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PinBody {
    /// Which part of the guest's memory.
    range: GuestRange,
    /// Who needs it so.
    owner: String,
    /// What for.
    reason: String,
}

/// `PUT /v1/offers/{tag}`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AnswerBody {
    /// What the host says to the offer.
    pub(crate) answer: OfferAnswer,
}

/// What a host says to an offer, by a person's decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OfferAnswer {
    /// It takes the capacity, if it can be mapped.
    Accept,
    /// It does not.
    Refuse,
}

impl RouteBody {
    /// Where the guest is to go.
    pub(crate) fn to(&self) -> &HostName {
        &self.to
    }

    /// Hosts that it must not pass.
    pub(crate) fn avoid(&self) -> &[HostName] {
        &self.avoid
    }

    /// So much of its time has gone by, in microseconds. Some is left always: no limit would be none.
    pub(crate) fn spend(&mut self, gone_us: u64) {
        self.time_limit_us = self.time_limit_us.map(|limit| limit.saturating_sub(gone_us).max(1));
    }

    /// Refuses limits that make no sense.
    pub(crate) fn check_limits(&self) -> Result<()> {
        check_deadline(self.deadline_us)?;
        check_costs(self.budget, self.stall_timeout_us)
    }
}

fn frozen_us() -> u64 {
    Migrate::DEADLINE_US
}

fn settling() -> Settling {
    Settling::Recouple
}

fn stall_timeout_us() -> u64 {
    MovePlan::STALL_TIMEOUT_US
}

/// Bodies are orders without the guest, which stands in the path.
macro_rules! bodies {
    ($($body:ident of $order:ident { $($field:ident),* })*) => {$(
        impl $body {
            pub(crate) fn order(self, guest: GuestName) -> $order {
                let Self { $($field),* } = self;
                $order { guest, $($field),* }
            }
        }

        impl From<&$order> for $body {
            fn from(order: &$order) -> Self {
                let $order { guest: _, $($field),* } = order.clone();
                Self { $($field),* }
            }
        }
    )*};
}

bodies! {
    MigrationBody of Migrate { to, deadline_us, settling, budget, stall_timeout_us, striping, time_limit_us }
    MoveBody of MoveMemory { direction, range, budget, node, stall_timeout_us, reason, striping, time_limit_us }
    RehomingBody of Rehome { pool, budget, stall_timeout_us, time_limit_us }
    RouteBody of Route { to, deadline_us, settling, budget, stall_timeout_us, avoid, time_limit_us }
    PinBody of PinMemory { range, owner, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::de::DeserializeOwned;

    /// Documents that look like ours more often than not.
    fn document() -> impl Strategy<Value = serde_json::Value> {
        let word = prop::sample::select(vec![
            "B",
            "g",
            "../x",
            "",
            "decouple",
            "recouple",
            "stay_in_pool",
            "fast",
            "paced",
            "accept",
            "00000000-0000-4000-8000-000000000000",
        ]);
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            word.prop_map(Into::into),
            ".*".prop_map(Into::into),
        ];
        let key = prop::sample::select(vec![
            "to",
            "deadline_us",
            "settling",
            "budget",
            "pace",
            "bandwidth",
            "max_stall_us",
            "stall_timeout_us",
            "striping",
            "granularity",
            "shares",
            "pool",
            "weight",
            "time_limit_us",
            "direction",
            "range",
            "address",
            "bytes",
            "node",
            "reason",
            "owner",
            "paced",
            "ranges",
            "guest",
            "avoid",
            "answer",
            "moves",
            "tolerance_percent",
            "parallel",
            "onward",
            "job",
            "way",
            "steps",
            "failed",
            "handoffs",
            "handoff",
            "rehome",
            "at",
            "from",
            "over",
            "x",
        ]);
        leaf.prop_recursive(4, 64, 8, move |inner| {
            let object = prop::collection::btree_map(key.clone().prop_map(str::to_owned), inner.clone(), 0..8);
            prop_oneof![
                prop::collection::vec(inner, 0..4).prop_map(Into::into),
                object.prop_map(|fields| serde_json::Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    /// What is understood is understood again when it is written down.
    fn survives<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(text: &[u8]) {
        if let Ok(understood) = serde_json::from_slice::<T>(text) {
            let again = serde_json::to_vec(&understood).expect("a document");
            assert_eq!(serde_json::from_slice::<T>(&again).expect("the same document"), understood);
        }
    }

    fn all_survive(text: &[u8]) {
        survives::<MigrationBody>(text);
        survives::<MoveBody>(text);
        survives::<RehomingBody>(text);
        survives::<RouteBody>(text);
        survives::<PinBody>(text);
        survives::<AnswerBody>(text);
        survives::<crate::order::RunVm>(text);
        survives::<crate::order::Drain>(text);
        survives::<crate::order::Rebalance>(text);
        survives::<crate::order::ArmOrder>(text);
        survives::<crate::itinerary::Onward>(text);
        survives::<crate::itinerary::Step>(text);
        survives::<crate::order::SettleOrder>(text);
    }

    proptest! {
        #[test]
        fn any_document_is_understood_or_refused(document in document()) {
            all_survive(document.to_string().as_bytes());
        }

        #[test]
        fn any_bytes_are_understood_or_refused(bytes: Vec<u8>) {
            all_survive(&bytes);
        }
    }

    #[test]
    fn what_has_a_default_may_be_left_out() {
        let guest: GuestName = "g".parse().expect("a good name");
        let body: MigrationBody = serde_json::from_str(r#"{"to": "B"}"#).expect("a body");
        assert_eq!(body.order(guest.clone()), Migrate::new(guest.clone(), "B".parse().expect("a good name")));
        let body: MoveBody = serde_json::from_str(r#"{"direction": "recouple"}"#).expect("a body");
        assert_eq!(body.order(guest.clone()), MoveMemory::all_of(guest, Direction::Recouple));
    }
}
