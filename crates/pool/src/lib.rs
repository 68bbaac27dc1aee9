//! The shared-memory pool: where guests' memory and state lie, and who owns what.
//!
//! A pool is a file or device that several hosts map. It holds a header, a host table with leases, tagged capacity,
//! guest records with their ownership words, state areas, and a journal per host. `docs/pool-format.md` specifies every
//! byte. Processes attach, allocate and free at once and may die between any two writes: everything that hosts race on
//! is one 64-bit word changed by compare-and-swap, and everything longer is written before the word that publishes it.
//!
//! - [`mod@format`]: the bytes; pure encoders and decoders.
//! - [`Pool`]: create, open, look.
//! - [`Membership`]: a host's right to change the pool.
//! - [`LeaseWatch`], [`Fence`], [`Tether`]: when a host is dead, how it loses its rights, how its processes notice.
//! - [`GuestControl`], [`StateArea`]: what a worker needs of one guest.
//! - [`Protection`]: commits of a running guest, to which whoever takes it over brings it back.
//! - [`Report`]: what agents keep in the pool about jobs that have ended.
//! - [`PlacementMap`], [`PinTable`]: which part of a guest's memory is where, and which cannot move.

mod arm;
mod backing;
mod bell;
mod bytes;
mod capacities;
mod capacity_mapping;
mod check;
mod control;
#[cfg(all(test, not(loom)))]
mod crash_tests;
mod create;
mod deadman;
mod error;
#[doc(hidden)]
pub mod exclusion;
mod fault;
mod fencing;
mod forced;
pub mod format;
mod guests;
mod ids;
mod lease;
mod legs;
mod listing;
mod liveness;
mod loss;
mod mapping;
#[cfg(all(test, not(loom)))]
mod medium;
mod membership;
mod memory;
mod offers;
#[doc(hidden)]
pub mod owner_map;
mod ownership;
mod persist;
mod pins;
#[doc(hidden)]
pub mod placement;
mod pool;
mod presence;
mod protection;
mod recovery;
#[doc(hidden)]
pub mod reports;
mod sections;
#[doc(hidden)]
pub mod slots;
mod state;
mod stripe;
#[cfg(all(test, not(loom)))]
mod stripe_crash_tests;
pub mod sync;
mod tables;
#[doc(hidden)]
pub mod tag_index;
mod tether;
mod timeline;
mod twin;
mod voices;

pub use arm::{Arm, ArmWord, BadArm};
pub use backing::BackingKind;
pub use bell::{Bell, Side};
pub use bytes::{BadSize, Bytes};
pub use capacities::CapacityRequest;
pub use capacity_mapping::{CapacityMapping, Source};
pub use check::{CheckReport, Finding, Severity};
pub use control::{GuestConfig, GuestControl};
pub use create::CreateOptions;
pub use deadman::{Deadman, FENCED_STATUS};
pub use error::{Error, Result};
pub use fencing::{Fence, Life};
pub use forced::{Demanded, Taken};
pub use format::GRANULE;
pub use format::address::{BadAddress, HostAddress};
pub use format::answers::Answer;
pub use format::capacity::{Class, Extent};
pub use format::guest::{GuestKind, Region};
pub use format::header::{BadCoherence, Coherence, Header, VERSION as FORMAT_VERSION};
pub use format::host::HostKind;
pub use format::pin::PinId;
pub use format::placement::{BadPlacement, Place, Placed};
pub use format::protection::{Commit, LOG_PAGE, LogEntry, OutputRule, ProtectionSettings, Standing};
pub use format::report::MAX_REPORT;
pub use format::stripe::{BadStripe, Composition, Leg, Stripe, Whole};
pub use guests::GuestRequest;
pub use ids::{BadUuid, CapacitySlot, GuestId, GuestSlot, HostId, JobId, PoolId, PoolOffset, Tag};
pub use lease::{LeaseState, LeaseTerms, LeaseWatch};
pub use legs::reap_orphan_legs;
pub use listing::{CapacityInfo, GuestInfo, HostInfo};
pub use liveness::Liveness;
pub use mapping::Access;
pub use membership::{HostIdentity, Membership};
pub use memory::MemoryHome;
pub use ownership::{BadOwnership, Epoch, HostSlot, Ownership, OwnershipWord};
pub use pins::{Pin, PinRequest, PinTable};
pub use placement::{PlacementMap, PlacementSummary};
pub use pool::{Pool, Usage};
pub use protection::{Draft, GuestPages, ImageCopy, LogFull, Protection, Restored};
pub use recovery::Recovered;
pub use reports::Report;
pub use sections::{AreaFull, DecodeError, Section, SectionWriter, Sections, decode, decode_any_epoch};
pub use state::{Area, MACHINE_AREA, StateArea, VCPU_AREA};
pub use stripe::{AbsentPools, LegRequest, StripeRequest};
pub use tether::Tether;
pub use timeline::{Stamp, Timeline};
pub use voices::GuestOwnership;
