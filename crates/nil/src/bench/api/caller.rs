//! A caller that speaks as much HTTP/1.1 as it takes to measure an agent, and to annoy it.
//!
//! The product's own client is kind: it asks for one thing at a time, in whole, and takes what is answered. This one need
//! not be.

use anyhow::{Context, bail};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long an answer may take until it is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// More than any answer has.
const LARGEST_ANSWER: usize = 64 << 20;

/// A connection to an agent, kept for many requests.
#[derive(Debug)]
pub(super) struct Caller {
    stream: BufReader<UnixStream>,
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    /// How long the agent itself took until its answer began, as it says.
    pub(super) server: Option<Duration>,
}

impl Caller {
    pub(super) fn connect(socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("cannot call {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Asks for something that has no body.
    pub(super) fn get(&mut self, path: &str) -> anyhow::Result<Answer> {
        self.say(format!("GET {path} HTTP/1.1\r\nhost: agent\r\n\r\n").as_bytes())?;
        self.hear()
    }

    /// Says something, which may be no request at all.
    pub(super) fn say(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        Ok(self.stream.get_mut().write_all(bytes)?)
    }

    /// Waits for an answer.
    pub(super) fn hear(&mut self) -> anyhow::Result<Answer> {
        let status = self.line()?;
        let status = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.context("the agent's answer does not begin with a status")?;
        let (mut length, mut chunked, mut server) = (0, false, None);
        loop {
            let line = self.line()?.to_ascii_lowercase();
            match line.split_once(':') {
                None if line.is_empty() => break,
                Some(("content-length", value)) => length = value.trim().parse()?,
                Some(("transfer-encoding", value)) => chunked = value.trim() == "chunked",
                Some(("server-timing", value)) => server = timing(value),
                Some(_) | None => {}
            }
        }
        let body = if chunked { self.chunks()? } else { self.bytes(length)? };
        Ok(Answer { status, body, server })
    }

    /// Whether the agent has hung up, or does so before it says anything else.
    pub(super) fn is_hung_up_on(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => rest.is_empty(),
            Err(error) => matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe),
        }
    }

    fn chunks(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).context("a chunk without a size")?;
            body.extend(self.bytes(size)?);
            self.line()?;
            if size == 0 {
                return Ok(body);
            }
            if body.len() > LARGEST_ANSWER {
                bail!("the agent's answer does not end");
            }
        }
    }

    fn bytes(&mut self, count: usize) -> anyhow::Result<Vec<u8>> {
        if count > LARGEST_ANSWER {
            bail!("the agent's answer has {count} bytes");
        }
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).context("the agent hung up in the middle of its answer")?;
        Ok(bytes)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        let read = (&mut self.stream).take(1 << 16).read_line(&mut line).context("the agent does not answer")?;
        if read == 0 {
            bail!("the agent hung up");
        }
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }
}

/// The duration in a `Server-Timing`, which is told in milliseconds.
fn timing(value: &str) -> Option<Duration> {
    let milliseconds: f64 = value.split(';').find_map(|part| part.trim().strip_prefix("dur="))?.parse().ok()?;
    Duration::try_from_secs_f64(milliseconds / 1e3).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(answer: &str) -> anyhow::Result<Answer> {
        let (ours, mut theirs) = UnixStream::pair().expect("two sockets");
        theirs.write_all(answer.as_bytes()).expect("written");
        drop(theirs);
        Caller { stream: BufReader::new(ours) }.hear()
    }

    #[test]
    fn an_answer_is_heard_whole_however_it_is_framed() {
        let answer = Answer { status: 200, body: b"hello".to_vec(), server: None };
        assert_eq!(heard("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").expect("an answer"), answer);
        let timed = heard("HTTP/1.1 200 OK\r\nServer-Timing: agent;dur=0.125\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(timed.expect("an answer").server, Some(Duration::from_micros(125)));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n";
        assert_eq!(heard(chunked).expect("an answer"), answer);
        assert_eq!(heard("HTTP/1.1 204 No Content\r\n\r\n").expect("an answer").status, 204);
    }

    #[test]
    fn half_an_answer_is_none() {
        assert!(heard("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel").is_err());
        assert!(heard("").is_err() && heard("SSH-2.0\r\n\r\n").is_err());
    }
}
