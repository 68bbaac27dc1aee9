//! What a plain `memcpy` takes between the same kinds of mapping between which nil moves a guest's memory: private
//! anonymous memory on one side, a shared mapping of a tmpfs file on the other, both populated beforehand, both with the
//! pages that the guest's memory has. It is the most that a mover which copies with one thread could reach.

use super::ground::{Ground, Pages};
use super::memory::Demand;
use anyhow::{Context, ensure};
use nil_mover::Direction;
use nil_pool::{Bytes, GRANULE};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::fs::File;
use std::io;
use std::ptr::{self, NonNull};
use std::time::Instant;

/// How often each way is copied; the median counts.
const COPIES: usize = 5;

/// Bytes per second by `memcpy`, each way.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Yardstick {
    decouple: f64,
    recouple: f64,
}

impl Yardstick {
    /// Measures it with `bytes` bytes, which must be a multiple of [`GRANULE`].
    pub(crate) fn measure(bytes: u64, pages: Pages) -> anyhow::Result<Self> {
        ensure!(bytes > 0 && bytes.is_multiple_of(GRANULE), "{} is no multiple of 2 MiB", Bytes(bytes));
        let directory = tempfile::Builder::new().prefix("nil-").tempdir().context("cannot make a directory")?;
        let demand = Demand { guest: bytes, pool: bytes + GRANULE, beside: bytes };
        let ground = Ground::fleeting(directory.path(), demand, pages)?;
        let file = File::options().read(true).write(true).create_new(true).open(ground.pool())?;
        file.set_len(bytes)?;
        let length = usize::try_from(bytes)?;
        let dram = Mapping::new(None, length, pages).context("cannot map memory to copy")?;
        let pool = Mapping::new(Some(&file), length, pages).context("cannot map a file to copy")?;
        Ok(Self { decouple: median(|| dram.copy_to(&pool)), recouple: median(|| pool.copy_to(&dram)) })
    }

    /// One that is known, in bytes per second.
    #[cfg(test)]
    pub(crate) const fn of(decouple: f64, recouple: f64) -> Self {
        Self { decouple, recouple }
    }

    /// Bytes per second.
    pub(crate) fn bytes_per_s(self, direction: Direction) -> f64 {
        match direction {
            Direction::Decouple => self.decouple,
            Direction::Recouple => self.recouple,
        }
    }
}

/// The median of several copies' bytes per second.
fn median(mut copy: impl FnMut() -> f64) -> f64 {
    let mut speeds: [f64; COPIES] = std::array::from_fn(|_| copy());
    speeds.sort_by(f64::total_cmp);
    speeds[COPIES / 2]
}

/// Populated memory, aligned to 2 MiB, unmapped on drop.
#[derive(Debug)]
struct Mapping {
    /// What was mapped: more than `length`, so that there is an aligned part.
    reserved: NonNull<u8>,
    reserved_length: usize,
    start: *mut u8,
    length: usize,
}

impl Mapping {
    #[allow(unsafe_code)]
    fn new(file: Option<&File>, length: usize, pages: Pages) -> io::Result<Self> {
        let alignment = usize::try_from(GRANULE).unwrap_or(usize::MAX);
        let reserved_length = length.checked_add(alignment).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the kernel chooses the address, so that no mapping of this process is replaced.
        let reserved =
            unsafe { mmap_anonymous(ptr::null_mut(), reserved_length, ProtFlags::empty(), MapFlags::PRIVATE) }?;
        let reserved = NonNull::new(reserved.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let start = reserved.as_ptr().map_addr(|address| address.next_multiple_of(alignment));
        let mapping = Self { reserved, reserved_length, start, length };
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the range lies in what was reserved above, which nobody else knows, and replaces a part of just that.
        unsafe {
            match file {
                Some(file) => mmap(start.cast(), length, protection, MapFlags::SHARED | MapFlags::FIXED, file, 0),
                None => mmap_anonymous(start.cast(), length, protection, MapFlags::PRIVATE | MapFlags::FIXED),
            }
        }?;
        let huge = match pages {
            Pages::Huge => Advice::LinuxHugepage,
            Pages::Small => Advice::LinuxNoHugepage,
        };
        // SAFETY: neither advice changes what the mapping holds; it is ours. A kernel without huge pages refuses the first.
        let _ = unsafe { madvise(start.cast(), length, huge) };
        // SAFETY: as above.
        unsafe { madvise(start.cast(), length, Advice::LinuxPopulateWrite) }?;
        Ok(mapping)
    }

    /// Copies everything to `other`, which is as long. Bytes per second.
    #[allow(unsafe_code)]
    #[expect(clippy::cast_precision_loss, reason = "a speed to six digits")]
    fn copy_to(&self, other: &Self) -> f64 {
        assert_eq!(self.length, other.length, "both were made for the same number of bytes");
        let begun = Instant::now();
        // SAFETY: both are `length` bytes of mapped, writable memory of this process, two mappings that do not overlap;
        // nobody else knows them.
        unsafe { ptr::copy_nonoverlapping(self.start, other.start, self.length) };
        let seconds = begun.elapsed().as_secs_f64();
        self.length as f64 / seconds.max(1e-9)
    }
}

impl Drop for Mapping {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: `new` mapped exactly these bytes, and lent them to nobody.
        let unmapped = unsafe { munmap(self.reserved.as_ptr().cast(), self.reserved_length) };
        debug_assert!(unmapped.is_ok(), "munmap of a mapping of ours: {unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_between_two_mappings_arrives_whole() {
        let file = tempfile::tempfile().expect("a file");
        let length = 4 << 20;
        file.set_len(u64::try_from(length).expect("a length")).expect("room");
        let from = Mapping::new(None, length, Pages::Small).expect("memory");
        let to = Mapping::new(Some(&file), length, Pages::Small).expect("a mapping");
        #[allow(unsafe_code)]
        // SAFETY: one byte within the mapping.
        unsafe {
            from.start.add(length - 1).write(77);
        }
        assert!(from.copy_to(&to) > 0.0);
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, u64::try_from(length - 1).expect("an offset"))
            .expect("a byte");
        assert_eq!(byte, [77]);
    }

    #[test]
    fn the_yardstick_is_measured_both_ways() {
        let yardstick = Yardstick::measure(4 << 20, Pages::Huge).expect("a measurement");
        for direction in [Direction::Decouple, Direction::Recouple] {
            assert!(yardstick.bytes_per_s(direction) > 1.0);
        }
        assert!(Yardstick::measure(4096, Pages::Huge).is_err());
    }
}
