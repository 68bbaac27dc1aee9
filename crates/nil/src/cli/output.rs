//! How a command's result reaches the person or the program that asked.

use serde::Serialize;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

/// For whom results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Output {
    /// A person: text, laid out to be read.
    Text,
    /// A program: one JSON document on standard output, errors included.
    Json,
}

impl Output {
    /// Prints `value`, which displays itself to a person and serialises itself to a program.
    pub(crate) fn print(self, value: &(impl Serialize + fmt::Display)) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        let written = match self {
            Self::Text => write!(out, "{value}"),
            Self::Json => {
                serde_json::to_string(value).map_err(io::Error::from).and_then(|text| writeln!(out, "{text}"))
            }
        };
        match written.and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => Ok(other?),
        }
    }

    /// Shows a person what is going on; a program sees nothing of it.
    pub(crate) fn progress(self, line: impl fmt::Display) {
        if self == Self::Text {
            eprintln!("{line}");
        }
    }

    /// Prints why the command failed and returns the exit status for it.
    pub(crate) fn failure(self, error: &anyhow::Error) -> ExitCode {
        let message = story(error);
        if self == Self::Json {
            println!("{}", failure_document(error, &message));
        }
        eprintln!("nil: {message}");
        ExitCode::FAILURE
    }
}

/// What a program is told of a failure: the sentence, and where there are several reasons, each of them.
fn failure_document(error: &anyhow::Error, message: &str) -> serde_json::Value {
    match error.downcast_ref() {
        Some(nil_host::Error::Incompatible { reasons, .. }) => {
            serde_json::json!({ "error": message, "reasons": reasons })
        }
        _ => serde_json::json!({ "error": message }),
    }
}

/// The error and its causes in one line, but for those that it tells itself.
fn story(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Sends log lines to standard error: those of an agent to its terminal, those of a worker to its log file. `NIL_LOG`
/// says which (`warn`, `info`, `debug`); `info` is the default.
pub(super) fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("NIL_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(colours)
        .with_writer(io::stderr)
        .init();
}
