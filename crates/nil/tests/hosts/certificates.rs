//! A lab's authority, on the command line.

use crate::playground::Playground;
use std::fs;
use std::os::unix::fs::PermissionsExt;

#[test]
fn an_authority_is_made_once_and_issues_certificates_with_keys_that_nobody_else_can_read() {
    let playground = Playground::new();
    let dir = playground.path("tls");
    playground.json(&["host", "cert", "init", "--dir", &dir]);
    playground.nil(&["host", "cert", "init", "--dir", &dir]).refuses(1, &["ca.crt", "never overwritten"]);
    let issue = ["host", "cert", "issue", "--dir", &dir, "--role", "host", "--name", "A", "--address", "127.0.0.1"];
    let issued = playground.json(&issue);
    assert_eq!(issued["role"], "host");
    let key = fs::metadata(issued["key"].as_str().expect("a path")).expect("the key");
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    playground.nil(&issue).refuses(1, &["A.crt", "exists already"]);
}

#[test]
fn what_cannot_stand_in_a_certificate_is_refused() {
    let playground = Playground::new();
    let dir = playground.path("tls");
    let issue = |role: &str, name: &str, more: &[&str]| {
        playground.nil(&[&["host", "cert", "issue", "--dir", &dir, "--role", role, "--name", name], more].concat())
    };
    issue("host", "A", &[]).refuses(1, &["no authority", "nil host cert init"]);
    playground.json(&["host", "cert", "init", "--dir", &dir]);
    issue("emperor", "A", &[]).refuses(2, &["viewer, operator and host"]);
    issue("host", "../A", &[]).refuses(2, &["letters, digits"]);
    issue("host", "A", &["--address", "a b"]).refuses(2, &["neither an IP address nor a DNS name"]);
    issue("viewer", "ann", &["--address", "10.0.0.1"]).refuses(1, &["nobody calls a viewer"]);
    issue("viewer", "ann", &["--days", "0"]).refuses(1, &["one day"]);
}

#[test]
fn a_configuration_with_a_certificate_of_another_host_is_refused() {
    let playground = Playground::new();
    let dir = playground.path("tls");
    playground.json(&["host", "cert", "init", "--dir", &dir]);
    for name in ["A", "B"] {
        playground.json(&["host", "cert", "issue", "--dir", &dir, "--role", "host", "--name", name]);
    }
    let config = playground.path("host.toml");
    let check = |holder: &str| {
        let files = format!("cert = \"tls/{holder}.crt\"\nkey = \"tls/{holder}.key\"\nca = \"tls/ca.crt\"");
        let text = format!("name = \"A\"\npools = [\"pool\"]\n[listen.tls]\naddress = \"127.0.0.1:7070\"\n{files}\n");
        fs::write(&config, text).expect("written");
        playground.nil(&["host", "config", "check", &config])
    };
    assert!(check("A").status.success());
    check("B").refuses(1, &["B.crt", "host B", "not of host A"]);
}
