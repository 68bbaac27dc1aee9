//! What a process has mapped: which of it can be in the pool, which is, and which must stay, and why.

use crate::error::{Error, Result};
use crate::home::Home;
use crate::tracee;
use procfs::process::{MMPermissions, MMapPath, MemoryMap, Process, VmFlags};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

pub(crate) const PAGE: usize = 4096;

/// Private memory that can be moved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Area {
    pub(crate) range: Range<usize>,
    pub(crate) rights: i32,
}

/// Memory that is in the pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Pooled {
    pub(crate) range: Range<usize>,
    pub(crate) rights: i32,
    /// Where in the pool's file it begins.
    pub(crate) offset: u64,
}

/// Memory that is copied when the process moves, and why.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Stays {
    /// First address.
    pub address: usize,
    /// Its length.
    pub bytes: usize,
    /// Why it does not go into the pool.
    pub why: &'static str,
}

/// All mappings, by what becomes of them.
#[derive(Debug, Default)]
pub(crate) struct Maps {
    pub(crate) areas: Vec<Area>,
    pub(crate) pooled: Vec<Pooled>,
    pub(crate) stays: Vec<Stays>,
    /// The stack of the first thread.
    pub(crate) stack: Option<Range<usize>>,
    /// Instructions.
    pub(crate) text: Vec<Range<usize>>,
    /// Something that other devices or contexts write to behind page tables.
    pub(crate) rings: bool,
}

impl Maps {
    /// Reads them.
    pub(crate) fn read(pid: i32, home: &Home) -> Result<Self> {
        let read = Process::new(pid).and_then(|process| process.smaps());
        let found = read.map_err(|source| match source {
            procfs::ProcError::NotFound(_) => Error::Gone { pid },
            source => Error::Proc { pid, source },
        })?;
        let mut maps = Self::default();
        found.0.iter().for_each(|map| maps.add(map, home));
        Ok(maps)
    }

    fn add(&mut self, map: &MemoryMap, home: &Home) {
        let at = |address: u64| usize::try_from(address).unwrap_or(usize::MAX);
        let range = at(map.address.0)..at(map.address.1);
        let rights = rights(map.perms);
        if map.perms.contains(MMPermissions::EXECUTE) {
            self.text.push(range.clone());
        }
        self.rings |= matches!(&map.pathname, MMapPath::Other(name) if name.contains("aio"))
            || matches!(&map.pathname, MMapPath::Path(path) if path.to_string_lossy().contains("io_uring"));
        if map.pathname == MMapPath::Stack {
            self.stack = Some(range.clone());
        }
        if map.perms.contains(MMPermissions::SHARED) && home.is_file(map.dev, map.inode) {
            self.pooled.push(Pooled { range, rights, offset: map.offset });
            return;
        }
        match why_it_stays(map) {
            None => self.areas.push(Area { range, rights }),
            Some(why) => self.stays.push(Stays { address: range.start, bytes: range.len(), why }),
        }
    }
}

/// Why a mapping does not go into the pool; nothing for private anonymous memory.
fn why_it_stays(map: &MemoryMap) -> Option<&'static str> {
    let flags = map.extension.vm_flags;
    let flagged = [
        (VmFlags::GD, "a stack that grows"),
        (VmFlags::LO, "locked (mlock)"),
        (VmFlags::HT, "huge pages of hugetlbfs"),
        (VmFlags::DC, "not for children (MADV_DONTFORK)"),
        (VmFlags::WF, "empty in children (MADV_WIPEONFORK)"),
        (VmFlags::MG, "merged with equal pages (KSM)"),
        (VmFlags::IO, "a device's"),
        (VmFlags::PF, "the kernel's own"),
    ];
    match &map.pathname {
        MMapPath::Anonymous | MMapPath::Heap => {}
        MMapPath::Other(name) if name.starts_with("anon:") => {}
        MMapPath::Stack => return Some("a stack that grows"),
        MMapPath::Vdso | MMapPath::Vvar | MMapPath::Vsyscall => return Some("the kernel's own"),
        MMapPath::Path(_) if map.perms.contains(MMPermissions::SHARED) => return Some("a shared file"),
        MMapPath::Path(_) => return Some("a private mapping of a file"),
        _ => return Some("the kernel's own"),
    }
    if map.perms.contains(MMPermissions::SHARED) {
        return Some("shared anonymous memory");
    }
    if map.perms.contains(MMPermissions::EXECUTE) {
        return Some("anonymous instructions (a pool's file system may forbid to run them)");
    }
    if !map.perms.contains(MMPermissions::READ) {
        return Some("a guard (no access)");
    }
    flagged.iter().find(|(flag, _)| flags.contains(*flag)).map(|(_, why)| *why)
}

fn rights(permissions: MMPermissions) -> i32 {
    let all = [
        (MMPermissions::READ, libc::PROT_READ),
        (MMPermissions::WRITE, libc::PROT_WRITE),
        (MMPermissions::EXECUTE, libc::PROT_EXEC),
    ];
    all.iter().filter(|(bit, _)| permissions.contains(*bit)).fold(0, |rights, (_, right)| rights | right)
}

/// The page tables of a process, as `/proc` shows them.
#[derive(Debug)]
pub(crate) struct PageTables(File);

impl PageTables {
    pub(crate) fn open(pid: i32) -> std::io::Result<Self> {
        File::open(format!("/proc/{pid}/pagemap")).map(Self)
    }

    /// Whether any page of the range is in memory or swapped out; markers of protected pages look like the latter.
    pub(crate) fn has_pages(&self, range: &Range<usize>) -> std::io::Result<bool> {
        const PRESENT_OR_SWAPPED: u64 = 3 << 62;
        let mut words = vec![0; range.len() / PAGE * 8];
        self.0.read_exact_at(&mut words, (range.start / PAGE * 8) as u64)?;
        let mut words = words.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()));
        Ok(words.any(|word| word & PRESENT_OR_SWAPPED != 0))
    }
}

/// The first place in the process's instructions where one of these sequences stands.
pub(crate) fn find_instructions(pid: i32, text: &[Range<usize>], sequences: &[&[u8]]) -> Option<u64> {
    const STEP: usize = 1 << 20;
    const OVERLAP: usize = 16;
    let mut buffer = vec![0; STEP + OVERLAP];
    let steps =
        text.iter().flat_map(|range| range.clone().step_by(STEP).map(|at| at..(at + STEP + OVERLAP).min(range.end)));
    for part in steps {
        let read = tracee::read(pid, part.start, &mut buffer[..part.len()]).unwrap_or(0);
        let found = sequences
            .iter()
            .find_map(|sequence| buffer[..read].windows(sequence.len()).position(|window| window == *sequence));
        if let Some(found) = found {
            return Some((part.start + found) as u64);
        }
    }
    None
}
