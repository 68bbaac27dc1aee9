//! Who a certificate is for.

use crate::error::{Error, Result};
use crate::name::HostName;
use rustls::pki_types::{CertificateDer, IpAddr, ServerName};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::AttributeTypeAndValue;

pub use crate::name::SubjectName;

/// What the holder of a certificate may do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Looks on.
    Viewer,
    /// Runs, moves and stops guests.
    Operator,
    /// Is a host: serves the others, and hands guests to its peers.
    Host,
}

impl Role {
    const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Host];

    /// The role's name, as it stands in certificates and configurations.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Host => "host",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let known = Self::ALL.into_iter().find(|role| role.as_str() == text);
        known.ok_or_else(|| format!("`{text}` is no role; there are viewer, operator and host"))
    }
}

/// The holder of a certificate.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
pub struct Identity {
    /// Its name: for a host, the name by which it is known in the pools.
    pub name: SubjectName,
    /// What it may do.
    pub role: Role,
}

impl Identity {
    /// The host that it is, if it is one.
    #[must_use]
    pub fn host(&self) -> Option<HostName> {
        (self.role == Role::Host).then(|| self.name.clone().into())
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.name)
    }
}

/// A name or address under which a host can be reached in a network, without a port.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct NetworkName(ServerName<'static>);

impl NetworkName {
    pub(super) fn server_name(&self) -> &ServerName<'static> {
        &self.0
    }

    /// Whether it is an IPv6 address, which is written in brackets where a port follows.
    pub(crate) fn is_v6(&self) -> bool {
        matches!(self.0, ServerName::IpAddress(IpAddr::V6(_)))
    }
}

impl From<std::net::IpAddr> for NetworkName {
    fn from(address: std::net::IpAddr) -> Self {
        Self(ServerName::IpAddress(IpAddr::from(address)))
    }
}

impl FromStr for NetworkName {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let name = ServerName::try_from(text.to_owned());
        name.map(Self).map_err(|_| format!("`{text}` is neither an IP address nor a DNS name"))
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_str())
    }
}

/// Who the other side of a connection is, by the certificates that it has shown: the first is its own. That they are
/// genuine is for the handshake to find out.
///
/// # Errors
/// There is none, it cannot be read, or it does not say who it is for and in which role.
pub fn identity_of(certificates: &[CertificateDer<'_>]) -> Result<Identity> {
    let own = certificates.first().ok_or_else(|| Error::refused("it shows no certificate"))?;
    let certificate = parse(own)?;
    let subject = certificate.subject();
    let name = the_one("a common name (CN)", subject.iter_common_name())?;
    let role = the_one("an organisational unit (OU), which says the role", subject.iter_organizational_unit())?;
    Ok(Identity {
        name: name.parse().map_err(|bad| Error::refused(format!("its certificate is for nobody: {bad}")))?,
        role: role.parse().map_err(|bad| Error::refused(format!("its certificate has no role: {bad}")))?,
    })
}

pub(super) fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>> {
    match X509Certificate::from_der(certificate.as_ref()) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) | Err(_) => Err(Error::refused("its certificate cannot be read")),
    }
}

/// An attribute that a subject must have exactly once: of two, somebody else might read the other one.
fn the_one<'a>(what: &str, mut values: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>) -> Result<&'a str> {
    match (values.next().map(AttributeTypeAndValue::as_str), values.next()) {
        (Some(Ok(value)), None) => Ok(value),
        (None, _) => Err(Error::refused(format!("its certificate lacks {what}"))),
        (Some(_), _) => Err(Error::refused(format!("its certificate must have {what} once, as text"))),
    }
}
