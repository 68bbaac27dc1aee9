//! How a pool is told: by where it is, or by what it is.

use nil_pool::PoolId;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A pool. What looks like a UUID is one; a file that is called so is told as `./UUID`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum PoolRef {
    /// The file or device at this path.
    Path(PathBuf),
    /// The pool of this UUID, or the one on the memory with this tag, wherever it is on this machine.
    Id(PoolId),
}

impl PoolRef {
    /// The same, where a relative path begins at `folder`.
    pub(super) fn within(self, folder: &Path) -> Self {
        match self {
            Self::Path(path) => Self::Path(folder.join(path)),
            Self::Id(id) => Self::Id(id),
        }
    }
}

impl From<PathBuf> for PoolRef {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl From<String> for PoolRef {
    fn from(text: String) -> Self {
        text.parse().map_or_else(|_| Self::Path(text.into()), Self::Id)
    }
}

impl FromStr for PoolRef {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.to_owned().into())
    }
}

impl From<PoolRef> for String {
    fn from(pool: PoolRef) -> Self {
        pool.to_string()
    }
}

impl fmt::Display for PoolRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Id(id) => id.fmt(f),
        }
    }
}
