//! The description of the API, for programs that make clients or tests of it: `docs/api/openapi.json`.

use super::{events, guests, host, jobs, metrics, moves, offers, peers, placement};
use crate::problem::Problem;
use crate::report::{ArmNews, HostEvent, Progress};
use axum::Json;
use utoipa::OpenApi;
use utoipa::openapi;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "nil agent",
        description = "What can be asked of the agent of a host. Everything that takes long is a job: it is ordered, then \
                       followed; who ordered it may go.",
    ),
    paths(
        host::health,
        host::describe,
        host::hosts,
        host::pools,
        host::fabric,
        metrics::metrics,
        guests::list,
        guests::find,
        guests::run,
        guests::stop,
        guests::protect,
        guests::unprotect,
        guests::pins,
        guests::pin,
        guests::release_pin,
        moves::migrate,
        moves::check_migration,
        moves::cancel_migration,
        moves::rehome,
        moves::cancel_rehoming,
        moves::route,
        moves::move_memory,
        moves::cancel_move,
        offers::list,
        offers::answer,
        jobs::list,
        jobs::find,
        jobs::cancel,
        jobs::events,
        events::watch,
        placement::cordon,
        placement::uncordon,
        placement::plan,
        placement::drain,
        placement::cancel,
        placement::plan_rebalance,
        placement::rebalance,
        placement::cancel_rebalance,
        placement::take_over,
        peers::arm,
        peers::settle,
        peers::cancel,
    ),
    components(schemas(Problem, Progress, HostEvent, ArmNews)),
    tags(
        (name = "host", description = "The host, its pools, and what happens there"),
        (name = "guests", description = "Guests, and the pins of their memory"),
        (name = "moves", description = "Migrations, and moves of guests' memory between DRAM and pool"),
        (name = "capacity", description = "Capacity that is offered to the host, and what it answers"),
        (name = "jobs", description = "What takes long: how far it is, and calling it off"),
        (name = "placement", description = "Whether the host takes guests, emptying it, evening hosts out"),
        (name = "peers", description = "What agents ask of each other"),
    )
)]
struct Description;

/// The description of the agent's API in OpenAPI 3.1, as a JSON document for people to read.
///
/// # Panics
/// Never: what is written here can be written as JSON.
#[must_use]
pub fn description() -> String {
    let mut text = Description::openapi().to_pretty_json().expect("a description is a document");
    text.push('\n');
    text
}

/// `GET /v1/openapi.json`
pub(super) async fn openapi() -> Json<openapi::OpenApi> {
    Json(Description::openapi())
}
