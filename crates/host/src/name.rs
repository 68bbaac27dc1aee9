//! Names of hosts, of guests and of who holds a certificate.
//!
//! A name becomes a file name in the run directory and an argument of a process, so it is checked once, here, and a
//! [`HostName`], [`GuestName`] or [`SubjectName`] that exists is safe for both: 1 to 31 ASCII letters, digits, `-`, `_` and `.`,
//! beginning with a letter or digit.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use utoipa::ToSchema;

const LONGEST: usize = 31;

/// Why a text cannot be a name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{text}` cannot be the name of a {thing}: {why}")]
pub struct BadName {
    text: String,
    thing: &'static str,
    why: &'static str,
}

fn check(text: &str, thing: &'static str) -> Result<String, BadName> {
    let bad = |why| Err(BadName { text: text.to_owned(), thing, why });
    if text.is_empty() {
        return bad("it is empty");
    }
    if text.len() > LONGEST {
        return bad("it has more than 31 characters");
    }
    if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return bad("use letters, digits, `-`, `_` and `.` only");
    }
    if !text.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        return bad("begin it with a letter or a digit");
    }
    Ok(text.to_owned())
}

macro_rules! name {
    ($name:ident, $thing:literal) => {
        #[doc = concat!("The valid name of a ", $thing, ".")]
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String, min_length = 1, max_length = 31, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadName;

            fn from_str(text: &str) -> Result<Self, BadName> {
                check(text, $thing).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadName;

            fn try_from(text: String) -> Result<Self, BadName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name!(HostName, "host");
name!(GuestName, "guest");
name!(SubjectName, "certificate's holder");

// The rules are the same for all names.
impl From<SubjectName> for HostName {
    fn from(name: SubjectName) -> Self {
        Self(name.0)
    }
}

impl From<HostName> for SubjectName {
    fn from(name: HostName) -> Self {
        Self(name.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_are_taken_as_they_are() {
        for text in ["A", "rack-3.node_7", "0", "abcdefghijklmnopqrstuvwxyz01234"] {
            assert_eq!(text.parse::<HostName>().expect("a good name").as_str(), text);
        }
    }

    #[test]
    fn names_that_would_escape_the_run_directory_are_refused() {
        for text in ["", ".", "..", "a/b", "../x", "-rf", "a b", "a\0b", "ä", "abcdefghijklmnopqrstuvwxyz012345"] {
            assert!(text.parse::<GuestName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_bad_name_in_json_is_refused_too() {
        assert!(serde_json::from_str::<HostName>("\"a/b\"").is_err());
    }

    #[test]
    fn the_reason_names_the_thing_and_the_text() {
        let error = "a/b".parse::<HostName>().expect_err("a slash");
        assert_eq!(error.to_string(), "`a/b` cannot be the name of a host: use letters, digits, `-`, `_` and `.` only");
    }
}
