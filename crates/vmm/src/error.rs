//! What can go wrong in the VMM, in sentences that name the thing, the fault, and the way out.

use crate::cpu::{BadModel, Features, ModelName};
use std::io;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of the VMM.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `/dev/kvm` cannot be opened.
    #[error("cannot open /dev/kvm: {source}. {}", kvm_remedy(source))]
    NoKvm {
        /// Why not.
        source: io::Error,
    },
    /// The KVM API is not version 12.
    #[error("/dev/kvm speaks API version {found}, nil needs 12: this is not a Linux KVM of the last fifteen years")]
    ApiVersion {
        /// What it said.
        found: i32,
    },
    /// KVM lacks something that nil cannot do without.
    #[error("this kernel's KVM lacks {name}, which nil needs to freeze and thaw a vCPU; use a newer kernel")]
    MissingCapability {
        /// The capability.
        name: &'static str,
    },
    /// A vCPU could not be saved for a commit.
    #[error("a part of the guest could not be saved for a commit: {0}")]
    SaveFailed(String),
    /// A KVM ioctl failed.
    #[error("{ioctl} failed: {source}")]
    Kvm {
        /// Which.
        ioctl: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The CPUID table is longer than KVM takes.
    #[error("the guest's CPUID has {entries} entries, more than KVM takes")]
    CpuidTooLong {
        /// How many.
        entries: usize,
    },
    /// This host's CPU cannot run the guest.
    #[error("this host's CPU lacks {} feature(s) that the guest was booted with: {}", missing.len(), missing.join(", "))]
    IncompatibleCpu {
        /// Names of the missing features.
        missing: Vec<String>,
    },
    /// A guest was to be started with a CPU model that this host does not have.
    #[error(
        "this host cannot offer CPU model {model}: it lacks {}; `nil cpu show` lists what it has",
        missing.iter().map(|feature| feature.name()).collect::<Vec<_>>().join(", ")
    )]
    ModelNotOffered {
        /// The model.
        model: ModelName,
        /// What the host lacks.
        missing: Features,
    },
    /// A CPU model is none.
    #[error(transparent)]
    Model(#[from] BadModel),
    /// KVM refuses MSRs that the guest carries.
    #[error("this host's KVM cannot restore MSR {index:#x}, which the guest carries")]
    IncompatibleMsr {
        /// First MSR that failed.
        index: u32,
    },
    /// Another number of vCPUs than possible.
    #[error("{asked} vCPUs were asked for; this host can run 1 to {most}")]
    VcpuCount {
        /// Asked for.
        asked: u32,
        /// The most possible.
        most: u32,
    },
    /// A section of the guest's state is missing.
    #[error("the guest's {area} holds no {section} section: it was written by something else than this VMM")]
    MissingSection {
        /// Where.
        area: &'static str,
        /// What.
        section: &'static str,
    },
    /// A section of the guest's state is malformed.
    #[error(
        "the {section} section of the guest's state has {found} bytes in version {version}; expected {expected} in version 1"
    )]
    BadSection {
        /// What.
        section: &'static str,
        /// Its version.
        version: u16,
        /// Its length.
        found: usize,
        /// The right length.
        expected: usize,
    },
    /// The configuration area does not fit the guest's record.
    #[error(
        "the guest's configuration area speaks of {vcpus} vCPUs and {memory_bytes} bytes of memory, its record of others: \
         one of them is damaged; run `nil pool check`"
    )]
    Disagreement {
        /// What the area says.
        vcpus: u32,
        /// What the area says.
        memory_bytes: u64,
    },
    /// The state does not fit into its area.
    #[error("the guest's state does not fit into its area in the pool: {0}")]
    AreaFull(#[from] nil_pool::AreaFull),
    /// The state area could not be decoded.
    #[error("the guest's state cannot be read: {0}")]
    Decode(#[from] nil_pool::DecodeError),
    /// The pool refused.
    #[error(transparent)]
    Pool(#[from] nil_pool::Error),
    /// The handoff failed.
    #[error(transparent)]
    Migrate(#[from] nil_migrate::Error),
    /// The guest's image cannot be loaded.
    #[error(transparent)]
    Boot(#[from] crate::boot::Error),
    /// The guest's state area could not be brought in.
    #[error(
        "cannot bring in the guest's state from the pool: {source}. Is there enough free memory on the pool's device or \
         file system?"
    )]
    Populate {
        /// Why not.
        source: io::Error,
    },
    /// The guest's memory cannot be mapped, brought in or moved.
    #[error(transparent)]
    Mover(#[from] nil_mover::Error),
    /// A handoff was wanted while a part of the guest's memory was not in the pool.
    #[error("the guest cannot be handed over: {0}")]
    Hole(nil_mover::Hole),
    /// A guest was handed over although a part of its memory is not in the pool.
    #[error("{granules} granule(s) of the guest's memory are not in the pool, but in its source's DRAM")]
    MemoryAway {
        /// How many.
        granules: u64,
    },
    /// A page of the guest's memory is gone.
    #[error("the guest has been stopped: {0}")]
    MemoryLost(nil_mover::LostMemory),
    /// The guest's memory cannot be mapped in one piece.
    #[error("{bytes} bytes of guest memory cannot be mapped into this process")]
    NotMappable {
        /// How much.
        bytes: u64,
    },
    /// The kick signal could not be set up.
    #[error("cannot block the signal that stops vCPUs: {0}")]
    Signal(#[source] io::Error),
    /// A thread could not be started.
    #[error("cannot start a vCPU thread: {0}")]
    Thread(#[source] io::Error),
    /// A core file could not be written.
    #[error("cannot write the core file: {source}")]
    Core {
        /// The reason.
        source: io::Error,
    },
    /// Warming the target up failed.
    #[error("prewarming stopped with an unexpected exit of the spare vCPU: {0}")]
    Prewarm(String),
    /// Something was asked of a VM that it cannot do in its state.
    #[error("the guest cannot {wanted}: it is {state}")]
    NotNow {
        /// What was asked.
        wanted: &'static str,
        /// What the guest is doing.
        state: &'static str,
    },
}

impl Error {
    /// Wraps the errno of a KVM ioctl.
    pub(crate) fn kvm(ioctl: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |error| Self::Kvm { ioctl, source: io::Error::from(error) }
    }
}

fn kvm_remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => {
            "Load the kvm_intel or kvm_amd module; inside a VM, enable nested virtualisation in the host"
        }
        io::ErrorKind::PermissionDenied => "Add yourself to the `kvm` group (then log in again), or run as root",
        _ => "Check that no other hypervisor holds the CPU's virtualisation",
    }
}
