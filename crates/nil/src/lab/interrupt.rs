//! Ctrl-C in the middle of everything.
//!
//! The first SIGINT, SIGTERM or SIGHUP only sets a flag. Whoever loops or waits asks [`check`] and passes the error on, so that
//! every guard on the way up cleans up. A second signal ends the process at once, and the keeper (see
//! [`super::keeper`]) cleans up after it.

use crate::cli::Output;
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::fmt;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Exit status of a command that was interrupted: 128 + SIGINT.
const EXIT_STATUS: u8 = 130;

/// The longest sleep between two looks at what is waited for.
const PATIENCE: Duration = Duration::from_micros(500);

static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Somebody pressed Ctrl-C.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("interrupted; everything has been cleaned up")]
pub(crate) struct Interrupted;

/// Something did not happen in time.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what} within {patience:?}")]
pub(crate) struct TimedOut {
    what: &'static str,
    patience: Duration,
}

/// From now on, signals that ask the process to end are noted here.
fn watch() -> anyhow::Result<()> {
    let flag = FLAG.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // In this order: the first signal finds the flag unset, and then sets it.
        signal_hook::flag::register_conditional_shutdown(signal, i32::from(EXIT_STATUS), Arc::clone(flag))?;
        signal_hook::flag::register(signal, Arc::clone(flag))?;
    }
    Ok(())
}

/// Does `work`, which can be interrupted, prints its report, and turns it into an exit status.
pub(crate) fn conclude<R: Serialize + fmt::Display>(
    output: Output,
    work: impl FnOnce() -> anyhow::Result<R>,
    is_good: impl FnOnce(&R) -> bool,
) -> anyhow::Result<ExitCode> {
    watch()?;
    match work() {
        Ok(report) => {
            output.print(&report)?;
            Ok(if is_good(&report) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Err(error) if error.is::<Interrupted>() => {
            output.failure(&error);
            Ok(ExitCode::from(EXIT_STATUS))
        }
        Err(error) => Err(error),
    }
}

/// Fails once the process was asked to end.
pub(crate) fn check() -> Result<(), Interrupted> {
    match FLAG.get() {
        Some(flag) if flag.load(Ordering::Relaxed) => Err(Interrupted),
        Some(_) | None => Ok(()),
    }
}

/// Waits until `look` finds something; `what` says what has not happened if it takes longer than `patience`.
pub(crate) fn wait_for<T>(
    what: &'static str,
    patience: Duration,
    mut look: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let begin = Instant::now();
    loop {
        check()?;
        if let Some(found) = look()? {
            return Ok(found);
        }
        let waited = begin.elapsed();
        if waited > patience {
            return Err(TimedOut { what, patience }.into());
        }
        // Short waits are polled finely, long ones do not burn the core that they wait for.
        std::thread::sleep((waited / 8).clamp(Duration::from_micros(50), PATIENCE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_comes_is_given_up_with_its_name() {
        let outcome: anyhow::Result<()> = wait_for("the guest did not start", Duration::from_millis(2), || Ok(None));
        assert_eq!(outcome.expect_err("nothing came").to_string(), "the guest did not start within 2ms");
    }

    #[test]
    fn what_comes_is_returned() {
        let mut turns = 0;
        let found = wait_for("nothing", Duration::from_secs(5), || {
            turns += 1;
            Ok((turns == 3).then_some(turns))
        });
        assert_eq!(found.expect("it came"), 3);
    }
}
