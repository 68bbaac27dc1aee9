//! How an agent says that something cannot be done: `application/problem+json`, as RFC 9457 has it.

use crate::compatibility::Reason;
use crate::error::Error;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why an agent does not do what is asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// What the status means, in a word or two.
    pub title: String,
    /// The status of the HTTP response.
    pub status: u16,
    /// A sentence for a person: what was wrong, with what, and what to do.
    pub detail: String,
    /// All reasons, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
}

impl Problem {
    /// A problem of that status; the sentence says what it is.
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error").to_owned();
        Self { title, status: status.as_u16(), detail: detail.into(), reasons: Vec::new() }
    }
}

impl From<&Error> for Problem {
    fn from(error: &Error) -> Self {
        let problem = Self::new(status(error), error.story());
        match error {
            Error::Incompatible { reasons, .. } => Self { reasons: reasons.clone(), ..problem },
            _ => problem,
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

impl From<Problem> for Error {
    /// What a client makes of what an agent says: the sentence is what counts.
    fn from(problem: Problem) -> Self {
        match problem.reasons {
            reasons if reasons.is_empty() => Self::Refused(problem.detail),
            reasons => Self::Incompatible { said: problem.detail, reasons },
        }
    }
}

fn status(error: &Error) -> StatusCode {
    use StatusCode as Status;
    match error {
        Error::UnknownGuest { .. } | Error::UnknownHost { .. } | Error::Unknown(_) => Status::NOT_FOUND,
        Error::GuestNameTaken { .. } | Error::NameTaken { .. } | Error::Busy(_) => Status::CONFLICT,
        Error::Stopping { .. } => Status::SERVICE_UNAVAILABLE,
        Error::HostGone { .. } | Error::NobodyThere { .. } | Error::Hangup { .. } | Error::Broken { .. } => {
            Status::BAD_GATEWAY
        }
        Error::NoAnswer { .. } => Status::GATEWAY_TIMEOUT,
        Error::NotUnderstood { .. } | Error::Untrusted { .. } => Status::BAD_GATEWAY,
        Error::Io { .. }
        | Error::PathTooLong { .. }
        | Error::ForeignRunDir { .. }
        | Error::Unusable { .. }
        | Error::ProcessGone => Status::INTERNAL_SERVER_ERROR,
        Error::Pool(_)
        | Error::Migrate(_)
        | Error::Vm(_)
        | Error::CalledOff
        | Error::Refused(_)
        | Error::Incompatible { .. } => Status::UNPROCESSABLE_ENTITY,
    }
}
