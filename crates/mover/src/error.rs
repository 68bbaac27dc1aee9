//! What can go wrong with a guest's memory, and with moving it.

use crate::lost::LostMemory;
use crate::numa::NumaError;
use nil_pool::{BadPlacement, Epoch, HostSlot, Place, Source};
use std::io;

/// Why memory could not be had, or not be moved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The pool says no.
    #[error(transparent)]
    Pool(#[from] nil_pool::Error),
    /// A word of the placement map is damaged.
    #[error(transparent)]
    BadPlacement(#[from] BadPlacement),
    /// The node cannot hold the memory.
    #[error(transparent)]
    Numa(#[from] NumaError),
    /// The memory is not where it was said to be.
    #[error(
        "the guest's memory cannot be {wanted}: granule {granule} is {place}; a guest starts with all of its memory in \
         one place, so decouple or recouple it wholly where it runs"
    )]
    Elsewhere {
        /// Where it was to be.
        wanted: &'static str,
        /// The first granule that is elsewhere.
        granule: usize,
        /// Where that is.
        place: Place,
    },
    /// The placement map says something else than what this process has done.
    #[error(
        "granule {granule} of the guest's memory is {place} according to the placement map, which is not where this host \
         has it: somebody else has written there; run nil pool check"
    )]
    Misplaced {
        /// Which granule.
        granule: usize,
        /// Where the map says it is.
        place: Place,
    },
    /// The guest's record contradicts its capacity or its placement map.
    #[error(
        "the guest's record says that its memory has {record:#x} bytes, but its {what} has {found:#x}; run nil pool check"
    )]
    Contradiction {
        /// Bytes according to the record.
        record: u64,
        /// What says otherwise.
        what: &'static str,
        /// Bytes according to that.
        found: u64,
    },
    /// The guest's memory must stand still, and wholly in DRAM, while the guest's home changes.
    #[error("the guest's home cannot change now: {why}; recouple all of its memory first, and move nothing meanwhile")]
    NotAllHere {
        /// What stands in the way.
        why: String,
    },
    /// The range is not one of whole granules of the memory.
    #[error(
        "{bytes:#x} bytes at {offset:#x} cannot be moved: ranges are whole granules of 2 MiB, and the memory has {memory:#x} bytes"
    )]
    BadRange {
        /// Where it was to begin.
        offset: u64,
        /// Its length.
        bytes: u64,
        /// Bytes of the memory.
        memory: u64,
    },
    /// Nobody has said who owns the guest.
    #[error(
        "the guest's memory cannot move: its owner is not known yet; move it after the guest was booted or has landed"
    )]
    NoOwner,
    /// The guest is somebody else's now, or nobody's.
    #[error(
        "the guest's memory does not move any more: this process moves it as host {host} at epoch {epoch}, but the guest's \
         ownership word says {found}; move it where the guest runs"
    )]
    NotOwner {
        /// In whose name memory was to move.
        host: HostSlot,
        /// Since when.
        epoch: Epoch,
        /// What the word says.
        found: String,
    },
    /// No addresses left.
    #[error("no address space for {bytes:#x} bytes; raise the limit on it (ulimit -v)")]
    NoAddressSpace {
        /// How much was wanted.
        bytes: usize,
        /// What the kernel says.
        source: io::Error,
    },
    /// Pages could not be brought in.
    #[error("no pages for {what}: {source}; free memory there, or move less")]
    Populate {
        /// For what.
        what: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
    /// The signal handlers could not be installed.
    #[error("faults in the guest's memory cannot be watched: {source}")]
    Watch {
        /// Why.
        source: io::Error,
    },
    /// No userfaultfd may be had.
    #[error(
        "stores of the guest cannot be held up while its memory moves: the system call userfaultfd is refused ({by_call}), \
         and so is /dev/userfaultfd ({by_device}); run as root, set vm.unprivileged_userfaultfd=1, or permit the device"
    )]
    NoUserfault {
        /// Why the system call fails.
        by_call: io::Error,
        /// Why the device fails.
        by_device: io::Error,
    },
    /// The kernel's userfaultfd cannot do enough.
    #[error(
        "this kernel's userfaultfd lacks {missing}; moving a guest's memory while it runs takes Linux 6.4 or later"
    )]
    OldUserfault {
        /// The features.
        missing: String,
    },
    /// A call on a userfaultfd failed.
    #[error("could not {what} userfaultfd: {source}")]
    Userfault {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A chunk could not be protected, or not be freed of its protection.
    #[error("could not {what} a chunk of the guest's memory: {source}")]
    Barrier {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// What had been copied could not be put in its place.
    #[error(
        "could not map memory over guest address {guest_address:#x}: {source}; if it says that memory is short, raise \
         vm.max_map_count"
    )]
    Place {
        /// Where.
        guest_address: u64,
        /// Why not.
        source: io::Error,
    },
    /// The guest's memory has failed.
    #[error("{0}")]
    Lost(LostMemory),
    /// The pool's memory has failed; the guest has its own still.
    #[error("the pool cannot take memory of guest address {guest_address:#x}: {place} has failed; the guest keeps it")]
    PoolFailed {
        /// What was to go there.
        guest_address: u64,
        /// What has failed.
        place: Box<Source>,
    },
    /// The page tables could not be read.
    #[error("/proc/self/pagemap cannot be opened: {source}; mount /proc")]
    PageMap {
        /// Why not.
        source: io::Error,
    },
}

/// What nearly all of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Part of a guest's memory that a handoff would leave behind: a hole in the target's address space.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the guest's memory at guest address {guest_address:#x} {}: {why}", where_it_is(.place))]
pub struct Hole {
    /// The first guest-physical address that is not in the pool.
    pub guest_address: u64,
    /// Where it is; `None` when that is not known.
    pub place: Option<Place>,
    /// Why, and what to do.
    pub why: String,
}

fn where_it_is(place: &Option<Place>) -> String {
    place.map_or_else(|| "is nobody knows where".to_owned(), |place| format!("is {place}"))
}
