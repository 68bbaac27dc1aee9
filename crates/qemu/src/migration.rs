//! One migration, from one QEMU process to another.
//!
//! ```text
//! destination  capabilities, migrate-incoming        listens on a Unix socket
//! source       capabilities, migrate                 copies or not, then STOP
//! destination                                        loads the device state, then RESUME
//! ```
//!
//! Post-copy begins as pre-copy does. After the first pass over all memory the source is told to switch: it stops the
//! guest, sends the device state, and the guest runs at the destination while its pages follow, those first that it
//! touches. From the switch on there is no way back: half of the guest's memory is at either side.

use crate::error::{Error, Result};
use crate::process::Qemu;
use serde_json::{Value, json};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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
    /// The destination has memory of its own, and the guest runs there after one pass; what it has dirtied meanwhile is
    /// fetched as it touches it.
    PostCopy {
        /// Bytes per second of the first pass; `None` is QEMU's default. After the switch there is no limit.
        bandwidth: Option<u64>,
    },
}

impl Transfer {
    /// Whether the destination gets memory of its own.
    #[must_use]
    pub const fn copies(self) -> bool {
        match self {
            Self::ByReference => false,
            Self::PreCopy { .. } | Self::PostCopy { .. } => true,
        }
    }

    const fn bandwidth(self) -> Option<u64> {
        match self {
            Self::ByReference => None,
            Self::PreCopy { bandwidth } | Self::PostCopy { bandwidth } => bandwidth,
        }
    }
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
    /// Times that QEMU asked the kernel which pages are dirty.
    pub(crate) passes: u64,
    /// Pages that the guest had to wait for at the destination.
    pub(crate) page_requests: u64,
    /// When the order was given, since the Unix epoch.
    pub(crate) ordered: Duration,
    /// When the source was seen to have done everything.
    pub(crate) completed: Duration,
    /// When the source had stopped its vCPU, since the Unix epoch.
    pub(crate) stopped: Duration,
    /// When the destination was about to resume it.
    pub(crate) resumed: Duration,
}

/// Moves the guest of `source`, which runs, to `destination`, which waits for one. If that fails, the guest still runs at
/// the source; only a post-copy that fails after its switch loses it.
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
    let ordered = since_the_epoch();
    source.qmp().execute("migrate", &json!({ "uri": uri }))?;
    let mut watch = Watch { transfer, patience, begun: Instant::now(), stage: Stage::Copying };
    let done = watch.await_completion(source)?;
    let completed = since_the_epoch();
    let stopped = source.qmp().await_event("STOP", stops, RESUME)?;
    let resumed = match destination.qmp().await_event("RESUME", resumes, RESUME) {
        Ok(resumed) => resumed,
        Err(error) => return Err(destination.check().err().unwrap_or(error)),
    };
    let milliseconds = |name: &str| Duration::from_millis(done[name].as_u64().unwrap_or(0));
    let memory = |name: &str| done["ram"][name].as_u64().unwrap_or(0);
    Ok(Migrated {
        total: milliseconds("total-time"),
        downtime: milliseconds("downtime"),
        transferred: memory("transferred"),
        passes: memory("dirty-sync-count"),
        page_requests: memory("postcopy-requests"),
        ordered,
        completed,
        stopped: stopped.at,
        resumed: resumed.at,
    })
}

/// By the clock by which QEMU stamps its events.
fn since_the_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn set_up(side: &mut Qemu, transfer: Transfer) -> Result<()> {
    let capabilities = json!([
        { "capability": "x-ignore-shared", "state": !transfer.copies() },
        { "capability": "postcopy-ram", "state": matches!(transfer, Transfer::PostCopy { .. }) },
    ]);
    side.qmp().execute("migrate-set-capabilities", &json!({ "capabilities": capabilities }))?;
    if let Some(bytes) = transfer.bandwidth() {
        side.qmp().execute("migrate-set-parameters", &json!({ "max-bandwidth": bytes }))?;
    }
    Ok(())
}

/// A migration that goes on.
struct Watch {
    transfer: Transfer,
    patience: Duration,
    begun: Instant,
    stage: Stage,
}

/// How far we have driven it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It copies, or has little to do.
    Copying,
    /// It was told to run the guest at the destination.
    Switched,
    /// It was told to stop.
    Cancelled,
}

impl Watch {
    /// Waits until the source says `completed`, and gives its account.
    fn await_completion(&mut self, source: &mut Qemu) -> Result<Value> {
        loop {
            source.check()?;
            let state = source.qmp().execute("query-migrate", &json!({}))?;
            match state["status"].as_str().unwrap_or("") {
                "completed" => return Ok(state),
                "cancelled" => {
                    let transferred_bytes = state["ram"]["transferred"].as_u64().unwrap_or(0);
                    return Err(Error::NotConverging { waited: self.patience, transferred_bytes });
                }
                status @ ("failed" | "postcopy-paused") => {
                    let reason = state["error-desc"].as_str().unwrap_or("QEMU does not say why").to_owned();
                    return Err(Error::Migration { status: status.into(), reason });
                }
                _ => self.steer(source, &state)?,
            }
        }
    }

    /// Switches or cancels when it is time to, and otherwise lets time pass.
    fn steer(&mut self, source: &mut Qemu, state: &Value) -> Result<()> {
        let waited = self.begun.elapsed();
        // The bitmap of dirty pages is read once before the first pass, and again behind it.
        let one_pass = state["ram"]["dirty-sync-count"].as_u64() > Some(1);
        match (self.stage, self.transfer) {
            (Stage::Copying, Transfer::PostCopy { .. }) if one_pass => {
                source.qmp().execute("migrate-start-postcopy", &json!({}))?;
                self.stage = Stage::Switched;
            }
            (Stage::Copying, _) if waited > self.patience => {
                source.qmp().execute("migrate_cancel", &json!({}))?;
                self.stage = Stage::Cancelled;
            }
            (Stage::Switched, _) if waited > self.patience => {
                return Err(Error::Timeout { what: "the end of a post-copy".into(), waited });
            }
            (Stage::Cancelled, _) if waited > self.patience + RESUME => {
                return Err(Error::Timeout { what: "a migration that was cancelled".into(), waited });
            }
            _ => std::thread::sleep(POLL),
        }
        Ok(())
    }
}
