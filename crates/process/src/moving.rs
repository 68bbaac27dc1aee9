//! Memory of a process that runs, into the pool and back, chunk by chunk.
//!
//! Both ways a chunk is write-protected (userfaultfd of the process itself), copied, and exchanged by one system call of the
//! helper; then stores that waited go on. No thread of the program is stopped for that. Only memory that has pages moves.

use crate::error::{Error, Result};
use crate::guard::{Guard, call};
use crate::helper::ANONYMOUS;
use crate::maps::{Area, Maps, PAGE, Pooled};
use crate::tracee;
use serde::Serialize;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Bytes that move at a time.
const CHUNK: usize = 256 << 10;
/// How often all memory is looked over for pages that have come.
const PASSES: u32 = 3;
/// `MAP_NORESERVE`.
const NORESERVE: u64 = 0x4000;

/// What became of a move.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct MoveReport {
    /// Bytes that moved.
    pub moved_bytes: u64,
    /// Chunks that they moved in.
    pub chunks: u64,
    /// How long it took.
    pub time: Duration,
    /// The longest that stores into one chunk waited.
    pub longest_stall: Duration,
    /// Why it ended early with all memory private: the program has done something that pool memory cannot follow.
    pub stalled: Option<&'static str>,
}

impl MoveReport {
    fn add(&mut self, bytes: usize, stall: Duration) {
        self.moved_bytes += bytes as u64;
        self.chunks += u64::from(bytes > 0);
        self.longest_stall = self.longest_stall.max(stall);
    }
}

impl Guard<'_> {
    /// Moves private memory that has pages into the pool.
    ///
    /// # Errors
    /// [`Error::NoRoom`] and what the kernel says; what has moved is in the pool then, all else is where it was.
    pub fn decouple(&mut self) -> Result<MoveReport> {
        let begin = Instant::now();
        let mut report = MoveReport::default();
        self.stalled = None;
        for _ in 0..PASSES {
            let before = report.moved_bytes;
            self.pass(&mut report)?;
            if report.moved_bytes == before || self.stalled.is_some() {
                break;
            }
        }
        self.refresh()?;
        report.stalled = self.stalled.take();
        report.time = begin.elapsed();
        Ok(report)
    }

    /// Looks over all memory once, in ascending order.
    fn pass(&mut self, report: &mut MoveReport) -> Result<()> {
        let mut cursor = 0;
        self.maps = None;
        loop {
            self.attend()?;
            if self.stalled.is_some() {
                return Ok(());
            }
            if !self.is_quiet() {
                std::thread::yield_now();
                continue;
            }
            let Some(part) = next_part(self.maps()?, cursor) else { return Ok(()) };
            cursor = part.range.end;
            let tools = self.tools.as_ref().ok_or(Error::Gone { pid: self.pid })?;
            if tools.pages.has_pages(&part.range).map_err(call(self.pid, "read the page tables of"))? {
                let (bytes, stall) = self.chunk_to_pool(&part)?;
                report.add(bytes, stall);
                cursor = part.range.start + bytes;
            }
        }
    }

    fn maps(&mut self) -> Result<&Maps> {
        let maps = match self.maps.take() {
            Some(maps) => maps,
            None => Maps::read(self.pid, self.home)?,
        };
        maps.pooled.iter().for_each(|pooled| self.home.note(pooled.offset, pooled.range.len() as u64));
        Ok(self.maps.insert(maps))
    }

    /// Moves the beginning of a part: as much of it as has a place in one stretch.
    fn chunk_to_pool(&mut self, part: &Area) -> Result<(usize, Duration)> {
        const SHARED_FIXED: u64 = 0x11;
        const POPULATE: u64 = 0x8000;
        let (offset, bytes) = self.home.take(part.range.len() as u64)?;
        let range = part.range.start..part.range.start + usize::try_from(bytes).unwrap_or(0);
        let protected = self.protect(&range)?;
        let copied = self.copy_to_pool(&range, offset);
        let holes = copied.inspect_err(|_| self.lift(&range))?;
        let flags = if holes { SHARED_FIXED } else { SHARED_FIXED | POPULATE };
        let [at, pool] = [range.start as u64, self.tools.as_ref().map_or(u64::MAX, |tools| tools.pool)];
        let rights = u64::from(part.rights.unsigned_abs());
        let placed = self.helper()?.call(libc::SYS_mmap, [at, bytes, rights, flags, pool, offset]);
        placed.inspect_err(|_| self.lift(&range))?;
        let dontfork = u64::from(libc::MADV_DONTFORK.unsigned_abs());
        let kept = self.helper()?.call(libc::SYS_madvise, [at, bytes, dontfork, 0, 0, 0]);
        self.wake(&range)?;
        kept?;
        Ok((range.len(), protected.elapsed()))
    }

    /// Copies protected memory; whether that left holes.
    fn copy_to_pool(&mut self, range: &Range<usize>, offset: u64) -> Result<bool> {
        let (pid, home) = (self.pid, self.home);
        let buffer = self.buffer()?;
        buffer.resize(range.len(), 0);
        let read = tracee::read(pid, range.start, buffer).map_err(call(pid, "read memory of"))?;
        if read != range.len() {
            return Err(call(pid, "read all memory of")(std::io::ErrorKind::UnexpectedEof.into()));
        }
        home.fill(offset, buffer).map_err(call(pid, "write to the pool the memory of"))
    }

    fn buffer(&mut self) -> Result<&mut Vec<u8>> {
        self.tools.as_mut().map(|tools| &mut tools.buffer).ok_or(Error::Gone { pid: self.pid })
    }

    /// Moves all memory back.
    ///
    /// # Errors
    /// What the kernel says; what has moved is private then, all else is in the pool.
    pub fn recouple(&mut self) -> Result<MoveReport> {
        let begin = Instant::now();
        let mut report = MoveReport::default();
        loop {
            self.attend()?;
            if !self.is_quiet() {
                std::thread::yield_now();
                continue;
            }
            self.maps = None;
            let Some(first) = self.maps()?.pooled.first().cloned() else { break };
            // Events are handled between two pieces of some MiB; what is mapped may be another thing then.
            let piece = first.range.start..first.range.end.min(first.range.start + 64 * CHUNK);
            self.part_to_dram(&first, &piece, &mut report)?;
        }
        self.maps = None;
        self.home.forget();
        self.refresh()?;
        report.time = begin.elapsed();
        Ok(report)
    }

    /// Makes the part of a range private that is in the pool. Nobody changes mappings meanwhile.
    pub(crate) fn make_private(&mut self, range: &Range<usize>) -> Result<()> {
        // Chunks that have moved since the maps were read are in them as they were.
        self.maps = None;
        let pooled = self.maps()?.pooled.clone();
        for pooled in &pooled {
            let part = pooled.range.start.max(range.start)..pooled.range.end.min(range.end);
            if part.start < part.end {
                self.part_to_dram(pooled, &part, &mut MoveReport::default())?;
            }
        }
        self.maps = None;
        Ok(())
    }

    /// Moves a part of one mapping. The new memory is one mapping, too, as long as its chunks come from one place.
    fn part_to_dram(&mut self, pooled: &Pooled, part: &Range<usize>, report: &mut MoveReport) -> Result<()> {
        let length = (part.len() + CHUNK) as u64;
        let (rights, flags) = (ANONYMOUS.0, ANONYMOUS.1 | NORESERVE);
        let mirror = self.helper()?.call(libc::SYS_mmap, [0, length, rights, flags, u64::MAX, 0])?;
        let mirror_at = usize::try_from(mirror).unwrap_or(usize::MAX);
        let moved = part.clone().step_by(CHUNK).try_for_each(|start| {
            let chunk = start..(start + CHUNK).min(part.end);
            let stall = self.chunk_to_dram(pooled, &chunk, mirror_at + (start - part.start))?;
            report.add(chunk.len(), stall);
            Ok(())
        });
        self.helper()?.call(libc::SYS_munmap, [mirror, length, 0, 0, 0, 0])?;
        moved
    }

    fn chunk_to_dram(&mut self, pooled: &Pooled, chunk: &Range<usize>, mirror: usize) -> Result<Duration> {
        const MAYMOVE_FIXED: u64 = 3;
        let (pid, home) = (self.pid, self.home);
        let offset = pooled.offset + (chunk.start - pooled.range.start) as u64;
        let [from, to, bytes] = [mirror as u64, chunk.start as u64, chunk.len() as u64];
        let protected = self.protect(chunk)?;
        let copied = self.copy_to_dram(chunk.len(), offset, mirror);
        let placed = copied.and_then(|()| {
            let rights = u64::from(pooled.rights.unsigned_abs());
            if rights != ANONYMOUS.0 {
                self.helper()?.call(libc::SYS_mprotect, [from, bytes, rights, 0, 0, 0])?;
            }
            self.helper()?.call(libc::SYS_mremap, [from, bytes, bytes, MAYMOVE_FIXED, to, 0])
        });
        placed.inspect_err(|_| self.lift(chunk))?;
        self.wake(chunk)?;
        let stall = protected.elapsed();
        home.free(offset, bytes).map_err(call(pid, "free in the pool the memory of"))?;
        Ok(stall)
    }

    fn copy_to_dram(&mut self, bytes: usize, offset: u64, mirror: usize) -> Result<()> {
        let (pid, home) = (self.pid, self.home);
        if !home.has_data(offset, bytes as u64) {
            return Ok(());
        }
        let buffer = self.buffer()?;
        buffer.resize(bytes, 0);
        home.read(offset, buffer).map_err(call(pid, "read from the pool the memory of"))?;
        tracee::write(pid, mirror, buffer).map_err(call(pid, "write memory of"))
    }

    /// From now on stores into the range wait; since when.
    fn protect(&self, range: &Range<usize>) -> Result<Instant> {
        let error = call(self.pid, "write-protect memory of");
        let userfault = &self.tools.as_ref().ok_or(Error::Gone { pid: self.pid })?.userfault;
        userfault.register(range).map_err(&error)?;
        let begin = Instant::now();
        userfault.protect(range).inspect_err(|_| self.lift(range)).map_err(error)?;
        Ok(begin)
    }

    /// Takes the protection back: the chunk stays where it is.
    fn lift(&self, range: &Range<usize>) {
        if let Some(tools) = &self.tools {
            // Whatever fails here, the protection ends with the descriptor.
            let _ = tools.userfault.unregister(range);
            let _ = tools.userfault.wake(range);
        }
    }

    fn wake(&self, range: &Range<usize>) -> Result<()> {
        let tools = self.tools.as_ref().ok_or(Error::Gone { pid: self.pid })?;
        tools.userfault.wake(range).map_err(call(self.pid, "wake threads of"))
    }
}

/// The next chunk of private memory from an address on: chunks end at multiples of their size.
fn next_part(maps: &Maps, cursor: usize) -> Option<Area> {
    let area = maps.areas.iter().find(|area| area.range.end > cursor)?;
    let start = area.range.start.max(cursor);
    let end = area.range.end.min((start / CHUNK + 1) * CHUNK);
    debug_assert!(start.is_multiple_of(PAGE) && start < end, "{start:#x}..{end:#x}");
    Some(Area { range: start..end, rights: area.rights })
}
