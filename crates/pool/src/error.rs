//! Everything that can go wrong with a pool, in words for the person who asked for it.

use crate::bytes::Bytes;
use crate::format::BadRecord;
use crate::format::answers::Answer;
use crate::format::capacity::Class;
use crate::format::header::{BadHeader, Coherence};
use crate::format::layout::BadLayout;
use crate::format::pin::PinId;
use crate::format::placement::{BadPlacement, Place};
use crate::format::protection::Standing;
use crate::format::stripe::{BadStripe, Whole};
use crate::format::text::BadText;
use crate::ids::{GuestId, GuestSlot, HostId, PoolId, Tag};
use crate::ownership::{HostSlot, Ownership};
use std::io;
use std::path::PathBuf;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something could not be done with a pool.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {what} {path}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
    /// The path is nothing that could hold a pool.
    #[error("{path} is {what}; a pool lies in a regular file, a hugetlbfs file or a /dev/dax device")]
    WrongKind {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The kernel uses it as its own memory.
    #[error(
        "{path} is online as system RAM (driver kmem), and shared memory must never be: the kernel would put its own data \
         there. `daxctl reconfigure-device --mode=devdax --force {device}` takes it back"
    )]
    OnlineAsRam {
        /// The path.
        path: PathBuf,
        /// The device.
        device: String,
    },
    /// The file's permissions forbid writing.
    #[error("{path} is read-only (mode {mode:o}); chmod u+w it, or open it for reading")]
    ReadOnlyFile {
        /// The path.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The memory cannot be mapped.
    #[error("{path} cannot be mapped ({source}); put the pool on tmpfs, hugetlbfs, a disk file system or a dax device")]
    NoMmap {
        /// The path.
        path: PathBuf,
        /// The reason that mmap gave.
        source: io::Error,
    },
    /// The pages or the device are aligned more coarsely than granules.
    #[error(
        "{path} can only be mapped in steps of {align}, nil needs 2 MiB; use 2 MiB pages, or daxctl reconfigure-device --align 2M"
    )]
    Alignment {
        /// The path.
        path: PathBuf,
        /// Its step.
        align: Bytes,
    },
    /// A new file needs a size.
    #[error("{path} is empty or new: say how large the pool is to be")]
    SizeNeeded {
        /// The path.
        path: PathBuf,
    },
    /// The device is smaller than the wish.
    #[error("{path} has {has}, which is less than the {wanted} asked for")]
    DeviceTooSmall {
        /// The path.
        path: PathBuf,
        /// What it has.
        has: Bytes,
        /// What was asked for.
        wanted: Bytes,
    },
    /// No layout for this size.
    #[error("{} cannot hold {source}", path.display())]
    PoolSize {
        /// The path.
        path: PathBuf,
        /// The rule that it breaks.
        source: BadLayout,
    },
    /// The path holds a pool already.
    #[error("{path} holds pool {id} already; --force formats it anew and destroys its contents")]
    AlreadyPool {
        /// The path.
        path: PathBuf,
        /// The pool that is there.
        id: PoolId,
    },
    /// The path holds something else.
    #[error("{path} holds data that is not nil's; --force overwrites it")]
    ForeignData {
        /// The path.
        path: PathBuf,
    },
    /// A pool that somebody uses is not formatted, not even by force.
    #[error("{path} is in use by host '{host}' (process {pid}); stop it first")]
    InUse {
        /// The path.
        path: PathBuf,
        /// A live member.
        host: String,
        /// Its process.
        pid: u32,
    },
    /// The file holds no pool that this crate can use.
    #[error("{path} is not usable as a pool: {reason}")]
    NotAPool {
        /// The path.
        path: PathBuf,
        /// Why.
        reason: BadHeader,
    },
    /// The file is shorter than its header says.
    #[error("{path} is truncated: its header says {wanted}, the file has {has}")]
    Truncated {
        /// The path.
        path: PathBuf,
        /// What is there.
        has: Bytes,
        /// What should be there.
        wanted: Bytes,
    },
    /// Memory of a pool is no more.
    #[error(
        "pool {path} is lost: its memory fails (SIGBUS), because its file was cut short, the file system that it is in is full, or its \
         device is gone; nothing is read from it or written to it any more"
    )]
    Lost {
        /// The path.
        path: PathBuf,
    },
    /// Writing needs features that this crate does not know.
    #[error("{path} can only be read by this nil (unknown ro_compat features {features:#x}); use a newer nil")]
    ReadOnlyFeatures {
        /// The path.
        path: PathBuf,
        /// The unknown bits.
        features: u64,
    },
    /// The pool was opened for reading.
    #[error("the pool was opened for reading only")]
    OpenedReadOnly,
    /// This process cannot be identified to its peers.
    #[error("cannot read this process's identity from {path}: {source}; nil needs /proc")]
    NoIdentity {
        /// What was read.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The host is a member already, and alive.
    #[error("host '{name}' ({id}) has joined this pool already as process {pid}; stop that one first")]
    AlreadyJoined {
        /// The host.
        id: HostId,
        /// Its name.
        name: String,
        /// Its process.
        pid: u32,
    },
    /// Another live host has the name.
    #[error("a host named '{name}' is in this pool already (process {pid}); choose another name or stop that one")]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        pid: u32,
    },
    /// Another host is changing the pool's tables, and does not come to an end.
    #[error(
        "{} is being changed by host {host} ({name}), and its turn has not come to an end; try again, and if \
         it is dead, take its guests first (nil takeover {name})",
        path.display()
    )]
    PoolBusy {
        /// The pool.
        path: PathBuf,
        /// Whose turn it is.
        host: HostSlot,
        /// Its name.
        name: String,
    },
    /// Not where the hosts' caches do not agree.
    #[error("{} has software coherence, where nil does not do this: {what}", path.display())]
    NotCoherent {
        /// The pool.
        path: PathBuf,
        /// What was wanted.
        what: &'static str,
    },
    /// No room for another host.
    #[error("the pool's host table is full ({hosts} hosts)")]
    HostTableFull {
        /// How many there can be.
        hosts: u32,
    },
    /// Guests would be left without their host.
    #[error("host {host} still answers for guest '{guest}'; move or stop it first")]
    HostHoldsGuest {
        /// The host.
        host: HostSlot,
        /// The first such guest.
        guest: String,
    },
    /// A host that is alive, or may be, is not recovered.
    #[error("host {host} is not known to be dead; its unfinished work is its own")]
    HostNotDead {
        /// The host.
        host: HostSlot,
    },
    /// A thread that writes to guests could not be guarded.
    #[error(
        "no timer for a thread that writes to guests' memory ({source}); raise the limit of pending signals (ulimit -i)"
    )]
    NoTimer {
        /// The reason.
        source: io::Error,
    },
    /// A lease by which nobody could be judged.
    #[error(
        "a lease with an interval of {interval_ms} ms and an expiry of {expiry_ms} ms cannot be kept: the interval is at least 1 ms, \
         the expiry at least 3 intervals and at most four hours"
    )]
    BadLease {
        /// Its interval.
        interval_ms: u16,
        /// Its expiry.
        expiry_ms: u32,
    },
    /// A peer has taken this host for dead.
    #[error("this host was declared dead by a peer; it must stop its guests and join anew")]
    Fenced,
    /// No such host.
    #[error("there is no host {host} in this pool")]
    NoHost {
        /// The slot.
        host: HostSlot,
    },
    /// A capacity of no or of a crooked size.
    #[error("a capacity of {}: its size must be a positive multiple of 2 MiB", Bytes(*bytes))]
    CapacitySize {
        /// What was asked for.
        bytes: u64,
    },
    /// Shared capacity is found by its tag.
    #[error("shared capacity needs a tag; give one, or let one be made with --tag new")]
    TagNeeded,
    /// Access lists are short.
    #[error("an access list of {hosts} hosts; at most 15 fit")]
    AccessListTooLong {
        /// How many were given.
        hosts: usize,
    },
    /// Tags are unique.
    #[error("tag {tag} is in this pool already")]
    TagExists {
        /// The tag.
        tag: Tag,
    },
    /// Both buckets are full.
    #[error("the pool's tag index has no room for tag {tag}; use another tag")]
    TagIndexFull {
        /// The tag.
        tag: Tag,
    },
    /// Nothing has this tag.
    #[error("there is no capacity with tag {tag} in this pool")]
    NoCapacity {
        /// The tag.
        tag: Tag,
    },
    /// Somebody needs it.
    #[error("capacity {tag} is in use by guest '{guest}'; destroy the guest first")]
    CapacityInUse {
        /// The tag.
        tag: Tag,
        /// Who uses it.
        guest: String,
    },
    /// Hosts have it, and have not let go of it.
    #[error("capacity {tag} is held by {hosts}; --ask has them let go of it, --force takes it away from them")]
    CapacityAccepted {
        /// The tag.
        tag: Tag,
        /// Their names.
        hosts: String,
    },
    /// It is not this host's to attach.
    #[error(
        "host {host} is not on the access list of capacity {tag}, and may not attach it; `nil capacity show` has the list"
    )]
    NotOnAccessList {
        /// The tag.
        tag: Tag,
        /// The host.
        host: String,
    },
    /// It was offered, and nothing came of it.
    #[error(
        "capacity {tag} is {answer} on this host, which has to accept it before it attaches it; its agent does so within a \
         second"
    )]
    NotAccepted {
        /// The tag.
        tag: Tag,
        /// What the host has answered.
        answer: Answer,
    },
    /// Only memory can be taken from a guest.
    #[error(
        "capacity {tag} has the state of guest '{guest}', which is not taken away; `nil vm stop {guest}` gives it back"
    )]
    StateOfGuest {
        /// The tag.
        tag: Tag,
        /// The guest.
        guest: String,
    },
    /// Nobody has stopped the guest, so nothing was taken.
    #[error(
        "host {host}, which runs guest '{guest}', has not answered for {seconds} s: nothing was taken from capacity {tag}, and \
         the guest goes on. If its agent does not run, start it; if the host is gone, the guest must be known to be lost first"
    )]
    NotHeeded {
        /// The tag.
        tag: Tag,
        /// The guest.
        guest: String,
        /// Its host.
        host: String,
        /// How long was waited.
        seconds: u64,
    },
    /// The guest is being stopped, and that takes long.
    #[error("host {host} is stopping guest '{guest}' because capacity {tag} is taken away, and is not done; try again")]
    StillStopping {
        /// The tag.
        tag: Tag,
        /// The guest.
        guest: String,
        /// Its host.
        host: String,
    },
    /// Somebody is changing it.
    #[error(
        "capacity {tag} is being added or released by host {host}; if that host is dead, run nil pool check --repair"
    )]
    CapacityBusy {
        /// The tag.
        tag: Tag,
        /// By whom.
        host: HostSlot,
    },
    /// Guests need memory that every host may see and that all caches agree on.
    #[error(
        "capacity {tag} is {class} with {coherence} coherence, and memory of guests lies only in shared capacity with hardware coherence"
    )]
    NotForGuests {
        /// The tag.
        tag: Tag,
        /// Its class.
        class: Class,
        /// Its coherence.
        coherence: Coherence,
    },
    /// It cannot be striped like this.
    #[error(transparent)]
    BadStripe(#[from] BadStripe),
    /// A part of a striped capacity lies in a pool that is not open here.
    #[error("capacity {leg}, a stripe of weight {weight}, lies in pool {pool}; join that pool too: --pool PATH")]
    LegNotAtHand {
        /// Its tag.
        leg: Tag,
        /// Its pool.
        pool: PoolId,
        /// Its weight.
        weight: u32,
    },
    /// A part of a striped capacity cannot be used.
    #[error("capacity {leg}, a stripe of weight {weight} in pool {pool} at {path}, {what}; run nil pool check")]
    BadLeg {
        /// Its tag.
        leg: Tag,
        /// Its pool.
        pool: PoolId,
        /// Where that pool is.
        path: PathBuf,
        /// Its weight.
        weight: u32,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A part of a striped capacity is released with the whole.
    #[error("capacity {leg} is a stripe of capacity {} in pool {}; release that one", whole.tag, whole.pool)]
    LegInUse {
        /// Its tag.
        leg: Tag,
        /// What it is a part of.
        whole: Whole,
    },
    /// Nobody can say whether it is still needed.
    #[error(
        "capacity {leg} is a stripe of capacity {} in pool {}; join that pool too: --pool PATH, or say that it is gone for good: --without-absent",
        whole.tag, whole.pool
    )]
    WholeNotAtHand {
        /// Its tag.
        leg: Tag,
        /// What it is a part of.
        whole: Whole,
    },
    /// A pool that is to take a stripe is not joined.
    #[error("pool {pool} is to take a stripe, and was not joined; join that pool too: --pool PATH")]
    PoolNotJoined {
        /// The pool.
        pool: PoolId,
    },
    /// It failed in one of several pools.
    #[error("in {path}: {source}")]
    InPool {
        /// Where the pool is.
        path: PathBuf,
        /// What failed.
        source: Box<Self>,
    },
    /// No slot left.
    #[error("the pool's capacity table is full ({slots} capacities)")]
    CapacityTableFull {
        /// How many there can be.
        slots: u32,
    },
    /// Not enough free granules.
    #[error("no room for {wanted}: {free} are free")]
    NoRoom {
        /// What was asked for.
        wanted: Bytes,
        /// What is free.
        free: Bytes,
    },
    /// Enough granules, but in too many pieces.
    #[error(
        "no room for {wanted} in at most 64 pieces: {free} are free, the 64 largest pieces hold {largest}; release capacity next to free space"
    )]
    Fragmented {
        /// What was asked for.
        wanted: Bytes,
        /// What is free in all.
        free: Bytes,
        /// What the 64 largest pieces hold.
        largest: Bytes,
    },
    /// A guest of no or of a crooked size.
    #[error("a guest with {} of memory: it must be a positive multiple of 2 MiB", Bytes(*bytes))]
    GuestMemory {
        /// What was asked for.
        bytes: u64,
    },
    /// Too few or too many vCPUs.
    #[error("a guest with {vcpus} vCPUs: it must have 1 to 1024")]
    GuestVcpus {
        /// What was asked for.
        vcpus: u32,
    },
    /// Guest names are unique.
    #[error("a guest named '{name}' is in this pool already")]
    GuestExists {
        /// The name.
        name: String,
    },
    /// No slot left.
    #[error("the pool's guest table is full ({slots} guests)")]
    GuestTableFull {
        /// How many there can be.
        slots: u32,
    },
    /// The slot holds another guest now, or none.
    #[error("guest {id} is no longer in slot {slot}")]
    GuestGone {
        /// The guest.
        id: GuestId,
        /// Where it was.
        slot: GuestSlot,
    },
    /// Only its owner destroys a guest.
    #[error("guest '{name}' is {ownership}; only its owner may do this, while nobody else takes it over")]
    GuestNotOurs {
        /// The guest.
        name: String,
        /// Its ownership word.
        ownership: Ownership,
    },
    /// Its memory capacity is needed as long as a granule is not wholly in the owner's DRAM.
    #[error(
        "granule {granule} of the memory of guest '{guest}' is {place}; recouple the guest before its capacity is released"
    )]
    MemoryInPool {
        /// The guest.
        guest: String,
        /// The first granule that is not local.
        granule: usize,
        /// Where it is.
        place: Place,
    },
    /// A word of the placement map is not to be trusted.
    #[error(transparent)]
    BadPlacement(#[from] BadPlacement),
    /// It cannot be brought back.
    #[error("guest {guest} cannot be brought back to a commit: {why}; its memory is kept until it is destroyed")]
    NoCommit {
        /// The guest.
        guest: GuestId,
        /// Why not.
        why: &'static str,
    },
    /// Another host has taken the guest meanwhile.
    #[error("guest {guest} was brought back only in part: another host has taken it meanwhile, and goes on")]
    TakenAgain {
        /// The guest.
        guest: GuestId,
    },
    /// Somebody else has the guest now, or its protection.
    #[error("the protection of guest {guest} is {found:?}: it is not this host's to change any more")]
    ProtectionOver {
        /// The guest.
        guest: GuestId,
        /// What was found.
        found: Standing,
    },
    /// A pin of nothing, or of more than there is.
    #[error("{bytes} bytes at {offset:#x} cannot be pinned: the guest has {memory:#x} bytes of memory")]
    PinOutside {
        /// Where it was to begin.
        offset: u64,
        /// Its length.
        bytes: u64,
        /// Bytes of the guest's memory.
        memory: u64,
    },
    /// No entry left.
    #[error("the guest's pin table is full ({pins} pins); release one, or pin larger ranges")]
    PinTableFull {
        /// How many there can be.
        pins: usize,
    },
    /// It has ended.
    #[error("there is no pin {pin} any more")]
    NoPin {
        /// Its name.
        pin: PinId,
    },
    /// A report that does not fit into an entry.
    #[error("a report of {bytes} bytes; at most 8124 fit into the pool")]
    ReportTooLong {
        /// Its length.
        bytes: usize,
    },
    /// There is no ring of reports, or no entry of it can be had.
    #[error(
        "{path} has no room for reports; a pool that an older nil made has none at all: `nil pool create` makes one"
    )]
    NoReports {
        /// Where the pool is.
        path: PathBuf,
    },
    /// A guest's epochs or a slot's generations are used up.
    #[error("{what} has been used too often to be used again")]
    UsedUp {
        /// What.
        what: String,
    },
    /// A record's bytes are not to be trusted.
    #[error("{what} is damaged: {source}; run nil pool check")]
    Damaged {
        /// Which record.
        what: String,
        /// What is wrong with it.
        source: BadRecord,
    },
    /// A word's bits are not to be trusted.
    #[error("{what} is damaged: its word is {word:#018x}; run nil pool check")]
    DamagedWord {
        /// Which word.
        what: String,
        /// Its value.
        word: u64,
    },
    /// Too long, or with control characters.
    #[error(transparent)]
    BadText(#[from] BadText),
    /// The state area is not what the guest's record promises.
    #[error("the state area of guest {id} is damaged: {what}")]
    BadStateArea {
        /// The guest.
        id: GuestId,
        /// What is wrong.
        what: &'static str,
    },
    /// A part of a mapping that is to be shown elsewhere.
    #[error(
        "bytes {offset:#x}+{bytes:#x} are no whole pages of {step:#x} bytes at an address of whole ones, or do not lie in a \
         mapping of {length:#x} bytes"
    )]
    OutsideMapping {
        /// Where the part begins.
        offset: usize,
        /// Its length.
        bytes: usize,
        /// What it has to be made of.
        step: usize,
        /// Bytes of the mapping.
        length: usize,
    },
    /// An area claims to be longer than it is, or holds nothing.
    #[error("the state area holds no finished state")]
    AreaUnfinished,
}
