//! `nil bench capacity`: how fast several processes at once add and release capacity in one pool.
//!
//! The parent makes a pool and starts workers, each a process of its own with its own mapping and membership. They
//! begin together, keep a few capacities each, and count what they did; afterwards the pool must be empty and sound.

use crate::cli::Output;
use anyhow::{Context, Result, ensure};
use nil_pool::{Access, Bytes, CapacityRequest, CreateOptions, Error, GRANULE, HostIdentity, Membership, Pool, Tag};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Name of the hidden subcommand that a worker process runs.
pub(crate) const WORKER: &str = "bench-capacity-worker";
/// Capacities that each worker holds at a time.
const HELD: usize = 8;
/// Operations between two looks at the clock.
const BATCH: u32 = 64;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil bench capacity
  nil bench capacity --processes 8 --seconds 3 --json")]
pub(crate) struct Args {
    /// Processes that contend.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100))]
    processes: u32,
    /// How long they do it.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Size of the pool.
    #[arg(long, default_value = "4G")]
    pool_size: Bytes,
    /// Where the pool is made and removed again.
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct WorkerArgs {
    pool: PathBuf,
    seconds: u32,
}

#[derive(Debug, Serialize)]
struct Report {
    processes: u32,
    seconds: f64,
    pool_bytes: u64,
    operations: u64,
    adds: u64,
    releases: u64,
    refused: u64,
    operations_per_second: f64,
    slowest_process_operations: u64,
    fastest_process_operations: u64,
    pool_sound: bool,
}

/// What one worker did.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Counts {
    adds: u64,
    releases: u64,
    refused: u64,
    seconds: f64,
}

impl Counts {
    fn operations(&self) -> u64 {
        self.adds + self.releases
    }
}

/// Runs the benchmark.
pub(crate) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let directory = tempfile::Builder::new().prefix("nil-bench-").tempdir_in(&args.dir)?;
    let path = directory.path().join("pool");
    let options = CreateOptions { size: Some(args.pool_size.get()), ..CreateOptions::default() };
    let pool = Pool::create(&path, &options)?;
    let empty = pool.usage();
    let mut workers = (0..args.processes).map(|_| Worker::start(&path, args.seconds)).collect::<Result<Vec<_>>>()?;
    for worker in &mut workers {
        worker.await_ready()?;
    }
    for worker in &mut workers {
        worker.go()?;
    }
    let counts = workers.iter_mut().map(Worker::finish).collect::<Result<Vec<_>>>()?;
    let sound = pool.check(false).is_clean() && pool.usage() == empty;
    output.print(&Report::of(args, &counts, sound))?;
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A worker process: joins, says so, waits for the word, works, prints what it did.
pub(crate) fn worker(args: &WorkerArgs) -> Result<ExitCode> {
    let membership = Pool::open(&args.pool, Access::ReadWrite)?.join(&HostIdentity::tool())?;
    println!("ready");
    let mut word = String::new();
    ensure!(std::io::stdin().read_line(&mut word)? > 0, "the benchmark is gone");
    let counts = churn(&membership, Duration::from_secs(args.seconds.into()))?;
    membership.leave()?;
    println!("{}", serde_json::to_string(&counts)?);
    Ok(ExitCode::SUCCESS)
}

/// Adds capacity of one to four granules and releases the oldest, until the time is over; leaves nothing behind.
fn churn(membership: &Membership, span: Duration) -> Result<Counts> {
    let (mut counts, mut held) = (Counts::default(), VecDeque::with_capacity(HELD));
    let start = Instant::now();
    let mut turn = 0_u32;
    while !turn.is_multiple_of(BATCH) || start.elapsed() < span {
        turn = turn.wrapping_add(1);
        if held.len() < HELD {
            match membership.add_capacity(&request(turn)) {
                Ok(added) => {
                    held.push_back(added.tag);
                    counts.adds += 1;
                    continue;
                }
                Err(Error::NoRoom { .. } | Error::Fragmented { .. } | Error::CapacityTableFull { .. }) => {
                    counts.refused += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
        release_oldest(membership, &mut held, &mut counts)?;
    }
    while !held.is_empty() {
        release_oldest(membership, &mut held, &mut counts)?;
    }
    counts.seconds = start.elapsed().as_secs_f64();
    Ok(counts)
}

fn request(turn: u32) -> CapacityRequest {
    CapacityRequest::private(GRANULE << (turn % 3))
}

fn release_oldest(membership: &Membership, held: &mut VecDeque<Tag>, counts: &mut Counts) -> Result<()> {
    if let Some(tag) = held.pop_front() {
        membership.release_capacity(tag)?;
        counts.releases += 1;
    }
    Ok(())
}

/// A worker process as its parent sees it; killed when it is dropped before its end.
struct Worker {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Worker {
    fn start(pool: &Path, seconds: u32) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["bench", WORKER])
            .arg(pool)
            .arg(seconds.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a worker process")?;
        let output = BufReader::new(child.stdout.take().context("a worker without output")?);
        Ok(Self { child, output })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.output.read_line(&mut line)? > 0, "a worker process ended early");
        Ok(line)
    }

    fn await_ready(&mut self) -> Result<()> {
        ensure!(self.line()?.trim() == "ready", "a worker process said something else than 'ready'");
        Ok(())
    }

    fn go(&mut self) -> Result<()> {
        let input = self.child.stdin.as_mut().context("a worker without input")?;
        Ok(input.write_all(b"go\n")?)
    }

    fn finish(&mut self) -> Result<Counts> {
        let counts = serde_json::from_str(&self.line()?)?;
        ensure!(self.child.wait()?.success(), "a worker process failed");
        Ok(counts)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Already ended in the ordinary case; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Report {
    fn of(args: &Args, counts: &[Counts], pool_sound: bool) -> Self {
        let sum = |of: fn(&Counts) -> u64| counts.iter().map(of).sum::<u64>();
        let rate = |counts: &Counts| counts.operations() as f64 / counts.seconds;
        Self {
            processes: args.processes,
            seconds: counts.iter().map(|counts| counts.seconds).fold(0.0, f64::max),
            pool_bytes: args.pool_size.get(),
            operations: sum(Counts::operations),
            adds: sum(|counts| counts.adds),
            releases: sum(|counts| counts.releases),
            refused: sum(|counts| counts.refused),
            operations_per_second: counts.iter().map(rate).sum(),
            slowest_process_operations: counts.iter().map(Counts::operations).min().unwrap_or(0),
            fastest_process_operations: counts.iter().map(Counts::operations).max().unwrap_or(0),
            pool_sound,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "capacity added and released by {} processes in a pool of {}",
            self.processes,
            Bytes(self.pool_bytes)
        )?;
        writeln!(
            f,
            "  {:.0} operations per second ({} in {:.1} s)",
            self.operations_per_second, self.operations, self.seconds
        )?;
        let (slowest, fastest) = (self.slowest_process_operations, self.fastest_process_operations);
        writeln!(
            f,
            "  the slowest process did {slowest}, the fastest {fastest}; {} refused for want of room",
            self.refused
        )?;
        writeln!(f, "  afterwards the pool is {}", if self.pool_sound { "empty and sound" } else { "NOT sound" })
    }
}
