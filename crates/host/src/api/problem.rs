//! A request that is not done, as a response.

use crate::error::Error;
use crate::problem::Problem;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use std::collections::BTreeMap;
use std::time::Duration;
use utoipa::IntoResponses;
use utoipa::openapi::{self, ContentBuilder, Ref, RefOr, ResponseBuilder};

/// What a problem is as a document.
const KIND: &str = "application/problem+json";

/// What comes of a request.
pub(super) type Answer<T> = Result<T, Refusal>;

/// Why a request is not done.
#[derive(Debug)]
pub(super) struct Refusal {
    problem: Problem,
    /// Seconds after which it makes sense to ask again.
    retry_after: Option<u64>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { problem: Problem::new(status, detail), retry_after: None }
    }

    /// There are too many of those already.
    pub(super) fn busy(what: &str) -> Self {
        let detail = format!("the agent has as many {what} as it can take; try again in a moment");
        Self { retry_after: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail) }
    }

    /// The caller asks too often.
    pub(super) fn too_often(wait: Duration) -> Self {
        let seconds = wait.as_secs() + 1;
        let detail = format!("you ask more often than the agent takes; try again in {seconds} s");
        Self { retry_after: Some(seconds), ..Self::new(StatusCode::TOO_MANY_REQUESTS, detail) }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { problem: error.into(), retry_after: None }
    }
}

impl IntoResponses for Refusal {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        let problem = Ref::from_schema_name("Problem");
        let refusal = |description: &str| {
            let content = ContentBuilder::new().schema(Some(problem.clone())).build();
            let response = ResponseBuilder::new().description(description).content(KIND, content).build();
            RefOr::T(response)
        };
        BTreeMap::from([
            ("4XX".to_owned(), refusal("It is not done; nothing has changed")),
            ("5XX".to_owned(), refusal("It could not be done")),
        ])
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self.problem).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(KIND));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
