//! Who may ask what, by certificate and without.

use crate::stage::{Answer, Stage, get, loopback, options};
use nil_host::{
    Authority, CertificateOrder, Client, ClientTls, Endpoint, Error, HostName, Listen, PlainListen, Role, TlsFiles,
    TlsListen,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::Write;
use std::net::{IpAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn issue(authority: &Authority, role: Role, name: &str) -> TlsFiles {
    let addresses = if role == Role::Host { vec![LOOPBACK.into()] } else { Vec::new() };
    let order = CertificateOrder { name: name.parse().expect("a good name"), role, addresses, days: 1 };
    let issued = authority.issue(&order).expect("a certificate");
    TlsFiles { certificate: issued.certificate, key: issued.key, authority: issued.authority }
}

fn authority(dir: &Path) -> Authority {
    std::fs::create_dir_all(dir).expect("a directory");
    Authority::create(dir).expect("an authority")
}

/// An agent behind TLS, and its authority.
fn stage() -> (Stage, Authority) {
    let mut made = None;
    let stage = Stage::listening(|dir| {
        let authority = authority(&dir.path().join("ca"));
        let files = issue(&authority, Role::Host, "A");
        made = Some(authority);
        Listen { tls: Some(TlsListen { address: loopback(), advertise: None, files }), plain: None }
    });
    (stage, made.expect("an authority"))
}

fn call(stage: &Stage, files: &TlsFiles, host: &str) -> nil_host::Result<Client> {
    let host: HostName = host.parse().expect("a good name");
    let address = stage.agent.listening().tls.expect("an address").into();
    let tls = ClientTls::load(files).expect("a certificate");
    Client::connect_to(&Endpoint::Tls { address, host: host.clone(), tls }, &host)
}

#[test]
fn a_viewer_may_look_an_operator_may_order_and_a_host_may_ask_what_hosts_ask() {
    let (stage, authority) = stage();
    let guest = "g".parse().expect("a good name");
    for (role, may_order) in [(Role::Viewer, false), (Role::Operator, true), (Role::Host, false)] {
        let mut client = call(&stage, &issue(&authority, role, &format!("{role}-1")), "A").expect("an agent");
        assert_eq!(client.describe().expect("an answer").name.as_str(), "A");
        assert_eq!(client.ps().expect("an answer"), []);
        let refused = client.stop(&guest).expect_err("there is no guest").to_string();
        assert_eq!(refused.contains("there is no guest named g"), may_order, "{role}: {refused}");
        assert_eq!(refused.contains("may not do that"), !may_order, "{role}: {refused}");
    }
}

/// Sends an order by mutual TLS, with a certificate of that kind and name, and returns what is said.
fn post(stage: &Stage, authority: &Authority, (role, name): (Role, &str), path: &str, body: &str) -> Answer {
    let TlsFiles { certificate, key, authority } = issue(authority, role, name);
    let certificates = |path| CertificateDer::pem_file_iter(path).expect("a file").map(|it| it.expect("a certificate"));
    let mut roots = RootCertStore::empty();
    certificates(&authority).for_each(|root| roots.add(root).expect("an authority"));
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates(&certificate).collect(), PrivateKeyDer::from_pem_file(key).expect("a key"))
        .expect("a certificate and its key");
    let address = stage.agent.listening().tls.expect("an address");
    let conversation = ClientConnection::new(Arc::new(config), address.ip().into()).expect("a conversation");
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(crate::stage::PATIENCE)).expect("patience");
    let mut stream = StreamOwned::new(conversation, stream);
    let length = body.len();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: \
         {length}\r\n\r\n{body}"
    )
    .expect("written");
    Answer::read(stream)
}

#[test]
fn a_host_orders_from_another_what_follows_from_its_own_guests_and_others_nothing() {
    let (stage, authority) = stage();
    let number = "5e1f0b1c-0000-4000-8000-00000000000a";
    let cancel = format!("/v1/peer/routes/{number}/cancel");
    let arm =
        |from: &str| format!(r#"{{"pool": "{number}", "slot": 0, "id": "{number}", "name": "g", "from": "{from}"}}"#);
    let ask = |caller: (Role, &str), path: &str, body: &str| post(&stage, &authority, caller, path, body);
    for (role, names) in [(Role::Viewer, ["ann", "bob"]), (Role::Operator, ["cleo", "dan"])] {
        ask((role, names[0]), &cancel, "").refuses(403, "it takes a host's certificate");
        ask((role, names[1]), "/v1/peer/arm", &arm("B")).refuses(403, "it takes a host's certificate");
    }
    ask((Role::Host, "B"), "/v1/peer/arm", &arm("C")).refuses(403, "host B cannot hand over guests of host C");
    // Those of its own it may, if there are any: in a pool that this host has joined.
    ask((Role::Host, "D"), "/v1/peer/arm", &arm("D")).refuses(422, "is not a member of pool");
    ask((Role::Host, "E"), &cancel, "").refuses(404, "there is no job");
    ask((Role::Host, "F"), "/v1/guests/g/routes", r#"{"to": "Z"}"#).refuses(403, "it takes an operator's certificate");
    ask((Role::Host, "G"), &format!("/v1/jobs/{number}/cancel"), "").refuses(403, "it takes an operator's certificate");
    stage.check_unharmed();
}

#[test]
fn the_address_of_an_agent_stands_in_its_pool() {
    let (stage, _authority) = stage();
    let pool = nil_pool::Pool::open(&stage.dir.path().join("pool"), nil_pool::Access::ReadOnly).expect("the pool");
    let address = pool.find_host("A").expect("the host").address.expect("its address");
    assert_eq!(address.to_string(), stage.agent.listening().tls.expect("an address").to_string());
}

#[test]
fn certificates_of_others_and_hosts_of_another_name_are_refused() {
    let (stage, ours) = stage();
    let theirs = authority(&stage.dir.path().join("other-ca"));
    let stranger = call(&stage, &issue(&theirs, Role::Operator, "eve"), "A").map(|_| ());
    assert!(matches!(stranger, Err(Error::Untrusted { .. })), "{stranger:?}");
    let mixed =
        TlsFiles { authority: issue(&ours, Role::Viewer, "bob").authority, ..issue(&theirs, Role::Operator, "mal") };
    // Whether the handshake fails or the first request depends on who is quicker to say so.
    if let Ok(tls) = ClientTls::load(&mixed) {
        let address = stage.agent.listening().tls.expect("an address").into();
        let host: HostName = "A".parse().expect("a good name");
        let called = Client::connect_to(&Endpoint::Tls { address, host: host.clone(), tls }, &host);
        assert!(called.and_then(|mut client| client.describe()).is_err());
    }
    let elsewhere = call(&stage, &issue(&ours, Role::Operator, "op"), "B").map(|_| ());
    assert!(matches!(elsewhere, Err(Error::Untrusted { .. })), "{elsewhere:?}");
    stage.check_unharmed();
}

#[test]
fn plain_text_is_not_understood_where_tls_is_spoken() {
    let (stage, _authority) = stage();
    let address = stage.agent.listening().tls.expect("an address");
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(crate::stage::PATIENCE)).expect("patience");
    stream.write_all(get("/v1/host").as_bytes()).expect("written");
    assert_eq!(Answer::read(stream).status, 0);
    stage.check_unharmed();
}

#[test]
fn a_certificate_of_another_host_is_no_certificate_for_this_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = authority(&dir.path().join("ca"));
    let files = issue(&authority, Role::Host, "B");
    let listen = Listen { tls: Some(TlsListen { address: loopback(), advertise: None, files }), plain: None };
    let error = start(dir.path(), listen).expect_err("another host's certificate");
    assert!(error.contains("it is for host B, and this is host A"), "{error}");
}

#[test]
fn without_tls_an_agent_answers_on_loopback_alone_and_there_viewers() {
    let stage = Stage::new();
    let ask = |request: String| {
        let mut stream = stage.tcp();
        stream.write_all(request.as_bytes()).expect("written");
        Answer::read(stream)
    };
    assert_eq!(ask(get("/v1/host")).status, 200);
    ask(get("/v1/guests/g").replace("GET", "DELETE")).refuses(403, "viewer at 127.0.0.1 may not do that");
    ask(get("/v1/peer/arm").replace("GET", "POST")).refuses(403, "may not do that");
    // What cannot be done by anybody is so for viewers, too.
    ask(get("/v1/peer/arm")).refuses(405, "/v1/peer/arm");
    let dir = tempfile::tempdir().expect("a directory");
    let address = "0.0.0.0:0".parse().expect("an address");
    let listen = Listen { plain: Some(PlainListen { address, role: Role::Viewer }), tls: None };
    let error = start(dir.path(), listen).expect_err("an address that others can reach");
    assert!(error.contains("can be reached from other machines"), "{error}");
}

/// Why an agent does not start that is to answer there.
fn start(dir: &Path, listen: Listen) -> Result<nil_host::Agent, String> {
    nil_host::Agent::start(&options(dir, Vec::new(), listen)).map_err(|error| error.story())
}
