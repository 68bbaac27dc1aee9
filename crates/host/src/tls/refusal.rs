//! What TLS says, in words that tell a person what to do.

use super::HANDSHAKE;
use crate::error::{Error, story};
use rustls::AlertDescription;
use rustls::CertificateError as Wrong;
use std::io;
use std::sync::Arc;
use tokio::time::error::Elapsed;

/// Shakes hands with a peer, which may take ten seconds at most.
pub(super) async fn shake<S>(peer: String, shaking: impl Future<Output = io::Result<S>>) -> Result<S, Error> {
    match tokio::time::timeout(HANDSHAKE, shaking).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(handshake(peer, Ok(error))),
        Err(late) => Err(handshake(peer, Err(late))),
    }
}

/// Why a handshake failed, and with whom.
pub(super) fn handshake(peer: String, failed: Result<io::Error, Elapsed>) -> Error {
    let why = match failed {
        Ok(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(error) => sentence(error),
            None if error.kind() == io::ErrorKind::UnexpectedEof => "it hung up during the handshake".to_owned(),
            None => error.to_string(),
        },
        Err(_) => "it did not finish the handshake in time".to_owned(),
    };
    Error::Untrusted { peer, why }
}

/// A refusal of ours, for rustls to pass on.
pub(super) fn ours(error: Error) -> rustls::Error {
    Wrong::Other(rustls::OtherError(Arc::new(error))).into()
}

pub(super) fn sentence(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(wrong) => certificate(wrong),
        rustls::Error::NoCertificatesPresented => "it shows no certificate".to_owned(),
        rustls::Error::InvalidMessage(_) => "it does not speak TLS".to_owned(),
        rustls::Error::PeerIncompatible(_) => "it does not speak TLS 1.3".to_owned(),
        rustls::Error::NoApplicationProtocol => "it does not speak HTTP/1.1".to_owned(),
        rustls::Error::AlertReceived(alert) => alerted(*alert).to_owned(),
        other => other.to_string(),
    }
}

fn certificate(wrong: &Wrong) -> String {
    match wrong {
        Wrong::Other(other) => story(&*other.0),
        Wrong::UnknownIssuer | Wrong::BadSignature => {
            "its certificate is of another authority than the one that is trusted here".to_owned()
        }
        Wrong::Expired | Wrong::ExpiredContext { .. } => {
            "its certificate has expired; issue another one with `nil host cert issue`".to_owned()
        }
        Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => {
            "its certificate is not valid yet; do the clocks agree?".to_owned()
        }
        Wrong::NotValidForNameContext { expected, presented } => format!(
            "its certificate is not for {}, but for {}",
            expected.to_str(),
            if presented.is_empty() { "no address".to_owned() } else { presented.join(", ") }
        ),
        Wrong::InvalidPurpose | Wrong::InvalidPurposeContext { .. } => {
            "its certificate is not made for that side of a connection; only a host's can serve".to_owned()
        }
        Wrong::BadEncoding => "its certificate cannot be read".to_owned(),
        other => format!("its certificate is not valid: {other}"),
    }
}

fn alerted(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CertificateRequired => "it wants a certificate of its authority",
        AlertDescription::UnknownCA => "it does not trust the authority of our certificate",
        AlertDescription::CertificateExpired => "it says that our certificate has expired",
        AlertDescription::CertificateUnknown | AlertDescription::BadCertificate => "it does not take our certificate",
        AlertDescription::ProtocolVersion => "it does not speak TLS 1.3",
        AlertDescription::NoApplicationProtocol => "it does not speak HTTP/1.1",
        _ => "it refused the handshake",
    }
}
