//! The program that the benchmark moves: it stores into every page of its memory, round after round, looks at each store when
//! its turn comes again, and writes down every gap in its own clock.
//!
//! It talks by files, which CRIU finds again: `gaps` (pairs of u64: since when, how long, in ns), `work` (pages stored
//! into so far), `stop` (ends it), `verdict`.

use anyhow::{Context, Result};
use nil_pool::Bytes;
use rustix::time::{ClockId, clock_gettime};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::ExitCode;

/// Name of the hidden subcommand that runs it.
pub(crate) const SUBJECT: &str = "bench-process-subject";
/// The shortest gap that is written down, in ns.
const NOTEWORTHY: u64 = 500_000;
/// Between two looks for `stop`, in ns.
const LOOK: u64 = 10_000_000;
/// Words of a page.
const WORDS: usize = 512;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    directory: PathBuf,
    memory: Bytes,
}

/// The time of the clock that gaps are told by, in ns. Not a monotonic one: CRIU restores programs in a time namespace in which
/// that goes on from where it was dumped.
pub(super) fn now() -> u64 {
    let time = clock_gettime(ClockId::Realtime);
    let [seconds, nanoseconds] = [time.tv_sec, time.tv_nsec].map(|part| u64::try_from(part).unwrap_or(0));
    seconds * 1_000_000_000 + nanoseconds
}

/// Runs until it is told to stop.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    // CRIU takes whole sessions.
    rustix::process::setsid().context("cannot begin a session")?;
    let pages = usize::try_from(args.memory.get())? / (WORDS * 8);
    let mut memory: Vec<u64> = (0..pages * WORDS).map(word).collect();
    let [mut gaps, work] = ["gaps", "work"].map(|name| File::create(args.directory.join(name)));
    let gaps = gaps.as_mut().map_err(|error| anyhow::anyhow!("gaps: {error}"))?;
    let work = work?;
    let stop = args.directory.join("stop");
    let (mut done, mut lost, mut last) = (0_u64, 0_u64, now());
    let mut looked = last;
    while last.saturating_sub(looked) < LOOK || !stop.exists() {
        if last.saturating_sub(looked) >= LOOK {
            work.write_all_at(&done.to_le_bytes(), 0)?;
            looked = last;
        }
        let (round, page) = (done / pages as u64, usize::try_from(done % pages as u64)?);
        let at = page * WORDS;
        lost += u64::from(memory[at] != word(at).wrapping_add(round));
        memory[at] = memory[at].wrapping_add(1);
        done += 1;
        let time = now();
        if time.saturating_sub(last) >= NOTEWORTHY {
            gaps.write_all(&[last.to_le_bytes(), time.saturating_sub(last).to_le_bytes()].concat())?;
        }
        last = time;
    }
    let stored = |at: usize| at.is_multiple_of(WORDS);
    let wrong = (0..memory.len()).filter(|at| !stored(*at) && memory[*at] != word(*at)).count();
    fs::write(args.directory.join("verdict"), format!("{lost} stores lost, {wrong} words wrong"))?;
    Ok(ExitCode::SUCCESS)
}

fn word(at: usize) -> u64 {
    (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
