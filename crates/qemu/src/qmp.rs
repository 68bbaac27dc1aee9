//! A client of the QEMU Machine Protocol: JSON, one object per line, on a Unix socket.
//!
//! ```text
//! QEMU   {"QMP": {"version": …}}                         greeting, once
//! we     {"execute": NAME, "arguments": {…}, "id": N}
//! QEMU   {"return": …, "id": N}  or  {"error": {"desc": …}, "id": N}
//! QEMU   {"event": NAME, "data": …, "timestamp": …}      at any time; kept
//! ```
//!
//! Source: docs/interop/qmp-spec.rst of QEMU.

use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long any single answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// A line longer than this is not QMP.
const LONGEST_LINE: usize = 4 << 20;

/// Something that QEMU said unasked.
#[derive(Clone, PartialEq, Debug)]
pub struct Event {
    /// Its name, such as `STOP`.
    pub name: String,
    /// When, since the Unix epoch, by the host's clock.
    pub at: Duration,
    /// What it says.
    pub data: Value,
}

/// A connection, past the greeting and the negotiation of capabilities.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    received: Vec<u8>,
    events: Vec<Event>,
    last_id: u64,
}

impl Qmp {
    /// Connects to a socket that QEMU listens on.
    ///
    /// # Errors
    /// When there is no such socket or QEMU does not greet as QMP has it.
    pub fn connect(socket: &Path) -> Result<Self> {
        Self::over(UnixStream::connect(socket).map_err(Error::Socket)?)
    }

    fn over(stream: UnixStream) -> Result<Self> {
        let mut qmp = Self { stream, received: Vec::new(), events: Vec::new(), last_id: 0 };
        let greeting = qmp.message(Instant::now() + PATIENCE, "its greeting")?;
        if greeting.get("QMP").is_none() {
            return Err(Error::Protocol { what: format!("it greets with {greeting}") });
        }
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Executes a command and gives its result.
    ///
    /// # Errors
    /// [`Error::Refused`] with QEMU's reason; otherwise what is wrong with the connection.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        self.last_id += 1;
        let mut line = json!({ "execute": command, "arguments": arguments, "id": self.last_id }).to_string();
        line.push('\n');
        self.stream.write_all(line.as_bytes()).map_err(Error::Socket)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut answer = self.message(deadline, command)?;
            if answer.get("id").and_then(Value::as_u64) != Some(self.last_id) {
                self.keep(&answer);
                continue;
            }
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            let reason = answer["error"]["desc"].as_str().unwrap_or("it does not say why").to_owned();
            return Err(Error::Refused { command: command.to_owned(), reason });
        }
    }

    /// The events so far, oldest first.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Waits for an event of this name that is not among the first `after` events.
    ///
    /// # Errors
    /// [`Error::Timeout`] when it does not come.
    pub fn await_event(&mut self, name: &str, after: usize, patience: Duration) -> Result<Event> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(event) = self.events.iter().skip(after).find(|event| event.name == name) {
                return Ok(event.clone());
            }
            let message = self.message(deadline, &format!("the event {name}"))?;
            self.keep(&message);
        }
    }

    /// Keeps an event; anything else unasked for is dropped.
    fn keep(&mut self, message: &Value) {
        let Some(name) = message.get("event").and_then(Value::as_str) else { return };
        let part = |unit: &str| message["timestamp"][unit].as_u64().unwrap_or(0);
        let at = Duration::from_secs(part("seconds")).saturating_add(Duration::from_micros(part("microseconds")));
        self.events.push(Event { name: name.to_owned(), at, data: message["data"].clone() });
    }

    /// The next message, whatever it is.
    fn message(&mut self, deadline: Instant, what: &str) -> Result<Value> {
        let begun = Instant::now();
        loop {
            if let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return serde_json::from_slice(&line)
                    .map_err(|error| Error::Protocol { what: format!("a line that is no JSON: {error}") });
            }
            if self.received.len() > LONGEST_LINE {
                return Err(Error::Protocol { what: "a line of more than 4 MiB".into() });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Timeout { what: what.to_owned(), waited: begun.elapsed() });
            }
            self.receive(left)?;
        }
    }

    /// Reads what there is, waiting for at most `patience`.
    fn receive(&mut self, patience: Duration) -> Result<()> {
        self.stream.set_read_timeout(Some(patience)).map_err(Error::Socket)?;
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(Error::Protocol { what: "it was closed".into() }),
            Ok(count) => {
                self.received.extend_from_slice(&bytes[..count]);
                Ok(())
            }
            Err(error) if is_no_data_yet(&error) => Ok(()),
            Err(error) => Err(Error::Socket(error)),
        }
    }
}

fn is_no_data_yet(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

    /// A QEMU that answers each line it gets with the next of `answers`; `ID` stands for the command's id.
    fn scripted(answers: &'static [&'static str]) -> Result<Qmp> {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        std::thread::spawn(move || {
            let mut out = theirs.try_clone().expect("a socket can be cloned");
            let _ = out.write_all(format!("{}\n", answers[0]).as_bytes());
            for (line, answer) in BufReader::new(theirs).lines().zip(&answers[1..]) {
                let command: Value = serde_json::from_str(&line.unwrap_or_default()).expect("a command");
                let answer = answer.replace("ID", &command["id"].to_string());
                let _ = out.write_all(format!("{answer}\n").as_bytes());
            }
        });
        Qmp::over(ours)
    }

    const READY: &str = r#"{"return": {}, "id": ID}"#;

    #[test]
    fn a_command_gets_its_own_answer_and_events_between_are_kept() {
        let event = r#"{"event": "STOP", "timestamp": {"seconds": 12, "microseconds": 345}, "data": {}}"#;
        let answer: &'static str = Box::leak(
            format!(
                "{event}\n{{\"return\": {{}}, \"id\": 999}}\n{{\"return\": {{\"status\": \"running\"}}, \"id\": ID}}"
            )
            .into_boxed_str(),
        );
        let script: &'static [&'static str] = Box::leak(Box::new([GREETING, READY, answer]));
        let mut qmp = scripted(script).expect("a greeting");
        let status = qmp.execute("query-status", &json!({})).expect("an answer");
        assert_eq!(status["status"], "running");
        let stop = qmp.await_event("STOP", 0, Duration::ZERO).expect("it was kept");
        assert_eq!(stop.at, Duration::new(12, 345_000));
        assert!(matches!(qmp.await_event("STOP", 1, Duration::from_millis(20)), Err(Error::Timeout { .. })));
    }

    #[test]
    fn a_refusal_carries_qemus_reason() {
        let mut qmp = scripted(&[GREETING, READY, r#"{"error": {"class": "G", "desc": "no such thing"}, "id": ID}"#])
            .expect("a greeting");
        let error = qmp.execute("migrate", &json!({ "uri": "x" })).expect_err("it is refused");
        assert_eq!(error.to_string(), "QEMU refuses migrate: no such thing");
    }

    #[test]
    fn what_is_no_qmp_is_told_apart() {
        assert!(matches!(scripted(&["220 mail.example ESMTP", READY]), Err(Error::Protocol { .. })));
        assert!(matches!(scripted(&[r#"{"hello": 1}"#, READY]), Err(Error::Protocol { .. })));
    }

    #[test]
    fn a_closed_socket_is_an_error_and_no_hang() {
        let mut qmp = scripted(&[GREETING, READY]).expect("a greeting");
        assert!(qmp.execute("query-status", &json!({})).is_err());
    }
}
