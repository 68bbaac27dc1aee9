//! `GET /metrics`, and counting what is answered.

use super::calls::Api;
use super::problem::{Answer, Refusal};
use crate::metrics::{Answered, CONTENT_TYPE};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::time::Instant;

/// The host's figures, as Prometheus reads them.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "host",
    responses((status = 200, description = "Prometheus' text format", body = String, content_type = "text/plain"), Refusal)
)]
pub(super) async fn metrics(State(api): State<Api>) -> Answer<Response> {
    let text = api.question(|host| Ok(host.metrics())).await?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

/// Counts a request, and how long its answer took to begin. Methods and routes are those that there are: a caller cannot
/// make up any number of them.
pub(super) async fn count(State(api): State<Api>, request: Request, next: Next) -> Response {
    let method = match request.method().as_str() {
        known @ ("GET" | "HEAD" | "POST" | "DELETE") => known.to_owned(),
        _ => "other".to_owned(),
    };
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let asked = Instant::now();
    let mut response = next.run(request).await;
    let time = asked.elapsed();
    api.host().count_answer(Answered { method, route, status: response.status().as_u16(), time });
    // How much of what the caller waits for is the agent's: https://www.w3.org/TR/server-timing/
    if let Ok(told) = HeaderValue::try_from(format!("agent;dur={:.3}", time.as_secs_f64() * 1e3)) {
        response.headers_mut().insert("server-timing", told);
    }
    response
}
