//! Callers from other machines whom nobody knows, or who may not do what they ask.
//!
//! They come to the same agent by TLS, each with the certificate of somebody else. One of them may do what it asks: without
//! it, that all others are refused could have other reasons.

use crate::lab::keeper::host_config;
use anyhow::{Context, ensure};
use nil_host::{Authority, CertificateOrder, ClientTls, HostName, Peer, Role, TlsFiles};
use nil_pool::Pool;
use serde::Serialize;
use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long an answer, or a hangup, may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who calls, and what for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stranger {
    /// A viewer looks, which it may.
    ViewerThatLooks,
    /// A viewer orders.
    ViewerThatOrders,
    /// A viewer asks what only hosts may ask.
    ViewerAsHost,
    /// An operator asks what only hosts may ask.
    OperatorAsHost,
    /// A host orders.
    HostThatOrders,
    /// Somebody has a certificate of another authority.
    OtherAuthority,
    /// Somebody does not speak TLS.
    PlainText,
}

/// What becomes of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Answered(u16),
    HungUpOn,
}

/// Where strangers call, and with what.
#[derive(Debug)]
pub(super) struct Door {
    address: SocketAddr,
    host: HostName,
    viewer: ClientTls,
    operator: ClientTls,
    peer: ClientTls,
    unknown: ClientTls,
}

impl Door {
    /// Makes an authority, and what the agent of a host reads to answer by TLS, in files of that directory.
    pub(super) fn install(directory: &Path, host: &str) -> anyhow::Result<()> {
        let authority = Authority::create(&directory.join("ca"))?;
        let TlsFiles { certificate, key, authority } = issue(&authority, Role::Host, host)?;
        let config = format!(
            "[listen.tls]\naddress = \"127.0.0.1:0\"\ncert = {certificate:?}\nkey = {key:?}\nca = {authority:?}\n"
        );
        fs::write(host_config(directory, host), config)?;
        Ok(())
    }

    /// The door of an agent that has read that, and joined this pool.
    pub(super) fn find(directory: &Path, host: &str, pool: &Pool) -> anyhow::Result<Self> {
        let authority = Authority::open(&directory.join("ca"))?;
        let load = |role, name| anyhow::Ok(ClientTls::load(&issue(&authority, role, name)?)?);
        let other = issue(&Authority::create(&directory.join("other"))?, Role::Operator, "eve")?;
        // Eve knows both authorities, so it is the agent that does not know hers.
        let both = directory.join("both.crt");
        fs::write(&both, [fs::read(&other.authority)?, fs::read(directory.join("ca/ca.crt"))?].concat())?;
        let address = pool.find_host(host).and_then(|it| it.address).context("the host has no address in its pool")?;
        Ok(Self {
            address: address.to_string().parse()?,
            host: host.parse()?,
            viewer: load(Role::Viewer, "vera")?,
            operator: load(Role::Operator, "olga")?,
            peer: load(Role::Host, "peter")?,
            unknown: ClientTls::load(&TlsFiles { authority: both, ..other })?,
        })
    }
}

fn issue(authority: &Authority, role: Role, name: &str) -> anyhow::Result<TlsFiles> {
    let order = CertificateOrder { name: name.parse()?, role, addresses: Vec::new(), days: 1 };
    let issued = authority.issue(&order)?;
    let absolute = |path: PathBuf| path.canonicalize().with_context(|| format!("{} is not there", path.display()));
    Ok(TlsFiles {
        certificate: absolute(issued.certificate)?,
        key: absolute(issued.key)?,
        authority: absolute(issued.authority)?,
    })
}

impl Stranger {
    pub(super) const ALL: [Self; 7] = [
        Self::ViewerThatLooks,
        Self::ViewerThatOrders,
        Self::ViewerAsHost,
        Self::OperatorAsHost,
        Self::HostThatOrders,
        Self::OtherAuthority,
        Self::PlainText,
    ];

    fn fate(self) -> Fate {
        match self {
            Self::ViewerThatLooks => Fate::Answered(200),
            Self::ViewerThatOrders | Self::ViewerAsHost | Self::OperatorAsHost | Self::HostThatOrders => {
                Fate::Answered(403)
            }
            Self::OtherAuthority | Self::PlainText => Fate::HungUpOn,
        }
    }

    /// Calls once. The error is that something else became of it than should.
    pub(super) fn once(self, door: &Door) -> anyhow::Result<()> {
        let order = "DELETE /v1/guests/nobody";
        let as_host = "POST /v1/peer/arm";
        let fate = match self {
            Self::ViewerThatLooks => by_tls(door, &door.viewer, "GET /v1/host")?,
            Self::ViewerThatOrders => by_tls(door, &door.viewer, order)?,
            Self::ViewerAsHost => by_tls(door, &door.viewer, as_host)?,
            Self::OperatorAsHost => by_tls(door, &door.operator, as_host)?,
            Self::HostThatOrders => by_tls(door, &door.peer, order)?,
            Self::OtherAuthority => by_tls(door, &door.unknown, "GET /v1/host")?,
            Self::PlainText => in_plain_text(door)?,
        };
        ensure!(fate == self.fate(), "{self}: {fate:?}, but it should be {:?}", self.fate());
        Ok(())
    }
}

fn request(what: &str) -> Vec<u8> {
    format!("{what} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").into_bytes()
}

fn by_tls(door: &Door, tls: &ClientTls, what: &str) -> anyhow::Result<Fate> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let talk = async {
            let stream = tokio::net::TcpStream::connect(door.address).await.context("nobody answers")?;
            // With TLS 1.3 a caller that is refused may hear of it only when it reads.
            let Ok(mut stream) = tls.connect(stream, &Peer::Host(door.host.clone())).await else {
                return Ok(Fate::HungUpOn);
            };
            let mut answer = Vec::new();
            let heard = async {
                stream.write_all(&request(what)).await?;
                stream.read_to_end(&mut answer).await
            };
            // Whatever has been heard counts, also when the end of it was rude.
            let _ = heard.await;
            Ok(fate_of(&answer))
        };
        tokio::time::timeout(PATIENCE, talk).await.context("the agent neither answers nor hangs up")?
    })
}

fn in_plain_text(door: &Door) -> anyhow::Result<Fate> {
    let mut stream = std::net::TcpStream::connect(door.address).context("nobody answers")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = Vec::new();
    let heard = stream.write_all(&request("GET /v1/host")).and_then(|()| stream.read_to_end(&mut answer));
    if let Err(error) = &heard {
        ensure!(error.kind() != std::io::ErrorKind::WouldBlock, "the agent neither answers nor hangs up");
    }
    Ok(fate_of(&answer))
}

fn fate_of(answer: &[u8]) -> Fate {
    let status = answer.strip_prefix(b"HTTP/1.1 ").and_then(|rest| rest.get(..3));
    match status.and_then(|code| std::str::from_utf8(code).ok()?.parse().ok()) {
        Some(status) => Fate::Answered(status),
        // An alert of TLS is no answer.
        None => Fate::HungUpOn,
    }
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ViewerThatLooks => "viewer that looks (answered)",
            Self::ViewerThatOrders => "viewer that orders",
            Self::ViewerAsHost => "viewer as a host",
            Self::OperatorAsHost => "operator as a host",
            Self::HostThatOrders => "host that orders",
            Self::OtherAuthority => "certificate of another authority",
            Self::PlainText => "plain text",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_a_request_is_told_by_the_first_line() {
        assert_eq!(fate_of(b"HTTP/1.1 403 Forbidden\r\n"), Fate::Answered(403));
        for alert in [b"\x15\x03\x03\x00\x02\x02\x2a".as_slice(), b""] {
            assert_eq!(fate_of(alert), Fate::HungUpOn);
        }
    }

    #[test]
    fn certificates_are_made_for_every_stranger() {
        let directory = tempfile::tempdir().expect("a directory");
        Door::install(directory.path(), "h0").expect("files");
        let config = fs::read_to_string(directory.path().join("h0.toml")).expect("a configuration");
        assert!(config.contains("[listen.tls]") && config.contains("h0.crt"), "{config}");
        let authority = Authority::open(&directory.path().join("ca")).expect("an authority");
        ClientTls::load(&issue(&authority, Role::Viewer, "vera").expect("issued")).expect("a certificate");
    }
}
