//! The side that calls.

use super::credentials::{Credentials, TlsFiles};
use super::identity::{Identity, NetworkName, Role, identity_of};
use super::{ALPN, provider, refusal};
use crate::error::{Error, Result};
use crate::name::HostName;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::{CertificateDer, IpAddr, Ipv4Addr, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::fmt;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Whom a caller means to reach.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Peer {
    /// The host of that name, wherever it was found.
    Host(HostName),
    /// Whichever host has a certificate for that address.
    At(NetworkName),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(name) => write!(f, "host {name}"),
            Self::At(address) => write!(f, "the host at {address}"),
        }
    }
}

/// A caller's side of mutual TLS. Cloning it is cheap.
#[derive(Clone)]
pub struct ClientTls {
    pub(super) identity: Identity,
    pub(super) own: Arc<CertifiedKey>,
    pub(super) roots: Arc<RootCertStore>,
}

impl ClientTls {
    /// Reads and checks a certificate of any role, its key and its authority.
    ///
    /// # Errors
    /// One of the files cannot be read, they do not fit together, or the certificate is not valid today.
    pub fn load(files: &TlsFiles) -> Result<Self> {
        let Credentials { identity, own, roots, .. } = Credentials::load(files)?;
        Ok(Self { identity, own, roots })
    }

    /// Who this is, by the certificate.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Shakes hands over `stream` with `peer`, and with nobody else. Takes ten seconds at most.
    ///
    /// With TLS 1.3 a host that refuses *our* certificate says so only afterwards: the first read fails.
    ///
    /// # Errors
    /// The other side has no valid certificate of this authority, is no host, or another one than was meant.
    pub async fn connect<S>(&self, stream: S, peer: &Peer) -> Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let connector = TlsConnector::from(Arc::new(self.config(peer)?));
        // Whom we mean is judged by `Called`; the name that TLS itself would send along stays here.
        let nobody = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0; 4])));
        refusal::shake(peer.to_string(), connector.connect(nobody, stream)).await
    }

    fn config(&self, peer: &Peer) -> Result<ClientConfig> {
        let impossible = |error: rustls::Error| Error::refused(error.to_string());
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(impossible)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Called { peer: peer.clone(), roots: Arc::clone(&self.roots) }))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.own))));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// Takes the certificate of the host that was meant.
#[derive(Debug)]
struct Called {
    peer: Peer,
    roots: Arc<RootCertStore>,
}

impl Called {
    fn judge(&self, certificate: &CertificateDer<'_>) -> Result<()> {
        let identity = identity_of(std::slice::from_ref(certificate))?;
        match &self.peer {
            _ if identity.role != Role::Host => {
                Err(Error::refused(format!("its certificate is for {identity}, which is no host")))
            }
            Peer::Host(name) if identity.name.as_str() != name.as_str() => {
                Err(Error::refused(format!("its certificate is for {identity}")))
            }
            Peer::Host(_) | Peer::At(_) => Ok(()),
        }
    }
}

impl ServerCertVerifier for Called {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _nobody: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = provider().signature_verification_algorithms;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms.all)?;
        self.judge(end_entity).map_err(refusal::ours)?;
        if let Peer::At(address) = &self.peer {
            verify_server_name(&certificate, address.server_name())?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Err(refusal::ours(Error::refused("TLS 1.2 is not spoken here")))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
