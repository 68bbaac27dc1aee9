//! Mutual TLS between hosts, and for the people who look after them.
//!
//! Every participant has a certificate of one private authority. Its subject says who it is for (the common name) and in
//! which [`Role`] (the organisational unit); both are checked at every handshake, so that whoever gets a connection from
//! here also knows the other side's [`Identity`].
//!
//! ```text
//! Authority::create, Authority::issue     the private authority of a lab, and its certificates
//! TlsFiles ─▶ ServerTls::load ─▶ accept(stream)         ─▶ (stream, Identity)
//!          └▶ ClientTls::load ─▶ connect(stream, &Peer) ─▶ stream
//! ```
//!
//! Invariants:
//! - TLS 1.3 only, ALPN `http/1.1`, no resumption: every connection is judged anew by the certificate's dates.
//! - A server is a *host*: no certificate of another role makes one. Whoever calls a host by its name gets that host, at
//!   whatever address it was found; whoever calls an address gets a host whose certificate names that address.
//! - A key that others than its owner can read is not used.
//!
//! A certificate that has got into wrong hands cannot be revoked; it ends by its date, or with its authority.

mod authority;
mod client;
mod credentials;
mod identity;
mod pem;
mod refusal;
mod server;
#[cfg(test)]
mod tests;

pub use authority::{Authority, CertificateOrder, IssuedCertificate};
pub use client::{ClientTls, Peer};
pub use credentials::TlsFiles;
pub use identity::{Identity, NetworkName, Role, SubjectName, identity_of};
pub use server::ServerTls;

use rustls::crypto::{CryptoProvider, ring};
use std::sync::Arc;
use std::time::Duration;

/// What is spoken above TLS.
const ALPN: &[u8] = b"http/1.1";
/// How long a handshake may take, all in all.
const HANDSHAKE: Duration = Duration::from_secs(10);

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
