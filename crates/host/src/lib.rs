//! A host of nil: its agent, its workers, and how to talk to them.
//!
//! ```text
//! nil ps, nil migrate, …  ──Client──▶  Agent  ──starts, watches──▶  worker (one process per guest)
//! ```
//!
//! The agent ([`Agent`]) is in charge and never on the critical path of a handoff; a worker ([`run_worker`]) runs one
//! guest and outlives its agent. They meet in the run directory ([`RunDir`]) and talk JSON lines over Unix sockets, which is
//! private to this crate. Clients and other agents talk HTTP to an agent; programs use [`Client`] and [`Survey`].

#![forbid(unsafe_code)]

mod agent;
mod api;
mod body;
mod capabilities;
mod client;
mod compatibility;
mod config;
mod error;
mod fabric;
mod feed;
mod itinerary;
mod joined;
mod layout;
mod message;
mod metrics;
mod micros;
mod name;
mod order;
mod outlook;
mod problem;
mod process;
mod report;
mod run_dir;
mod survey;
mod tags;
mod tls;
mod versions;
mod wire;
mod worker;

pub use agent::{Agent, AgentOptions, Farewell, GuestsAtStop, Listening, NotStopped};
pub use api::description;
pub use capabilities::{Capabilities, Placement, Virtualisation};
pub use client::{Client, ConsoleStream, Endpoint};
pub use compatibility::{Incompatibility, PoolNeed, Reason, Requirements, Verdict, check};
pub use config::{
    Acceptance, HostConfig, LeaseConfig, Listen, LogConfig, LogLevel, LogTarget, PeerAddress, PeerConfig, PlainListen,
    PoolRef, SandboxMode, TlsListen, WorkerConfig,
};
pub use error::{Error, Result};
pub use fabric::live_fabric;
pub use name::{BadName, GuestName, HostName};
pub use order::{
    Drain, GuestRange, ImageSource, JobFilter, MemoryIn, Migrate, MoveMemory, PinMemory, ProtectGuest, Rebalance,
    Rehome, Route, RunVm, Settling, StripeShare, Striping,
};
pub use problem::Problem;
pub use report::{
    CordonReport, Departure, DrainOutcome, DrainReport, GuestReport, GuestState, Happening, HostEvent, HostReport,
    HostStanding, JobKind, JobOutcome, JobPhase, JobReport, JobResult, JobSummary, JoinedPool, KnownHost, LegReport,
    LegResult, Life, LostPool, MemoryMoved, MemoryReport, MigrationOutcome, MigrationReport, OfferReport, PinReport,
    PlacementPlan, PlannedMove, PoolReport, Progress, ProtectionReport, ProtectionState, RebalanceOutcome,
    RebalancePlan, RebalanceReport, RehomingOutcome, RehomingReport, Resources, RouteOutcome, RouteReport,
    SandboxLayer, SandboxReport, Stay, Takeover, TakeoverOutcome, TakeoverReport, Unevenness, Whereabouts,
};
pub use run_dir::{HostDir, RunDir};
pub use survey::{PATIENCE_WITH_AGENTS, Survey};
pub use tags::{PlaceKind, Stretch, TagPlace, TagSearch, TagsFound, Unresolved};
pub use tls::{
    Authority, CertificateOrder, ClientTls, Identity, IssuedCertificate, NetworkName, Peer, Role, ServerTls,
    SubjectName, TlsFiles, identity_of,
};
pub use versions::{Interface, Versions};
pub use worker::{BuiltinImages, WorkerOptions, WorkerSandbox, run_worker};
