//! Following a guest's gap records while somebody else moves it.
//!
//! A guest that lands on cold memory records a gap for every page that it touches, and overwrites its ring within
//! milliseconds. So a thread copies the records as they come, from every memory file that the guest has meanwhile: a
//! migration that copies memory gives it a new one.

use super::canary::become_real_time;
use super::frequency::Frequency;
use super::observe::Observer;
use anyhow::{Context, anyhow};
use nil_guest_abi::Gap;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the records are copied.
const PERIOD: Duration = Duration::from_micros(300);
/// How often new memory files are looked for, in periods.
const NEW_FILES: u32 = 16;
/// The most records that are kept; the oldest go first.
const KEPT: usize = 1 << 20;

/// The thread; it ends when this is finished or dropped.
#[derive(Debug)]
pub(crate) struct Recorder {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<BTreeMap<u64, Gap>>>,
}

impl Recorder {
    /// Follows the first vCPU of the guest whose memory is `file`, and what comes to lie beside that file.
    pub(crate) fn start(file: &Path, frequency: Frequency) -> anyhow::Result<Self> {
        let directory = file.parent().context("a memory file lies in a directory")?.to_path_buf();
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread =
            std::thread::Builder::new().name("recorder".into()).spawn(move || follow(&directory, frequency, &told))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Stops, and returns the records in the order in which the guest made them.
    pub(crate) fn finish(mut self) -> anyhow::Result<Vec<Gap>> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it was finished before")?;
        let gaps = thread.join().map_err(|_| anyhow!("the thread that follows the guest's records has panicked"))?;
        Ok(gaps.into_values().collect())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by the panic hook; there is nothing to add.
            let _ = thread.join();
        }
    }
}

fn follow(directory: &Path, frequency: Frequency, stop: &AtomicBool) -> BTreeMap<u64, Gap> {
    become_real_time();
    let mut watched: BTreeMap<PathBuf, (Observer, u64)> = BTreeMap::new();
    let mut gaps = BTreeMap::new();
    let mut period = 0_u32;
    loop {
        // The records of the last period are wanted too, so the flag is looked at before and obeyed after copying.
        let last = stop.load(Ordering::Relaxed);
        if period.is_multiple_of(NEW_FILES) {
            watch_new_files(directory, frequency, &mut watched);
        }
        for (observer, next) in watched.values_mut() {
            let Ok(block) = observer.block() else { continue };
            let Some(vcpu) = block.vcpus().next() else { continue };
            for gap in vcpu.gaps(*next) {
                *next = gap.index + 1;
                gaps.insert(gap.index, gap);
            }
        }
        while gaps.len() > KEPT {
            gaps.pop_first();
        }
        if last {
            return gaps;
        }
        period = period.wrapping_add(1);
        std::thread::sleep(PERIOD);
    }
}

fn watch_new_files(directory: &Path, frequency: Frequency, watched: &mut BTreeMap<PathBuf, (Observer, u64)>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_file() && !watched.contains_key(&path) {
            // A file that is no guest's memory (yet) is tried again.
            if let Ok(observer) = Observer::attach_file(&path, frequency) {
                watched.insert(path, (observer, 0));
            }
        }
    }
}
