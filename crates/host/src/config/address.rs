//! Where a host's agent answers.

use crate::tls::NetworkName;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// A name or IP address with a port: `node7:7070`, `10.0.0.7:7070`, `[fd00::7]:7070`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerAddress {
    name: NetworkName,
    port: u16,
}

impl PeerAddress {
    /// The name or address, without the port.
    #[must_use]
    pub fn name(&self) -> &NetworkName {
        &self.name
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl From<SocketAddr> for PeerAddress {
    fn from(address: SocketAddr) -> Self {
        Self { name: address.ip().into(), port: address.port() }
    }
}

impl FromStr for PeerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is no address of an agent; write NAME:PORT, 10.0.0.7:PORT or [fd00::7]:PORT");
        let (name, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let bracketed = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        let name: NetworkName = bracketed.unwrap_or(name).parse().map_err(|_| bad())?;
        if bracketed.is_some() != name.is_v6() {
            return Err(bad());
        }
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(bad)?;
        Ok(Self { name, port })
    }
}

impl TryFrom<String> for PeerAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PeerAddress> for String {
    fn from(address: PeerAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, port } = self;
        if name.is_v6() { write!(f, "[{name}]:{port}") } else { write!(f, "{name}:{port}") }
    }
}
