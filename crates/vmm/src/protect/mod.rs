//! The protection of a running guest: commits to which another host can bring it back (`nil_pool::Protection`).
//!
//! ```text
//!   guest runs ────────────────────────────────────┐ stands still ┌── runs ─────────────────────────
//!               harvest ahead, again and again     │ the last few │ checksums ─ commit ─ output ─ into the image
//!               (protect, copy into the redo log)  │ pages, state │
//! ```
//!
//! The guest runs in this host's DRAM; all of its memory lies in the pool, too, as of the commit before. The pages that an
//! epoch has written are copied while the guest runs: each is protected first, so that what is written after that is
//! noticed and copied again. When few are left, the vCPUs stop, and only those few are copied. So the standstill does not
//! depend on how much the guest has written. What has been copied is checksummed, committed and brought into the image
//! when the guest runs again.
//!
//! Nothing of the guest's memory moves meanwhile: the protection has the turn (`nil_mover`).

mod dirty;
mod hot;
mod standstill;

pub(crate) use standstill::Standstill;

use crate::error::{Error, Result};
use crate::kick;
use crate::machine::Machine;
use crate::shared::Request;
use crate::vm::{Role, Vm, lock};
use dirty::DirtyLog;
use hot::Hot;
use nil_migrate::Part;
use nil_mover::GuestMemory;
use nil_pool::{
    CapacityMapping, Commit, Deadman, Draft, GuestControl, ImageCopy, LOG_PAGE, LogFull, OutputRule, Protection,
    ProtectionSettings, Tether,
};
use std::os::unix::thread::JoinHandleExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Pages that are protected, and copied, at once when all of the memory is.
const SYNC_PAGES: u64 = 2048;
/// So few pages are left for the standstill.
const FEW: u64 = 64;
/// How often pages are harvested ahead of one standstill, at most.
const AHEAD: usize = 6;
/// How long vCPUs may take to stop, or to save themselves.
const PATIENCE: Duration = Duration::from_secs(2);

/// What one commit cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cycle {
    /// The commit's number.
    pub number: u64,
    /// Pages in it.
    pub pages: u64,
    /// Pages that were copied while the guest stood still.
    pub late_pages: u64,
    /// Copies of pages that were made while the guest ran; one that was written again counts again.
    pub early_copies: u64,
    /// From the kick until every vCPU had stopped.
    pub stop: Duration,
    /// From the kick until the vCPUs ran on.
    pub standstill: Duration,
    /// From the kick until the commit stood: so long output was held.
    pub commit: Duration,
    /// From the standstill before until this one.
    pub since_last: Duration,
}

/// What becomes of a guest that is protected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProtectionEvent {
    /// All of its memory is being copied into the image; so many bytes have been.
    Syncing {
        /// Bytes copied.
        copied: u64,
    },
    /// It can be brought back to this commit.
    Committed(Cycle),
    /// An epoch has written more than a redo log holds: what it has written goes into the image, and until the next commit
    /// there is no way back.
    Overrun(LogFull),
}

/// By which a protection is ended from another thread.
#[derive(Clone, Debug, Default)]
pub struct ProtectionControl(Arc<(Mutex<bool>, Condvar)>);

impl ProtectionControl {
    /// Has the protection end after the commit that it is at.
    pub fn stop(&self) {
        *lock(&self.0.0) = true;
        self.0.1.notify_all();
    }

    fn is_stopped(&self) -> bool {
        *lock(&self.0.0)
    }

    /// Waits until then, unless it is stopped.
    fn wait_until(&self, instant: Instant) {
        let left = instant.saturating_duration_since(Instant::now());
        drop(
            self.0
                .1
                .wait_timeout_while(lock(&self.0.0), left, |stopped| !*stopped)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }
}

impl Vm {
    /// Protects the guest, which has a protection in the pool, until it is stopped. It runs here, all of its memory in DRAM.
    /// When this returns, there is no commit any more to go back to, unless somebody else has taken the guest.
    ///
    /// # Errors
    /// Whatever keeps it from being protected, or ends that: [`Error::NotNow`]; [`Error::Hole`] when a part of its memory is in the
    /// pool; [`Error::Kvm`], [`Error::Pool`].
    pub fn protect(&self, control: &ProtectionControl, tell: impl FnMut(ProtectionEvent)) -> Result<()> {
        self.report_landing();
        if !matches!(*lock(&self.role), Role::Running) {
            return Err(Error::NotNow { wanted: "be protected", state: "not running here" });
        }
        let source = self.shared.source();
        let guest = source.control().clone();
        // It copies into the log and the image: whatever becomes of this host meanwhile, nothing is copied after its fencing.
        let _deadman = Deadman::guard(Tether::new(guest.pool(), source.host())?)?;
        drop(source);
        let not_asked = Error::NotNow { wanted: "be protected", state: "without a place for its commits" };
        let protection = guest.protection()?.ok_or(not_asked)?;
        let memory = Arc::clone(self.memory());
        // From here on nothing moves.
        let _local = memory.keep_local().map_err(Error::Hole)?;
        let ended = self.protect_local(&guest, &protection, control, tell);
        self.shared.standstill.set_place(None);
        let suspended = protection.suspend();
        if suspended.is_ok() {
            // Only now nobody can undo it. What is held of a guest that somebody has taken is never said.
            self.console().show_all();
        }
        ended.and(suspended.map(drop).map_err(Error::from))
    }

    fn protect_local(
        &self,
        guest: &GuestControl,
        protection: &Protection,
        control: &ProtectionControl,
        tell: impl FnMut(ProtectionEvent),
    ) -> Result<()> {
        protection.suspend()?;
        let image = guest.map_memory()?;
        protection.populate().map_err(|source| Error::Populate { source })?;
        self.shared.standstill.set_place(Some(protection.clone()));
        let log = DirtyLog::begin(self.fd(), self.ram())?;
        let pages = usize::try_from(log.pages()).unwrap_or(usize::MAX);
        let mut protector = Protector {
            vm: self,
            machine: self.machine()?,
            memory: self.memory(),
            draft: Draft::after_last(protection)?,
            settings: protection.settings()?,
            protection,
            image,
            log,
            written: Vec::with_capacity(pages),
            placed: Vec::with_capacity(pages),
            hot: Hot::new(pages),
            last: Instant::now(),
            tell,
        };
        protector.run(control)
    }
}

/// Who protects one guest.
struct Protector<'a, Tell> {
    vm: &'a Vm,
    machine: Arc<Mutex<Machine>>,
    memory: &'a Arc<GuestMemory>,
    protection: &'a Protection,
    settings: ProtectionSettings,
    image: CapacityMapping,
    log: DirtyLog,
    draft: Draft,
    /// Pages that have been protected and not copied yet.
    written: Vec<u64>,
    /// Pages that are to be copied while the guest stands still, with their places in the redo log.
    placed: Vec<(u64, u64)>,
    hot: Hot,
    /// When the guest stood still last.
    last: Instant,
    tell: Tell,
}

/// What a standstill took.
struct Pause {
    begun: Instant,
    stop: Duration,
    standstill: Duration,
    late_pages: u64,
    /// When it was, in nanoseconds since 1970.
    taken: u64,
    /// What the guest had said by then.
    said: u64,
}

impl<Tell: FnMut(ProtectionEvent)> Protector<'_, Tell> {
    fn run(&mut self, control: &ProtectionControl) -> Result<()> {
        if self.settings.output == OutputRule::Hold {
            self.vm.console().hold();
        }
        if !self.sync(control)? {
            return Ok(());
        }
        // Not only after a commit: a guest may write more than a commit holds again and again.
        while !control.is_stopped() {
            let harvest = Instant::now();
            let early_copies = match self.harvest_ahead()? {
                Ok(copies) => copies,
                Err(full) => {
                    self.overrun(full)?;
                    continue;
                }
            };
            let lead = harvest.elapsed().min(self.settings.interval / 2);
            let since_last = self.last.elapsed();
            let (pause, full) = self.stand_still()?;
            self.last = pause.begun;
            if let Err(full) = full {
                self.overrun(full)?;
                continue;
            }
            let source = self.vm.shared.source();
            if !source.owns() {
                return Err(Error::NotNow { wanted: "be protected", state: "not this host's any more" });
            }
            let commit = self.draft.publish(source.host(), source.epoch(), pause.taken)?;
            self.vm.console().show_up_to(pause.said);
            (self.tell)(ProtectionEvent::Committed(Cycle {
                number: commit.number,
                pages: commit.pages,
                late_pages: pause.late_pages,
                early_copies,
                stop: pause.stop,
                standstill: pause.standstill,
                commit: pause.begun.elapsed(),
                since_last,
            }));
            let open = self.hot.learn(commit.number, self.draft.logged(), pause.standstill.saturating_sub(pause.stop));
            self.log.leave_open(open);
            self.draft.apply(&self.image, || source.owns())?;
            self.follow_settings()?;
            // The next harvest takes as long as this one did, and the standstill comes after it.
            control.wait_until(self.last + self.settings.interval - lead);
        }
        Ok(())
    }

    /// Takes over what has been ordered meanwhile.
    fn follow_settings(&mut self) -> Result<()> {
        let wanted = self.protection.settings()?;
        match (self.settings.output, wanted.output) {
            (OutputRule::Pass, OutputRule::Hold) => self.vm.console().hold(),
            (OutputRule::Hold, OutputRule::Pass) => self.vm.console().show_all(),
            (OutputRule::Pass, OutputRule::Pass) | (OutputRule::Hold, OutputRule::Hold) => {}
        }
        self.settings = wanted;
        Ok(())
    }

    /// Copies all of the memory into the image, and again what is written meanwhile, until that fits into a commit. False when
    /// it was stopped.
    fn sync(&mut self, control: &ProtectionControl) -> Result<bool> {
        let copy = ImageCopy::begin(&self.image);
        self.memory.take_host_writes(|_| {});
        let pages = self.log.pages();
        let mut to = 0;
        while to < pages {
            let from = to;
            to = (from + SYNC_PAGES).min(pages);
            self.log.protect(from, to)?;
            (from..to).for_each(|page| copy.copy(&self.image, &**self.memory, page));
            (self.tell)(ProtectionEvent::Syncing { copied: to * LOG_PAGE as u64 });
            if control.is_stopped() {
                return Ok(false);
            }
        }
        for _ in 0..AHEAD {
            if self.log.count()? <= self.protection.log_pages() / 4 {
                break;
            }
            self.take_written(false)?;
            self.written_to_image();
        }
        Ok(true)
    }

    /// Protects what has been written and is to be copied; it is in `written` then.
    fn take_written(&mut self, stands_still: bool) -> Result<()> {
        let Self { log, memory, written, .. } = self;
        written.clear();
        log.take(stands_still, |page| written.push(page))?;
        memory.take_host_writes(|page| written.push(page));
        Ok(())
    }

    fn written_to_image(&mut self) {
        let copy = ImageCopy::begin(&self.image);
        self.draft.logged().chain(self.written.drain(..)).for_each(|page| copy.copy(&self.image, &**self.memory, page));
    }

    /// Copies into the commit what has been written, while the guest runs, until little is left or nothing is gained any more.
    fn harvest_ahead(&mut self) -> Result<std::result::Result<u64, LogFull>> {
        let (mut copies, mut before) = (0, u64::MAX);
        for _ in 0..AHEAD {
            let left = self.log.count()?;
            if left <= FEW || left > before / 4 * 3 {
                break;
            }
            before = left;
            self.take_written(false)?;
            copies += self.written.len() as u64;
            if let Err(full) = self.add_written() {
                return Ok(Err(full));
            }
        }
        Ok(Ok(copies))
    }

    fn add_written(&mut self) -> std::result::Result<(), LogFull> {
        let Self { draft, memory, written, .. } = self;
        written.iter().try_for_each(|&page| draft.add(&***memory, page))?;
        written.clear();
        Ok(())
    }

    /// An epoch does not fit into a redo log. There is no way back until the next commit.
    fn overrun(&mut self, full: LogFull) -> Result<()> {
        self.protection.suspend()?;
        (self.tell)(ProtectionEvent::Overrun(full));
        // All of these have been protected, so what is written to them from now on is noticed.
        self.written_to_image();
        self.draft = Draft::after_last(self.protection)?;
        Ok(())
    }

    /// Stops the vCPUs, saves them and the machine, and copies what is left. That the log is full is for the caller to see to,
    /// when the guest runs again.
    fn stand_still(&mut self) -> Result<(Pause, std::result::Result<(), LogFull>)> {
        let (vm, shared) = (self.vm, &self.vm.shared);
        let threads = lock(&vm.threads);
        if threads.len() != shared.vcpus() {
            return Err(Error::NotNow { wanted: "stand still for a commit", state: "being stopped" });
        }
        let begun = Instant::now();
        let number = self.draft.number();
        let round = shared.standstill.begin(number, threads.len());
        shared.ask(Request::StandStill);
        threads.iter().for_each(|thread| kick::kick(thread.as_pthread_t()));
        let stopped = shared.standstill.await_stopped(round, PATIENCE);
        let stop = begun.elapsed();
        let done = if stopped { self.while_stopped(round) } else { Ok((0, Ok(()))) };
        let said = vm.console().said();
        let saved = stopped && shared.standstill.await_saved(round, PATIENCE);
        shared.ask(Request::None);
        shared.standstill.end(round);
        let standstill = begun.elapsed();
        drop(threads);
        let (late_pages, full) = done?;
        if !stopped {
            return Err(Error::NotNow { wanted: "stand still for a commit", state: "not stopping its vCPUs" });
        }
        if !saved {
            let why = shared.take_failure().unwrap_or_else(|| "it took too long".to_owned());
            return Err(Error::SaveFailed(why));
        }
        let taken = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos());
        let taken = u64::try_from(taken).unwrap_or(u64::MAX);
        Ok((Pause { begun, stop, standstill, late_pages, taken, said }, full))
    }

    fn while_stopped(&mut self, round: standstill::Round) -> Result<(u64, std::result::Result<(), LogFull>)> {
        self.take_written(true)?;
        let late_pages = self.written.len() as u64;
        let Self { draft, written, placed, .. } = self;
        placed.clear();
        let full = written.iter().try_for_each(|&page| {
            placed.push((draft.place(page)?, page));
            Ok(())
        });
        if full.is_ok() {
            self.vm.shared.standstill.copy(round, self.placed.iter().copied(), self.memory);
            self.written.clear();
        }
        let number = self.draft.number();
        let area = self.protection.machine(Commit::half(number));
        let mut out = area.writer(Commit::mark(number));
        lock(&self.machine).save(&mut out)?;
        out.finish();
        Ok((late_pages, full))
    }
}
