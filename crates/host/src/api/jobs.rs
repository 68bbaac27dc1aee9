//! Jobs: how far they are, following them, calling them off.

use super::calls::Api;
use super::problem::{Answer, Refusal};
use super::request::{Asked, At};
use crate::feed::Reader;
use crate::order::JobFilter;
use crate::report::{CalledOff, JobReport, JobSummary, Progress};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream};
use nil_pool::JobId;
use serde::Serialize;
use std::convert::Infallible;
use std::sync::Arc;

/// `GET /v1/jobs`: those under way, the newest first, and then those that are over, the last one first. There may be more
/// when as many have come as were wanted: `before` the last of them.
#[utoipa::path(
    get,
    path = "/v1/jobs",
    tag = "jobs",
    params(JobFilter),
    responses((status = 200, description = "The jobs of this agent, and the migrations whose reports are in its pools", body = Vec<JobSummary>), Refusal)
)]
pub(super) async fn list(State(api): State<Api>, Asked(wanted): Asked<JobFilter>) -> Answer<Json<Vec<JobSummary>>> {
    if wanted.past > JobFilter::MOST {
        let detail = format!("past is {}: an agent tells {} jobs at once at most", wanted.past, JobFilter::MOST);
        return Err(Refusal::new(StatusCode::BAD_REQUEST, detail));
    }
    api.glance(|host| host.jobs(&wanted)).map(Json)
}

/// `GET /v1/jobs/{id}`
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}",
    tag = "jobs",
    params(("id" = JobId, Path, description = "The job")),
    responses((status = 200, description = "The job", body = JobReport), Refusal)
)]
pub(super) async fn find(State(api): State<Api>, At(id): At<String>) -> Answer<Json<JobReport>> {
    let id = number(&id)?;
    api.glance(|host| host.job_report(id)).map(Json)
}

/// `POST /v1/jobs/{id}/cancel`: answers when it is known how things stand.
#[utoipa::path(
    post,
    path = "/v1/jobs/{id}/cancel",
    tag = "jobs",
    params(("id" = JobId, Path, description = "The job")),
    responses((status = 200, description = "It is called off", body = CalledOff), Refusal)
)]
pub(super) async fn cancel(State(api): State<Api>, At(id): At<String>) -> Answer<Json<CalledOff>> {
    let id = number(&id)?;
    api.call_off(move |host| host.cancel_job(id)).await
}

/// `GET /v1/jobs/{id}/events`: `progress` for each step, and `end` with the report.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}/events",
    tag = "jobs",
    params(("id" = JobId, Path, description = "The job"), ("last-event-id" = Option<u64>, Header, description = "The event after which to go on")),
    responses((status = 200, description = "`progress` events with a Progress each, and at last an `end` event with the JobReport", body = String, content_type = "text/event-stream"), Refusal)
)]
pub(super) async fn events(
    State(api): State<Api>,
    At(id): At<String>,
    headers: HeaderMap,
) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let permit = Arc::clone(&api.streams).try_acquire_owned().map_err(|_| Refusal::busy("streams"))?;
    let job = api.host().job(number(&id)?)?;
    let steps = Some(job.follow(last_event(&headers).unwrap_or(0)));
    let events = stream::unfold((steps, job, permit), async |(steps, job, permit)| {
        let mut steps: Reader<Progress> = steps?;
        match steps.next().await {
            Some((number, step)) => {
                Some((Ok(event("progress", &step).id(number.to_string())), (Some(steps), job, permit)))
            }
            None => Some((Ok(event("end", &job.report())), (None, job, permit))),
        }
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

/// The number of a job, written as the description of the API says and in no other way.
pub(super) fn number(text: &str) -> Answer<JobId> {
    let number = text.parse::<JobId>().ok().filter(|number| number.to_string().eq_ignore_ascii_case(text));
    number.ok_or_else(|| {
        let detail = format!("`{text}` is no number of a job, which is a UUID (8-4-4-4-12 hexadecimal digits)");
        Refusal::new(StatusCode::BAD_REQUEST, detail)
    })
}

/// After which event a caller wants to go on.
pub(super) fn last_event(headers: &HeaderMap) -> Option<u64> {
    headers.get("last-event-id")?.to_str().ok()?.parse().ok()
}

/// An event with a document.
pub(super) fn event(name: &str, document: &impl Serialize) -> Event {
    Event::default().event(name).data(serde_json::to_string(document).unwrap_or_default())
}
