//! Guests, and the pins of their memory.

use super::calls::Api;
use super::limits::FEW_GUESTS;
use super::problem::{Answer, Refusal};
use super::request::{At, Document};
use crate::agent::{Host, Unclaimed};
use crate::body::{PinBody, ProtectionBody};
use crate::error::{Error, Result};
use crate::name::GuestName;
use crate::order::RunVm;
use crate::report::{GuestReport, PinReport, known};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use std::convert::Infallible;

/// `GET /v1/guests`: all guests in the host's pools, those of other hosts as the pool has them.
#[utoipa::path(
    get,
    path = "/v1/guests",
    tag = "guests",
    responses((status = 200, description = "All guests", body = Vec<GuestReport>), Refusal)
)]
pub(super) async fn list(State(api): State<Api>) -> Answer<Json<Vec<GuestReport>>> {
    if api.host().most_guests() <= FEW_GUESTS {
        return api.glance(|host| Ok(host.list())).map(Json);
    }
    api.question(|host| Ok(host.list())).await.map(Json)
}

/// `GET /v1/guests/{name}`
#[utoipa::path(
    get,
    path = "/v1/guests/{name}",
    tag = "guests",
    params(("name" = String, Path, description = "The guest: its name or its identity")),
    responses((status = 200, description = "The guest", body = GuestReport), Refusal)
)]
pub(super) async fn find(State(api): State<Api>, At(name): At<String>) -> Answer<Json<GuestReport>> {
    api.glance(|host| find_one(host, &name)).map(Json)
}

/// The guest of that name or identity. A name may be in several pools: the guest of this host is meant then.
fn find_one(host: &Host, name: &str) -> Result<GuestReport> {
    let mut meant = host.list_where(|guest| guest.name == name || guest.id.to_string() == name);
    let is_ours = |guest: &GuestReport| guest.host.as_deref() == Some(host.name().as_str());
    // Those of this host last.
    meant.sort_by_key(is_ours);
    meant.pop().ok_or_else(|| Error::UnknownGuest { name: name.to_owned(), known: known("guest", host.guest_names()) })
}

/// `POST /v1/guests`: starts a VM. A caller that hangs up before it runs leaves nothing behind.
#[utoipa::path(
    post,
    path = "/v1/guests",
    tag = "guests",
    request_body = RunVm,
    responses((status = 201, description = "The guest runs", body = GuestReport), Refusal)
)]
pub(super) async fn run(State(api): State<Api>, Document(order): Document<RunVm>) -> Answer<Response> {
    let guest = api.order(move |host| host.run_vm(&order).map(|guest| Unclaimed::new(host, guest))).await?;
    let location = format!("/v1/guests/{}", guest.report().name);
    let report = Bytes::from(serde_json::to_vec(guest.report()).unwrap_or_default());
    // The guest is claimed when the connection takes what is said of it; it drops that when the caller has hung up.
    let body = Body::from_stream(futures_util::stream::once(async move {
        guest.claim();
        Ok::<_, Infallible>(report)
    }));
    let headers = [(CONTENT_TYPE.as_str(), "application/json"), ("location", location.as_str())];
    Ok((StatusCode::CREATED, headers, body).into_response())
}

/// `DELETE /v1/guests/{name}`: stops a guest of this host and frees its memory.
#[utoipa::path(
    delete,
    path = "/v1/guests/{name}",
    tag = "guests",
    params(("name" = GuestName, Path, description = "The guest, which must be on this host")),
    responses((status = 204, description = "The guest is no more"), Refusal)
)]
pub(super) async fn stop(State(api): State<Api>, At(guest): At<GuestName>) -> Answer<StatusCode> {
    api.order(move |host| host.stop_guest(&guest)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `PUT /v1/guests/{name}/protection`: has a guest protected, or protected otherwise.
#[utoipa::path(
    put,
    path = "/v1/guests/{name}/protection",
    tag = "guests",
    params(("name" = GuestName, Path, description = "The guest, which must be on this host")),
    request_body = ProtectionBody,
    responses((status = 200, description = "It will be protected as soon as its memory is in DRAM and has been copied", body = GuestReport), Refusal)
)]
pub(super) async fn protect(
    State(api): State<Api>,
    At(guest): At<GuestName>,
    Document(body): Document<ProtectionBody>,
) -> Answer<Json<GuestReport>> {
    let order = body.order(guest);
    api.order(move |host| host.protect(&order)).await.map(Json)
}

/// `DELETE /v1/guests/{name}/protection`
#[utoipa::path(
    delete,
    path = "/v1/guests/{name}/protection",
    tag = "guests",
    params(("name" = GuestName, Path, description = "The guest, which must be on this host")),
    responses((status = 204, description = "The guest is not protected any more"), Refusal)
)]
pub(super) async fn unprotect(State(api): State<Api>, At(guest): At<GuestName>) -> Answer<StatusCode> {
    api.order(move |host| host.unprotect(&guest)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /v1/guests/{name}/pins`
#[utoipa::path(
    get,
    path = "/v1/guests/{name}/pins",
    tag = "guests",
    params(("name" = GuestName, Path, description = "The guest, which must be on this host")),
    responses((status = 200, description = "The pins of its memory, holds among them", body = Vec<PinReport>), Refusal)
)]
pub(super) async fn pins(State(api): State<Api>, At(guest): At<GuestName>) -> Answer<Json<Vec<PinReport>>> {
    api.question(move |host| host.pins(&guest)).await.map(Json)
}

/// `POST /v1/guests/{name}/pins`: declares memory of a guest pinned.
#[utoipa::path(
    post,
    path = "/v1/guests/{name}/pins",
    tag = "guests",
    params(("name" = GuestName, Path, description = "The guest, which must be on this host")),
    request_body = PinBody,
    responses((status = 201, description = "The memory is pinned", body = PinReport), Refusal)
)]
pub(super) async fn pin(
    State(api): State<Api>,
    At(guest): At<GuestName>,
    Document(body): Document<PinBody>,
) -> Answer<(StatusCode, Json<PinReport>)> {
    let order = body.order(guest);
    let pin = api.order(move |host| host.pin(&order)).await?;
    Ok((StatusCode::CREATED, Json(pin)))
}

/// `DELETE /v1/guests/{name}/pins/{pin}`
#[utoipa::path(
    delete,
    path = "/v1/guests/{name}/pins/{pin}",
    tag = "guests",
    params(("name" = GuestName, Path, description = "The guest, which must be on this host"), ("pin" = String, Path, description = "The number of the pin")),
    responses((status = 204, description = "The pin is no more"), Refusal)
)]
pub(super) async fn release_pin(
    State(api): State<Api>,
    At((guest, pin)): At<(GuestName, String)>,
) -> Answer<StatusCode> {
    api.order(move |host| host.release_pin(&guest, &pin)).await?;
    Ok(StatusCode::NO_CONTENT)
}
