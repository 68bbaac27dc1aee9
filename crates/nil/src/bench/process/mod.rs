//! `nil bench process`: one program, one after the other by reference and by CRIU alone, dumped and restored on this machine.
//!
//! The blackout is the gap in the program's own clock in which an instant lies between dump and restore.

mod report;
mod subject;

use crate::cli::Output;
use crate::lab::interrupt;
use crate::lab::progress::Progress;
use anyhow::{Context, Result, anyhow, ensure};
use nil_pool::{Bytes, CapacityRequest, CreateOptions, GRANULE, HostIdentity, Membership, Pool, Tag};
use nil_process::{Criu, Guard, HandoffReport, Home, Leave, MoveReport, Pages, hand_over};
use report::{Case, Milliseconds, Peer, Report};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
pub(crate) use subject::{Args as SubjectArgs, SUBJECT, run as subject};
use tempfile::TempDir;

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the program runs between two handoffs, at least.
const REST: Duration = Duration::from_millis(60);
/// What the process has besides the memory that is asked for.
const BESIDE: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil bench process
  nil bench process --memory 64M,1G,4G --json")]
pub(crate) struct Args {
    /// Memory sizes of the program, separated by commas; all of it is stored into, all the time.
    #[arg(long, default_value = "64M,1G", value_delimiter = ',', value_name = "SIZES")]
    memory: Vec<Bytes>,
    /// Handoffs per size.
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    samples: u64,
    /// Dumps and restores per size by each peer.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    peer_samples: u64,
    /// A directory on tmpfs for the pool and the images.
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
}

/// CRIU alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum PeerName {
    Plain,
    Lazy,
}

pub(super) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    interrupt::conclude(output, || measure(args, output), Report::is_good)
}

fn measure(args: &Args, output: Output) -> Result<Report> {
    let criu = Criu::find()?;
    let progress = Progress::new(output, args.memory.len() as u64);
    let mut report = Report { cases: Vec::new(), peers: Vec::new() };
    progress.doing("CRIU alone, 1 MiB");
    let (fixed, _) = by_criu(args, Bytes(1 << 20), PeerName::Plain, &criu, args.samples)?;
    for (done, memory) in (1..).zip(&args.memory) {
        progress.doing(format!("{memory}, by reference"));
        let case = by_reference(args, *memory, &criu, fixed.p50)?;
        for (peer, name) in [(PeerName::Plain, "criu"), (PeerName::Lazy, "criu-lazy")] {
            progress.doing(format!("{memory}, {name}"));
            let (blackout_ms, verified) = by_criu(args, *memory, peer, &criu, args.peer_samples)?;
            let ratio = blackout_ms.p50 / case.blackout_ms.p50;
            report.peers.push(Peer { name, memory_bytes: memory.get(), blackout_ms, ratio, verified });
        }
        report.cases.push(case);
        progress.reached(done, || memory.to_string());
    }
    Ok(report)
}

/// What is noted down at each handoff.
#[derive(Debug, Default)]
struct Trips {
    blackouts: Vec<u64>,
    reports: Vec<HandoffReport>,
    copied: u64,
    images: u64,
}

fn by_reference(args: &Args, memory: Bytes, criu: &Criu, criu_fixed_ms: f64) -> Result<Case> {
    let ground = Ground::new(&args.dir, memory)?;
    let mut program = Program::start(ground.directory.path(), memory)?;
    let usual = program.speed(Duration::from_millis(300))?;
    let (there, decouple_speed_pct) = ground.guarding(&program, |guard| program.decouple(guard, usual))?;
    ensure!(there.moved_bytes > 0, "nothing has moved: {:?}", there.stalled);
    let mut trips = Trips::default();
    for sample in 0..args.samples {
        interrupt::check()?;
        let images = images(ground.directory.path(), sample)?;
        let (report, pooled) = ground.guarding(&program, |mut guard| {
            guard.decouple()?;
            let pooled = guard.pooled_bytes()?;
            Ok((hand_over(guard, criu, &images)?, pooled))
        })?;
        let restoring = subject::now() - nanoseconds(report.restore);
        trips.blackouts.push(program.blackout(restoring)?);
        trips.reports.push(report);
        trips.copied = trips.copied.max(memory.get().saturating_sub(pooled));
        trips.images = trips.images.max(page_bytes(&images)?);
        fs::remove_dir_all(&images)?;
    }
    let back = ground.guarding(&program, |mut guard| {
        let back = guard.recouple()?;
        guard.leave(Leave::Running)?;
        Ok(back)
    })?;
    let median = |of: fn(&HandoffReport) -> Duration| {
        let samples = trips.reports.iter().map(|report| nanoseconds(of(report))).collect();
        Milliseconds::of(samples).map_or(0.0, |all| all.p50)
    };
    Ok(Case {
        memory_bytes: memory.get(),
        stop_ms: median(|report| report.stop),
        dump_ms: median(|report| report.dump),
        restore_ms: median(|report| report.restore),
        blackout_ms: Milliseconds::of(trips.blackouts).context("no handoff")?,
        criu_fixed_ms,
        copied_bytes: trips.copied,
        image_bytes: trips.images,
        decouple_bytes_per_s: rate(&there),
        recouple_bytes_per_s: rate(&back),
        decouple_stall_ms: there.longest_stall.as_secs_f64() * 1e3,
        decouple_speed_pct,
        verified: program.stop()?,
    })
}

/// The blackouts of a program that CRIU takes along whole, and whether the program has verified its memory.
fn by_criu(args: &Args, memory: Bytes, peer: PeerName, criu: &Criu, samples: u64) -> Result<(Milliseconds, bool)> {
    let directory = directory(&args.dir)?;
    let mut program = Program::start(directory.path(), memory)?;
    let mut blackouts = Vec::new();
    for sample in 0..samples {
        interrupt::check()?;
        let images = images(directory.path(), sample)?;
        criu.dump(program.pid(), &images)?;
        program.reap();
        let dumped = subject::now();
        let mut server = None;
        let pages = if peer == PeerName::Plain { Pages::AtOnce } else { Pages::Lazily };
        if pages == Pages::Lazily {
            let server = server.insert(criu.lazy_pages(&images).spawn().context("criu lazy-pages")?);
            let socket = images.join("lazy-pages.socket");
            interrupt::wait_for("criu lazy-pages does not listen", PATIENCE, || Ok(socket.exists().then_some(())))
                .inspect_err(|_| drop(server.kill()))?;
        }
        criu.restore(&images, pages)?;
        if let Some(mut server) = server {
            server.wait()?;
        }
        blackouts.push(program.blackout(dumped)?);
        fs::remove_dir_all(&images)?;
    }
    Ok((Milliseconds::of(blackouts).context("no dump")?, program.stop()?))
}

/// A pool with a capacity for one process.
struct Ground {
    directory: TempDir,
    member: Membership,
    tag: Tag,
}

impl Ground {
    fn new(dir: &Path, memory: Bytes) -> Result<Self> {
        let directory = directory(dir)?;
        let bytes = (memory.get() + BESIDE).next_multiple_of(GRANULE);
        let options = CreateOptions { size: Some(bytes + BESIDE), ..CreateOptions::default() };
        let member = Pool::create(&directory.path().join("pool"), &options)?.join(&HostIdentity::tool())?;
        let tag = member.add_capacity(&CapacityRequest::private(bytes))?.tag;
        Ok(Self { directory, member, tag })
    }

    /// Works with a guard over the program, which is told of all children of its thread: so it has one without any.
    fn guarding<T: Send>(&self, program: &Program, work: impl FnOnce(Guard<'_>) -> Result<T> + Send) -> Result<T> {
        let watch = || {
            let home = Home::open(self.member.pool(), self.tag)?;
            work(Guard::attach(program.pid(), &home)?)
        };
        std::thread::scope(|scope| scope.spawn(watch).join().map_err(|_| anyhow!("a thread has panicked"))?)
    }
}

/// A directory for the images of one dump.
fn images(directory: &Path, sample: u64) -> Result<PathBuf> {
    let images = directory.join(format!("images-{sample}"));
    fs::create_dir(&images)?;
    Ok(images)
}

fn directory(dir: &Path) -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("nil-bench-").tempdir_in(dir)?)
}

/// The program, wherever it has been restored; it is killed when this is dropped.
struct Program {
    pid: Pid,
    directory: PathBuf,
}

impl Program {
    fn start(directory: &Path, memory: Bytes) -> Result<Self> {
        let child = Command::new(std::env::current_exe()?)
            .args(["bench", SUBJECT])
            .arg(directory)
            .arg(memory.get().to_string())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start a program")?;
        let program = Self { pid: Pid::from_child(&child), directory: directory.to_owned() };
        interrupt::wait_for("the program has not begun", PATIENCE, || {
            Ok(program.words("work").is_ok_and(|words| !words.is_empty()).then_some(()))
        })?;
        Ok(program)
    }

    fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Takes note of its end, so that its number is free.
    fn reap(&self) {
        let _ = waitpid(Some(self.pid), WaitOptions::empty());
    }

    fn has_ended(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    }

    fn words(&self, file: &str) -> Result<Vec<u64>> {
        let bytes = fs::read(self.directory.join(file))?;
        Ok(bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default())).collect())
    }

    /// Pages that it stores into per second.
    fn speed(&self, span: Duration) -> Result<f64> {
        let (before, begin) = (self.work()?, Instant::now());
        std::thread::sleep(span);
        Ok((self.work()? - before) / begin.elapsed().as_secs_f64())
    }

    fn work(&self) -> Result<f64> {
        Ok(self.words("work")?.first().copied().unwrap_or(0) as f64)
    }

    /// Moves its memory into the pool; with its speed meanwhile in percent of the usual one.
    fn decouple(&self, mut guard: Guard<'_>, usual: f64) -> Result<(MoveReport, f64)> {
        let (before, begin) = (self.work()?, Instant::now());
        let report = guard.decouple()?;
        let speed = (self.work()? - before) / begin.elapsed().as_secs_f64();
        guard.leave(Leave::Running)?;
        Ok((report, 100.0 * speed / usual))
    }

    /// The gap in its clock that an instant lies in at which it did not run, once it has written it down.
    fn blackout(&self, instant: u64) -> Result<u64> {
        let gap = interrupt::wait_for("the program does not go on", PATIENCE, || {
            ensure!(!self.has_ended(), "the program has ended");
            let gaps = self.words("gaps").unwrap_or_default();
            Ok(gaps.chunks_exact(2).find(|gap| (gap[0]..gap[0] + gap[1]).contains(&instant)).map(|gap| gap[1]))
        })?;
        std::thread::sleep(REST);
        ensure!(!self.has_ended(), "the program has ended");
        Ok(gap)
    }

    /// Ends it; whether it has found its memory as it should be.
    fn stop(&mut self) -> Result<bool> {
        fs::write(self.directory.join("stop"), "")?;
        let verdict = interrupt::wait_for("the program gives no verdict", PATIENCE, || {
            Ok(fs::read_to_string(self.directory.join("verdict")).ok().filter(|text| !text.is_empty()))
        })?;
        Ok(verdict == "0 stores lost, 0 words wrong")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It has ended in the ordinary case; its number is ours until it has been waited for.
        let _ = kill_process(self.pid, Signal::KILL);
        self.reap();
    }
}

fn page_bytes(images: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(images)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("pages-") {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes)
}

fn rate(report: &MoveReport) -> f64 {
    report.moved_bytes as f64 / report.time.as_secs_f64()
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
