//! A guest's memory in a pool of its own, and threads that store into all of it.
#![allow(unsafe_code)]

use crate::GuestMemory;
use nil_pool::{
    CreateOptions, Epoch, GuestControl, GuestKind, GuestRequest, HostId, HostIdentity, HostKind, Membership,
    MemoryHome, Place, Placed, Pool, Source, StateArea,
};
use std::ffi::CStr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use tempfile::TempDir;

const PAGE: usize = 4096;

/// A guest with its memory mapped, ready to be moved.
pub(super) struct Ground {
    pub(super) memory: Arc<GuestMemory>,
    pub(super) control: GuestControl,
    pub(super) state: StateArea,
    pub(super) host: Membership,
    pub(super) path: PathBuf,
    _directory: TempDir,
}

impl Ground {
    /// A guest in DRAM, with room for it in a pool on /dev/shm.
    pub(super) fn in_dram(bytes: usize) -> Self {
        Self::at(Path::new("/dev/shm"), bytes, MemoryHome::Dram)
    }

    /// A guest in a pool on /dev/shm.
    pub(super) fn in_pool(bytes: usize) -> Self {
        Self::at(Path::new("/dev/shm"), bytes, MemoryHome::Pool)
    }

    pub(super) fn at(place: &Path, bytes: usize, home: MemoryHome) -> Self {
        let directory = tempfile::tempdir_in(place).expect("a directory");
        let path = directory.path().join("pool");
        let options = CreateOptions { size: Some(bytes as u64 + (64 << 20)), ..CreateOptions::default() };
        let pool = Pool::create(&path, &options).expect("a pool");
        let agent = HostIdentity { id: HostId::random(), name: "a".to_owned(), kind: HostKind::Agent, address: None };
        let host = pool.join(&agent).expect("membership");
        let request = GuestRequest {
            name: "g".to_owned(),
            kind: GuestKind::Vm,
            memory_bytes: bytes as u64,
            home,
            vcpus: 1,
            features: 0,
        };
        let control = host.create_guest(&request).expect("a guest");
        control.publish(host.slot()).expect("an owner");
        let state = control.map_state().expect("its state area");
        let memory = match home {
            MemoryHome::Dram => GuestMemory::in_dram(&control, &state, None),
            MemoryHome::Pool => GuestMemory::in_pool(&control, &state),
        };
        let memory = Arc::new(memory.expect("its memory"));
        memory.set_owner(host.slot(), Epoch(1));
        host.place_memory(&control).expect("a capacity for its memory");
        Self { memory, control, state, host, path, _directory: directory }
    }

    /// A word of the memory.
    pub(super) fn word(&self, offset: usize) -> &AtomicU64 {
        word(&self.memory, offset)
    }
}

impl Ground {
    /// Whether the memory lies in huge pages now.
    pub(super) fn is_huge(&self) -> bool {
        let pages = crate::pagemap::PageMap::open().expect("/proc");
        let addresses = self.memory.range().addresses();
        (addresses.start..addresses.end)
            .step_by(2 << 20)
            .all(|start| pages.is_huge(&(start..start + (2 << 20))).expect("Linux 6.7"))
    }

    /// Cuts the pool's file off where this byte of the memory lies in it, and says where that is.
    pub(super) fn cut_off(&self, offset: usize) -> Source {
        let source = self.control.map_memory().expect("its capacity").source_at(offset);
        let file = std::fs::File::options().write(true).open(&self.path).expect("the pool's file");
        file.set_len(source.pool_offset.0).expect("a shorter file");
        source
    }

    /// Overwrites the placement word of a granule of a guest of which nothing has moved yet.
    pub(super) fn damage_placement(&self, granule: usize) {
        let place = Place::Local { host: self.host.slot(), epoch: Epoch(0) };
        let run = Placed::cold(place).encode().to_le_bytes().repeat(self.memory.placement().granules());
        let bytes = std::fs::read(&self.path).expect("the pool's file");
        let at = bytes.windows(run.len()).position(|window| window == run).expect("the placement map");
        let file = std::fs::File::options().write(true).open(&self.path).expect("the pool's file");
        file.write_all_at(&u64::MAX.to_le_bytes(), (at + granule * 8) as u64).expect("written");
    }
}

/// A file system of memory, unmounted on drop.
pub(super) struct Mount {
    directory: TempDir,
}

impl Mount {
    /// Mounts a tmpfs with huge pages where that is permitted; says so where it is not.
    pub(super) fn try_huge() -> Option<Self> {
        Self::new("tmpfs", c"huge=advise")
            .inspect_err(|error| eprintln!("skipped: a tmpfs with huge pages cannot be mounted here: {error}"))
            .ok()
    }

    fn new(kind: &str, options: &CStr) -> std::io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("nil-test", directory.path(), kind, flags, Some(options))?;
        Ok(Self { directory })
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // What is still open in it goes with whoever has it open.
        let unmounted = rustix::mount::unmount(self.directory.path(), rustix::mount::UnmountFlags::DETACH);
        debug_assert!(unmounted.is_ok(), "what was mounted can be unmounted");
    }
}

/// How many huge pages of 2 MiB the machine keeps for files (Documentation/admin-guide/mm/hugetlbpage.rst).
const KEPT: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// A hugetlbfs, and huge pages for it. Unmounted, and the machine left as it was, on drop.
pub(super) struct HugeFiles {
    mount: Mount,
    kept_before: String,
}

impl HugeFiles {
    /// Mounts one with this many huge pages where that is permitted; says so where it is not.
    pub(super) fn try_new(pages: usize) -> Option<Self> {
        match Self::mount(pages) {
            Ok(files) if files.kept() >= pages => Some(files),
            Ok(files) => {
                eprintln!(
                    "skipped: this machine can keep {} huge pages for files, and {pages} are wanted",
                    files.kept()
                );
                None
            }
            Err(error) => {
                eprintln!("skipped: there can be no hugetlbfs here: {error}");
                None
            }
        }
    }

    fn mount(pages: usize) -> std::io::Result<Self> {
        let kept_before = std::fs::read_to_string(KEPT)?;
        let files = Self { mount: Mount::new("hugetlbfs", c"pagesize=2M")?, kept_before };
        let wanted = files.kept_before.trim().parse().unwrap_or(0) + pages;
        std::fs::write(KEPT, wanted.to_string())?;
        Ok(files)
    }

    fn kept(&self) -> usize {
        let kept = |text: &str| text.trim().parse().unwrap_or(0usize);
        kept(&std::fs::read_to_string(KEPT).unwrap_or_default()).saturating_sub(kept(&self.kept_before))
    }

    pub(super) fn path(&self) -> &Path {
        self.mount.path()
    }
}

impl Drop for HugeFiles {
    fn drop(&mut self) {
        let restored = std::fs::write(KEPT, self.kept_before.trim());
        debug_assert!(restored.is_ok(), "what was set can be set back");
    }
}

fn word(memory: &GuestMemory, offset: usize) -> &AtomicU64 {
    assert!(offset.is_multiple_of(8) && offset + 8 <= memory.len());
    // SAFETY: the word lies in the memory's range, which is mapped as long as it lives, and everybody accesses it atomically.
    unsafe { &*memory.as_ptr().add(offset).cast::<AtomicU64>() }
}

/// Threads that store into every page of a guest's memory, in turn, and look whether what they stored last is still there.
pub(super) struct Storm {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
}

impl Storm {
    /// Starts this many threads, each with pages of its own.
    pub(super) fn over(ground: &Ground, threads: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let begun = Arc::new(AtomicU64::new(0));
        let start = |thread: usize| {
            let (memory, stop, begun) = (Arc::clone(&ground.memory), Arc::clone(&stop), Arc::clone(&begun));
            std::thread::spawn(move || {
                let pages: Vec<usize> = (thread..memory.len() / PAGE).step_by(threads).collect();
                let mut rounds = 0;
                let mut lost = 0;
                while !stop.load(Ordering::Relaxed) {
                    lost += round(&memory, &pages, rounds);
                    rounds += 1;
                    begun.fetch_add(u64::from(rounds == 1), Ordering::Relaxed);
                }
                lost + pages
                    .iter()
                    .filter(|page| word(&memory, place(**page)).load(Ordering::Relaxed) != rounds)
                    .count() as u64
            })
        };
        let threads: Vec<_> = (0..threads).map(start).collect();
        // Everything has been stored into once.
        while begun.load(Ordering::Relaxed) < threads.len() as u64 {
            std::thread::yield_now();
        }
        Self { stop, threads }
    }

    /// Ends the threads; how many of their stores were lost.
    pub(super) fn lost_stores(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().expect("a thread that ends")).sum()
    }
}

/// Where a page has the number of its last round: at another place in each page, the same in all rounds.
fn place(page: usize) -> usize {
    page * PAGE + page * 8 % PAGE
}

/// Stores the number of the next round into every page; how many did not have that of the last one.
fn round(memory: &GuestMemory, pages: &[usize], last: u64) -> u64 {
    let mut lost = 0;
    for &page in pages {
        let word = word(memory, place(page));
        lost += u64::from(word.load(Ordering::Relaxed) != last);
        word.store(last + 1, Ordering::Relaxed);
    }
    lost
}
