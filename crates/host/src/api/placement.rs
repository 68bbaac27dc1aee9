//! Whether the host takes guests, and emptying it.

use super::calls::Api;
use super::problem::{Answer, Refusal};
use super::request::{Asked, Document};
use crate::agent::Work;
use crate::order::{Drain, Rebalance, TakeoverOrder, moves_at_once};
use crate::report::{CalledOff, CordonReport, JobReport, PlacementPlan, RebalancePlan, TakeoverReport};
use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;

/// `PUT /v1/host/cordon`: no more guests come to this host.
#[utoipa::path(
    put,
    path = "/v1/host/cordon",
    tag = "placement",
    responses((status = 200, description = "The host takes no guests", body = CordonReport), Refusal)
)]
pub(super) async fn cordon(State(api): State<Api>) -> Answer<Json<CordonReport>> {
    api.order(|host| host.cordon()).await.map(Json)
}

/// `DELETE /v1/host/cordon`: guests may come again.
#[utoipa::path(
    delete,
    path = "/v1/host/cordon",
    tag = "placement",
    responses((status = 200, description = "The host takes guests", body = CordonReport), Refusal)
)]
pub(super) async fn uncordon(State(api): State<Api>) -> Answer<Json<CordonReport>> {
    api.order(|host| host.uncordon()).await.map(Json)
}

/// `POST /v1/takeovers`: fences a host whose lease has expired, and takes its guests, or one of them.
#[utoipa::path(
    post,
    path = "/v1/takeovers",
    tag = "placement",
    request_body = TakeoverOrder,
    responses((status = 200, description = "What has become of the guests that this host has seen to", body = Vec<TakeoverReport>), Refusal)
)]
pub(super) async fn take_over(
    State(api): State<Api>,
    Document(order): Document<TakeoverOrder>,
) -> Answer<Json<Vec<TakeoverReport>>> {
    api.order(move |host| host.take_over_dead(&order.name)).await.map(Json)
}

/// How a drain is to be planned.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Planned {
    /// How many guests leave at once: 1 to 64.
    #[serde(default = "moves_at_once")]
    parallel: u32,
}

/// `GET /v1/host/drain`: what would go where if the host were emptied now.
#[utoipa::path(
    get,
    path = "/v1/host/drain",
    tag = "placement",
    params(Planned),
    responses((status = 200, description = "The plan", body = PlacementPlan), Refusal)
)]
pub(super) async fn plan(State(api): State<Api>, Asked(planned): Asked<Planned>) -> Answer<Json<PlacementPlan>> {
    // All agents are asked for it, this one among them.
    api.order(move |host| host.drain_plan(planned.parallel)).await.map(Json)
}

/// `POST /v1/host/drain`: empties the host, which is cordoned first and stays so.
#[utoipa::path(
    post,
    path = "/v1/host/drain",
    tag = "placement",
    request_body = Drain,
    responses((status = 202, description = "The job has begun", body = JobReport), Refusal)
)]
pub(super) async fn drain(State(api): State<Api>, Document(order): Document<Drain>) -> Answer<Response> {
    api.begin(Work::Drain(order)).await
}

/// `DELETE /v1/host/drain`: calls it off; answers when it has stopped.
#[utoipa::path(
    delete,
    path = "/v1/host/drain",
    tag = "placement",
    responses((status = 200, description = "It is called off", body = CalledOff), Refusal)
)]
pub(super) async fn cancel(State(api): State<Api>) -> Answer<Json<CalledOff>> {
    api.call_off(|host| host.cancel_drain()).await
}

/// How evening out is to be planned.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Evened {
    /// So many guests move at most: 1 to 10000.
    #[param(required = false)]
    moves: u32,
    /// A host that is used no more than this above the mean of its neighbours is left alone, in percent.
    #[param(required = false)]
    tolerance_percent: u32,
    /// So many moves at once have one host as source or target: 1 to 64.
    #[param(required = false)]
    parallel: u32,
}

impl Default for Evened {
    fn default() -> Self {
        let Rebalance { moves, tolerance_percent, parallel, time_limit_us: _ } = Rebalance::default();
        Self { moves, tolerance_percent, parallel }
    }
}

/// `GET /v1/rebalance`: what would go where if the hosts of this machine were evened out now.
#[utoipa::path(
    get,
    path = "/v1/rebalance",
    tag = "placement",
    params(Evened),
    responses((status = 200, description = "The plan, and what it would be good for", body = RebalancePlan), Refusal)
)]
pub(super) async fn plan_rebalance(
    State(api): State<Api>,
    Asked(Evened { moves, tolerance_percent, parallel }): Asked<Evened>,
) -> Answer<Json<RebalancePlan>> {
    let order = Rebalance { moves, tolerance_percent, parallel, time_limit_us: None };
    api.order(move |host| host.rebalance_plan(&order)).await.map(Json)
}

/// `POST /v1/rebalance`: has the hosts of this machine used more evenly.
#[utoipa::path(
    post,
    path = "/v1/rebalance",
    tag = "placement",
    request_body = Rebalance,
    responses((status = 202, description = "The job has begun", body = JobReport), Refusal)
)]
pub(super) async fn rebalance(State(api): State<Api>, Document(order): Document<Rebalance>) -> Answer<Response> {
    api.begin(Work::Rebalance(order)).await
}

/// `DELETE /v1/rebalance`: calls it off; answers when it has stopped.
#[utoipa::path(
    delete,
    path = "/v1/rebalance",
    tag = "placement",
    responses((status = 200, description = "It is called off", body = CalledOff), Refusal)
)]
pub(super) async fn cancel_rebalance(State(api): State<Api>) -> Answer<Json<CalledOff>> {
    api.call_off(|host| host.cancel_rebalance()).await
}
