//! A private authority for a lab: one directory with its key, and the certificates that it has issued.
//!
//! ```text
//! DIR/ca.crt   ca.key     the authority. Give ca.crt to everybody, and ca.key to nobody
//!     A.crt    A.key      one pair per participant
//! ```
//!
//! Nothing that exists is ever overwritten: who wants another certificate of a name moves the old one away first.

use super::identity::{NetworkName, Role, SubjectName, parse};
use super::pem::{Readers, read_certificates, read_secret, unusable, write_new};
use crate::error::{Error, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose as Purpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose as Usage, SanType,
};
use rustls::pki_types::ServerName;
use serde::Serialize;
use std::fs::{self, DirBuilder};
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long an authority lives, in days.
const AUTHORITY_DAYS: u32 = 3650;
/// By how much another machine's clock may be behind ours.
const CLOCKS_APART: Duration = Duration::from_secs(60 * 60);
/// The name that the authority's own files have.
const AUTHORITY: &str = "ca";

/// A private authority.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    expires: Duration,
}

/// A certificate that is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertificateOrder {
    /// Who it is for.
    pub name: SubjectName,
    /// What its holder may do.
    pub role: Role,
    /// Where a host can be reached, besides by its name.
    pub addresses: Vec<NetworkName>,
    /// How many days it is valid from now on.
    pub days: u32,
}

/// A certificate that was issued, and its key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct IssuedCertificate {
    /// Where the certificate is.
    pub certificate: PathBuf,
    /// Where its key is.
    pub key: PathBuf,
    /// Where the certificate of the authority is.
    pub authority: PathBuf,
}

/// From when until when something is valid, since 1970.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Validity {
    pub(super) from: Duration,
    pub(super) until: Duration,
}

impl Validity {
    fn days(days: u32) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { from: now.saturating_sub(CLOCKS_APART), until: now + DAY * days }
    }
}

impl Authority {
    /// Makes an authority in a directory, which is created if it does not exist.
    ///
    /// # Errors
    /// There is one in it already, or it cannot be written.
    pub fn create(dir: &Path) -> Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| Error::io("create", dir, error))?;
        let files = Pair::new(dir, AUTHORITY);
        files.must_be_new("an authority is never overwritten: its certificates would all be void")?;
        let key = KeyPair::generate().map_err(|error| failed(dir, &error))?;
        let mut wanted = CertificateParams::default();
        // Two authorities must not be mistaken for each other.
        let id = uuid::Uuid::new_v4().simple().to_string();
        wanted.distinguished_name.push(DnType::CommonName, format!("nil authority {}", &id[..8]));
        wanted.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        wanted.key_usages = vec![Usage::KeyCertSign, Usage::CrlSign];
        Validity::days(AUTHORITY_DAYS).apply(&mut wanted);
        let certificate = wanted.self_signed(&key).map_err(|error| failed(dir, &error))?;
        files.write(&certificate.pem(), &key)?;
        Self::open(dir)
    }

    /// Opens the authority in a directory.
    ///
    /// # Errors
    /// There is none, it cannot be read, or others can read its key.
    pub fn open(dir: &Path) -> Result<Self> {
        let Pair { certificate, key } = Pair::new(dir, AUTHORITY);
        if !certificate.exists() && !key.exists() {
            let hint = format!("make one with `nil host cert init --dir {}`", dir.display());
            return Err(unusable(dir, format!("there is no authority in it; {hint}")));
        }
        let text = read_secret(&key)?;
        let pair = std::str::from_utf8(&text).ok().and_then(|text| KeyPair::from_pem(text).ok());
        let pair = pair.ok_or_else(|| unusable(&key, "it holds no private key that can be used"))?;
        let certificates = read_certificates(&certificate)?;
        let own = parse(&certificates[0]).map_err(|error| unusable(&certificate, error.story()))?;
        if own.public_key().subject_public_key.data != pair.public_key_raw() {
            return Err(unusable(&key, format!("it is not the key of {}", certificate.display())));
        }
        let expires = Duration::from_secs(own.validity().not_after.timestamp().try_into().unwrap_or_default());
        let issuer = Issuer::from_ca_cert_der(&certificates[0], pair).map_err(|error| failed(&certificate, &error))?;
        Ok(Self { dir: dir.to_path_buf(), issuer, expires })
    }

    /// Issues a certificate with a key of its own.
    ///
    /// # Errors
    /// There is one of that name already, its addresses are of no use, it would outlive the authority, or it cannot be
    /// written.
    pub fn issue(&self, order: &CertificateOrder) -> Result<IssuedCertificate> {
        self.issue_for(order, Validity::days(order.days))
    }

    pub(super) fn issue_for(&self, order: &CertificateOrder, validity: Validity) -> Result<IssuedCertificate> {
        check(order)?;
        if validity.until > self.expires {
            return Err(Error::refused("the certificate would outlive its authority; ask for fewer --days"));
        }
        let files = Pair::new(&self.dir, order.name.as_str());
        files.must_be_new("move it away to issue another one")?;
        let key = KeyPair::generate().map_err(|error| failed(&self.dir, &error))?;
        let mut wanted = subject(order)?;
        validity.apply(&mut wanted);
        let certificate = wanted.signed_by(&key, &self.issuer).map_err(|error| failed(&self.dir, &error))?;
        files.write(&certificate.pem(), &key)?;
        let authority = Pair::new(&self.dir, AUTHORITY).certificate;
        Ok(IssuedCertificate { certificate: files.certificate, key: files.key, authority })
    }

    #[cfg(test)]
    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }
}

fn check(order: &CertificateOrder) -> Result<()> {
    if order.name.as_str() == AUTHORITY {
        return Err(Error::refused(format!("`{AUTHORITY}` is the authority itself; choose another --name")));
    }
    if order.role != Role::Host && !order.addresses.is_empty() {
        return Err(Error::refused(format!("nobody calls a {}: only a host has an --address", order.role)));
    }
    if order.days == 0 {
        return Err(Error::refused("a certificate is valid for one day at least"));
    }
    Ok(())
}

/// What a certificate is to say.
fn subject(order: &CertificateOrder) -> Result<CertificateParams> {
    let mut wanted = CertificateParams::default();
    wanted.distinguished_name.push(DnType::CommonName, order.name.as_str());
    wanted.distinguished_name.push(DnType::OrganizationalUnitName, order.role.as_str());
    wanted.use_authority_key_identifier_extension = true;
    wanted.key_usages = vec![Usage::DigitalSignature];
    wanted.extended_key_usages = vec![Purpose::ClientAuth];
    if order.role == Role::Host {
        wanted.extended_key_usages.push(Purpose::ServerAuth);
        // A host's name need not be one that DNS could hold; hosts know each other by the subject, in any case.
        let name: Option<NetworkName> = order.name.as_str().parse().ok();
        for address in name.iter().chain(&order.addresses) {
            let address = alternative(address)?;
            if !wanted.subject_alt_names.contains(&address) {
                wanted.subject_alt_names.push(address);
            }
        }
    }
    Ok(wanted)
}

fn alternative(address: &NetworkName) -> Result<SanType> {
    match address.server_name() {
        ServerName::IpAddress(address) => Ok(SanType::IpAddress(IpAddr::from(*address))),
        ServerName::DnsName(name) => name.as_ref().try_into().map(SanType::DnsName).map_err(|_| unnamable(address)),
        _ => Err(unnamable(address)),
    }
}

fn unnamable(address: &NetworkName) -> Error {
    Error::refused(format!("a certificate cannot be for {address}"))
}

impl Validity {
    fn apply(self, wanted: &mut CertificateParams) {
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        wanted.not_before = epoch + self.from;
        wanted.not_after = epoch + self.until;
    }
}

/// A certificate and its key, in files.
#[derive(Debug)]
struct Pair {
    certificate: PathBuf,
    key: PathBuf,
}

impl Pair {
    fn new(dir: &Path, name: &str) -> Self {
        Self { certificate: dir.join(format!("{name}.crt")), key: dir.join(format!("{name}.key")) }
    }

    fn must_be_new(&self, why: &str) -> Result<()> {
        match [&self.certificate, &self.key].into_iter().find(|path| path.symlink_metadata().is_ok()) {
            Some(path) => Err(Error::refused(format!("{} exists already; {why}", path.display()))),
            None => Ok(()),
        }
    }

    fn write(&self, certificate: &str, key: &KeyPair) -> Result<()> {
        write_new(&self.key, &key.serialize_pem(), Readers::Owner)?;
        write_new(&self.certificate, certificate, Readers::Everybody).inspect_err(|_| {
            // A key without its certificate is of no use, and would be in the way.
            let _ = fs::remove_file(&self.key);
        })
    }
}

fn failed(path: &Path, error: &rcgen::Error) -> Error {
    unusable(path, error.to_string())
}
