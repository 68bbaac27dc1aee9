//! Capacity that is offered to the host, and answering.

use super::calls::Api;
use super::problem::{Answer, Refusal};
use super::request::{At, Document};
use crate::agent::Decision;
use crate::body::{AnswerBody, OfferAnswer};
use crate::report::OfferReport;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use nil_pool::Tag;

/// `GET /v1/offers`
#[utoipa::path(
    get,
    path = "/v1/offers",
    tag = "capacity",
    responses((status = 200, description = "Everything that is offered to this host, and what it has answered", body = Vec<OfferReport>), Refusal)
)]
pub(super) async fn list(State(api): State<Api>) -> Answer<Json<Vec<OfferReport>>> {
    api.question(|host| Ok(host.offers())).await.map(Json)
}

/// `PUT /v1/offers/{tag}`: answers an offer, or changes an answer as long as the host does not hold the capacity.
#[utoipa::path(
    put,
    path = "/v1/offers/{tag}",
    tag = "capacity",
    params(("tag" = Tag, Path, description = "The capacity")),
    request_body = AnswerBody,
    responses((status = 200, description = "It is answered", body = OfferReport), Refusal)
)]
pub(super) async fn answer(
    State(api): State<Api>,
    At(tag): At<String>,
    Document(body): Document<AnswerBody>,
) -> Answer<Json<OfferReport>> {
    let known = tag.parse::<Tag>().ok().filter(|known| known.to_string().eq_ignore_ascii_case(&tag));
    let tag = known.ok_or_else(|| {
        let detail = format!("`{tag}` is no tag, which is a UUID (8-4-4-4-12 hexadecimal digits)");
        Refusal::new(StatusCode::BAD_REQUEST, detail)
    })?;
    let decision = match body.answer {
        OfferAnswer::Accept => Decision::Accept,
        OfferAnswer::Refuse => Decision::Refuse,
    };
    api.order(move |host| host.decide_offer(tag, decision)).await.map(Json)
}
