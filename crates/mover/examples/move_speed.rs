//! How fast memory moves, next to memcpy of the same bytes between the same mappings: the figures of docs/mover.md.
//!
//!     cargo run --release -p nil-mover --example move_speed -- DIRECTORY MIB ROUNDS [small]
//!
//! DIRECTORY is where the pool is made: a tmpfs mounted with `huge=advise` for huge pages, /dev/shm for pages of 4 KiB;
//! `small` keeps huge pages out of this process's own memory. No guest runs meanwhile: this is what the mover itself costs.

use anyhow::{Context, Result};
use nil_mover::{Budget, Direction, GuestMemory, Move, MoveControl, MovePlan, MoveReport, Pace};
use nil_pool::{CreateOptions, Epoch, GuestKind, GuestRequest, HostId, HostIdentity, HostKind, MemoryHome, Pool};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, mib, rounds, rest @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: move_speed DIRECTORY MIB ROUNDS [small]");
    };
    let (bytes, rounds) = (mib.parse::<u64>()? << 20, rounds.parse::<usize>()?);
    if rest.first().is_some_and(|word| word == "small") {
        // SAFETY: the call changes nothing but how this process's pages are made.
        let result = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
        anyhow::ensure!(result == 0, "PR_SET_THP_DISABLE: {}", std::io::Error::last_os_error());
    }
    let directory = tempfile::tempdir_in(directory).context("no directory for the pool")?;
    measure(&directory.path().join("pool"), bytes, rounds)
}

fn measure(path: &Path, bytes: u64, rounds: usize) -> Result<()> {
    let options = CreateOptions { size: Some(bytes + (64 << 20)), ..CreateOptions::default() };
    let pool = Pool::create(path, &options)?;
    let host =
        pool.join(&HostIdentity { id: HostId::random(), name: "a".to_owned(), kind: HostKind::Agent, address: None })?;
    let control = host.create_guest(&GuestRequest {
        name: "g".to_owned(),
        kind: GuestKind::Vm,
        memory_bytes: bytes,
        home: MemoryHome::Dram,
        vcpus: 1,
        features: 0,
    })?;
    control.publish(host.slot())?;
    let state = control.map_state()?;
    let mut speeds = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..rounds {
        host.place_memory(&control)?;
        let memory = Arc::new(GuestMemory::in_dram(&control, &state, None)?);
        memory.set_owner(host.slot(), Epoch(1));
        memory.populate()?;
        fill(&memory);
        for direction in [Direction::Decouple, Direction::Recouple] {
            let report = run(&memory, direction)?;
            speeds[direction as usize].push(speed(bytes, report.elapsed_us as f64 / 1e6));
            if round == 0 {
                println!(
                    "{}: {} MiB copied, {} MiB as huge pages, {} mappings, {} us of {} us on chunks",
                    direction.verb(),
                    report.copied_bytes >> 20,
                    report.huge_bytes >> 20,
                    std::fs::read_to_string("/proc/self/maps")?.lines().count(),
                    report.moving_us,
                    report.elapsed_us
                );
            }
        }
        let mapping = control.map_memory()?;
        mapping.populate()?;
        // SAFETY: both are mapped and of this length, do not overlap, and nobody else uses them.
        let copy = || unsafe { std::ptr::copy_nonoverlapping(memory.as_ptr(), mapping.as_ptr(), memory.len()) };
        copy();
        let begun = Instant::now();
        copy();
        speeds[2].push(speed(bytes, begun.elapsed().as_secs_f64()));
        drop((mapping, memory));
        host.unplace_memory(&control)?;
    }
    let [decouple, recouple, memcpy] = speeds.map(median);
    println!(
        "decouple {decouple:.2} GB/s ({:.0} % of memcpy), recouple {recouple:.2} GB/s ({:.0} %), memcpy {memcpy:.2} GB/s",
        decouple / memcpy * 100.0,
        recouple / memcpy * 100.0
    );
    Ok(())
}

fn run(memory: &Arc<GuestMemory>, direction: Direction) -> Result<MoveReport> {
    let plan = MovePlan { budget: Budget { pace: Pace::Fast, bandwidth: None }, ..MovePlan::of_everything(direction) };
    Ok(Move::new(Arc::clone(memory), plan, Vec::new())?.run(&MoveControl::default(), |_| ())?)
}

/// Something into every page.
fn fill(memory: &GuestMemory) {
    for offset in (0..memory.len()).step_by(64) {
        // SAFETY: the word lies in the memory, which nobody else uses.
        unsafe { memory.as_ptr().add(offset).cast::<u64>().write_volatile(offset as u64 | 1) };
    }
}

fn speed(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 / seconds / 1e9
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
