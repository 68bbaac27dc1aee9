//! The messages between an agent and the workers of its host.
//!
//! ```text
//! client ──HTTP──▶ agent ──HTTP──▶ agent of the target
//!                    │                  │
//!              WorkerRequest      WorkerRequest
//!                    ▼                  ▼
//!                  worker  ═══ pool ═══ worker
//! ```
//!
//! Workers answer with one line, a [`WorkerRequest::Move`] with any number of [`WorkerReply::Moving`] before it. What is
//! asked of agents is in [`crate::api`].

use crate::name::GuestName;
use crate::order::ImageSource;
use crate::process::ProcessId;
use crate::report::{ProtectionReport, SandboxReport};
use crate::versions::Versions;
use nil_migrate::HandoffReport;
use nil_mover::{MovePlan, MoveProgress, MoveRange, MoveReport};
use nil_pool::{GuestId, GuestSlot, PoolId};
use nil_vmm::CpuModel;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The version of what agents and workers say to each other: see [`crate::versions`].
///
/// | Version | What came with it |
/// |---|---|
/// | 1 | everything before |
/// | 2 | [`WorkerRequest::TakePools`], the sandbox |
/// | 3 | it keeps its host's lease, shows its presence, and stops when its host is fenced; [`WorkerRequest::Protect`], [`WorkerRequest::Unprotect`] |
pub(crate) const WORKER_PROTOCOL: u32 = 3;
/// The first version whose workers stop when their host is fenced.
pub(crate) const FENCED_WORKERS: u32 = 3;

/// Which of a worker's two moves is meant. One of each can be on; they take turns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Lane {
    /// A move that was ordered as such, or by a migration.
    Main,
    /// A part that is pulled back. It goes first.
    PullBack,
}

/// A home for a guest, in another pool of its host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct HomeOrder {
    pub(crate) pool: PoolId,
    /// Where that is, for a worker that has not opened it yet.
    pub(crate) path: PathBuf,
    /// The host's slot there.
    pub(crate) host: u16,
    /// The guest's.
    pub(crate) slot: GuestSlot,
}

/// What is asked of a worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WorkerRequest {
    /// Tell your status, now and whenever it changes.
    Watch,
    /// Load and run this image.
    Boot {
        image: ImageSource,
        command_line: String,
        #[serde(default)]
        cpu: Option<CpuModel>,
    },
    /// Get ready to take the guest over.
    Arm,
    /// Run the guest that was frozen here, and whose worker has died since.
    Thaw,
    /// Move the guest's memory, using no more than so many bytes per second.
    Move { lane: Lane, plan: MovePlan, bandwidth: Option<u64> },
    /// Stop moving; what has moved stays where it is.
    CancelMove { lane: Lane },
    /// Use no more than so many bytes per second from now on.
    SetBandwidth { lane: Lane, bytes_per_s: Option<u64> },
    /// Declare a part of the guest's memory pinned.
    Pin { range: MoveRange, owner: String, reason: String },
    /// Take such a declaration back.
    ReleasePin { pin: String },
    /// Open these pools, too: memory of the guest may be striped over them. For workers of version 1.
    KnowPools { paths: Vec<PathBuf> },
    /// Take these pools, too, which the agent has opened: it sends them when it has got [`WorkerReply::SendFiles`], one
    /// file for each path. Since version 2.
    TakePools { paths: Vec<PathBuf> },
    /// Protect the guest, which has a place for its commits in the pool, as is said there. Since version 3.
    Protect,
    /// Protect it no more. Since version 3.
    Unprotect,
    /// Make that record of the guest, in another pool, its home.
    Rehome(HomeOrder),
    /// Hand the guest to the host in that slot.
    Handoff { to: u16, deadline_us: u64 },
    /// Take the guest back from the handoff that is on, if it has not been claimed yet.
    CancelHandoff,
    /// Forget about taking the guest over, and end.
    Disarm,
    /// Stop the guest and end. Its record and memory stay.
    Stop,
    /// Send what the guest has written to its serial port, from that byte on, raw, until the worker ends.
    Console { from: u64 },
}

/// What a worker answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WorkerReply {
    Status(Box<WorkerStatus>),
    Done,
    /// Send the open files that the request has announced.
    SendFiles,
    /// How far the move is.
    Moving(MoveProgress),
    /// The move is over.
    Moved(Box<MoveReport>),
    /// The pin's number.
    Pinned(String),
    /// The guest has another home: at which epoch, and how long that took in this process.
    Rehomed {
        epoch: u32,
        switched_ns: u64,
    },
    /// The guest is the target's.
    Released(Option<HandoffReport>),
    /// The guest runs here still, or again; the sentence says why.
    TakenBack(String),
    /// The guest runs here still: part of its memory is not in the pool. The sentence says which.
    Hole(String),
    Refused(String),
}

/// What a worker is doing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct WorkerStatus {
    pub(crate) process: ProcessId,
    pub(crate) guest: GuestId,
    pub(crate) pool: PoolId,
    pub(crate) slot: GuestSlot,
    pub(crate) name: GuestName,
    pub(crate) phase: Phase,
    /// Why, where there is something to say.
    pub(crate) detail: Option<String>,
    /// The move of the guest's memory that is on.
    pub(crate) moving: Option<MoveProgress>,
    /// Bytes per second that it may use; `None` is no limit, or no move.
    pub(crate) move_limit: Option<u64>,
    /// Where the guest's memory lies in the worker's address space, once it does.
    pub(crate) memory_address: Option<u64>,
    /// What it speaks.
    #[serde(default = "Versions::first")]
    pub(crate) versions: Versions,
    /// What confines the worker.
    #[serde(default)]
    pub(crate) sandbox: SandboxReport,
    /// How the guest is protected.
    #[serde(default)]
    pub(crate) protection: Option<ProtectionReport>,
}

#[cfg(test)]
impl WorkerStatus {
    /// A guest that runs in this process.
    pub(crate) fn of_test() -> Self {
        Self {
            process: ProcessId::current().expect("this process"),
            guest: GuestId::random(),
            pool: PoolId::random(),
            slot: GuestSlot(0),
            name: "g".parse().expect("a good name"),
            phase: Phase::Running,
            detail: None,
            moving: None,
            move_limit: None,
            memory_address: None,
            versions: Versions::OURS,
            sandbox: SandboxReport::default(),
            protection: None,
        }
    }
}

/// A worker's life: `Empty → Starting → Armed? → Running ⇄ Leaving → Released`, with ways out at every step. Memory moves
/// while it is `Running`, and that is no phase of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// It has no VM yet.
    Empty,
    /// It is building the VM.
    Starting,
    /// It waits to take the guest over.
    Armed,
    /// It runs the guest.
    Running,
    /// It is handing the guest over.
    Leaving,
    /// The guest has stopped by itself; the worker keeps what it wrote.
    Halted,
    /// The guest has left, and so does the worker.
    Released,
    /// It gave up taking the guest over.
    TornDown,
    /// It has stopped the guest because it was told to.
    Ended,
}

impl Phase {
    /// Whether the worker has nothing more to do with the guest.
    pub(crate) fn is_final(self) -> bool {
        match self {
            Self::Released | Self::TornDown | Self::Ended => true,
            Self::Empty | Self::Starting | Self::Armed | Self::Running | Self::Leaving | Self::Halted => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A status as a worker of version 1 told it.
    const VERSION_1: &str = r#"{"process":{"pid":7,"started":9},"guest":"6f1c9a52-6d0c-4a39-9f0b-0c5a9a2f7b11",
        "pool":"1b0d8f0e-7f5a-4d7e-8f43-0a1d5a8f6c22","slot":3,"name":"g","phase":"running","detail":null,"moving":null,
        "move_limit":null,"memory_address":4096}"#;

    #[test]
    fn a_worker_that_does_not_say_which_version_it_speaks_is_understood() {
        let status: WorkerStatus = serde_json::from_str(VERSION_1).expect("a status");
        assert_eq!((status.versions.worker, status.phase), (1, Phase::Running));
        assert_eq!(status.sandbox, SandboxReport::default());
    }

    #[test]
    fn what_a_later_version_says_beside_is_passed_over() {
        let later = VERSION_1.replace("\"phase\"", "\"mood\":\"calm\",\"phase\"");
        assert!(serde_json::from_str::<WorkerStatus>(&later).is_ok());
    }
}
