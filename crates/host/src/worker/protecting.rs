//! The protection of the worker's guest: when it is in force, and when it has to wait.
//!
//! ```text
//!            protect                 all of the memory in DRAM, nothing else going on
//!   not ───────────────▶ suspended ◀────────────────────────────────────────────────▶ syncing ─▶ active
//!    ▲  unprotect            memory moves, the guest is handed over
//!    └───────────────────────┘
//! ```
//!
//! Whatever must not happen while commits are made suspends the protection first, and waits until there is no commit any
//! more to go back to. When that is over, a thread of its own takes the protection up again, all of it from the beginning.

use super::orders::Orders;
use crate::error::{Error, Result, story};
use crate::message::Phase;
use crate::micros::micros;
use crate::report::{ProtectionReport, ProtectionState};
use nil_pool::Protection;
use nil_vmm::{Cycle, ProtectionControl, ProtectionEvent, Vm};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often to look whether nothing is in the way any more.
const LOOK: Duration = Duration::from_millis(50);
/// How long to wait before it is tried again after something went wrong.
const RESPITE: Duration = Duration::from_secs(1);
/// How often figures are told.
const TELL: Duration = Duration::from_secs(1);

/// Whether the guest is to be protected, and whether that is going on.
#[derive(Debug, Default)]
pub(super) struct Protecting {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    wanted: bool,
    /// How much is going on for which it has to wait.
    suspensions: usize,
    /// By which the protection that is on is ended.
    on: Option<ProtectionControl>,
    has_thread: bool,
}

/// While this lives the guest is not protected.
#[derive(Debug)]
pub(super) struct Suspension<'a>(&'a Protecting);

impl Drop for Suspension<'_> {
    fn drop(&mut self) {
        self.0.lock().suspensions -= 1;
        self.0.changed.notify_all();
    }
}

impl Protecting {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_wanted(&self) -> bool {
        self.lock().wanted
    }

    /// Whether the thread is to go on. If not, it has ended as far as anybody knows, and another order starts another one.
    fn goes_on(&self, guest_is_there: bool) -> bool {
        let mut state = self.lock();
        state.has_thread = state.wanted && guest_is_there;
        state.has_thread
    }

    /// Ends the protection that is on, and lets none begin as long as the result lives.
    pub(super) fn suspend(&self) -> Suspension<'_> {
        let mut state = self.lock();
        state.suspensions += 1;
        self.wait_off(state);
        Suspension(self)
    }

    /// Ends it for good.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.wanted = false;
        self.changed.notify_all();
        self.wait_off(state);
    }

    fn wait_off(&self, state: MutexGuard<'_, State>) {
        if let Some(on) = &state.on {
            on.stop();
        }
        drop(self.changed.wait_while(state, |state| state.on.is_some()).unwrap_or_else(PoisonError::into_inner));
    }

    /// Whether it may begin now: then it counts as on, and ends by what this returns.
    fn begin(&self) -> Option<ProtectionControl> {
        let mut state = self.lock();
        if !state.wanted || state.suspensions > 0 {
            return None;
        }
        let control = ProtectionControl::default();
        state.on = Some(control.clone());
        Some(control)
    }

    fn over(&self) {
        self.lock().on = None;
        self.changed.notify_all();
    }

    /// Waits for a while, or until something has changed.
    fn rest(&self, time: Duration) {
        drop(self.changed.wait_timeout(self.lock(), time).unwrap_or_else(PoisonError::into_inner));
    }
}

/// What commits have cost since that was told last.
struct Figures {
    report: ProtectionReport,
    longest: Duration,
    told: Option<Instant>,
}

impl Figures {
    fn note(&mut self, cycle: &Cycle) {
        self.report.state = ProtectionState::Active;
        self.report.commit = cycle.number;
        self.report.pages = Some(cycle.pages);
        self.longest = self.longest.max(cycle.standstill);
    }

    /// What is to be told now, if anything is.
    fn due(&mut self, settings: &Protection) -> Option<ProtectionReport> {
        if self.told.is_some_and(|told| told.elapsed() < TELL) {
            return None;
        }
        if let Ok(settings) = settings.settings() {
            let now = ProtectionReport::new(self.report.state, settings, self.report.commit);
            (self.report.interval_us, self.report.output) = (now.interval_us, now.output);
        }
        self.report.standstill_us = Some(micros(self.longest));
        (self.told, self.longest) = (Some(Instant::now()), Duration::ZERO);
        Some(self.report.clone())
    }
}

impl Orders {
    /// Protects the guest from now on, whenever that is possible, as its place for commits in the pool says.
    pub(super) fn protect(self: &Arc<Self>) -> Result<()> {
        self.check(&[Phase::Starting, Phase::Running])?;
        if self.post().control.protection()?.is_none() {
            return Err(Error::refused("the guest has no place for commits in the pool"));
        }
        {
            let mut state = self.protecting.lock();
            state.wanted = true;
            if state.has_thread {
                self.protecting.changed.notify_all();
                return Ok(());
            }
            state.has_thread = true;
        }
        let orders = Arc::clone(self);
        super::spawn("protect", move || orders.keep_protected())
    }

    /// Protects the guest no more. There is no commit any more to go back to when this returns.
    pub(super) fn unprotect(&self) {
        self.protecting.end();
        self.board().show_protection(None);
    }

    fn keep_protected(&self) {
        let may_go_on = || !self.board().phase().is_final();
        loop {
            while self.protecting.is_wanted() && may_go_on() {
                let failed = match self.vm() {
                    Ok(vm) => self.protect_now(&vm),
                    Err(_) => Ok(()),
                };
                match failed {
                    Ok(()) => self.protecting.rest(LOOK),
                    Err(error) => {
                        tracing::warn!("the guest is not protected: {}", error.story());
                        self.show_suspended(Some(error.story()));
                        self.protecting.rest(RESPITE);
                    }
                }
            }
            self.board().show_protection(None);
            if !self.protecting.goes_on(may_go_on()) {
                return;
            }
        }
    }

    /// Protects the guest until something is in the way; does nothing, if something is.
    fn protect_now(&self, vm: &Vm) -> Result<()> {
        if self.board().phase() != Phase::Running {
            return Ok(());
        }
        let placement = vm.memory().placement();
        if placement.away() != placement.granules() as u64 || placement.summary().mixed > 0 {
            self.show_suspended(Some("its memory is not all in its host's DRAM".to_owned()));
            return Ok(());
        }
        let Some(protection) = self.post().control.protection()? else {
            self.protecting.lock().wanted = false;
            return Ok(());
        };
        let Some(control) = self.protecting.begin() else {
            self.show_suspended(Some("its memory is being moved".to_owned()));
            return Ok(());
        };
        let settings = protection.settings();
        let result = settings.map_err(Error::from).and_then(|settings| {
            let report = ProtectionReport::new(ProtectionState::Syncing, settings, protection.standing()?.number());
            let mut figures = Figures { report, longest: Duration::ZERO, told: None };
            self.board().show_protection(Some(figures.report.clone()));
            let ended = vm.protect(&control, |event| {
                match event {
                    ProtectionEvent::Syncing { .. } => return,
                    ProtectionEvent::Committed(cycle) => figures.note(&cycle),
                    ProtectionEvent::Overrun(full) => {
                        tracing::warn!("{full}; until the next commit the guest cannot be brought back");
                        figures.report.overruns += 1;
                    }
                }
                if let Some(report) = figures.due(&protection) {
                    self.board().show_protection(Some(report));
                }
            });
            ended.map_err(|error| Error::refused(story(&error)))
        });
        self.protecting.over();
        result
    }

    fn show_suspended(&self, why: Option<String>) {
        let protection = self.post().control.protection().ok().flatten();
        let report = protection.and_then(|protection| {
            let (settings, standing) = (protection.settings().ok()?, protection.standing().ok()?);
            let report = ProtectionReport::new(ProtectionState::Suspended, settings, standing.number());
            Some(ProtectionReport { why, ..report })
        });
        self.board().show_protection(report);
    }
}
