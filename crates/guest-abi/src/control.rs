//! The control block: the guest's own record of what happened to it.
//!
//! ```text
//! +0      header       magic, version, state, what the guest tests        written by vCPU 0 before `Running`
//! +128    command      what the host orders
//! +136    heard        what another guest was heard to say, told by the host
//! +192    tickets      what `lock xadd` counts
//! +4096   vCPU 0       figures, first error, gap ring (512 records)       each written by its vCPU alone
//! …       vCPU 15
//! ```
//!
//! Everything is an atomic: the host reads while the guest runs, in another process and perhaps on another host. Only the
//! host treats what it reads as hostile: the decoders return `None` for numbers that stand for nothing.
//!
//! The gap ring is written *record first, count second* (release). A reader takes the count, the records, and the count
//! again, and drops what may have been overwritten meanwhile ([`VcpuBlock::gaps`]).

use crate::layout::{CONTROL_OFFSET, MAX_VCPUS};
use crate::options::{Mode, Program};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// `"NILGUEST"`, little-endian; written last when the guest has set its block up.
pub const MAGIC: u64 = u64::from_le_bytes(*b"NILGUEST");
/// Version of this layout.
pub const VERSION: u32 = 1;
/// Records in a gap ring.
pub const RING: usize = 512;

/// The block at guest-physical [`CONTROL`](crate::layout::CONTROL).
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct ControlBlock {
    /// [`MAGIC`].
    pub magic: AtomicU64,
    /// [`VERSION`].
    pub version: AtomicU32,
    /// A [`GuestState`].
    pub state: AtomicU32,
    /// vCPUs of this guest.
    pub vcpus: AtomicU32,
    /// A [`Program`].
    pub program: AtomicU32,
    /// A [`Mode`].
    pub mode: AtomicU32,
    /// What the guest found usable: [`FEATURE_AVX`], [`FEATURE_FSGSBASE`].
    pub features: AtomicU32,
    /// The host's hint from the command line, or 0.
    pub tsc_khz: AtomicU64,
    /// Cycles above which a pause is a gap.
    pub threshold: AtomicU64,
    /// Memory under test; unused ranges are empty.
    pub ranges: [MemoryRange; 2],
    /// Bytes of the working set over all vCPUs.
    pub workset: AtomicU64,
    /// Offset of the word of the command line that the guest refused (state [`GuestState::Refused`]).
    pub refused_at: AtomicU64,
    reserved0: [u64; 4],
    /// The host's [`CommandWord`].
    pub command: AtomicU64,
    /// The highest number that the outside has heard another guest say; whoever tells it never tells a smaller one.
    pub heard: AtomicU64,
    reserved1: [u64; 6],
    /// Tickets drawn by all vCPUs.
    pub tickets: AtomicU64,
    reserved2: [u64; 487],
    /// One block per vCPU.
    pub vcpu: [VcpuBlock; MAX_VCPUS as usize],
}

/// AVX is usable and exercised.
pub const FEATURE_AVX: u32 = 1;
/// WRFSBASE and WRGSBASE are usable and exercised.
pub const FEATURE_FSGSBASE: u32 = 2;

/// A range of guest-physical memory under test.
#[repr(C)]
#[derive(Debug)]
pub struct MemoryRange {
    /// First byte; a multiple of 4 KiB.
    pub start: AtomicU64,
    /// Bytes; a multiple of 4 KiB, 0 for an unused range.
    pub bytes: AtomicU64,
}

/// One vCPU's figures.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct VcpuBlock {
    /// Turns of the main loop.
    pub counter: AtomicU64,
    /// The latest reading of the TSC.
    pub last_tsc: AtomicU64,
    /// Gaps ever recorded; the next one goes to `ring[gaps % RING]`.
    pub gaps: AtomicU64,
    /// The longest gap in cycles.
    pub max_gap: AtomicU64,
    /// Sum of all gaps in cycles.
    pub gap_cycles: AtomicU64,
    reserved0: [u64; 3],

    /// Pages verified.
    pub pages_verified: AtomicU64,
    /// Pages written.
    pub pages_written: AtomicU64,
    /// Times that the whole working set was verified and rewritten.
    pub passes: AtomicU64,
    /// First page (index within this vCPU's share) that the current pass has not yet rewritten.
    pub cursor: AtomicU64,
    /// Generation that the current pass writes; pages of the working set before the cursor have it.
    pub generation: AtomicU64,
    /// The youngest generation of which every page of this vCPU's share was verified by `VerifyAll`.
    pub verified_generation: AtomicU64,
    /// Pages of this vCPU's share of the memory under test.
    pub pages: AtomicU64,
    reserved1: [u64; 1],

    /// Register rounds verified.
    pub register_rounds: AtomicU64,
    /// Tickets that this vCPU drew.
    pub tickets: AtomicU64,
    /// The last ticket that this vCPU drew.
    pub last_ticket: AtomicU64,
    /// A counter that this vCPU alone increments, and compares with a copy in a register: a second instance of the same
    /// vCPU breaks it at once.
    pub private_tickets: AtomicU64,
    reserved2: [u64; 4],

    /// The last [`CommandWord`] that this vCPU has carried out.
    pub acknowledged: AtomicU64,
    /// The last [`CommandWord`] for which this vCPU has come to rest, so that sums over vCPUs can be compared.
    pub parked: AtomicU64,
    /// The last [`ControlBlock::heard`] that this vCPU took note of; vCPU 0 alone does.
    pub heard: AtomicU64,
    reserved3: [u64; 5],

    /// Errors found.
    pub errors: AtomicU64,
    /// The first of them; whole once `errors` is not 0.
    pub first_error: ErrorRecord,
    reserved4: [u64; 3],
    reserved5: [u64; 472],

    /// The gap ring.
    pub ring: [GapRecord; RING],
}

/// One record of the gap ring.
#[repr(C)]
#[derive(Debug)]
pub struct GapRecord {
    /// TSC before the gap.
    pub before: AtomicU64,
    /// TSC after it.
    pub after: AtomicU64,
    /// The vCPU's loop counter.
    pub counter: AtomicU64,
    /// Index of this gap since boot, plus one; 0 in a record that was never written.
    pub sequence: AtomicU64,
}

/// The first error of a vCPU.
#[repr(C)]
#[derive(Debug)]
pub struct ErrorRecord {
    /// An [`ErrorKind`].
    pub kind: AtomicU64,
    /// Guest-physical address, or the number of the register.
    pub address: AtomicU64,
    /// What should be there.
    pub expected: AtomicU64,
    /// What is there.
    pub found: AtomicU64,
}

/// What the guest is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum GuestState {
    /// Setting itself up.
    Booting = 0,
    /// Writing the first generation of every page.
    Filling = 1,
    /// In the main loop.
    Running = 2,
    /// Told to stop.
    Stopped = 3,
    /// It does not understand its command line, or was given more vCPUs than it can have.
    Refused = 4,
    /// It found a bug in itself and stopped.
    Panicked = 5,
}

/// What the host tells the guest to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Command {
    /// Go on with the program.
    Run = 0,
    /// Verify every page under test, one register round and the sum of all tickets, then acknowledge and go on.
    VerifyAll = 1,
    /// Acknowledge and do nothing more.
    Stop = 2,
}

/// A command with the sequence number that tells it from the one before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CommandWord {
    /// Grows with every command; 0 is the guest's state at boot.
    pub sequence: u32,
    /// The command.
    pub command: Command,
}

/// What kind of error a guest found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum ErrorKind {
    /// A page is all zero in its header: its contents are gone.
    PageLost = 1,
    /// A page holds another page's contents.
    PageMisplaced = 2,
    /// A page holds an older (or a newer) generation than was last written.
    PageStale = 3,
    /// A word of a page is not what belongs there.
    PageTorn = 4,
    /// A page's words are right but its checksum is not.
    PageChecksum = 5,
    /// A register does not hold what was put there; `address` is its number, see [`register`].
    Register = 6,
    /// The TSC went backwards; `expected` is the earlier reading.
    TscBackwards = 7,
    /// A ticket is not larger than the one before.
    TicketRepeated = 8,
    /// The shared counter is not the sum of what the vCPUs drew.
    TicketSum = 9,
    /// Somebody else ran as this very vCPU.
    Twin = 10,
    /// The guest panicked; `found` is the line.
    Panic = 11,
    /// What it heard from another guest went back: what the outside had seen of that one was undone.
    HeardBackwards = 12,
}

/// Numbers of registers in an [`ErrorRecord`].
pub mod register {
    /// RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8 … R15: 0 … 15, in this order.
    pub const GENERAL: u64 = 0;
    /// Names of the general registers by number.
    pub const GENERAL_NAMES: [&str; 16] =
        ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
    /// RFLAGS, the bits that user code may change.
    pub const FLAGS: u64 = 16;
    /// FS base.
    pub const FS_BASE: u64 = 17;
    /// GS base.
    pub const GS_BASE: u64 = 18;
    /// A load through FS.
    pub const FS_LOAD: u64 = 19;
    /// A load through GS.
    pub const GS_LOAD: u64 = 20;
    /// The x87 control word.
    pub const FCW: u64 = 21;
    /// The x87 status word.
    pub const FSW: u64 = 22;
    /// The x87 tag word, abridged.
    pub const FTW: u64 = 23;
    /// MXCSR.
    pub const MXCSR: u64 = 24;
    /// ST0 … ST7 (MM0 … MM7), two 64-bit halves each: 32 … 47.
    pub const ST: u64 = 32;
    /// XMM0 … XMM15, two halves each: 64 … 95.
    pub const XMM: u64 = 64;
    /// The upper lanes of YMM0 … YMM15, two halves each: 96 … 127.
    pub const YMM_HIGH: u64 = 96;
}

/// A pause between two readings of the TSC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gap {
    /// TSC before.
    pub before: u64,
    /// TSC after.
    pub after: u64,
    /// The vCPU's loop counter.
    pub counter: u64,
    /// Index of this gap since boot.
    pub index: u64,
}

impl Gap {
    /// Its length in cycles; 0 when the TSC went backwards.
    #[must_use]
    pub const fn cycles(&self) -> u64 {
        self.after.saturating_sub(self.before)
    }
}

/// A decoded first error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FirstError {
    /// What was found; `Err` holds a number that stands for no kind.
    pub kind: Result<ErrorKind, u64>,
    /// Guest-physical address, or the number of the register.
    pub address: u64,
    /// What should be there.
    pub expected: u64,
    /// What is there.
    pub found: u64,
}

macro_rules! decode {
    ($name:ident, $integer:ty, [$($variant:ident),+ $(,)?]) => {
        impl $name {
            /// The meaning of a number read from a guest's memory, if it has one.
            #[must_use]
            pub const fn decode(number: $integer) -> Option<Self> {
                $(if number == Self::$variant as $integer { return Some(Self::$variant); })+
                None
            }
        }
    };
}

decode!(GuestState, u32, [Booting, Filling, Running, Stopped, Refused, Panicked]);
decode!(Command, u8, [Run, VerifyAll, Stop]);
decode!(Program, u32, [TscGaps, Pages, Registers, Xadd, Demo, Rest]);
decode!(Mode, u32, [Idle, Hot, Stores]);
decode!(
    ErrorKind,
    u64,
    [
        PageLost,
        PageMisplaced,
        PageStale,
        PageTorn,
        PageChecksum,
        Register,
        TscBackwards,
        TicketRepeated,
        TicketSum,
        Twin,
        Panic,
        HeardBackwards,
    ]
);

impl CommandWord {
    /// The word in memory: sequence number above, command in the low byte.
    #[must_use]
    pub const fn encode(self) -> u64 {
        (self.sequence as u64) << 8 | self.command as u64
    }

    /// Decodes a word; `None` when it is no command.
    #[must_use]
    pub const fn decode(word: u64) -> Option<Self> {
        if word >> 40 != 0 {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "the low byte, and 32 bits that were checked above")]
        match Command::decode(word as u8) {
            Some(command) => Some(Self { sequence: (word >> 8) as u32, command }),
            None => None,
        }
    }

    /// The command that follows this one.
    #[must_use]
    pub const fn then(self, command: Command) -> Self {
        Self { sequence: self.sequence.wrapping_add(1), command }
    }
}

impl ControlBlock {
    /// The control block in a mapping of guest memory, or of a memory file, that starts at guest-physical 0.
    ///
    /// # Safety
    /// `memory` must be page aligned and point to at least `CONTROL_OFFSET + size_of::<ControlBlock>()` mapped, writable bytes
    /// that stay mapped for `'a` and that nobody in this process accesses other than through atomics or raw copies.
    #[must_use]
    pub unsafe fn in_memory<'a>(memory: *const u8) -> &'a Self {
        let block = memory.wrapping_add(CONTROL_OFFSET).cast::<Self>();
        // SAFETY: the caller guarantees mapping, lifetime and alignment (the offset is a multiple of 4 KiB); every field is an
        // atomic or reserved bytes that nobody reads, so any contents are valid and concurrent writers are allowed.
        unsafe { &*block }
    }

    /// Whether a guest of this version has set the block up.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.magic.load(Ordering::Acquire) == MAGIC && self.version.load(Ordering::Relaxed) == VERSION
    }

    /// What the guest is doing; `None` before it has set the block up or when the number stands for nothing.
    #[must_use]
    pub fn guest_state(&self) -> Option<GuestState> {
        self.is_ready().then(|| GuestState::decode(self.state.load(Ordering::Acquire))).flatten()
    }

    /// The blocks of the vCPUs that the guest has.
    pub fn vcpus(&self) -> impl Iterator<Item = &VcpuBlock> {
        self.vcpu.iter().take(self.vcpus.load(Ordering::Relaxed) as usize)
    }

    /// Gives the guest a command; the word to wait for with [`ControlBlock::all_acknowledged`].
    pub fn give(&self, command: Command) -> CommandWord {
        let last = CommandWord::decode(self.command.load(Ordering::Relaxed))
            .unwrap_or(CommandWord { sequence: 0, command: Command::Run });
        let word = last.then(command);
        self.command.store(word.encode(), Ordering::Release);
        word
    }

    /// Whether every vCPU has carried out `word`.
    #[must_use]
    pub fn all_acknowledged(&self, word: CommandWord) -> bool {
        self.vcpus().all(|vcpu| vcpu.acknowledged.load(Ordering::Acquire) == word.encode())
    }

    /// Errors found by all vCPUs.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.vcpus().map(|vcpu| vcpu.errors.load(Ordering::Acquire)).fold(0, u64::saturating_add)
    }

    /// The first error of the first vCPU that has one, with that vCPU's index.
    #[must_use]
    pub fn first_error(&self) -> Option<(usize, FirstError)> {
        self.vcpus().enumerate().find_map(|(index, vcpu)| vcpu.first_error().map(|error| (index, error)))
    }
}

impl VcpuBlock {
    /// Records a gap (guest side; only the vCPU itself calls this).
    #[inline]
    pub fn record_gap(&self, before: u64, after: u64) {
        let index = self.gaps.load(Ordering::Relaxed);
        let record = &self.ring[ring_slot(index)];
        record.before.store(before, Ordering::Relaxed);
        record.after.store(after, Ordering::Relaxed);
        record.counter.store(self.counter.load(Ordering::Relaxed), Ordering::Relaxed);
        record.sequence.store(index + 1, Ordering::Relaxed);
        self.gaps.store(index + 1, Ordering::Release);
        let cycles = after.saturating_sub(before);
        self.gap_cycles.store(self.gap_cycles.load(Ordering::Relaxed).wrapping_add(cycles), Ordering::Relaxed);
        if cycles > self.max_gap.load(Ordering::Relaxed) {
            self.max_gap.store(cycles, Ordering::Relaxed);
        }
    }

    /// Counts an error and keeps it if it is the first (guest side; only the vCPU itself calls this).
    #[cold]
    pub fn record_error(&self, kind: ErrorKind, address: u64, expected: u64, found: u64) {
        let errors = self.errors.load(Ordering::Relaxed);
        if errors == 0 {
            self.first_error.kind.store(kind as u64, Ordering::Relaxed);
            self.first_error.address.store(address, Ordering::Relaxed);
            self.first_error.expected.store(expected, Ordering::Relaxed);
            self.first_error.found.store(found, Ordering::Relaxed);
        }
        self.errors.store(errors.saturating_add(1), Ordering::Release);
    }

    /// The first error, if there is one.
    #[must_use]
    pub fn first_error(&self) -> Option<FirstError> {
        if self.errors.load(Ordering::Acquire) == 0 {
            return None;
        }
        let kind = self.first_error.kind.load(Ordering::Relaxed);
        Some(FirstError {
            kind: ErrorKind::decode(kind).ok_or(kind),
            address: self.first_error.address.load(Ordering::Relaxed),
            expected: self.first_error.expected.load(Ordering::Relaxed),
            found: self.first_error.found.load(Ordering::Relaxed),
        })
    }

    /// The gaps with index `from` and later that are still in the ring, oldest first. Records that the guest overwrites
    /// meanwhile are left out, so the index of the first one tells how many were missed.
    pub fn gaps(&self, from: u64) -> impl Iterator<Item = Gap> + '_ {
        let end = self.gaps.load(Ordering::Acquire);
        let oldest = end.saturating_sub(RING as u64);
        (from.max(oldest)..end).filter_map(|index| self.gap(index))
    }

    /// The gap with this index, if it is still in the ring.
    #[must_use]
    pub fn gap(&self, index: u64) -> Option<Gap> {
        let record = &self.ring[ring_slot(index)];
        // Acquire on each load keeps the final look at the count behind all of them.
        let gap = Gap {
            before: record.before.load(Ordering::Acquire),
            after: record.after.load(Ordering::Acquire),
            counter: record.counter.load(Ordering::Acquire),
            index,
        };
        let sequence = record.sequence.load(Ordering::Acquire);
        // The guest may be writing record `count` right now, which stands where `count - RING` stood.
        let count = self.gaps.load(Ordering::Acquire);
        let intact = index < count && count - index < RING as u64;
        (intact && sequence == index.wrapping_add(1)).then_some(gap)
    }
}

/// Where the gap with this index stands in the ring.
#[inline]
const fn ring_slot(index: u64) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "smaller than RING")]
    let slot = (index % RING as u64) as usize;
    slot
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(ControlBlock, state) == 12);
    assert!(offset_of!(ControlBlock, tsc_khz) == 32);
    assert!(offset_of!(ControlBlock, ranges) == 48);
    assert!(offset_of!(ControlBlock, workset) == 80);
    assert!(offset_of!(ControlBlock, command) == 128);
    assert!(offset_of!(ControlBlock, heard) == 136);
    assert!(offset_of!(ControlBlock, tickets) == 192);
    assert!(offset_of!(ControlBlock, vcpu) == 4096);
    assert!(offset_of!(VcpuBlock, pages_verified) == 64);
    assert!(offset_of!(VcpuBlock, register_rounds) == 128);
    assert!(offset_of!(VcpuBlock, acknowledged) == 192);
    assert!(offset_of!(VcpuBlock, errors) == 256);
    assert!(offset_of!(VcpuBlock, ring) == 4096);
    assert!(size_of::<GapRecord>() == 32);
    assert!(size_of::<VcpuBlock>() == 4096 + RING * 32);
    assert!(size_of::<ControlBlock>() == 4096 + MAX_VCPUS as usize * size_of::<VcpuBlock>());
    assert!(RING.is_power_of_two());
};

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::vec::Vec;

    /// A zeroed control block, as a guest finds it.
    struct Block(*mut u8);

    impl Block {
        const LAYOUT: Layout = Layout::new::<ControlBlock>();

        fn new() -> Self {
            // SAFETY: the layout has a size.
            Self(unsafe { alloc_zeroed(Self::LAYOUT) })
        }
    }

    impl std::ops::Deref for Block {
        type Target = ControlBlock;

        fn deref(&self) -> &ControlBlock {
            // SAFETY: allocated with this layout and zeroed, which is valid for atomics; lives as long as `self`.
            unsafe { &*self.0.cast::<ControlBlock>() }
        }
    }

    impl Drop for Block {
        fn drop(&mut self) {
            // SAFETY: allocated in `new` with the same layout.
            unsafe { dealloc(self.0, Self::LAYOUT) }
        }
    }

    #[test]
    fn the_ring_keeps_the_latest_gaps_and_counts_all() {
        let block = Block::new();
        let vcpu = &block.vcpu[0];
        for index in 0..1000 {
            vcpu.record_gap(index * 100, index * 100 + 10 + index);
        }
        let gaps: Vec<_> = vcpu.gaps(0).collect();
        assert_eq!(vcpu.gaps.load(Ordering::Relaxed), 1000);
        assert_eq!(gaps.len(), RING - 1, "the slot that the guest writes next is not trusted");
        assert_eq!(gaps[0].index, 1000 - 511);
        assert!(gaps.windows(2).all(|pair| pair[1].index == pair[0].index + 1));
        assert_eq!(gaps.last().map(Gap::cycles), Some(1009));
        assert_eq!(vcpu.max_gap.load(Ordering::Relaxed), 1009);
        assert_eq!(vcpu.gaps(999).count(), 1);
        assert_eq!(vcpu.gaps(1000).count(), 0);
    }

    #[test]
    fn a_ring_with_nonsense_in_it_gives_no_gaps() {
        let block = Block::new();
        let vcpu = &block.vcpu[3];
        vcpu.gaps.store(u64::MAX, Ordering::Relaxed);
        assert_eq!(vcpu.gaps(0).count(), 0);
        assert_eq!(vcpu.gap(u64::MAX), None);
    }

    #[test]
    fn the_first_error_is_kept_and_all_are_counted() {
        let block = Block::new();
        block.vcpus.store(2, Ordering::Relaxed);
        assert_eq!(block.first_error(), None);
        block.vcpu[1].record_error(ErrorKind::PageStale, 0x40_0000, 2, 1);
        block.vcpu[1].record_error(ErrorKind::Twin, 0, 0, 0);
        let error = FirstError { kind: Ok(ErrorKind::PageStale), address: 0x40_0000, expected: 2, found: 1 };
        assert_eq!(block.first_error(), Some((1, error)));
        assert_eq!(block.errors(), 2);
        block.vcpu[1].first_error.kind.store(99, Ordering::Relaxed);
        assert_eq!(block.first_error().map(|(_, error)| error.kind), Some(Err(99)));
    }

    #[test]
    fn commands_are_told_apart_by_their_sequence() {
        let block = Block::new();
        block.vcpus.store(1, Ordering::Relaxed);
        let first = block.give(Command::VerifyAll);
        assert!(!block.all_acknowledged(first));
        block.vcpu[0].acknowledged.store(first.encode(), Ordering::Release);
        assert!(block.all_acknowledged(first));
        let second = block.give(Command::VerifyAll);
        assert_ne!(first, second);
        assert!(!block.all_acknowledged(second));
        assert_eq!(CommandWord::decode(second.encode()), Some(second));
        assert_eq!(CommandWord::decode(7), None);
        assert_eq!(CommandWord::decode(1 << 40), None);
    }

    #[test]
    fn a_block_is_ready_when_the_guest_says_so() {
        let block = Block::new();
        assert_eq!(block.guest_state(), None);
        block.version.store(VERSION, Ordering::Relaxed);
        block.magic.store(MAGIC, Ordering::Release);
        assert_eq!(block.guest_state(), Some(GuestState::Booting));
        block.state.store(77, Ordering::Relaxed);
        assert_eq!(block.guest_state(), None);
        block.vcpus.store(u32::MAX, Ordering::Relaxed);
        assert_eq!(block.vcpus().count(), MAX_VCPUS as usize);
    }
}
