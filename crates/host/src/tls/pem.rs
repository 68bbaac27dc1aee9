//! Certificates and keys in files.

use crate::error::{Error, Result};
use rustix::process::geteuid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The most bytes that a file of certificates or a key may have.
const LARGEST: u64 = 64 << 10;
/// The most certificates in one file.
const MOST: usize = 16;

/// Who may read a file that is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Readers {
    Everybody,
    Owner,
}

/// Reads the certificates in a file, of which there must be at least one.
pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let file = File::open(path).map_err(|error| Error::io("open the certificate", path, error))?;
    let text = read(file, path)?;
    let read: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).take(MOST + 1).collect();
    match read {
        Ok(certificates) if certificates.is_empty() => Err(unusable(path, "it holds no certificate in PEM format")),
        Ok(certificates) if certificates.len() > MOST => {
            Err(unusable(path, format!("it holds more than {MOST} certificates")))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(unusable(path, error.to_string())),
    }
}

/// Reads the private key in a file, unless somebody else could do so, too.
pub(super) fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(&read_secret(path)?)
        .map_err(|error| unusable(path, format!("it holds no private key in PEM format ({error})")))
}

/// Reads a file that only this user, or root, may read.
pub(super) fn read_secret(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|error| Error::io("open the key", path, error))?;
    let metadata = file.metadata().map_err(|error| Error::io("look at", path, error))?;
    if metadata.uid() != geteuid().as_raw() && metadata.uid() != 0 {
        return Err(unusable(path, "it belongs to somebody else; a key must be your own"));
    }
    if metadata.mode() & 0o077 != 0 {
        let mode = metadata.mode() & 0o777;
        let sentence = format!("others may read it (mode {mode:04o}); close it to them with `chmod 600`");
        return Err(unusable(path, sentence));
    }
    read(file, path)
}

fn read(file: File, path: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut text).map_err(|error| Error::io("read", path, error))?;
    if text.len() as u64 > LARGEST {
        return Err(unusable(path, format!("it has more than {LARGEST} bytes")));
    }
    Ok(text)
}

/// Writes a file that must not exist yet.
pub(super) fn write_new(path: &Path, text: &str, readers: Readers) -> Result<()> {
    let mode = match readers {
        Readers::Everybody => 0o644,
        Readers::Owner => 0o600,
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(|error| Error::io("create", path, error))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|error| {
        // Half a key is of no use, and would be in the way.
        let _ = fs::remove_file(path);
        Error::io("write", path, error)
    })
}

pub(super) fn unusable(path: &Path, why: impl Into<String>) -> Error {
    Error::Unusable { path: path.to_path_buf(), why: why.into() }
}
