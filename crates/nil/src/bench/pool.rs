//! `nil bench pool`: how long a large pool takes to be made, attached and checked.

use crate::cli::Output;
use anyhow::Result;
use nil_pool::{Access, Bytes, CreateOptions, Pool};
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  nil bench pool\n  nil bench pool --size 1T --dir /dev/shm --json")]
pub(crate) struct Args {
    /// Size of the pool; the file is sparse.
    #[arg(long, default_value = "1T")]
    size: Bytes,
    /// Where the pool is made and removed again.
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
}

#[derive(Debug, Serialize)]
struct Report {
    size_bytes: u64,
    create_ms: f64,
    attach_ms: f64,
    check_ms: f64,
    total_ms: f64,
    sound: bool,
}

/// Runs the benchmark.
pub(crate) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let directory = tempfile::Builder::new().prefix("nil-bench-").tempdir_in(&args.dir)?;
    let path = directory.path().join("pool");
    let options = CreateOptions { size: Some(args.size.get()), ..CreateOptions::default() };
    let start = Instant::now();
    let made = timed(|| Pool::create(&path, &options));
    drop(made.0?);
    let attached = timed(|| Pool::open(&path, Access::ReadWrite));
    let pool = attached.0?;
    let checked = timed(|| pool.check(false));
    let report = Report {
        size_bytes: args.size.get(),
        create_ms: made.1,
        attach_ms: attached.1,
        check_ms: checked.1,
        total_ms: start.elapsed().as_secs_f64() * 1e3,
        sound: checked.0.is_clean(),
    };
    output.print(&report)?;
    Ok(if report.sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The result and the time that it took, in milliseconds.
fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed().as_secs_f64() * 1e3)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { create_ms, attach_ms, check_ms, total_ms, .. } = self;
        writeln!(f, "a pool of {}", Bytes(self.size_bytes))?;
        writeln!(f, "  created in {create_ms:.1} ms, attached in {attach_ms:.1} ms, checked in {check_ms:.1} ms")?;
        writeln!(f, "  {total_ms:.1} ms in all; it is {}", if self.sound { "sound" } else { "NOT sound" })
    }
}
