//! What agents ask of each other.

use super::calls::Api;
use super::jobs::number;
use super::problem::{Answer, Refusal};
use super::request::{At, Document};
use super::roles::Caller;
use crate::agent::{Source, Work};
use crate::order::{ArmOrder, SettleOrder};
use crate::report::{ArmNews, CalledOff, JobReport};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::stream;
use nil_pool::JobId;
use std::convert::Infallible;

/// `POST /v1/peer/arm`: gets ready for a guest. Two lines are answered: that a worker stands ready, and that the guest
/// runs. A source that hangs up before has called it off. Only the host that has the guest can order it. What is left of the
/// guest's way may come along: this host goes on with it then.
#[utoipa::path(
    post,
    path = "/v1/peer/arm",
    tag = "peers",
    request_body = ArmOrder,
    responses((status = 200, description = "A line with an ArmNews each: that the target stands ready, and that it has the guest", body = String, content_type = "application/x-ndjson"), Refusal)
)]
pub(super) async fn arm(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Document(order): Document<ArmOrder>,
) -> Answer<Response> {
    if !caller.speaks_for(&order.from) {
        let detail = format!("{caller} cannot hand over guests of host {}", order.from);
        return Err(Refusal::new(StatusCode::FORBIDDEN, detail));
    }
    let (source, mut news) = Source::new();
    let permit = api.admit()?;
    api.host().spawn("arm", move |host| {
        let _permit = permit;
        let outcome = host.begin_order().and_then(|_order| host.take_over(&order, &source));
        if let Err(error) = outcome {
            tracing::debug!("guest {}: {}", order.name, error.story());
            source.fail(error);
        }
    })?;
    // What is refused before anything has been said is a refusal like others.
    let first = match news.recv().await {
        Some(Ok(first)) => first,
        Some(Err(error)) => return Err(error.into()),
        None => return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the agent gave up")),
    };
    let lines = stream::unfold((Some(first), news), async |(next, mut news)| {
        let next = match next {
            Some(next) => next,
            None => match news.recv().await? {
                Ok(next) => next,
                Err(error) => ArmNews::Failed(error.into()),
            },
        };
        Some((Ok::<_, Infallible>(line(&next)), (None, news)))
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

fn line(news: &ArmNews) -> Bytes {
    let mut line = serde_json::to_vec(news).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// `POST /v1/peer/settle`: recouples memory of a guest that has come. A job.
#[utoipa::path(
    post,
    path = "/v1/peer/settle",
    tag = "peers",
    request_body = SettleOrder,
    responses((status = 202, description = "The job has begun", body = JobReport), Refusal)
)]
pub(super) async fn settle(State(api): State<Api>, Document(order): Document<SettleOrder>) -> Answer<Response> {
    api.begin(Work::Settle(order)).await
}

/// `POST /v1/peer/routes/{id}/cancel`: calls off the way of a guest that the caller has sent here, wherever it is by now.
#[utoipa::path(
    post,
    path = "/v1/peer/routes/{id}/cancel",
    tag = "peers",
    params(("id" = JobId, Path, description = "The job, whose number came along with the arming")),
    responses((status = 200, description = "It is called off", body = CalledOff), Refusal)
)]
pub(super) async fn cancel(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    At(id): At<String>,
) -> Answer<Json<CalledOff>> {
    let id = number(&id)?;
    api.call_off(move |host| host.cancel_onward(id, |from| caller.speaks_for(from))).await
}
