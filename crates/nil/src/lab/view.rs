//! The ways to look into a guest's memory from outside, behind one seam.
//!
//! ```text
//! Pool     its capacity in a pool, mapped here         live
//! File     a memory file of another program, mapped    live
//! Bytes    memory of the process that runs it,         copies, wherever that memory lies: in DRAM, in the pool, or
//!          or a file that must not be mapped           half way between
//! ```
//!
//! Mapping a file can change it: a page of a tmpfs that is looked at through a mapping comes into being, and a destination
//! that waits for that very page from its source finds it there already. Reading does not, hence `Bytes` for such files.
//!
//! What is read is hostile (the guest writes it). A copy or a mapping is seen through [`ControlBlock`]'s atomics, in which
//! any bits are valid.

use super::file_view::FileView;
use super::interrupt;
use anyhow::{Context, ensure};
use nil_guest_abi::layout::CONTROL_OFFSET;
use nil_guest_abi::{Command, CommandWord, ControlBlock, VcpuBlock};
use nil_pool::{CapacityMapping, GuestControl};
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::offset_of;
use std::ops::{Deref, Range};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How much of a guest's memory must be there to watch it.
const NEEDED: usize = CONTROL_OFFSET + size_of::<ControlBlock>();
/// How long a guest may take to come by all of its memory twice.
const PASS_PATIENCE: Duration = Duration::from_secs(120);
/// How long a page may refuse to be written: that is how long a mover may keep it write-protected, and far more.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two attempts.
const PAUSE: Duration = Duration::from_micros(100);

/// A guest's memory, as this process sees it.
#[derive(Debug)]
pub(crate) enum View {
    /// Its capacity in a pool.
    Pool(CapacityMapping),
    /// The beginning of a memory file.
    File(FileView),
    /// Bytes that are read and written one by one.
    Bytes(Bytes),
}

/// Memory that is read and written through a file descriptor.
#[derive(Debug)]
pub(crate) struct Bytes {
    file: File,
    path: PathBuf,
    /// Where in the file the guest's memory begins.
    start: u64,
}

/// A part of a guest's control block: the thing itself, or a copy of it taken just now.
#[derive(Debug)]
pub(crate) enum Look<'view, T> {
    /// In memory that is shared with the guest.
    Live(&'view T),
    /// As it was.
    Copy(Box<T>),
}

impl<T> Deref for Look<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Self::Live(part) => part,
            Self::Copy(part) => part,
        }
    }
}

/// What a view reads from.
enum Source<'view> {
    Live(&'view ControlBlock),
    Bytes(&'view Bytes),
}

impl View {
    /// Looks through the pool. The guest's memory must lie there, all of it, for as long as anything is to be seen.
    pub(crate) fn of_pool(guest: &GuestControl) -> anyhow::Result<Self> {
        let memory = guest.map_memory().context("cannot map the guest's memory to watch it")?;
        ensure!(
            memory.len() >= NEEDED,
            "the guest's memory is too small for its control block: {} bytes",
            memory.len()
        );
        Ok(Self::Pool(memory))
    }

    /// Looks through a mapping of a memory file.
    pub(crate) fn of_file(path: &Path) -> anyhow::Result<Self> {
        let view = FileView::open(path, NEEDED).with_context(|| format!("cannot map {}", path.display()))?;
        Ok(Self::File(view))
    }

    /// Looks into a memory file without mapping it.
    pub(crate) fn of_unmapped_file(path: &Path) -> anyhow::Result<Self> {
        Bytes::open(path.to_path_buf(), 0).map(Self::Bytes)
    }

    /// Looks into the process that runs the guest, which has the guest's memory at `address`.
    pub(crate) fn of_process(pid: i32, address: u64) -> anyhow::Result<Self> {
        Bytes::open(format!("/proc/{pid}/mem").into(), address).map(Self::Bytes)
    }

    /// The control block, live or as it is now.
    pub(crate) fn block(&self) -> anyhow::Result<Look<'_, ControlBlock>> {
        match self.source() {
            Source::Live(block) => Ok(Look::Live(block)),
            Source::Bytes(bytes) => Ok(Look::Copy(bytes.copy_of_block()?)),
        }
    }

    /// The block of one vCPU, live or as it is now; of the first [`MAX_VCPUS`].
    ///
    /// [`MAX_VCPUS`]: nil_guest_abi::layout::MAX_VCPUS
    pub(crate) fn vcpu(&self, index: usize) -> anyhow::Result<Look<'_, VcpuBlock>> {
        match self.source() {
            Source::Live(block) => Ok(Look::Live(&block.vcpu[index])),
            Source::Bytes(bytes) => Ok(Look::Copy(bytes.copy_of_vcpu(index)?)),
        }
    }

    /// How many vCPUs the guest says that it has.
    pub(crate) fn vcpus(&self) -> anyhow::Result<usize> {
        Ok(self.block()?.vcpus().count())
    }

    /// The latest reading of a vCPU's clock.
    pub(crate) fn last_tsc(&self, index: usize) -> anyhow::Result<u64> {
        match self.source() {
            Source::Live(block) => Ok(block.vcpu[index].last_tsc.load(Ordering::Relaxed)),
            Source::Bytes(bytes) => bytes.word(vcpu_at(index) + offset_of!(VcpuBlock, last_tsc)),
        }
    }

    /// The turns of its loop that a vCPU has made.
    pub(crate) fn turns(&self, index: usize) -> anyhow::Result<u64> {
        match self.source() {
            Source::Live(block) => Ok(block.vcpu[index].counter.load(Ordering::Acquire)),
            Source::Bytes(bytes) => bytes.word(vcpu_at(index) + offset_of!(VcpuBlock, counter)),
        }
    }

    /// The passes that each vCPU has made over the memory that it works on.
    pub(crate) fn passes(&self) -> anyhow::Result<Vec<u64>> {
        Ok(self.block()?.vcpus().map(|vcpu| vcpu.passes.load(Ordering::Acquire)).collect())
    }

    /// Waits until the guest has come by every page that it works on. A guest that works on none is ready as it is.
    pub(crate) fn await_pass(&self) -> anyhow::Result<()> {
        if self.block()?.workset.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let before = self.passes()?;
        interrupt::wait_for("the guest has not come by all of its memory", PASS_PATIENCE, || {
            // The pass that is under way counts as none.
            let all = self.passes()?.iter().zip(&before).all(|(now, then)| now.wrapping_sub(*then) > 1);
            Ok(all.then_some(()))
        })
    }

    /// Gives the guest a command; the word to wait for.
    pub(crate) fn give(&self, command: Command) -> anyhow::Result<CommandWord> {
        let block = self.block()?;
        // In a copy this only works out which word comes next.
        let word = block.give(command);
        if let Self::Bytes(bytes) = self {
            bytes.write(CONTROL_OFFSET + offset_of!(ControlBlock, command), &word.encode().to_le_bytes())?;
        }
        Ok(word)
    }

    /// Tells the guest what another one was heard to say, if its memory can be written just now.
    pub(crate) fn let_hear(&self, word: u64) -> anyhow::Result<()> {
        match self {
            Self::Bytes(bytes) => {
                bytes.try_write(CONTROL_OFFSET + offset_of!(ControlBlock, heard), &word.to_le_bytes())
            }
            Self::Pool(_) | Self::File(_) => {
                self.block()?.heard.store(word, Ordering::Release);
                Ok(())
            }
        }
    }

    /// The addresses at which this process has the guest's memory mapped, if it has.
    pub(crate) fn mapping(&self) -> Option<Range<usize>> {
        let (start, length) = match self {
            Self::Pool(mapping) => (mapping.as_ptr().addr(), mapping.len()),
            Self::File(view) => (view.as_ptr().addr(), view.len()),
            Self::Bytes(_) => return None,
        };
        Some(start..start + length)
    }

    #[allow(unsafe_code)]
    fn source(&self) -> Source<'_> {
        let start = match self {
            Self::Pool(mapping) => mapping.as_ptr(),
            Self::File(view) => view.as_ptr(),
            Self::Bytes(bytes) => return Source::Bytes(bytes),
        };
        // SAFETY: `of_pool` and `of_file` have checked that the mapping is long enough for the block. Both kinds of
        // mapping are page aligned and writable, and stay mapped as long as `self`. Nobody in this process touches these
        // bytes other than through the block's atomics.
        Source::Live(unsafe { ControlBlock::in_memory(start) })
    }
}

/// Where the block of a vCPU lies in the guest's memory.
const fn vcpu_at(index: usize) -> usize {
    CONTROL_OFFSET + offset_of!(ControlBlock, vcpu) + index * size_of::<VcpuBlock>()
}

impl Bytes {
    fn open(path: PathBuf, start: u64) -> anyhow::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.with_context(|| format!("cannot look into {}", path.display()))?;
        Ok(Self { file, path, start })
    }

    /// The header and the blocks of the vCPUs that the header names; the others stay zero.
    fn copy_of_block(&self) -> anyhow::Result<Box<ControlBlock>> {
        let mut block = zeroed::<ControlBlock>();
        let header = offset_of!(ControlBlock, vcpu);
        self.read(CONTROL_OFFSET, &mut bytes_of(&mut *block)[..header])?;
        let vcpus = block.vcpus().count() * size_of::<VcpuBlock>();
        self.read(CONTROL_OFFSET + header, &mut bytes_of(&mut *block)[header..header + vcpus])?;
        block.vcpus().enumerate().try_for_each(|(index, vcpu)| self.count_again(index, vcpu))?;
        Ok(block)
    }

    fn copy_of_vcpu(&self, index: usize) -> anyhow::Result<Box<VcpuBlock>> {
        let mut vcpu = zeroed::<VcpuBlock>();
        self.read(vcpu_at(index), bytes_of(&mut *vcpu))?;
        self.count_again(index, &vcpu)?;
        Ok(vcpu)
    }

    /// Replaces a copy's count of gaps by the count as it is now that the ring has been copied. So whoever reads the copy
    /// sees which records may have been overwritten while they were copied, as with the ring itself.
    fn count_again(&self, index: usize, copy: &VcpuBlock) -> anyhow::Result<()> {
        let count = self.word(vcpu_at(index) + offset_of!(VcpuBlock, gaps))?;
        copy.gaps.store(count, Ordering::Relaxed);
        Ok(())
    }

    fn word(&self, offset: usize) -> anyhow::Result<u64> {
        let mut bytes = [0; 8];
        self.read(offset, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn read(&self, offset: usize, bytes: &mut [u8]) -> anyhow::Result<()> {
        let at = self.at(offset)?;
        self.file.read_exact_at(bytes, at).with_context(|| format!("cannot read the guest's memory in {self}"))
    }

    /// Writes, and tries again while the page is write-protected: the kernel does not wait for a page on behalf of another
    /// process, it fails.
    fn write(&self, offset: usize, bytes: &[u8]) -> anyhow::Result<()> {
        let at = self.at(offset)?;
        let begun = Instant::now();
        loop {
            match self.file.write_all_at(bytes, at) {
                Err(error) if is_passing(&error) && begun.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
                done => return done.with_context(|| format!("cannot write the guest's memory in {self}")),
            }
        }
    }

    fn try_write(&self, offset: usize, bytes: &[u8]) -> anyhow::Result<()> {
        let written = self.file.write_all_at(bytes, self.at(offset)?);
        written.with_context(|| format!("cannot write the guest's memory in {self}"))
    }

    fn at(&self, offset: usize) -> anyhow::Result<u64> {
        self.start.checked_add(u64::try_from(offset)?).context("the guest's memory has no such address")
    }
}

/// Whether a write may succeed a little later.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EFAULT | libc::EAGAIN | libc::EINTR))
        || error.kind() == io::ErrorKind::WriteZero
}

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.path.display().fmt(f)
    }
}

/// What consists of integers alone, without padding: any bytes are a value of it.
///
/// # Safety
/// Just that.
#[allow(unsafe_code)]
unsafe trait Plain {}

// SAFETY: both are `repr(C)` and consist of atomics and reserved integers; `nil_guest_abi` asserts their sizes, which
// leave no room for padding.
#[allow(unsafe_code)]
unsafe impl Plain for ControlBlock {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Plain for VcpuBlock {}

#[allow(unsafe_code)]
fn zeroed<T: Plain>() -> Box<T> {
    let mut value = Box::<T>::new_uninit();
    // SAFETY: the box has room for one value, and all bytes zero are a value of a plain type.
    unsafe {
        value.as_mut_ptr().write_bytes(0, 1);
        value.assume_init()
    }
}

#[allow(unsafe_code)]
fn bytes_of<T: Plain>(value: &mut T) -> &mut [u8] {
    // SAFETY: the bytes are those of `value`, which is borrowed exclusively; a plain type has no padding, and whatever is
    // written into it is a value.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(value).cast(), size_of::<T>()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nil_guest_abi::control::{MAGIC, VERSION};
    use nil_guest_abi::{Gap, GuestState};

    /// A memory file with a guest of two vCPUs in it, and a live view of it.
    fn guest() -> (tempfile::NamedTempFile, View) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(u64::try_from(NEEDED).expect("a length")).expect("room");
        let live = View::of_file(file.path()).expect("a view");
        let block = live.block().expect("a block");
        block.magic.store(MAGIC, Ordering::Relaxed);
        block.version.store(VERSION, Ordering::Relaxed);
        block.state.store(GuestState::Running as u32, Ordering::Relaxed);
        block.vcpus.store(2, Ordering::Relaxed);
        drop(block);
        (file, live)
    }

    fn gaps_of(view: &View, index: usize) -> Vec<Gap> {
        view.vcpu(index).expect("a vCPU").gaps(0).collect()
    }

    #[test]
    fn a_copy_shows_what_the_block_itself_shows() {
        let (file, live) = guest();
        let second = live.vcpu(1).expect("a vCPU");
        second.counter.store(77, Ordering::Relaxed);
        second.last_tsc.store(78, Ordering::Relaxed);
        (0..600).for_each(|at| second.record_gap(at * 10, at * 10 + 5));
        let copy = View::of_unmapped_file(file.path()).expect("a view");
        assert_eq!(copy.vcpus().expect("a block"), 2);
        assert_eq!(copy.block().expect("a block").guest_state(), Some(GuestState::Running));
        assert_eq!((copy.turns(1).expect("a word"), copy.last_tsc(1).expect("a word")), (77, 78));
        assert_eq!(gaps_of(&copy, 1), gaps_of(&live, 1));
        assert_eq!(gaps_of(&copy, 1).len(), 511, "the oldest may be about to be overwritten");
        assert_eq!(copy.block().expect("a block").vcpu[1].gaps(0).count(), 511);
        assert_eq!(gaps_of(&copy, 0), []);
    }

    #[test]
    fn a_command_that_is_written_byte_by_byte_arrives_as_one() {
        let (file, live) = guest();
        let copy = View::of_unmapped_file(file.path()).expect("a view");
        let first = copy.give(Command::VerifyAll).expect("written");
        let second = copy.give(Command::Stop).expect("written");
        assert_eq!((first.sequence, second.sequence), (1, 2));
        assert_eq!(live.block().expect("a block").command.load(Ordering::Relaxed), second.encode());
    }

    #[test]
    fn memory_of_a_process_is_read_at_its_address() {
        let (_file, live) = guest();
        live.vcpu(0).expect("a vCPU").counter.store(4711, Ordering::Relaxed);
        let address = u64::try_from(live.mapping().expect("a mapping").start).expect("an address");
        let me = i32::try_from(std::process::id()).expect("a pid");
        let view = View::of_process(me, address).expect("a view");
        assert_eq!(view.turns(0).expect("a word"), 4711);
        let word = view.give(Command::VerifyAll).expect("written");
        assert_eq!(live.block().expect("a block").command.load(Ordering::Relaxed), word.encode());
        let nowhere = View::of_process(me, 0).expect("a view");
        assert!(nowhere.block().expect_err("nothing is mapped there").to_string().contains("/proc/"));
    }
}
