//! Requests to agents, byte by byte, where `nil` cannot be used: it asks all agents how things are.

use crate::playground::Playground;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

/// The beginning of an answer, and the stream from which the rest comes.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    stream: BufReader<UnixStream>,
}

/// Asks the agent of a host, and waits until it begins to answer.
pub(crate) fn ask(playground: &Playground, host: &str, method: &str, path: &str, body: &str) -> Response {
    let stream = UnixStream::connect(playground.host_dir(host).join("agent.sock")).expect("the agent's socket");
    let length = body.len();
    write!(
        &stream,
        "{method} {path} HTTP/1.1\r\nhost: nil\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .expect("written");
    Response::of(stream)
}

impl Response {
    /// Reads the head of an answer.
    pub(crate) fn of(stream: UnixStream) -> Self {
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(stream.read_line(&mut head).expect("a line"), 0, "half an answer: {head}");
        }
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        Self { status, head, stream }
    }

    /// The next line that is a document: not the length of a piece, and not the end of one.
    pub(crate) fn line(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.stream.read_line(&mut line).expect("a line"), 0, "no more lines");
            if line.starts_with(['{', '"']) {
                return line;
            }
        }
    }

    /// The data of the next event.
    pub(crate) fn data(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.stream.read_line(&mut line).expect("a line"), 0, "no more events");
            if let Some(data) = line.strip_prefix("data: ") {
                return data.to_owned();
            }
        }
    }

    /// The rest of it.
    pub(crate) fn body(mut self) -> String {
        let mut body = String::new();
        self.stream.read_to_string(&mut body).expect("text");
        body
    }

    /// The rest of it, which is a document.
    pub(crate) fn json(self) -> serde_json::Value {
        let body = self.body();
        serde_json::from_str(&body).unwrap_or_else(|_| panic!("no JSON: {body}"))
    }
}
