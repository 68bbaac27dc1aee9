//! Capacity that is offered to a host.

use nil_pool::{Answer, Class, PoolId, Tag};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use utoipa::ToSchema;

/// A capacity on whose access list this host is, and what the host has answered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct OfferReport {
    /// The capacity's tag.
    pub tag: Tag,
    /// The pool that has it.
    pub pool: PoolId,
    /// Where this host finds that.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Who may see it.
    pub class: Class,
    /// Its bytes.
    pub bytes: u64,
    /// A few words for people.
    pub label: String,
    /// What the host has answered; `offered` is nothing yet.
    pub answer: Answer,
    /// Whether its release is asked for.
    pub release_asked: bool,
}
