//! The host and its pools.

use super::calls::Api;
use super::problem::{Answer, Refusal};
use crate::report::{HostReport, PoolReport};
use axum::Json;
use axum::extract::State;

/// `GET /healthz`: the agent answers.
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "host",
    responses((status = 200, description = "The agent answers", body = String, content_type = "text/plain"), Refusal)
)]
pub(super) async fn health() -> &'static str {
    "ok\n"
}

/// `GET /v1/host`
#[utoipa::path(
    get,
    path = "/v1/host",
    tag = "host",
    responses((status = 200, description = "The host, and which pools it has joined", body = HostReport), Refusal)
)]
pub(super) async fn describe(State(api): State<Api>) -> Answer<Json<HostReport>> {
    api.question(|host| Ok(host.describe())).await.map(Json)
}

/// `GET /v1/pools`
#[utoipa::path(
    get,
    path = "/v1/pools",
    tag = "host",
    responses((status = 200, description = "The pools that the host has joined", body = Vec<PoolReport>), Refusal)
)]
pub(super) async fn pools(State(api): State<Api>) -> Answer<Json<Vec<PoolReport>>> {
    api.question(|host| Ok(host.describe().pools)).await.map(Json)
}
