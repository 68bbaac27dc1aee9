//! What an agent must refuse without harm, to itself or to anybody else who calls.

use super::caller::Caller;
use anyhow::{Context, bail};
use serde::Serialize;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How much of a body that is too large is sent, at most.
const LARGE: usize = 10 << 20;
/// How long a caller that says next to nothing may be kept. The agent gives up on a head after 5 s, on a body after 10 s.
const SLOW: Duration = Duration::from_secs(30);
/// Between two bytes of a caller that is slow.
const PAUSE: Duration = Duration::from_millis(200);

/// A way to annoy an agent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Abuse {
    /// A body of 10 MB, announced as such.
    LargeBody,
    /// The same in chunks, so that nobody knows how long it is.
    LargeChunkedBody,
    /// A document that ends in the middle.
    HalfADocument,
    /// A document of brackets that open and never close.
    DeepDocument,
    /// Bytes that are no text.
    NoText,
    /// A document of another kind.
    OtherKind,
    /// An array where an object belongs.
    ArrayForObject,
    /// A field that there is not.
    UnknownField,
    /// A guest that cannot be called so.
    BadName,
    /// A query that means nothing.
    BadQuery,
    /// A path where nothing is.
    NoSuchPath,
    /// What cannot be done there.
    WrongMethod,
    /// A head with more in it than any has.
    LargeHead,
    /// What is no request at all.
    NoRequest,
    /// A head that comes byte by byte, and never ends.
    SlowHead,
    /// A body that comes byte by byte, and never ends.
    SlowBody,
}

impl Abuse {
    pub(super) const ALL: [Self; 16] = [
        Self::LargeBody,
        Self::LargeChunkedBody,
        Self::HalfADocument,
        Self::DeepDocument,
        Self::NoText,
        Self::OtherKind,
        Self::ArrayForObject,
        Self::UnknownField,
        Self::BadName,
        Self::BadQuery,
        Self::NoSuchPath,
        Self::WrongMethod,
        Self::LargeHead,
        Self::NoRequest,
        Self::SlowHead,
        Self::SlowBody,
    ];

    /// What the agent is to say. It may hang up instead.
    fn refusals(self) -> &'static [u16] {
        match self {
            Self::LargeBody | Self::LargeChunkedBody => &[413],
            Self::HalfADocument | Self::DeepDocument | Self::NoText | Self::NoRequest => &[400],
            Self::ArrayForObject | Self::UnknownField | Self::BadName | Self::BadQuery => &[400],
            Self::OtherKind => &[415],
            Self::NoSuchPath => &[404],
            Self::WrongMethod => &[405],
            Self::LargeHead => &[400, 413, 431],
            Self::SlowHead | Self::SlowBody => &[400, 408],
        }
    }

    /// Annoys the agent once. The error is that it did not refuse.
    pub(super) fn once(self, socket: &Path, enough: &AtomicBool) -> anyhow::Result<()> {
        let mut caller = Caller::connect(socket)?;
        let said = match self {
            Self::LargeBody => {
                let head = head("application/json", &format!("content-length: {LARGE}"));
                caller.say(&head).and_then(|()| caller.say(&vec![b' '; LARGE]))
            }
            Self::LargeChunkedBody => {
                let head = head("application/json", "transfer-encoding: chunked");
                let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x1_0000], b"\r\n"].concat();
                caller.say(&head).and_then(|()| (0..LARGE >> 16).try_for_each(|_| caller.say(&chunk)))
            }
            Self::HalfADocument => caller.say(&whole("application/json", b"{\"name\": \"g\"")),
            Self::DeepDocument => caller.say(&whole("application/json", &[b'['; 50_000])),
            Self::NoText => caller.say(&whole("application/json", &[0xFF; 100])),
            Self::OtherKind => caller.say(&whole("text/plain", b"hello")),
            Self::ArrayForObject => caller.say(&post("/v1/host/drain", "application/json", b"[4, null]")),
            Self::UnknownField => caller.say(&post("/v1/host/drain", "application/json", b"{\"paralel\": 4}")),
            Self::BadName => caller.say(b"DELETE /v1/guests/%2e%2e%2fetc HTTP/1.1\r\nhost: agent\r\n\r\n"),
            Self::BadQuery => caller.say(b"GET /v1/jobs?past=-1 HTTP/1.1\r\nhost: agent\r\n\r\n"),
            Self::NoSuchPath => caller.say(b"GET /v2/host HTTP/1.1\r\nhost: agent\r\n\r\n"),
            Self::WrongMethod => caller.say(b"DELETE /v1/pools HTTP/1.1\r\nhost: agent\r\n\r\n"),
            Self::LargeHead => {
                let line = format!("GET /v1/host HTTP/1.1\r\nhost: agent\r\nx-large: {}\r\n\r\n", "x".repeat(1 << 20));
                caller.say(line.as_bytes())
            }
            Self::NoRequest => caller.say(b"\x16\x03\x01\x02\x00 what a day\r\n\r\n"),
            Self::SlowHead => return slowly(&mut caller, b"GET /v1/host HTTP/1.1\r\nx-slow: ", enough),
            Self::SlowBody => {
                return slowly(&mut caller, &head("application/json", "content-length: 4096"), enough);
            }
        };
        self.expect_refusal(&mut caller, said)
    }

    /// Waits for the refusal. An agent that has heard enough may hang up while the rest is still being said.
    fn expect_refusal(self, caller: &mut Caller, said: anyhow::Result<()>) -> anyhow::Result<()> {
        match (caller.hear(), said) {
            (Ok(answer), _) if self.refusals().contains(&answer.status) => Ok(()),
            (Ok(answer), _) => {
                bail!("{self}: the agent answered {}: {}", answer.status, String::from_utf8_lossy(&answer.body))
            }
            // Nothing has been heard because of a hangup; of a timeout it would be said that nobody answers.
            (Err(_), Err(_)) => Ok(()),
            (Err(error), Ok(())) if caller.is_hung_up_on() => {
                let _ = error;
                Ok(())
            }
            (Err(error), Ok(())) => Err(error).with_context(|| self.to_string()),
        }
    }
}

/// Says something, and then byte after byte, until the agent has had enough of it.
fn slowly(caller: &mut Caller, beginning: &[u8], enough: &AtomicBool) -> anyhow::Result<()> {
    caller.say(beginning)?;
    let begun = Instant::now();
    while begun.elapsed() < SLOW {
        std::thread::sleep(PAUSE);
        if caller.say(b"x").is_err() || enough.load(Ordering::Acquire) {
            return Ok(());
        }
    }
    bail!("the agent has not given up on a caller that said one byte every {PAUSE:?} for {SLOW:?}")
}

fn head(kind: &str, framing: &str) -> Vec<u8> {
    head_of("/v1/guests", kind, framing)
}

fn head_of(path: &str, kind: &str, framing: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nhost: agent\r\ncontent-type: {kind}\r\n{framing}\r\n\r\n").into_bytes()
}

fn whole(kind: &str, body: &[u8]) -> Vec<u8> {
    post("/v1/guests", kind, body)
}

fn post(path: &str, kind: &str, body: &[u8]) -> Vec<u8> {
    [head_of(path, kind, &format!("content-length: {}", body.len())), body.to_vec()].concat()
}

impl fmt::Display for Abuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::LargeBody => "10 MB body",
            Self::LargeChunkedBody => "10 MB body in chunks",
            Self::HalfADocument => "half a document",
            Self::DeepDocument => "deep document",
            Self::NoText => "no text",
            Self::OtherKind => "document of another kind",
            Self::ArrayForObject => "array for an object",
            Self::UnknownField => "unknown field",
            Self::BadName => "bad name",
            Self::BadQuery => "bad query",
            Self::NoSuchPath => "no such path",
            Self::WrongMethod => "wrong method",
            Self::LargeHead => "large head",
            Self::NoRequest => "no request",
            Self::SlowHead => "slow head",
            Self::SlowBody => "slow body",
        })
    }
}
