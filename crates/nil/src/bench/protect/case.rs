//! One guest, unprotected and protected.

use super::report::{Case, Restoring};
use crate::cli::Output;
use crate::images;
use crate::lab::canary::Canary;
use crate::lab::figures::Samples;
use crate::lab::frequency::Frequency;
use crate::lab::interrupt;
use crate::lab::observe::Observer;
use crate::lab::progress::Progress;
use crate::lab::view::View;
use anyhow::{Context, ensure};
use nil_guest_abi::{Mode, Options, Program};
use nil_pool::{
    CreateOptions, Epoch, GRANULE, GuestControl, GuestKind, GuestRequest, HostId, HostIdentity, HostKind, Membership,
    MemoryHome, OutputRule, Pool, ProtectionSettings,
};
use nil_vmm::{BootRequest, Cycle, ProtectionControl, ProtectionEvent, Vm};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long the first commit may take to come: all of the memory is copied before.
const PATIENCE: Duration = Duration::from_secs(60);
/// Commits that are not counted: the first has all that was changed while memory was copied.
const WARM_UP: usize = 3;
/// What protection takes of a pool beside image and logs, and a guest beside its memory.
const BESIDE: u64 = 64 << 20;

/// What is to be measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) memory_bytes: u64,
    pub(super) vcpus: u32,
    /// Pages of the working set.
    pub(super) pages: u64,
    pub(super) interval: Duration,
    /// How long the guest is watched, each way.
    pub(super) time: Duration,
    /// Whether the guest does nothing but store.
    pub(super) stores: bool,
}

/// A guest in this process, and the pool that has its record.
struct Scene {
    _directory: tempfile::TempDir,
    host: Membership,
    control: GuestControl,
    vm: Vm,
    observer: Observer,
}

impl Scene {
    fn build(plan: &Plan, frequency: Frequency) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("nil-bench-").tempdir_in("/dev/shm")?;
        let size = (plan.memory_bytes * 2 + BESIDE + (128 << 20)).next_multiple_of(GRANULE);
        let options = CreateOptions { size: Some(size), ..CreateOptions::default() };
        let pool = Pool::create(&directory.path().join("pool"), &options)?;
        let name = "A".to_owned();
        let host = pool.join(&HostIdentity { id: HostId::random(), name, kind: HostKind::Agent, address: None })?;
        let Plan { memory_bytes, vcpus, .. } = *plan;
        let (name, kind, home) = ("guest".to_owned(), GuestKind::Vm, MemoryHome::Dram);
        let control = host.create_guest(&GuestRequest { name, kind, memory_bytes, home, vcpus, features: 0 })?;
        let image = images::builtin(Program::Pages.name()).context("there is no such guest")?.to_vec();
        let mode = if plan.stores { Mode::Stores } else { Mode::Hot };
        let options = Options { mode, workset: plan.pages * 4096, tsc_khz: frequency.khz(), ..Options::default() };
        let request = BootRequest { image, command_line: options.to_string(), irqchip: false, cpu: None };
        let vm = Vm::boot(&control, host.slot(), &request)?;
        vm.start()?;
        let pid = i32::try_from(std::process::id())?;
        let view = View::of_process(pid, vm.memory().as_ptr() as u64)?;
        let mut observer = Observer::through(view, memory_bytes, frequency);
        observer.await_running()?;
        Ok(Self { _directory: directory, host, control, vm, observer })
    }

    /// Turns of the guest's loops in a second.
    fn speed(&self, time: Duration) -> anyhow::Result<f64> {
        let turns = |scene: &Self| -> anyhow::Result<u64> {
            let block = scene.observer.block()?;
            Ok(block.vcpus().map(|vcpu| vcpu.counter.load(std::sync::atomic::Ordering::Acquire)).sum())
        };
        let (begun, before) = (Instant::now(), turns(self)?);
        std::thread::sleep(time);
        interrupt::check()?;
        #[expect(
            clippy::cast_precision_loss,
            reason = "a guest makes far fewer turns than 2⁵² in the time of a benchmark"
        )]
        let made = (turns(self)? - before) as f64;
        Ok(made / begun.elapsed().as_secs_f64())
    }
}

/// What is heard of a protection.
enum News {
    Cycle(Cycle),
    Overrun,
}

pub(super) fn measure(plan: Plan, frequency: Frequency, output: Output) -> anyhow::Result<Case> {
    let progress = Progress::new(output, 4);
    let what = format!("{} pages every {:?}", plan.pages, plan.interval);
    progress.doing(format!("{what}: booting"));
    let scene = Scene::build(&plan, frequency)?;
    let canary = Canary::start(frequency)?;
    progress.reached(1, || format!("{what}: unprotected"));
    let unprotected = scene.speed(plan.time)?;
    let settings = ProtectionSettings { interval: plan.interval, output: OutputRule::Pass };
    scene.host.protect(&scene.control, settings, None)?;
    let control = ProtectionControl::default();
    let (sender, news) = channel();
    let case = std::thread::scope(|scope| -> anyhow::Result<Case> {
        let protecting = scope.spawn(|| {
            scene.vm.protect(&control, |event| {
                let told = match event {
                    ProtectionEvent::Committed(cycle) => sender.send(News::Cycle(cycle)),
                    ProtectionEvent::Overrun(_) => sender.send(News::Overrun),
                    ProtectionEvent::Syncing { .. } => Ok(()),
                };
                // Nobody listens any more when the measurement is over.
                told.ok();
            })
        });
        let measured = watch(&plan, &scene, &news, &progress);
        control.stop();
        let ended = protecting.join().map_err(|_| anyhow::anyhow!("protecting the guest panicked"))?;
        // Bringing the guest back has sealed its protection.
        let mut case = match (measured, ended) {
            (Ok(case), _) => case,
            (Err(_), Err(error)) => return Err(error.into()),
            (Err(error), Ok(())) => return Err(error),
        };
        case.speed_pct = 100.0 * case.turns_per_s / unprotected;
        Ok(case)
    })?;
    scene.vm.halt();
    Ok(Case { canary: Some(canary.report(&[])), ..case })
}

fn watch(plan: &Plan, scene: &Scene, news: &Receiver<News>, progress: &Progress) -> anyhow::Result<Case> {
    progress.reached(2, || "copying all of its memory".to_owned());
    for _ in 0..WARM_UP {
        next(news)?;
    }
    while news.try_recv().is_ok() {}
    progress.reached(3, || "protected".to_owned());
    let begun = Instant::now();
    let turns_per_s = scene.speed(plan.time)?;
    let elapsed = begun.elapsed();
    let (mut cycles, mut overruns) = (Vec::new(), 0);
    while let Ok(news) = news.try_recv() {
        match news {
            News::Cycle(cycle) => cycles.push(cycle),
            News::Overrun => overruns += 1,
        }
    }
    ensure!(!cycles.is_empty(), "there has been no commit in {elapsed:?}");
    let samples = |of: fn(&Cycle) -> Duration| {
        let mut samples = Samples::new();
        cycles.iter().for_each(|cycle| samples.record(u64::try_from(of(cycle).as_nanos()).unwrap_or(u64::MAX)));
        samples.figures()
    };
    let median = |of: fn(&Cycle) -> u64| {
        let mut all: Vec<u64> = cycles.iter().map(of).collect();
        all.sort_unstable();
        all[all.len() / 2]
    };
    let errors = scene.observer.verdict()?.errors;
    let former = scene.host.slot();
    let restored = scene.control.restore(former, Epoch(2), || true)?;
    let pages = median(|cycle| cycle.pages);
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let (count, dirty) = (cycles.len() as f64, (cycles.iter().map(|cycle| cycle.pages).sum::<u64>() * 4096) as f64);
    Ok(Case {
        memory_bytes: plan.memory_bytes,
        vcpus: plan.vcpus,
        interval_ms: plan.interval.as_secs_f64() * 1e3,
        workset_pages: plan.pages,
        pages,
        late_pages: median(|cycle| cycle.late_pages),
        early_copies: median(|cycle| cycle.early_copies),
        commits: cycles.len(),
        commits_per_s: count / elapsed.as_secs_f64(),
        dirty_mb_per_s: dirty / 1e6 / elapsed.as_secs_f64(),
        overruns,
        standstill_us: samples(|cycle| cycle.standstill),
        stop_us: samples(|cycle| cycle.stop),
        commit_us: samples(|cycle| cycle.commit),
        turns_per_s,
        speed_pct: 0.0,
        errors,
        restore: Restoring {
            pages: restored.pages,
            written: restored.written,
            ms: restored.elapsed.as_secs_f64() * 1e3,
        },
        canary: None,
    })
}

fn next(news: &Receiver<News>) -> anyhow::Result<News> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        interrupt::check()?;
        match news.recv_timeout(Duration::from_millis(100)) {
            Ok(news) => return Ok(news),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
            Err(_) => anyhow::bail!("the guest could not be protected"),
        }
    }
}
