//! An agent on a pool of its own, and bytes to and from it.

use nil_host::{Agent, AgentOptions, Client, HostDir, Listen, PlainListen, PoolRef, Role, RunDir};
use nil_pool::{CreateOptions, Pool};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// How long anything may take that is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Stage {
    pub(crate) agent: Agent,
    pub(crate) dir: TempDir,
    host: HostDir,
}

/// Host A, as it is unless something else is said, with its run directory below `dir`.
pub(crate) fn options(dir: &Path, pools: Vec<PoolRef>, listen: Listen) -> AgentOptions {
    AgentOptions {
        dir: RunDir::at(dir.join("run")).host(&"A".parse().expect("a good name")),
        pools,
        search: Vec::new(),
        accept: nil_host::Acceptance::default(),
        move_bandwidth: None,
        lease: nil_host::LeaseConfig::default(),
        workers: nil_host::WorkerConfig::default(),
        listen,
        peers: Vec::new(),
        cpu_limit: None,
    }
}

impl Stage {
    /// An agent that answers viewers on loopback, too.
    pub(crate) fn new() -> Self {
        let plain = Some(PlainListen { address: loopback(), role: Role::Viewer });
        Self::listening(|_| Listen { plain, tls: None })
    }

    /// An agent of host A that answers where it is told, with files in the stage's directory.
    pub(crate) fn listening(listen: impl FnOnce(&TempDir) -> Listen) -> Self {
        let dir = TempDir::with_prefix_in("nil-api-", "/dev/shm").expect("a directory in /dev/shm");
        let pool = dir.path().join("pool");
        Pool::create(&pool, &CreateOptions { size: Some(64 << 20), ..CreateOptions::default() }).expect("a pool");
        let options = options(dir.path(), vec![pool.into()], listen(&dir));
        let host = options.dir.clone();
        Self { agent: Agent::start(&options).expect("an agent"), dir, host }
    }

    /// A client of this user's.
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.host).expect("the agent")
    }

    /// A connection of this user's.
    pub(crate) fn unix(&self) -> UnixStream {
        let stream = UnixStream::connect(self.host.agent_socket()).expect("the agent's socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("patience");
        stream.set_write_timeout(Some(PATIENCE)).expect("patience");
        stream
    }

    /// A connection of anybody's on this machine.
    pub(crate) fn tcp(&self) -> TcpStream {
        let stream = TcpStream::connect(self.plain()).expect("the agent's address");
        stream.set_read_timeout(Some(PATIENCE)).expect("patience");
        stream
    }

    pub(crate) fn plain(&self) -> SocketAddr {
        self.agent.listening().plain.expect("an address")
    }

    /// Asks on a connection of its own.
    pub(crate) fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        let mut stream = self.unix();
        // An agent that has heard enough does not take the rest.
        let _ = stream.write_all(request.as_ref());
        Answer::read(stream)
    }

    /// Sends a body to a path that takes one.
    pub(crate) fn post(&self, path: &str, kind: &str, body: &[u8]) -> Answer {
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n"
        );
        self.ask([head.as_bytes(), body].concat())
    }

    /// Fails unless the agent is as it was.
    pub(crate) fn check_unharmed(&self) {
        let report = self.client().describe().expect("an answer");
        assert_eq!((report.name.as_str(), report.guests, report.pools.len()), ("A", 0, 1));
    }
}

pub(crate) fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub(crate) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
}

/// What the agent says before it hangs up.
#[derive(Debug)]
pub(crate) struct Answer {
    /// 0 when it says nothing.
    pub(crate) status: u16,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn read(mut stream: impl Read) -> Self {
        let mut bytes = Vec::new();
        match stream.read_to_end(&mut bytes) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the agent did not hang up: {error}"),
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Self { status, text }
    }

    /// Fails unless it is a problem of that status, whose sentence has that word.
    #[track_caller]
    pub(crate) fn refuses(&self, status: u16, word: &str) {
        assert_eq!(self.status, status, "{}", self.text);
        let (head, body) = self.text.split_once("\r\n\r\n").expect("a head");
        assert!(head.to_lowercase().contains("content-type: application/problem+json"), "{head}");
        let problem: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("no document: {body}"));
        assert_eq!(problem["status"], status, "{body}");
        assert!(problem["title"].as_str().is_some_and(|title| !title.is_empty()), "{body}");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(word)), "`{word}` is missing: {body}");
    }
}
