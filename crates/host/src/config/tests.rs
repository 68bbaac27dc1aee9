//! Configurations as people write them.

use super::raw::{RawConfig, RawListen, RawLog, RawPlain, RawTls, RawWorker};
use super::*;
use proptest::prelude::*;

fn parse(text: &str) -> std::result::Result<HostConfig, String> {
    HostConfig::parse(text, Path::new("/etc/nil"))
}

fn refused(text: &str) -> String {
    parse(text).expect_err("a mistake")
}

/// The example with every key that is commented out put in force.
fn whole_example() -> String {
    let in_force = |line: &str| {
        let rest = line.strip_prefix("# ").unwrap_or(line);
        let key = rest.split_once(" = ").map_or("", |(key, _)| key);
        let is_key = !key.is_empty() && key.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_');
        if is_key || (rest.starts_with('[') && rest.ends_with(']')) { rest.to_owned() } else { line.to_owned() }
    };
    HostConfig::EXAMPLE.lines().map(in_force).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_is_a_configuration() {
    let config = parse(HostConfig::EXAMPLE).expect("a configuration");
    assert_eq!(config.name.expect("a name").as_str(), "A");
    assert_eq!(config.pools, [PoolRef::Path("/dev/shm/nil.pool".into())]);
    assert_eq!((config.worker, config.log), Default::default());
}

#[test]
fn the_example_has_every_key_that_there_is() {
    let RawConfig { name, pools, search, accept, move_bandwidth, cpu_limit, listen, worker, lease, log, peers } =
        toml::from_str(&whole_example()).expect("a configuration");
    assert!(name.is_some() && pools.is_some() && move_bandwidth.is_some() && cpu_limit.is_some());
    assert!(search.is_some() && accept.is_some());
    let RawListen { tls, plain } = listen.expect("a section");
    assert!(matches!(tls, Some(RawTls { advertise: Some(_), .. })));
    assert!(matches!(plain, Some(RawPlain { role: Some(_), .. })));
    let RawWorker { sandbox, paths, memory, threads } = worker.expect("a section");
    assert!(sandbox.is_some() && paths.is_some() && memory.is_some() && threads.is_some());
    assert!(lease.expect("a section").fence_command.is_some());
    let RawLog { to, level } = log.expect("a section");
    assert!(to.is_some() && level.is_some());
    assert_eq!(peers.expect("a section").len(), 1);
}

#[test]
fn everything_that_is_written_is_understood() {
    let config = parse(&whole_example()).expect("a configuration");
    assert_eq!(config.move_bandwidth, Some(2 << 30));
    assert_eq!((config.accept, config.search), (Some(Acceptance::Always), vec!["/dev/shm".into()]));
    let tls = config.listen.tls.expect("TLS");
    assert_eq!(tls.files.key, Path::new("/etc/nil/tls/A.key"), "a relative path begins at the file");
    assert_eq!(tls.advertised().expect("an address").to_string(), "node-a.lab:7070");
    let plain = config.listen.plain.expect("a plain socket");
    assert_eq!((plain.address.port(), plain.role), (7071, Role::Viewer));
    assert_eq!(config.worker.memory, Some(512 << 20));
    assert_eq!((config.lease.terms, config.lease.takeover), Default::default());
    assert_eq!(config.lease.fence_command.as_deref(), Some(Path::new("/usr/local/sbin/fence")));
    assert_eq!(config.log, LogConfig { to: LogTarget::Auto, level: Some(LogLevel::Info) });
    assert_eq!(config.peers[0].address.name().to_string(), "node-b.lab");
}

#[test]
fn an_empty_file_leaves_everything_to_the_command_line() {
    assert_eq!(parse("").expect("a configuration"), HostConfig::default());
}

#[test]
fn a_key_that_is_not_known_is_told_with_its_line_and_what_is_known() {
    let why = refused("name = \"A\"\n\n[worker]\nsandboxed = true\n");
    for part in ["line 4", "unknown field `sandboxed`", "`sandbox`", "`threads`"] {
        assert!(why.contains(part), "{part} is missing: {why}");
    }
}

#[test]
fn a_value_that_cannot_be_is_told_with_its_line() {
    for (text, complaint) in [
        ("name = \"a/b\"", "cannot be the name of a host"),
        ("move_bandwidth = \"fast\"", "fast"),
        ("move_bandwidth = 7", "expected a string"),
        ("[worker]\nsandbox = \"maybe\"", "unknown variant `maybe`"),
        ("[log]\nlevel = \"loud\"", "expected one of `error`"),
        ("accept = \"never\"", "expected `always` or `ask`"),
        ("[lease]\nexpiry_ms = 0", "at least 3 intervals"),
        ("[lease]\ntakeover = \"maybe\"", "unknown variant `maybe`"),
        ("[lease]\nexpiry = 5", "unknown field `expiry`"),
        ("[listen.tls]\naddress = \"0.0.0.0:1\"", "missing field `cert`"),
        ("[listen.plain]\naddress = \"node\"", "invalid socket address"),
        ("[[peers]]\nname = \"B\"\naddress = \"b\"", "no address of an agent"),
    ] {
        let why = refused(text);
        assert!(why.contains("line ") && why.contains(complaint), "{text}: {why}");
    }
}

#[test]
fn nobody_is_let_in_without_a_certificate_but_from_this_machine() {
    for address in ["0.0.0.0:7071", "10.0.0.1:7071", "[::]:7071"] {
        let why = refused(&format!("[listen.plain]\naddress = \"{address}\""));
        assert!(why.contains("nothing protects it"), "{why}");
    }
    assert!(parse("[listen.plain]\naddress = \"[::1]:7071\"\nrole = \"operator\"").is_ok());
    let why = refused("[listen.plain]\naddress = \"127.0.0.1:7071\"\nrole = \"host\"");
    assert!(why.contains("without a certificate"), "{why}");
}

#[test]
fn a_pool_is_told_by_its_path_or_by_its_uuid() {
    let id = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
    let config = parse(&format!("pools = [\"{id}\", \"./{id}\", \"pool\"]")).expect("a configuration");
    let path = |path: &str| PoolRef::Path(path.into());
    let meant = [PoolRef::Id(id.parse().expect("a UUID")), path(&format!("/etc/nil/./{id}")), path("/etc/nil/pool")];
    assert_eq!(config.pools, meant);
    assert_eq!(config.pools[0].to_string(), id);
}

#[test]
fn a_peer_has_one_address() {
    let peer = "[[peers]]\nname = \"B\"\naddress = \"b:1\"\n";
    assert!(refused(&peer.repeat(2)).contains("host B has two addresses"));
}

#[test]
fn an_address_that_no_other_host_can_call_is_not_advertised() {
    let files = "cert = \"c\"\nkey = \"k\"\nca = \"a\"";
    let advertised = |address: &str| {
        let config = parse(&format!("[listen.tls]\naddress = \"{address}\"\n{files}")).expect("a configuration");
        config.listen.tls.expect("TLS").advertised().map(|address| address.to_string())
    };
    assert_eq!(advertised("0.0.0.0:7070"), None);
    assert_eq!(advertised("[fd00::7]:7070"), Some("[fd00::7]:7070".to_owned()));
}

#[test]
fn addresses_of_agents_are_written_as_they_are_read() {
    for text in ["node7:7070", "10.0.0.7:1", "[fd00::7]:65535"] {
        assert_eq!(text.parse::<PeerAddress>().expect("an address").to_string(), text);
    }
    for text in
        ["", ":1", "node7", "node7:", "node7:0", "node7:65536", "fd00::7:1", "[node7]:1", "[10.0.0.7]:1", "a b:1"]
    {
        assert!(text.parse::<PeerAddress>().is_err(), "{text}");
    }
}

#[test]
fn a_file_is_named_in_what_is_wrong_with_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("host.toml");
    let read = || HostConfig::read(&path).expect_err("a mistake").story();
    assert!(read().contains("host.toml"));
    std::fs::write(&path, "name = \"A\"\nnames = 1\n").expect("written");
    assert!(read().contains("host.toml cannot be used") && read().contains("line 2"), "{}", read());
    std::fs::write(&path, [0xff, 0xfe]).expect("written");
    assert!(read().contains("host.toml"));
    std::fs::write(&path, " ".repeat(2 << 20)).expect("written");
    assert!(read().contains("more than 1048576 bytes"));
}

proptest! {
    #[test]
    fn no_text_is_too_strange_to_be_refused(text in "\\PC*", at in 0_usize..4096, byte in any::<u8>()) {
        let _ = parse(&text);
        let mut spoilt = whole_example().into_bytes();
        let at = at % spoilt.len();
        spoilt[at] = byte;
        if let Ok(spoilt) = String::from_utf8(spoilt) {
            let _ = parse(&spoilt);
        }
    }

    #[test]
    fn an_address_that_is_understood_is_the_same_when_it_is_written_and_read_again(text in "\\[?[0-9a-z.:]{0,20}\\]?:[0-9]{1,6}") {
        if let Ok(address) = text.parse::<PeerAddress>() {
            prop_assert_eq!(address.to_string().parse::<PeerAddress>(), Ok(address));
        }
    }
}
