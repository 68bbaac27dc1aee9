//! One migration, from one QEMU process to another.
//!
//! ```text
//! destination  capabilities, migrate-incoming        listens on a Unix socket
//! source       capabilities, migrate                 copies or not, then STOP
//! destination                                        loads the device state, then RESUME
//! ```

use crate::error::{Error, Result};
use crate::process::Qemu;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How often QEMU is asked how far it is.
const POLL: Duration = Duration::from_millis(5);
/// How long a destination may take to resume once the source says that it has sent everything.
const RESUME: Duration = Duration::from_secs(20);

/// How the memory comes to the destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transfer {
    /// Both processes map the same file (`x-ignore-shared`): no page is copied.
    ByReference,
    /// The destination has memory of its own, and pages are copied while the guest runs.
    PreCopy {
        /// Bytes per second; `None` is QEMU's default (128 MiB/s since QEMU 5.2), by which a guest that dirties memory
        /// fast never arrives.
        bandwidth: Option<u64>,
    },
}

/// What QEMU says of a migration that has succeeded.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Migrated {
    /// From the command to the end.
    pub(crate) total: Duration,
    /// The downtime by QEMU's account.
    pub(crate) downtime: Duration,
    /// Bytes sent.
    pub(crate) transferred: u64,
    /// When the source had stopped its vCPU, since the Unix epoch.
    pub(crate) stopped: Duration,
    /// When the destination was about to resume it.
    pub(crate) resumed: Duration,
}

/// Moves the guest of `source`, which runs, to `destination`, which waits for one. If that fails, the guest still runs at
/// the source.
pub(crate) fn migrate(
    source: &mut Qemu,
    destination: &mut Qemu,
    transfer: Transfer,
    patience: Duration,
) -> Result<Migrated> {
    let uri = format!("unix:{}", destination.runtime().join("migration").display());
    for side in [&mut *destination, &mut *source] {
        set_up(side, transfer)?;
    }
    destination.qmp().execute("migrate-incoming", &json!({ "uri": uri }))?;
    let (stops, resumes) = (source.qmp().events().len(), destination.qmp().events().len());
    source.qmp().execute("migrate", &json!({ "uri": uri }))?;
    let done = await_completion(source, patience)?;
    let stopped = source.qmp().await_event("STOP", stops, RESUME)?;
    let resumed = match destination.qmp().await_event("RESUME", resumes, RESUME) {
        Ok(resumed) => resumed,
        Err(error) => return Err(destination.check().err().unwrap_or(error)),
    };
    let milliseconds = |name: &str| Duration::from_millis(done[name].as_u64().unwrap_or(0));
    Ok(Migrated {
        total: milliseconds("total-time"),
        downtime: milliseconds("downtime"),
        transferred: done["ram"]["transferred"].as_u64().unwrap_or(0),
        stopped: stopped.at,
        resumed: resumed.at,
    })
}

fn set_up(side: &mut Qemu, transfer: Transfer) -> Result<()> {
    let capabilities = json!([{ "capability": "x-ignore-shared", "state": transfer == Transfer::ByReference }]);
    side.qmp().execute("migrate-set-capabilities", &json!({ "capabilities": capabilities }))?;
    if let Transfer::PreCopy { bandwidth: Some(bytes) } = transfer {
        side.qmp().execute("migrate-set-parameters", &json!({ "max-bandwidth": bytes }))?;
    }
    Ok(())
}

/// Waits until the source says `completed`, and gives its account.
fn await_completion(source: &mut Qemu, patience: Duration) -> Result<Value> {
    let begun = Instant::now();
    let mut cancelled = false;
    loop {
        source.check()?;
        let state = source.qmp().execute("query-migrate", &json!({}))?;
        match state["status"].as_str().unwrap_or("") {
            "completed" => return Ok(state),
            "cancelled" => return Err(Error::NotConverging { waited: patience }),
            "failed" => {
                let reason = state["error-desc"].as_str().unwrap_or("QEMU does not say why").to_owned();
                return Err(Error::Migration { status: "failed".into(), reason });
            }
            _ if begun.elapsed() > patience && !cancelled => {
                source.qmp().execute("migrate_cancel", &json!({}))?;
                cancelled = true;
            }
            _ if begun.elapsed() > patience + RESUME => {
                return Err(Error::Timeout { what: "a migration that was cancelled".into(), waited: begun.elapsed() });
            }
            _ => std::thread::sleep(POLL),
        }
    }
}
