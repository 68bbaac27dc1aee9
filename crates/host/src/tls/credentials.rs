//! What a participant shows of itself, and whom it trusts.

use super::identity::{Identity, identity_of};
use super::pem::{read_certificates, read_key, unusable};
use super::{provider, refusal};
use crate::error::Result;
use rustls::RootCertStore;
use rustls::pki_types::UnixTime;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use std::path::PathBuf;
use std::sync::Arc;

/// Where a participant's certificate, its key and the authority's certificate are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// The certificate in PEM format, followed by intermediate ones if there are any.
    pub certificate: PathBuf,
    /// Its private key in PEM format, readable by its owner alone.
    pub key: PathBuf,
    /// The certificate of the authority that issued it, and whose other certificates are trusted.
    pub authority: PathBuf,
}

/// A certificate with its key and its authority, which fit together and are valid today.
#[derive(Debug)]
pub(super) struct Credentials {
    pub(super) identity: Identity,
    pub(super) own: Arc<CertifiedKey>,
    pub(super) roots: Arc<RootCertStore>,
    /// Judges the certificates of who calls.
    pub(super) callers: Arc<dyn ClientCertVerifier>,
}

impl Credentials {
    pub(super) fn load(files: &TlsFiles) -> Result<Self> {
        let roots = Arc::new(roots(files)?);
        let callers = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider())
            .build()
            .map_err(|error| unusable(&files.authority, error.to_string()))?;

        let chain = read_certificates(&files.certificate)?;
        let of_certificate = |why: String| unusable(&files.certificate, why);
        let identity = identity_of(&chain).map_err(|error| of_certificate(error.story()))?;
        // What is refused at the others' should be refused here, where somebody can do something about it.
        callers
            .verify_client_cert(&chain[0], &chain[1..], UnixTime::now())
            .map_err(|error| of_certificate(refusal::sentence(&error)))?;

        let key = provider()
            .key_provider
            .load_private_key(read_key(&files.key)?)
            .map_err(|error| unusable(&files.key, error.to_string()))?;
        let own = Arc::new(CertifiedKey::new(chain, key));
        own.keys_match()
            .map_err(|_| unusable(&files.key, format!("it is not the key of {}", files.certificate.display())))?;
        Ok(Self { identity, own, roots, callers })
    }
}

fn roots(files: &TlsFiles) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(&files.authority)? {
        roots.add(certificate).map_err(|error| unusable(&files.authority, refusal::sentence(&error)))?;
    }
    Ok(roots)
}
