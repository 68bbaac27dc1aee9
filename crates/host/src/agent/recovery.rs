//! What becomes of a guest whose worker has died: `nil_migrate` decides, this module acts.

use super::Host;
use super::vigil::{bring_back, has_checkpoint};
use crate::error::{Result, story};
use crate::message::WorkerRequest;
use crate::name::GuestName;
use nil_migrate::{Liveness, Resolution, recover, rescue};
use nil_pool::{GuestControl, HostSlot, Ownership};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long an armed target may take to claim a guest whose source's worker has died, before it is taken back.
const PATIENCE_WITH_TARGET: Duration = Duration::from_secs(1);
/// How often to look whether it has.
const LOOK_FOR_CLAIM: Duration = Duration::from_millis(1);
/// How long a fresh worker may take to run a guest that its predecessor had frozen.
const PATIENCE_WITH_THAW: Duration = Duration::from_secs(120);

impl Host {
    /// Sees to the guests that died while no agent was there to notice.
    pub(super) fn recover_all(self: &Arc<Self>) {
        self.recover_where(|_| true);
    }

    /// The same for the guests that are meant. Those whose workers live are left alone, whether we understand them or not.
    pub(super) fn recover_where(self: &Arc<Self>, is_meant: impl Fn(&GuestName) -> bool) {
        for membership in self.pools.all() {
            let me = membership.slot();
            for guest in membership.pool().guests() {
                let ours = match guest.ownership {
                    Some(Ownership::Vacant) | None => true,
                    Some(word) => word.responsible() == Some(me),
                };
                if !ours || self.table.find_id(guest.id).is_some() {
                    continue;
                }
                let name = guest.name.parse::<GuestName>();
                if name.as_ref().is_ok_and(|name| !is_meant(name) || self.unadopted().contains(name)) {
                    continue;
                }
                let begun = name.map_err(|error| error.to_string()).and_then(|name| {
                    let control = membership.pool().guest(guest.slot, guest.id).map_err(|error| story(&error))?;
                    self.spawn("recovery", move |host| host.recover_guest(&name, &control))
                        .map_err(|error| error.story())
                });
                if let Err(error) = begun {
                    tracing::error!("guest {}: cannot recover it: {error}", guest.id);
                }
            }
        }
    }

    /// Sees to a guest of ours that has no worker any more.
    pub(super) fn recover_guest(self: &Arc<Self>, name: &GuestName, control: &GuestControl) {
        let Ok(membership) = self.pools.get(control.pool().id()) else { return };
        if let Err(error) = self.resolve(name, control, membership.slot()) {
            tracing::error!("guest {name}: cannot recover it: {}", error.story());
        }
    }

    fn resolve(self: &Arc<Self>, name: &GuestName, control: &GuestControl, me: HostSlot) -> Result<()> {
        let deadline = Instant::now() + PATIENCE_WITH_TARGET;
        loop {
            let word = match control.ownership().load() {
                Ok(word) => word,
                Err(bad) => {
                    tracing::error!("guest {name}: {bad}; `nil pool check` can say more");
                    return Ok(());
                }
            };
            let waited = Instant::now() >= deadline;
            let liveness = |host| match host == me {
                true if self.table.find_id(control.id()).is_some() => Liveness::Working,
                true => Liveness::Idle,
                false if waited => Liveness::Unknown,
                // Armed, as far as we know: it was to take the guest over.
                false => Liveness::Working,
            };
            match recover(word, liveness) {
                Resolution::LeaveTo(_) if frozen_by(word, me) && !waited => std::thread::sleep(LOOK_FOR_CLAIM),
                Resolution::Nothing if word == Ownership::Vacant => {
                    self.discard_unstarted(name, control);
                    return Ok(());
                }
                Resolution::Nothing | Resolution::LeaveTo(_) => {
                    tracing::info!("guest {name}: {word}; nothing is left to do for it here");
                    return Ok(());
                }
                Resolution::SalvageOrBury(dead) if rescue::salvage(control, &control.map_state()?, me, dead)? => {}
                Resolution::SalvageOrBury(dead) | Resolution::Bury(dead) if has_checkpoint(name, control, dead) => {
                    rescue::take(control, me, dead)?;
                }
                Resolution::SalvageOrBury(dead) | Resolution::Bury(dead) => {
                    rescue::bury(control, me, dead)?;
                }
                Resolution::BringBack(_) => {
                    let membership = self.pools.get(control.pool().id())?;
                    if let Some(restored) = bring_back(&membership, name, control)? {
                        tracing::warn!(
                            "guest {name}: its worker died while it ran; it goes on from checkpoint {}",
                            restored.commit
                        );
                    }
                }
                Resolution::TakeBack(_) => {
                    tracing::warn!("guest {name}: {word}, and nobody has claimed it; taking it back");
                    return self.thaw(name, control, me);
                }
                Resolution::Lost(_) => {
                    tracing::error!(
                        "guest {name} is LOST: its worker died while it ran ({word}). Its memory is kept in the pool \
                         until `nil vm stop {name}`"
                    );
                    return Ok(());
                }
                // Frozen for us by a host that is gone: a peer may have fenced it, or nobody can know yet.
                Resolution::Retake(host) | Resolution::TakeOver(host) | Resolution::Stranded { source: host, .. } => {
                    tracing::error!("guest {name}: {word}; its state is whole, start the agent of {host} again");
                    return Ok(());
                }
            }
        }
    }

    /// Frees what a guest has left in the pool that this host created and never ran.
    pub(super) fn discard_unstarted(&self, name: &GuestName, control: &GuestControl) {
        let unstarted = control.ownership().load() == Ok(Ownership::Vacant)
            && control.config().is_ok_and(|config| config.creator == self.id);
        let Ok(membership) = self.pools.get(control.pool().id()) else { return };
        if !unstarted {
            return;
        }
        match membership.destroy_guest_while(control, Ownership::Vacant) {
            Ok(()) => tracing::info!("guest {name}: it never ran; what it had in the pool is free again"),
            // Whoever had ordered it was quicker.
            Err(nil_pool::Error::GuestGone { .. }) => {}
            Err(error) => tracing::error!("guest {name}: its memory cannot be freed: {}", story(&error)),
        }
    }

    /// Starts a fresh worker that takes the frozen guest back.
    pub(super) fn thaw(self: &Arc<Self>, name: &GuestName, control: &GuestControl, me: HostSlot) -> Result<()> {
        let reservation = self.table.reserve(name, self.dir.name(), Duration::ZERO)?;
        self.start_worker(&reservation, control, me, None)?;
        self.order(name, &WorkerRequest::Thaw, PATIENCE_WITH_THAW)?;
        Ok(())
    }
}

fn frozen_by(word: Ownership, me: HostSlot) -> bool {
    matches!(word, Ownership::Frozen { source, .. } if source == me)
}
