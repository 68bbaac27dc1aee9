//! A guest's memory in a pool of its own, and threads that store into all of it.

#![allow(unsafe_code)]

use crate::GuestMemory;
use nil_pool::{
    CreateOptions, Epoch, GuestControl, GuestKind, GuestRequest, HostId, HostIdentity, HostKind, Membership,
    MemoryHome, Pool, StateArea,
};
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
        let agent = HostIdentity { id: HostId::random(), name: "a".to_owned(), kind: HostKind::Agent };
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
