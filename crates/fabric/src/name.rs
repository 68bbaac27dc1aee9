//! Names of hosts, switches and devices, and identities of pools, checked once.

use crate::error::Error;
use serde::{Deserialize, Serialize};
use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

const LONGEST: usize = 127;

/// The name of a host, a switch or a device: 1 to 127 ASCII letters, digits and `-_.:@/+`.
///
/// No two things of a fabric have the same one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Box<str>);

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |why| Err(Error::BadName { text: text.chars().take(40).collect(), why });
        if text.is_empty() {
            return bad("it is empty");
        }
        if text.len() > LONGEST {
            return bad("it has more than 127 characters");
        }
        if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:@/+".contains(&byte)) {
            return bad("use letters, digits and `-_.:@/+` only");
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for Name {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.into()
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The identity of the pool that lies on a device: a UUID, in lower case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PoolUuid(Box<str>);

impl PoolUuid {
    /// The identity as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PoolUuid {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let dashed = |(at, byte): (usize, u8)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        };
        if text.len() == 36 && text.bytes().enumerate().all(dashed) {
            Ok(Self(text.to_ascii_lowercase().into()))
        } else {
            Err(Error::BadName { text: text.chars().take(40).collect(), why: "the identity of a pool is a UUID" })
        }
    }
}

impl TryFrom<String> for PoolUuid {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<PoolUuid> for String {
    fn from(id: PoolUuid) -> Self {
        id.0.into()
    }
}

impl fmt::Display for PoolUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_hosts_and_the_kernel_give_them_are_taken() {
        for text in ["A", "rack-3.node_7", "0000:d2:01.1", "mem0@A", "pci0000:00", "/dev/dax0.0"] {
            assert_eq!(text.parse::<Name>().expect("a good name").as_str(), text);
        }
    }

    #[test]
    fn names_that_a_picture_or_a_table_could_not_show_are_refused() {
        for text in ["", "a b", "a\"b", "<a>", "ä", "a\n", &"x".repeat(128)] {
            assert!(text.parse::<Name>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_pool_is_known_by_its_uuid_whatever_its_case() {
        let text = "5E1F0B1C-0000-4000-8000-00000000000A";
        assert_eq!(text.parse::<PoolUuid>().expect("a uuid").as_str(), text.to_lowercase());
        for text in ["", "5e1f0b1c", "5e1f0b1c-0000-4000-8000-00000000000g", "5e1f0b1c00000-4000-8000-00000000000aa"] {
            assert!(text.parse::<PoolUuid>().is_err(), "{text}");
        }
    }
}
