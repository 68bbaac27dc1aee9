//! The side that is called.

use super::credentials::{Credentials, TlsFiles};
use super::identity::{Identity, Role, identity_of};
use super::pem::unusable;
use super::{ALPN, provider, refusal};
use crate::error::{Error, Result};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// A host's side of mutual TLS. Cloning it is cheap.
#[derive(Clone)]
pub struct ServerTls {
    pub(super) identity: Identity,
    pub(super) acceptor: TlsAcceptor,
}

impl ServerTls {
    /// Reads and checks a host's certificate, its key and its authority.
    ///
    /// # Errors
    /// One of the files cannot be read, they do not fit together, the certificate is not valid today, or it is not a
    /// host's.
    pub fn load(files: &TlsFiles) -> Result<Self> {
        let Credentials { identity, own, callers, .. } = Credentials::load(files)?;
        if identity.role != Role::Host {
            let why = format!("it is for {identity}, and only a host's certificate can serve");
            return Err(unusable(&files.certificate, why));
        }
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| unusable(&files.certificate, error.to_string()))?
            .with_client_cert_verifier(Arc::new(Callers(callers)))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { identity, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    /// Which host this is, by its certificate.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Shakes hands with who has called over `stream`, and says who that is. Takes ten seconds at most.
    ///
    /// # Errors
    /// The caller shows no valid certificate of this authority with a name and a role, or does not speak TLS 1.3.
    pub async fn accept<S>(&self, stream: S) -> Result<(TlsStream<S>, Identity)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = refusal::shake("a caller".to_owned(), self.acceptor.accept(stream)).await?;
        let caller = identity_of(stream.get_ref().1.peer_certificates().unwrap_or_default())?;
        Ok((stream, caller))
    }
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// Takes the certificates of the authority, if they say who they are for.
#[derive(Debug)]
struct Callers(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Callers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> std::result::Result<ClientCertVerified, rustls::Error> {
        let verified = self.0.verify_client_cert(end_entity, intermediates, now)?;
        identity_of(std::slice::from_ref(end_entity)).map_err(refusal::ours)?;
        Ok(verified)
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
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
