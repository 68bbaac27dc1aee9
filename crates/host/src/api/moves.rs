//! Migrations, and moves of guests' memory: jobs all of them. What is on can be called off by its guest, too.

use super::calls::Api;
use super::problem::{Answer, Refusal};
use super::request::{Asked, At, Document};
use crate::agent::Work;
use crate::body::{MigrationBody, MoveBody, RehomingBody, RouteBody};
use crate::compatibility::Verdict;
use crate::name::GuestName;
use crate::report::{CalledOff, JobReport};
use axum::Json;
use axum::extract::State;
use axum::response::Response;
use nil_mover::Direction;
use serde::Deserialize;
use utoipa::IntoParams;

/// `POST /v1/guests/{name}/migrations`
#[utoipa::path(
    post,
    path = "/v1/guests/{name}/migrations",
    tag = "moves",
    params(("name" = GuestName, Path, description = "The guest, which must be on this host")),
    request_body = MigrationBody,
    responses((status = 202, description = "The job has begun", body = JobReport), Refusal)
)]
pub(super) async fn migrate(
    State(api): State<Api>,
    At(guest): At<GuestName>,
    Document(body): Document<MigrationBody>,
) -> Answer<Response> {
    api.begin(Work::Migrate(body.order(guest))).await
}

/// `POST /v1/guests/{name}/migrations/check`: says whether the target could have the guest; moves nothing.
#[utoipa::path(
    post,
    path = "/v1/guests/{name}/migrations/check",
    tag = "moves",
    params(("name" = GuestName, Path, description = "The guest, which must be on this host")),
    request_body = MigrationBody,
    responses((status = 200, description = "Whether it could go there, and every reason if not", body = Verdict), Refusal)
)]
pub(super) async fn check_migration(
    State(api): State<Api>,
    At(guest): At<GuestName>,
    Document(body): Document<MigrationBody>,
) -> Answer<Json<Verdict>> {
    let order = body.order(guest);
    api.order(move |host| host.check_migration(&order)).await.map(Json)
}

/// `POST /v1/guests/{name}/moves`
#[utoipa::path(
    post,
    path = "/v1/guests/{name}/moves",
    tag = "moves",
    params(("name" = GuestName, Path, description = "The guest, which must be on this host")),
    request_body = MoveBody,
    responses((status = 202, description = "The job has begun", body = JobReport), Refusal)
)]
pub(super) async fn move_memory(
    State(api): State<Api>,
    At(guest): At<GuestName>,
    Document(body): Document<MoveBody>,
) -> Answer<Response> {
    api.begin(Work::Move(body.order(guest))).await
}

/// `POST /v1/guests/{name}/rehomings`: the guest's home moves to another pool of this host.
#[utoipa::path(
    post,
    path = "/v1/guests/{name}/rehomings",
    tag = "moves",
    params(("name" = GuestName, Path, description = "The guest, which must be on this host")),
    request_body = RehomingBody,
    responses((status = 202, description = "The job has begun", body = JobReport), Refusal)
)]
pub(super) async fn rehome(
    State(api): State<Api>,
    At(guest): At<GuestName>,
    Document(body): Document<RehomingBody>,
) -> Answer<Response> {
    api.begin(Work::Rehome(body.order(guest))).await
}

/// `DELETE /v1/guests/{name}/rehomings`: calls off the rehoming that is on; answers when it is known how things stand.
#[utoipa::path(
    delete,
    path = "/v1/guests/{name}/rehomings",
    tag = "moves",
    params(("name" = GuestName, Path, description = "The guest, which must be on this host")),
    responses((status = 200, description = "It is called off", body = CalledOff), Refusal)
)]
pub(super) async fn cancel_rehoming(State(api): State<Api>, At(guest): At<GuestName>) -> Answer<Json<CalledOff>> {
    api.call_off(move |host| host.cancel_rehoming(&guest)).await
}

/// `POST /v1/guests/{name}/routes`: the guest goes over other hosts to one that shares no pool with this one.
#[utoipa::path(
    post,
    path = "/v1/guests/{name}/routes",
    tag = "moves",
    params(("name" = GuestName, Path, description = "The guest, which must be on this host")),
    request_body = RouteBody,
    responses((status = 202, description = "The job has begun", body = JobReport), Refusal)
)]
pub(super) async fn route(
    State(api): State<Api>,
    At(guest): At<GuestName>,
    Document(body): Document<RouteBody>,
) -> Answer<Response> {
    api.begin(Work::Route(body.order(guest))).await
}

/// `DELETE /v1/guests/{name}/migrations`: calls off the migration that is on; answers when it is known how things stand.
#[utoipa::path(
    delete,
    path = "/v1/guests/{name}/migrations",
    tag = "moves",
    params(("name" = GuestName, Path, description = "The guest, which must be on this host")),
    responses((status = 200, description = "It is called off", body = CalledOff), Refusal)
)]
pub(super) async fn cancel_migration(State(api): State<Api>, At(guest): At<GuestName>) -> Answer<Json<CalledOff>> {
    api.call_off(move |host| host.cancel_migration(&guest)).await
}

/// Which move is to be called off.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Way {
    /// Which way it goes.
    direction: Direction,
}

/// `DELETE /v1/guests/{name}/moves?direction=`: calls off the move that is on in that direction, in the same way.
#[utoipa::path(
    delete,
    path = "/v1/guests/{name}/moves",
    tag = "moves",
    params(("name" = GuestName, Path, description = "The guest, which must be on this host"), Way),
    responses((status = 200, description = "It is called off", body = CalledOff), Refusal)
)]
pub(super) async fn cancel_move(
    State(api): State<Api>,
    At(guest): At<GuestName>,
    Asked(way): Asked<Way>,
) -> Answer<Json<CalledOff>> {
    api.call_off(move |host| host.cancel_move(&guest, way.direction)).await
}
