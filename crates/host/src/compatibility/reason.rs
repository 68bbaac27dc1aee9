//! Why a host cannot have a guest, each reason typed and with a sentence that says what to do.

use crate::error::{Error, Result};
use crate::name::{GuestName, HostName};
use crate::versions::Interface;
use nil_pool::{Bytes, PoolId};
use nil_vmm::{Device, ModelName, XsaveState};
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// One reason why a host cannot have a guest.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize, ToSchema)]
#[serde(tag = "reason", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Incompatibility {
    /// Its agent says nothing of what it can do.
    #[error("its agent does not say what it can do: it is of another version of nil; bring both to the same")]
    Untold,
    /// It runs no guests.
    #[error("it runs no guests: {why}")]
    NoKvm {
        /// Why not.
        why: String,
    },
    /// It takes no guests at the moment.
    #[error("it is cordoned; `nil uncordon` opens it again")]
    Cordoned,
    /// The source speaks another version of something.
    #[error(
        "the guest's worker speaks version {guest} of {interface}, the host version {host}; a host takes its own and the one \
         before: bring both to the same version of nil, on the guest's side by moving it through a host of the version between"
    )]
    Version {
        /// Of what.
        interface: Interface,
        /// What the guest's worker speaks.
        guest: u32,
        /// What the host speaks.
        host: u32,
    },
    /// Its CPUs are of another make.
    #[error("its CPUs are {host}, and the guest was started on {guest}; guests do not move between vendors")]
    Vendor {
        /// What the guest sees.
        guest: String,
        /// What the host has.
        host: String,
    },
    /// Its CPUs lack something.
    #[error(
        "its CPUs lack {}, which the guest was promised{}; start guests with a model that all hosts have: `nil cpu baseline`",
        missing.join(", "),
        model.as_ref().map(|model| format!(" (CPU model {model})")).unwrap_or_default()
    )]
    Features {
        /// The model that the guest was started with.
        model: Option<ModelName>,
        /// The features by name.
        missing: Vec<String>,
    },
    /// Its CPUs save a state elsewhere.
    #[error(
        "its CPUs do not save extended state {} at byte {} as the guest's saved state has it", state.bit, state.offset
    )]
    Xsave {
        /// Which state, and where the guest has it.
        state: XsaveState,
    },
    /// Its KVM cannot restore MSRs.
    #[error("its KVM does not restore {}, which the guest carries", hexadecimal(missing))]
    Msrs {
        /// Which.
        missing: Vec<u32>,
    },
    /// The guest has too many vCPUs.
    #[error("the guest has {guest} vCPUs, and it can run {most} at most")]
    Vcpus {
        /// What the guest has.
        guest: u32,
        /// What is possible.
        most: u32,
    },
    /// It does not have one of the guest's devices.
    #[error("the guest has a {} of version {}, and it has {}", device.kind, device.version, version(*offered))]
    Device {
        /// The guest's.
        device: Device,
        /// The version that the host has, if it has one.
        offered: Option<u16>,
    },
    /// Its clock ticks at another rate.
    #[error(
        "the guest's TSC runs at {} MHz, and its own at {} MHz; nil does not scale it", mhz(*guest_khz), mhz(*host_khz)
    )]
    TscFrequency {
        /// The guest's.
        guest_khz: u32,
        /// The host's.
        host_khz: u32,
    },
    /// It is kept from the guest.
    #[error("host {host} is not among the hosts that may run guest {guest} (`nil vm run --hosts`)")]
    NotListed {
        /// The host.
        host: HostName,
        /// The guest.
        guest: GuestName,
    },
    /// It has not joined a pool.
    #[error(
        "host {host} is not a member of pool {pool}: {why}; start its agent with --pool and that pool's path as well"
    )]
    NotAMember {
        /// The host.
        host: HostName,
        /// The pool.
        pool: PoolId,
        /// What the guest has there.
        why: String,
    },
    /// No way leads there over other hosts either.
    #[error("no way leads there over other hosts: {why}")]
    NoWay {
        /// Why not.
        why: String,
    },
    /// There is no room in a pool.
    #[error(
        "the guest's memory needs {} in pool {pool}, and {} are free; stop guests that live there, or spread it with --stripe",
        Bytes(*needed),
        Bytes(*free)
    )]
    PoolRoom {
        /// The pool.
        pool: PoolId,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// There is no room in its DRAM.
    #[error(
        "{} of the guest's memory are to come into its DRAM, and {} are free; --stay-in-pool leaves them in the pool",
        Bytes(*needed),
        Bytes(*free)
    )]
    Dram {
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// It cuts memory differently.
    #[error("its pages have {host} bytes, and those of the guest {guest}")]
    PageSize {
        /// The guest's.
        guest: u64,
        /// The host's.
        host: u64,
    },
}

/// A reason with its sentence, as programs are told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Reason {
    /// For a person.
    pub sentence: String,
    /// For a program.
    #[serde(flatten)]
    pub what: Incompatibility,
}

/// Whether a guest can go to a host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Verdict {
    /// The guest.
    pub guest: GuestName,
    /// The host.
    pub to: HostName,
    /// Whether it can.
    pub compatible: bool,
    /// Every reason why it cannot.
    pub reasons: Vec<Reason>,
}

impl Verdict {
    /// What comes of these reasons.
    pub(crate) fn new(guest: GuestName, to: HostName, reasons: Vec<Incompatibility>) -> Self {
        let told = |what: Incompatibility| Reason { sentence: what.to_string(), what };
        Self { guest, to, compatible: reasons.is_empty(), reasons: reasons.into_iter().map(told).collect() }
    }

    /// The error of going all the same, if it cannot.
    pub(crate) fn into_result(self) -> Result<()> {
        if self.compatible { Ok(()) } else { Err(self.into_error()) }
    }

    /// The error of going all the same.
    pub(crate) fn into_error(self) -> Error {
        Error::Incompatible { said: self.to_string(), reasons: self.reasons }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { guest, to, .. } = self;
        match &self.reasons[..] {
            [] => write!(f, "guest {guest} can go to host {to}"),
            [reason] => write!(f, "guest {guest} cannot go to host {to}: {}", reason.sentence),
            reasons => {
                write!(f, "guest {guest} cannot go to host {to}:")?;
                reasons.iter().try_for_each(|reason| write!(f, "\n  {}", reason.sentence))
            }
        }
    }
}

fn hexadecimal(msrs: &[u32]) -> String {
    let msrs: Vec<String> = msrs.iter().map(|msr| format!("{msr:#x}")).collect();
    format!("{} {}", if msrs.len() == 1 { "MSR" } else { "MSRs" }, msrs.join(", "))
}

fn version(version: Option<u16>) -> String {
    version.map_or_else(|| "none".to_owned(), |version| format!("version {version}"))
}

fn mhz(khz: u32) -> String {
    format!("{}.{:03}", khz / 1000, khz % 1000)
}
