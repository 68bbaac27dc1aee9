//! Which request goes where.

use super::calls::Api;
use super::problem::Refusal;
use super::rates::Rates;
use super::{events, guests, host, jobs, metrics, moves, offers, openapi, peers, placement, rates, roles, web};
use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{delete, get, post, put};
use std::sync::Arc;

/// Everything that can be asked of an agent.
pub(super) fn router(api: Api) -> Router {
    let rates = Arc::new(Rates::default());
    Router::new()
        .route("/", get(web::page))
        .route("/page.css", get(web::style))
        .route("/page.js", get(web::script))
        .route("/icon.svg", get(web::icon))
        .route("/metrics", get(metrics::metrics))
        .route("/healthz", get(host::health))
        .route("/v1/host", get(host::describe))
        .route("/v1/host/cordon", put(placement::cordon).delete(placement::uncordon))
        .route("/v1/host/drain", get(placement::plan).post(placement::drain).delete(placement::cancel))
        .route(
            "/v1/rebalance",
            get(placement::plan_rebalance).post(placement::rebalance).delete(placement::cancel_rebalance),
        )
        .route("/v1/takeovers", post(placement::take_over))
        .route("/v1/hosts", get(host::hosts))
        .route("/v1/fabric.svg", get(host::fabric))
        .route("/v1/pools", get(host::pools))
        .route("/v1/guests", get(guests::list).post(guests::run))
        .route("/v1/guests/{name}", get(guests::find).delete(guests::stop))
        .route("/v1/guests/{name}/pins", get(guests::pins).post(guests::pin))
        .route("/v1/guests/{name}/pins/{pin}", delete(guests::release_pin))
        .route("/v1/guests/{name}/protection", put(guests::protect).delete(guests::unprotect))
        .route("/v1/guests/{name}/migrations", post(moves::migrate).delete(moves::cancel_migration))
        .route("/v1/guests/{name}/migrations/check", post(moves::check_migration))
        .route("/v1/guests/{name}/rehomings", post(moves::rehome).delete(moves::cancel_rehoming))
        .route("/v1/guests/{name}/routes", post(moves::route))
        .route("/v1/guests/{name}/moves", post(moves::move_memory).delete(moves::cancel_move))
        .route("/v1/offers", get(offers::list))
        .route("/v1/offers/{tag}", put(offers::answer))
        .route("/v1/jobs", get(jobs::list))
        .route("/v1/jobs/{id}", get(jobs::find))
        .route("/v1/jobs/{id}/cancel", post(jobs::cancel))
        .route("/v1/jobs/{id}/events", get(jobs::events))
        .route("/v1/openapi.json", get(openapi::openapi))
        .route("/v1/events", get(events::watch))
        .route("/v1/peer/arm", post(peers::arm))
        .route("/v1/peer/settle", post(peers::settle))
        .route("/v1/peer/routes/{id}/cancel", post(peers::cancel))
        // What is not there, and what cannot be done, is so for everybody.
        .route_layer(from_fn(roles::check))
        .fallback(async |uri: Uri| Refusal::new(StatusCode::NOT_FOUND, format!("there is nothing at {}", uri.path())))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            let detail = format!("{method} cannot be done with {}", uri.path());
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, detail)
        })
        .layer(from_fn(move |request, next| rates::limit(Arc::clone(&rates), request, next)))
        .layer(from_fn_with_state(api.clone(), metrics::count))
        .with_state(api)
}
