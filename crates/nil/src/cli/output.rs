//! How a command's result reaches the person or the program that asked.

use anyhow::Context;
use nil_host::{LogConfig, LogLevel, LogTarget};
use serde::Serialize;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

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

/// Where log lines go.
#[derive(Clone, Copy, Debug)]
pub(super) enum LogTo {
    /// To standard error, whatever that is.
    Stderr,
    /// Where an agent's configuration says.
    Configured(LogConfig),
}

/// Sends log lines somewhere, from now on. `NIL_LOG` says which (`warn`, `info`, `debug`); without it what is configured,
/// and `info` otherwise.
pub(super) fn log_to(to: LogTo) -> anyhow::Result<()> {
    let config = match to {
        LogTo::Stderr => LogConfig { to: LogTarget::Stderr, level: None },
        LogTo::Configured(config) => config,
    };
    let level = config.level.map_or("info", LogLevel::as_str);
    let filter = EnvFilter::try_from_env("NIL_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let journal = match config.to {
        LogTarget::Stderr => None,
        LogTarget::Auto if !is_journal(io::stderr(), std::env::var("JOURNAL_STREAM").ok().as_deref()) => None,
        LogTarget::Auto | LogTarget::Journal => {
            Some(tracing_journald::layer().context("systemd's journal takes no log lines; log to stderr instead")?)
        }
    };
    match journal {
        Some(journal) => tracing_subscriber::registry().with(filter).with(journal).init(),
        None => tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_target(false)
            .with_ansi(io::stderr().is_terminal())
            .with_writer(io::stderr)
            .init(),
    }
    Ok(())
}

/// Whether a stream is the one that systemd has connected to its journal: `DEVICE:INODE` of it (systemd.exec(5)).
fn is_journal(stream: impl AsFd, told: Option<&str>) -> bool {
    rustix::fs::fstat(stream).is_ok_and(|stat| told == Some(format!("{}:{}", stat.st_dev, stat.st_ino).as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_journal_is_told_from_every_other_stream() {
        let (one, other) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
        let name = |file: &File| file.metadata().map(|it| format!("{}:{}", it.dev(), it.ino())).expect("metadata");
        assert!(is_journal(&one, Some(&name(&one))));
        assert!(!is_journal(&one, Some(&name(&other))));
        assert!(!is_journal(&one, None));
    }
}
