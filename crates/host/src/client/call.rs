//! HTTP requests to an agent, one after another, each waited for.
//!
//! A runtime of its own drives the connection while something is waited for, and only then. A connection is used again
//! for the next request if that follows soon; the agent hangs up on idle ones.

use crate::config::PeerAddress;
use crate::error::{Error, Result};
use crate::name::HostName;
use crate::problem::Problem;
use crate::tls::{ClientTls, Peer};
use axum::body::Bytes;
use axum::http::header::{ACCEPT, CONTENT_TYPE, HOST};
use axum::http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// The most bytes that an answer may have.
const LARGEST_ANSWER: usize = 64 << 20;
/// The most bytes that a line of an answer may have.
const LONGEST_LINE: usize = 1 << 20;
/// How long a connection that nothing goes over is still good. An agent waits longer than that for the next request.
const GOOD_FOR: Duration = Duration::from_secs(1);
/// How long another machine may take to take a call.
const PATIENCE_WITH_NETWORKS: Duration = Duration::from_secs(10);

/// Where an agent answers.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// On a socket of this machine.
    Unix(PathBuf),
    /// At an address of this machine's loopback, in plain text.
    Plain(SocketAddr),
    /// On any machine, by mutual TLS.
    Tls {
        /// Where.
        address: PeerAddress,
        /// Which host's agent, as its certificate must say.
        host: HostName,
        /// Who calls.
        tls: ClientTls,
    },
}

/// Ends a conversation from another thread, for good.
#[derive(Clone, Debug)]
pub(crate) struct HangUp(Arc<watch::Sender<bool>>);

/// Calls one agent.
#[derive(Debug)]
pub(super) struct Caller {
    runtime: Runtime,
    endpoint: Endpoint,
    peer: String,
    patience: Option<Duration>,
    hang_up: HangUp,
    idle: Option<(Connection, Instant)>,
}

type Connection = SendRequest<Full<Bytes>>;

/// An answer that is still coming.
#[derive(Debug)]
pub(super) struct Stream {
    body: Incoming,
    /// Dropping it would hang up.
    _connection: Connection,
}

/// An answer that comes line by line.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: Stream,
    rest: Vec<u8>,
}

impl Default for HangUp {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl HangUp {
    /// Hangs up; whoever waits for an answer is told at once.
    pub(crate) fn hang_up(&self) {
        self.0.send_replace(true);
    }

    #[cfg(test)]
    pub(crate) fn is_hung_up(&self) -> bool {
        *self.0.borrow()
    }
}

impl Caller {
    /// Calls; `peer` is who it is to a person.
    pub(super) fn connect(endpoint: Endpoint, peer: String) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Error::io("set up", "a connection", error))?;
        let (patience, hang_up, idle) = (None, HangUp::default(), None);
        let mut caller = Self { runtime, endpoint, peer, patience, hang_up, idle };
        caller.idle = Some((caller.wait(caller.dial())?, Instant::now()));
        Ok(caller)
    }

    pub(super) fn set_peer(&mut self, peer: String) {
        self.peer = peer;
    }

    pub(super) fn set_patience(&mut self, patience: Option<Duration>) {
        self.patience = patience;
    }

    pub(super) fn hang_up_handle(&self) -> HangUp {
        self.hang_up.clone()
    }

    pub(super) fn peer(&self) -> &str {
        &self.peer
    }

    /// Asks, and understands the answer.
    pub(super) fn ask<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        let answer = self.answer(method, path, body)?;
        self.understand(&answer)
    }

    /// Asks for something to be done of which there is nothing to say.
    pub(super) fn ask_for_nothing(&mut self, method: Method, path: &str) -> Result<()> {
        self.answer(method, path, None::<&()>).map(drop)
    }

    /// Opens a stream of events, from the first one after that number.
    pub(super) fn open(&mut self, path: &str, after: u64) -> Result<Stream> {
        let request = Request::get(path).header(ACCEPT, "text/event-stream").header("last-event-id", after);
        let request = request.header(HOST, "nil").body(Full::default());
        self.stream(request.map_err(|error| self.broken(error))?)
    }

    /// More of a stream; `None` at its end.
    pub(super) fn more(&mut self, stream: &mut Stream) -> Result<Option<Bytes>> {
        self.wait(async {
            loop {
                match stream.body.frame().await {
                    None => return Ok(None),
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data() {
                            return Ok(Some(data));
                        }
                    }
                    Some(Err(error)) => return Err(self.broken(error)),
                }
            }
        })
    }

    /// Asks for something that is answered line by line.
    pub(super) fn post_for_lines(&mut self, path: &str, body: &impl Serialize) -> Result<Lines> {
        let request = self.request(Method::POST, path, Some(body))?;
        Ok(Lines { stream: self.stream(request)?, rest: Vec::new() })
    }

    /// The next line, which must come.
    pub(super) fn next_line<T: DeserializeOwned>(&mut self, lines: &mut Lines) -> Result<T> {
        loop {
            if let Some(end) = lines.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = lines.rest.drain(..=end).collect();
                return self.understand(&line);
            }
            match self.more(&mut lines.stream)? {
                Some(more) if lines.rest.len() < LONGEST_LINE => lines.rest.extend_from_slice(&more),
                Some(_) | None => return Err(Error::Hangup { peer: self.peer.clone() }),
            }
        }
    }

    pub(super) fn understand<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T> {
        serde_json::from_slice(bytes).map_err(|source| Error::NotUnderstood { peer: self.peer.clone(), source })
    }

    fn request(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<Request<Full<Bytes>>> {
        let request = Request::builder().method(method).uri(path).header(HOST, "nil");
        let request = match body {
            None => request.body(Full::default()),
            Some(body) => {
                let body = serde_json::to_vec(body).map_err(|error| self.broken(error))?;
                request.header(CONTENT_TYPE, "application/json").body(Full::from(body))
            }
        };
        request.map_err(|error| self.broken(error))
    }

    fn answer(&mut self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<Bytes> {
        let request = self.request(method, path, body)?;
        let idle = self.idle.take();
        let (answer, connection) = self.wait(async {
            let mut connection = self.connection(idle).await?;
            let answer = connection.send_request(request).await.map_err(|error| self.broken(error))?;
            Ok((self.judge(answer).await?, connection))
        })?;
        self.idle = Some((connection, Instant::now()));
        answer
    }

    fn stream(&mut self, request: Request<Full<Bytes>>) -> Result<Stream> {
        let idle = self.idle.take();
        self.wait(async {
            let mut connection = self.connection(idle).await?;
            let answer = connection.send_request(request).await.map_err(|error| self.broken(error))?;
            if answer.status().is_success() {
                return Ok(Stream { body: answer.into_body(), _connection: connection });
            }
            match self.judge(answer).await? {
                Ok(_) => Err(Error::Hangup { peer: self.peer.clone() }),
                Err(error) => Err(error),
            }
        })
    }

    /// An answer's body, or what the agent has to say against the request.
    async fn judge(&self, answer: Response<Incoming>) -> Result<Result<Bytes>> {
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LARGEST_ANSWER).collect().await;
        let body = body.map_err(|error| self.broken(error))?.to_bytes();
        if status.is_success() {
            return Ok(Ok(body));
        }
        Ok(Err(match self.understand::<Problem>(&body) {
            Ok(problem) => problem.into(),
            Err(error) => error,
        }))
    }

    /// The connection that was used last, if it is still good, or another.
    async fn connection(&self, idle: Option<(Connection, Instant)>) -> Result<Connection> {
        if let Some((mut connection, since)) = idle
            && since.elapsed() < GOOD_FOR
            && connection.ready().await.is_ok()
        {
            return Ok(connection);
        }
        self.dial().await
    }

    async fn dial(&self) -> Result<Connection> {
        let opened = tokio::time::timeout(PATIENCE_WITH_NETWORKS, self.open_stream()).await;
        let io = opened.unwrap_or_else(|_| Err(Error::NoAnswer { peer: self.peer.clone() }))?;
        let (connection, driver) = handshake(TokioIo::new(io)).await.map_err(|error| self.broken(error))?;
        // However the connection ends, whoever waits for an answer is told.
        self.runtime.spawn(driver);
        Ok(connection)
    }

    async fn open_stream(&self) -> Result<Box<dyn Io>> {
        match &self.endpoint {
            Endpoint::Unix(path) => match UnixStream::connect(path).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(self.nobody(path.display().to_string(), error)),
            },
            Endpoint::Plain(address) => {
                let stream = TcpStream::connect(address).await;
                Ok(Box::new(without_delay(stream.map_err(|error| self.nobody(address.to_string(), error))?)))
            }
            Endpoint::Tls { address, host, tls } => {
                let stream = TcpStream::connect(address.to_string()).await;
                let stream = without_delay(stream.map_err(|error| self.nobody(address.to_string(), error))?);
                Ok(Box::new(tls.connect(stream, &Peer::Host(host.clone())).await?))
            }
        }
    }

    /// Waits as long as patience lasts, and nobody hangs up.
    fn wait<T>(&self, what: impl Future<Output = Result<T>>) -> Result<T> {
        let mut hung_up = self.hang_up.0.subscribe();
        let in_time = async {
            match self.patience {
                None => what.await,
                Some(patience) => tokio::time::timeout(patience, what)
                    .await
                    .unwrap_or_else(|_| Err(Error::NoAnswer { peer: self.peer.clone() })),
            }
        };
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                _ = hung_up.wait_for(|hung_up| *hung_up) => Err(Error::Hangup { peer: self.peer.clone() }),
                outcome = in_time => outcome,
            }
        })
    }

    fn nobody(&self, whom: String, error: io::Error) -> Error {
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => Error::NobodyThere { peer: self.peer.clone() },
            _ => Error::io("connect to", whom, error),
        }
    }

    fn broken(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        let (peer, error) = (self.peer.clone(), error.into());
        if is_hangup(&*error) {
            return Error::Hangup { peer };
        }
        Error::Broken { peer, source: io::Error::other(error) }
    }
}

/// Whether a connection has ended before the answer had.
fn is_hangup(error: &(dyn std::error::Error + 'static)) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| match (cause.downcast_ref::<hyper::Error>(), cause.downcast_ref::<io::Error>()) {
        (Some(error), _) => error.is_incomplete_message() || error.is_closed() || error.is_canceled(),
        (None, Some(error)) => matches!(error.kind(), ConnectionReset | BrokenPipe | UnexpectedEof),
        (None, None) => false,
    })
}

fn without_delay(stream: TcpStream) -> TcpStream {
    // Without it answers are slower, and that is all.
    let _ = stream.set_nodelay(true);
    stream
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A text as a segment of a path.
pub(super) fn escaped(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    /// A caller of an agent that takes one call and does with it what `answer` does.
    fn caller(answer: impl FnOnce(std::os::unix::net::UnixStream) + Send + 'static) -> (tempfile::TempDir, Caller) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        std::thread::spawn(move || answer(listener.accept().expect("a call").0));
        let caller = Caller::connect(Endpoint::Unix(path), "the test".into()).expect("somebody there");
        (dir, caller)
    }

    fn say(text: &'static str) -> impl FnOnce(std::os::unix::net::UnixStream) + Send + 'static {
        move |mut stream| {
            let _ = stream.read(&mut [0; 1024]);
            stream.write_all(text.as_bytes()).expect("written");
        }
    }

    fn ask(caller: &mut Caller) -> Result<Vec<u32>> {
        caller.ask(Method::GET, "/", None::<&()>)
    }

    #[test]
    fn an_answer_is_understood() {
        let (_dir, mut caller) = caller(say("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n[1,2]"));
        assert_eq!(ask(&mut caller).expect("an answer"), [1, 2]);
    }

    #[test]
    fn what_is_no_json_is_refused_with_the_peers_name() {
        let (_dir, mut caller) = caller(say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"));
        let error = ask(&mut caller).expect_err("no JSON").to_string();
        assert!(error.starts_with("the test sent something"), "{error}");
    }

    #[test]
    fn half_an_answer_and_none_are_hangups() {
        for text in ["HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n[1", "HTTP/1.1 200", ""] {
            let (_dir, mut caller) = caller(say(text));
            let error = ask(&mut caller).expect_err("half an answer");
            assert!(matches!(error, Error::Hangup { .. }), "{text}: {error:?}");
        }
    }

    #[test]
    fn a_problem_is_told_in_its_own_words() {
        let (_dir, mut caller) = caller(say(
            "HTTP/1.1 404 Not Found\r\ncontent-length: 61\r\n\r\n{\"title\":\"Not Found\",\"status\":404,\"detail\":\"there is none\"}   ",
        ));
        assert_eq!(ask(&mut caller).expect_err("a problem").to_string(), "there is none");
    }

    #[test]
    fn a_silent_agent_is_given_up_in_the_end() {
        let (_dir, mut caller) = caller(|mut stream| {
            let _ = stream.read_to_end(&mut Vec::new());
        });
        caller.set_patience(Some(Duration::from_millis(5)));
        assert!(matches!(ask(&mut caller), Err(Error::NoAnswer { .. })));
    }

    #[test]
    fn whoever_waits_is_told_when_somebody_hangs_up() {
        let (_dir, mut caller) = caller(|mut stream| {
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let hang_up = caller.hang_up_handle();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| ask(&mut caller));
            hang_up.hang_up();
            assert!(matches!(waiting.join().expect("no panic"), Err(Error::Hangup { .. })));
        });
    }

    #[test]
    fn a_socket_that_nobody_serves_is_told_from_one_that_fails() {
        let dir = tempfile::tempdir().expect("a directory");
        let nobody = Caller::connect(Endpoint::Unix(dir.path().join("agent.sock")), "host A".into());
        assert!(matches!(nobody, Err(Error::NobodyThere { .. })));
    }

    #[test]
    fn any_text_is_one_segment_of_a_path() {
        assert_eq!(escaped("p0.1"), "p0.1");
        assert_eq!(escaped("a/../b?c#d%e f\u{e4}"), "a%2F..%2Fb%3Fc%23d%25e%20f%C3%A4");
    }
}
