//! The host and its pools.

use super::calls::Api;
use super::problem::{Answer, Refusal};
use crate::report::{HostReport, KnownHost, PoolReport};
use axum::Json;
use axum::extract::State;
use axum::response::Response;

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
    api.glance(|host| Ok(host.describe())).map(Json)
}

/// `GET /v1/pools`
#[utoipa::path(
    get,
    path = "/v1/pools",
    tag = "host",
    responses((status = 200, description = "The pools that the host has joined", body = Vec<PoolReport>), Refusal)
)]
pub(super) async fn pools(State(api): State<Api>) -> Answer<Json<Vec<PoolReport>>> {
    api.glance(|host| Ok(host.pool_reports())).map(Json)
}

/// `GET /v1/hosts`
#[utoipa::path(
    get,
    path = "/v1/hosts",
    tag = "host",
    responses((status = 200, description = "The hosts in the pools that this one has joined", body = Vec<KnownHost>), Refusal)
)]
pub(super) async fn hosts(State(api): State<Api>) -> Answer<Json<Vec<KnownHost>>> {
    api.question(|host| Ok(host.known_hosts())).await.map(Json)
}

/// `GET /v1/fabric.svg`
#[utoipa::path(
    get,
    path = "/v1/fabric.svg",
    tag = "host",
    responses((status = 200, description = "A picture of those hosts and their pools", body = String, content_type = "image/svg+xml"), Refusal)
)]
pub(super) async fn fabric(State(api): State<Api>) -> Answer<Response> {
    api.question(crate::agent::Host::draw_fabric).await.map(super::web::picture)
}
