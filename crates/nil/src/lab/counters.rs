//! What only ever grows in a guest: the proof that it goes on, and never back.

use super::interrupt;
use super::observe::Observer;
use super::view::View;
use anyhow::{bail, ensure};
use nil_guest_abi::GuestState;
use nil_host::GuestReport;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a guest may take to fill its memory, and to run: the machine may have much else to do.
const PATIENCE_WITH_BOOT: Duration = Duration::from_secs(60);

/// What only ever grows in a guest, per vCPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Counters(Vec<[u64; 5]>);

impl Counters {
    pub(crate) fn read(block: &nil_guest_abi::ControlBlock) -> anyhow::Result<Self> {
        let read = |vcpu: &nil_guest_abi::VcpuBlock| {
            [&vcpu.counter, &vcpu.last_tsc, &vcpu.tickets, &vcpu.private_tickets, &vcpu.pages_written]
                .map(|counter| counter.load(Ordering::Acquire))
        };
        let counters: Vec<_> = block.vcpus().map(read).collect();
        ensure!(!counters.is_empty(), "the guest says that it has no vCPU");
        Ok(Self(counters))
    }

    /// Whether every vCPU has gone on since.
    pub(crate) fn have_moved_since(&self, earlier: &Self) -> bool {
        self.0.len() == earlier.0.len() && self.0.iter().zip(&earlier.0).all(|(now, then)| now[0] > then[0])
    }

    /// Fails when anything has gone backwards since.
    pub(crate) fn check_since(&self, earlier: &Self) -> anyhow::Result<()> {
        let forwards = self.0.iter().flatten().zip(earlier.0.iter().flatten()).all(|(now, then)| now >= then);
        ensure!(
            forwards && self.0.len() == earlier.0.len(),
            "the guest's counters went backwards, from {:?} to {:?}",
            earlier.0,
            self.0
        );
        Ok(())
    }
}

/// Waits until the guest has filled its memory and runs.
pub(crate) fn await_running(observer: &Observer) -> anyhow::Result<()> {
    interrupt::wait_for("the guest has not filled its memory", PATIENCE_WITH_BOOT, || {
        match observer.block()?.guest_state() {
            Some(GuestState::Running) => Ok(Some(())),
            Some(GuestState::Refused | GuestState::Panicked) => bail!("the guest does not boot"),
            Some(GuestState::Booting | GuestState::Filling | GuestState::Stopped) | None => Ok(None),
        }
    })?;
    let before = Counters::read(&*observer.block()?)?;
    interrupt::wait_for("the guest does not run", PATIENCE_WITH_BOOT, || {
        Ok(Counters::read(&*observer.block()?)?.have_moved_since(&before).then_some(()))
    })
}

/// A look into the process that runs a guest; `None` when it is not known, or has ended.
pub(crate) fn view_of(guest: &GuestReport) -> Option<View> {
    View::of_process(guest.worker_pid?, guest.memory_address?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_vcpu_that_stands_still_is_enough_for_a_guest_not_to_go_on() {
        let earlier = Counters(vec![[1, 5, 5, 5, 5], [1, 5, 5, 5, 5]]);
        let half = Counters(vec![[2, 6, 5, 5, 5], [1, 5, 5, 5, 5]]);
        assert!(!half.have_moved_since(&earlier));
        half.check_since(&earlier).expect("nothing went backwards");
    }

    #[test]
    fn any_counter_that_goes_backwards_is_found() {
        let earlier = Counters(vec![[1, 5, 5, 5, 5]]);
        let later = Counters(vec![[2, 6, 6, 4, 6]]);
        assert!(later.check_since(&earlier).is_err());
    }
}
