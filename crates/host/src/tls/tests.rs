//! An authority in a directory, and hands shaken over loopback.

use super::authority::Validity;
use super::*;
use crate::error::Result;
use proptest::prelude::*;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};
use rustls::sign::CertifiedKey;
use std::fs::{self, Permissions};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// An authority in a directory of its own.
struct Lab {
    dir: TempDir,
    authority: Authority,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::create(dir.path()).expect("an authority");
        Self { dir, authority }
    }

    fn issue(&self, role: Role, name: &str) -> TlsFiles {
        self.authority.issue(&order(role, name)).expect("a certificate").into_files()
    }

    fn issue_from_until(&self, name: &str, from: Duration, until: Duration) -> TlsFiles {
        let validity = Validity { from, until };
        self.authority.issue_for(&order(Role::Host, name), validity).expect("a certificate").into_files()
    }

    /// A certificate of the authority with a subject that the authority itself would not write.
    fn forge(&self, file: &str, subject: &[(DnType, &str)]) -> TlsFiles {
        let key = KeyPair::generate().expect("a key");
        let mut wanted = CertificateParams::default();
        wanted.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in subject {
            wanted.distinguished_name.push(kind.clone(), *value);
        }
        wanted.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = wanted.signed_by(&key, self.authority.issuer()).expect("a certificate");
        let [path, key_path] = ["crt", "key"].map(|kind| self.dir.path().join(format!("{file}.{kind}")));
        fs::write(&path, certificate.pem()).expect("written");
        fs::write(&key_path, key.serialize_pem()).expect("written");
        fs::set_permissions(&key_path, Permissions::from_mode(0o600)).expect("closed to others");
        TlsFiles { certificate: path, key: key_path, authority: self.dir.path().join("ca.crt") }
    }
}

impl IssuedCertificate {
    fn into_files(self) -> TlsFiles {
        TlsFiles { certificate: self.certificate, key: self.key, authority: self.authority }
    }
}

fn order(role: Role, name: &str) -> CertificateOrder {
    let addresses = if role == Role::Host { vec![LOOPBACK.into()] } else { Vec::new() };
    CertificateOrder { name: name.parse().expect("a good name"), role, addresses, days: 1 }
}

fn host(name: &str) -> Peer {
    Peer::Host(name.parse().expect("a good name"))
}

/// What both sides have to say about a handshake, and a byte each way.
async fn shake(server: &ServerTls, client: &ClientTls, peer: &Peer) -> (Result<Identity>, Result<()>) {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let serve = async {
        let (stream, _) = listener.accept().await.expect("a caller");
        let (mut stream, caller) = server.accept(stream).await?;
        if let Ok(byte) = stream.read_u8().await {
            stream.write_u8(byte + 1).await.expect("answered");
        }
        Ok(caller)
    };
    let call = async {
        let stream = TcpStream::connect(address).await.expect("a connection");
        let mut stream = client.connect(stream, peer).await?;
        let answer = async {
            stream.write_u8(6).await?;
            stream.read_u8().await
        };
        answered(answer.await)
    };
    tokio::join!(serve, call)
}

/// A host that refuses a caller hangs up on it after the handshake.
fn answered(answer: std::io::Result<u8>) -> Result<()> {
    match answer {
        Ok(byte) => {
            assert_eq!(byte, 7);
            Ok(())
        }
        Err(error) => Err(refusal::handshake("the host".to_owned(), Ok(error))),
    }
}

fn run<T>(body: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(body)
}

/// Why a handshake failed, as the server tells it.
fn refused_by_server(server: &TlsFiles, client: &ClientTls) -> String {
    let server = ServerTls::load(server).expect("a server");
    let peer = Peer::Host(server.identity().host().expect("a host"));
    run(shake(&server, client, &peer)).0.expect_err("no such caller").to_string()
}

/// Why a handshake failed, as the client tells it.
fn refused_by_client(server: &ServerTls, client: &TlsFiles, peer: &Peer) -> String {
    let client = ClientTls::load(client).expect("a client");
    run(shake(server, &client, peer)).1.expect_err("no such host").to_string()
}

fn unusable(loaded: Result<impl Sized>) -> String {
    loaded.err().expect("no good").to_string()
}

#[test]
fn each_side_learns_who_the_other_is() {
    let lab = Lab::new();
    let server = ServerTls::load(&lab.issue(Role::Host, "A")).expect("a server");
    for (role, name) in [(Role::Viewer, "ann"), (Role::Operator, "bob"), (Role::Host, "B")] {
        let client = ClientTls::load(&lab.issue(role, name)).expect("a client");
        for peer in [host("A"), Peer::At(LOOPBACK.into()), Peer::At("A".parse().expect("a name"))] {
            let (caller, answered) = run(shake(&server, &client, &peer));
            answered.expect("the host that was meant");
            assert_eq!(caller.expect("a caller"), Identity { name: name.parse().expect("a name"), role });
        }
    }
}

#[test]
fn a_host_whose_name_is_no_dns_name_is_known_by_it_all_the_same() {
    let lab = Lab::new();
    let server = ServerTls::load(&lab.issue(Role::Host, "0-")).expect("a server");
    let client = ClientTls::load(&lab.issue(Role::Operator, "ann")).expect("a client");
    run(shake(&server, &client, &host("0-"))).1.expect("the host that was meant");
}

#[test]
fn another_host_than_was_meant_is_not_talked_to() {
    let lab = Lab::new();
    let server = ServerTls::load(&lab.issue(Role::Host, "A")).expect("a server");
    let ann = lab.issue(Role::Operator, "ann");
    let why = refused_by_client(&server, &ann, &host("B"));
    assert_eq!(why, "host B is not trusted: its certificate is for host A");
    let why = refused_by_client(&server, &ann, &host("a"));
    assert!(why.contains("for host A"), "names are told apart by case, too: {why}");
    let elsewhere = Peer::At("10.9.8.7".parse().expect("an address"));
    let why = refused_by_client(&server, &ann, &elsewhere);
    assert!(why.contains("not for 10.9.8.7") && why.contains("127.0.0.1"), "{why}");
}

#[test]
fn who_is_no_host_does_not_serve() {
    let lab = Lab::new();
    let why = unusable(ServerTls::load(&lab.issue(Role::Operator, "ann")));
    assert!(why.contains("operator ann") && why.contains("only a host"), "{why}");

    // One that takes no notice of that is refused by who calls: by the purpose of its certificate, and by its role.
    let forged = lab.forge("forged", &[(DnType::CommonName, "A"), (DnType::OrganizationalUnitName, "operator")]);
    let why = refused_by_client(&careless_server(&forged), &lab.issue(Role::Viewer, "eve"), &host("A"));
    assert!(why.contains("operator A, which is no host"), "{why}");
    let ann = lab.issue(Role::Operator, "A");
    let why = refused_by_client(&careless_server(&ann), &lab.issue(Role::Viewer, "joe"), &host("A"));
    assert!(why.contains("only a host's can serve"), "{why}");
}

/// A caller that uses `files` without looking at them, and trusts the authority of `other`.
fn careless_client(files: &TlsFiles, other: &TlsFiles) -> ClientTls {
    let trusting = ClientTls::load(other).expect("a client");
    let chain = pem::read_certificates(&files.certificate).expect("a certificate");
    let key = pem::read_key(&files.key).expect("a key");
    let key = provider().key_provider.load_private_key(key).expect("a key");
    ClientTls { own: Arc::new(CertifiedKey::new(chain, key)), ..trusting }
}

/// A caller without a certificate.
fn anonymous_client(trusting: &TlsFiles) -> ClientTls {
    let client = ClientTls::load(trusting).expect("a client");
    ClientTls { own: Arc::new(CertifiedKey::new(Vec::new(), Arc::clone(&client.own.key))), ..client }
}

/// A server that does not look at its own role.
fn careless_server(files: &TlsFiles) -> ServerTls {
    let own = credentials::Credentials::load(files).expect("credentials");
    let config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_client_cert_verifier(own.callers)
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(own.own)));
    ServerTls { identity: own.identity, acceptor: Arc::new(config).into() }
}

#[test]
fn a_certificate_of_another_authority_is_refused_on_both_sides() {
    let (ours, theirs) = (Lab::new(), Lab::new());
    let server = ours.issue(Role::Host, "A");
    // It trusts ours, so that it comes as far as showing its own.
    let stranger = careless_client(&theirs.issue(Role::Operator, "eve"), &server);
    let why = refused_by_server(&server, &stranger);
    assert!(why.contains("another authority"), "{why}");

    let server = ServerTls::load(&server).expect("a server");
    let why = refused_by_client(&server, &theirs.issue(Role::Operator, "ann"), &host("A"));
    assert!(why.contains("another authority"), "{why}");
}

#[test]
fn a_certificate_that_its_own_authority_did_not_issue_is_not_used() {
    let (ours, theirs) = (Lab::new(), Lab::new());
    let mixed = TlsFiles { authority: theirs.dir.path().join("ca.crt"), ..ours.issue(Role::Host, "A") };
    let why = unusable(ServerTls::load(&mixed));
    assert!(why.contains("A.crt") && why.contains("another authority"), "{why}");
}

#[test]
fn certificates_are_good_between_their_dates_only() {
    let lab = Lab::new();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let hour = Duration::from_secs(3600);
    let expired = lab.issue_from_until("old", now - 2 * hour, now - hour);
    let why = unusable(ServerTls::load(&expired));
    assert!(why.contains("old.crt") && why.contains("has expired"), "{why}");
    let why = unusable(ClientTls::load(&lab.issue_from_until("young", now + hour, now + 2 * hour)));
    assert!(why.contains("not valid yet"), "{why}");
}

#[test]
fn a_certificate_that_expires_while_in_use_is_refused_at_the_next_handshake() {
    let lab = Lab::new();
    let server = lab.issue(Role::Host, "A");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let second = Duration::from_secs(1);
    let client = ClientTls::load(&lab.issue_from_until("B", now - second, now + 2 * second)).expect("a client");
    while SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970") <= now + 3 * second {
        std::thread::sleep(second / 4);
    }
    let why = refused_by_server(&server, &client);
    assert!(why.contains("has expired"), "{why}");
}

#[test]
fn a_certificate_without_a_name_or_a_role_is_nobodys() {
    let lab = Lab::new();
    let named = (DnType::CommonName, "ann");
    for (subject, complaint) in [
        (vec![named.clone()], "lacks an organisational unit"),
        (vec![(DnType::OrganizationalUnitName, "operator")], "lacks a common name"),
        (vec![named.clone(), (DnType::OrganizationalUnitName, "emperor")], "`emperor` is no role"),
        (vec![(DnType::CommonName, "../x"), (DnType::OrganizationalUnitName, "viewer")], "cannot be the name"),
    ] {
        let why = unusable(ClientTls::load(&lab.forge("forged", &subject)));
        assert!(why.contains(complaint), "{why}");
    }
}

#[test]
fn a_caller_without_a_role_is_refused_by_the_host_itself() {
    let lab = Lab::new();
    let server = lab.issue(Role::Host, "A");
    let forged = lab.forge("forged", &[(DnType::CommonName, "ann")]);
    let why = refused_by_server(&server, &careless_client(&forged, &server));
    assert!(why.contains("lacks an organisational unit"), "{why}");
}

#[test]
fn a_caller_without_a_certificate_or_without_tls_is_refused() {
    let lab = Lab::new();
    let server = ServerTls::load(&lab.issue(Role::Host, "A")).expect("a server");
    let heard = |said: &'static [u8]| {
        let server = server.clone();
        run(async move {
            let (ours, mut theirs) = tokio::io::duplex(1 << 14);
            theirs.write_all(said).await.expect("written");
            drop(theirs);
            server.accept(ours).await.expect_err("no TLS").to_string()
        })
    };
    assert_eq!(heard(b"GET / HTTP/1.1\r\n\r\n"), "a caller is not trusted: it does not speak TLS");
    assert_eq!(heard(b""), "a caller is not trusted: it hung up during the handshake");

    let why = refused_by_server(&lab.issue(Role::Host, "A2"), &anonymous_client(&lab.issue(Role::Viewer, "eve")));
    assert!(why.contains("shows no certificate"), "{why}");
}

#[test]
fn a_key_of_another_certificate_is_not_used() {
    let lab = Lab::new();
    let mixed = TlsFiles { key: lab.issue(Role::Host, "B").key, ..lab.issue(Role::Host, "A") };
    let why = unusable(ServerTls::load(&mixed));
    assert!(why.contains("B.key") && why.contains("not the key of") && why.contains("A.crt"), "{why}");
}

#[test]
fn a_key_that_others_can_read_is_not_used() {
    let lab = Lab::new();
    let files = lab.issue(Role::Host, "A");
    fs::set_permissions(&files.key, Permissions::from_mode(0o640)).expect("opened");
    let why = unusable(ServerTls::load(&files));
    assert!(why.contains("A.key") && why.contains("0640") && why.contains("chmod 600"), "{why}");
    fs::set_permissions(lab.dir.path().join("ca.key"), Permissions::from_mode(0o644)).expect("opened");
    assert!(unusable(Authority::open(lab.dir.path())).contains("ca.key"));
}

#[test]
fn what_is_no_certificate_is_named() {
    let lab = Lab::new();
    let files = lab.issue(Role::Host, "A");
    fs::write(&files.certificate, "hello\n").expect("written");
    assert!(unusable(ServerTls::load(&files)).contains("holds no certificate"));
    fs::write(&files.certificate, vec![b'x'; 1 << 17]).expect("written");
    assert!(unusable(ServerTls::load(&files)).contains("more than 65536 bytes"));
    let gone = TlsFiles { certificate: lab.dir.path().join("gone.crt"), ..files };
    assert!(unusable(ServerTls::load(&gone)).contains("gone.crt"));
}

#[test]
fn an_authority_and_its_certificates_are_never_overwritten() {
    let lab = Lab::new();
    let before = fs::read(lab.dir.path().join("ca.key")).expect("a key");
    assert!(unusable(Authority::create(lab.dir.path())).contains("never overwritten"));
    assert_eq!(fs::read(lab.dir.path().join("ca.key")).expect("a key"), before);
    lab.issue(Role::Host, "A");
    assert!(unusable(lab.authority.issue(&order(Role::Viewer, "A"))).contains("exists already"));
}

#[test]
fn keys_are_readable_by_their_owner_alone() {
    let lab = Lab::new();
    let files = lab.issue(Role::Host, "A");
    let mode = |path: &Path| fs::metadata(path).expect("metadata").mode() & 0o777;
    assert_eq!([mode(&files.key), mode(&lab.dir.path().join("ca.key"))], [0o600; 2]);
    assert_eq!(mode(&files.certificate), 0o644);
}

#[test]
fn what_no_certificate_can_be_for_is_not_issued() {
    let lab = Lab::new();
    let refused = |order: CertificateOrder| unusable(lab.authority.issue(&order));
    assert!(refused(order(Role::Host, "ca")).contains("the authority itself"));
    assert!(refused(CertificateOrder { days: 0, ..order(Role::Host, "A") }).contains("one day"));
    assert!(refused(CertificateOrder { days: 100_000, ..order(Role::Host, "A") }).contains("outlive"));
    let called = CertificateOrder { role: Role::Viewer, ..order(Role::Host, "A") };
    assert!(refused(called).contains("nobody calls a viewer"));
}

#[test]
fn an_empty_directory_holds_no_authority() {
    let dir = tempfile::tempdir().expect("a directory");
    assert!(unusable(Authority::open(dir.path())).contains("nil host cert init"));
    let other = Lab::new();
    for file in ["ca.crt", "ca.key"] {
        fs::copy(other.dir.path().join(file), dir.path().join(file)).expect("copied");
    }
    fs::copy(Lab::new().dir.path().join("ca.key"), dir.path().join("ca.key")).expect("copied");
    let why = unusable(Authority::open(dir.path()));
    assert!(why.contains("not the key of"), "{why}");
}

#[test]
fn bytes_that_are_no_certificate_say_nothing_about_anybody() {
    let lab = Lab::new();
    let whole = pem::read_certificates(&lab.issue(Role::Host, "A").certificate).expect("a certificate");
    for cut in 0..whole[0].len() {
        let part = rustls::pki_types::CertificateDer::from(whole[0][..cut].to_vec());
        assert!(identity_of(&[part]).is_err());
    }
    assert!(identity_of(&[]).is_err());
}

proptest! {
    #[test]
    fn no_bytes_are_too_strange_to_be_no_certificate(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(identity_of(&[bytes.into()]).is_err());
    }
}

#[test]
fn a_certificate_with_any_byte_changed_is_read_without_harm() {
    let lab = Lab::new();
    let whole = pem::read_certificates(&lab.issue(Role::Host, "A").certificate).expect("a certificate");
    for at in 0..whole[0].len() {
        for change in [0x01, 0x80, 0xFF] {
            let mut spoilt = whole[0].to_vec();
            spoilt[at] ^= change;
            // Whether it is genuine is for the handshake to find out.
            let _ = identity_of(&[spoilt.into()]);
        }
    }
}
