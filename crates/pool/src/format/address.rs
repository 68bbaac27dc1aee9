//! The address at which a host answers other machines: `host:port` or `[IPv6]:port`, ASCII, at most 56 bytes.
//!
//! It lies in the host's record, so that hosts that share a pool find each other through it. Whoever can write to the
//! pool can put anything there, so it says only whom to ask; who answers must prove who it is.

use super::BadRecord;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Bytes of an address in a record.
pub const ADDRESS_BYTES: usize = 56;

/// Where a host's agent answers other machines.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostAddress(String);

/// A text that is no address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("'{text}' is no address of a host: {why}; write HOST:PORT or [IPv6]:PORT, such as 10.0.0.7:7700")]
pub struct BadAddress {
    text: String,
    why: &'static str,
}

impl HostAddress {
    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name or IP address; that of IPv6 without its brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        let host = self.0.rsplit_once(':').map_or("", |(host, _)| host);
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
    }

    /// The TCP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(0)
    }

    /// The bytes in a record; all zeros for none.
    pub(crate) fn encode(address: Option<&Self>) -> [u8; ADDRESS_BYTES] {
        let mut bytes = [0; ADDRESS_BYTES];
        if let Some(Self(text)) = address {
            bytes[..text.len()].copy_from_slice(text.as_bytes());
        }
        bytes
    }

    /// Validates the bytes of a record.
    pub(crate) fn decode(bytes: &[u8; ADDRESS_BYTES]) -> Result<Option<Self>, BadRecord> {
        let text = super::text::decode("address", bytes)?;
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| BadRecord::Field("address"))
    }
}

impl FromStr for HostAddress {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        match flaw(text) {
            None => Ok(Self(text.to_owned())),
            Some(why) => Err(BadAddress { text: text.chars().take(2 * ADDRESS_BYTES).collect(), why }),
        }
    }
}

/// The rule that a text breaks.
fn flaw(text: &str) -> Option<&'static str> {
    if text.len() > ADDRESS_BYTES {
        return Some("it is longer than 56 bytes");
    }
    let Some((host, port)) = text.rsplit_once(':') else { return Some("it has no port") };
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || port.parse().unwrap_or(0_u16) == 0 {
        return Some("its port is not a number from 1 to 65535");
    }
    match host.strip_prefix('[').map(|inner| inner.strip_suffix(']')) {
        Some(Some(inner)) if inner.parse::<Ipv6Addr>().is_ok() => None,
        Some(_) => Some("what stands in brackets is no IPv6 address"),
        None if host.contains(':') => Some("an IPv6 address stands in brackets"),
        None if host.parse::<Ipv4Addr>().is_ok() || is_name(host) => None,
        None => Some("its host is neither a name nor an IPv4 address"),
    }
}

/// A host name as of RFC 1123: labels of letters, digits and hyphens, the last not a number.
fn is_name(host: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let last = host.rsplit('.').next().unwrap_or("");
    host.split('.').all(label) && !last.bytes().all(|byte| byte.is_ascii_digit())
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for HostAddress {
    type Error = BadAddress;

    fn try_from(text: String) -> Result<Self, BadAddress> {
        text.parse()
    }
}

impl From<HostAddress> for String {
    fn from(address: HostAddress) -> Self {
        address.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_ip_addresses_with_a_port_are_addresses() {
        for (text, host, port) in [
            ("a:1", "a", 1),
            ("node-7.rack.example:7700", "node-7.rack.example", 7700),
            ("10.0.0.7:65535", "10.0.0.7", 65_535),
            ("[::1]:7700", "::1", 7700),
            ("[2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff]:65535", "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff", 65_535),
        ] {
            let address: HostAddress = text.parse().expect("an address");
            assert_eq!((address.host(), address.port(), address.as_str()), (host, port, text));
            assert_eq!(HostAddress::decode(&HostAddress::encode(Some(&address))), Ok(Some(address)));
        }
        assert_eq!(HostAddress::decode(&HostAddress::encode(None)), Ok(None));
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_rule_it_breaks() {
        for text in [
            "",
            "a",
            ":1",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "a:-1",
            "a b:1",
            "a/b:1",
            "ä:1",
            "::1:7700",
            "[::1]",
            "[::g]:1",
            "[]:1",
            "10.0.0:1",
            "10.0.0.256:1",
            "-a:1",
            "a..b:1",
            "a_b:1",
            "u@a:1",
        ] {
            assert!(text.parse::<HostAddress>().is_err(), "{text}");
        }
        let long = format!("{}:7700", "a".repeat(ADDRESS_BYTES));
        let refusal = long.parse::<HostAddress>().expect_err("too long").to_string();
        assert!(refusal.contains("longer than 56 bytes") && refusal.contains("HOST:PORT"), "{refusal}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_come_back_the_same(bytes in proptest::array::uniform32(any::<u8>())) {
            let mut field = [0; ADDRESS_BYTES];
            field[..32].copy_from_slice(&bytes);
            if let Ok(address) = HostAddress::decode(&field) {
                prop_assert_eq!(HostAddress::encode(address.as_ref()), field);
            }
        }
    }
}
