//! The worker keeps its host's lease, and ends when the host has been fenced.
//!
//! A host is alive as long as anything of it runs. So an agent that is away costs no guest: its workers beat meanwhile, and a
//! lease that moves means that somebody may still write. What a fenced worker must not do, its vCPU threads refuse by themselves, before
//! every entry into the guest ([`nil_vmm`]); this thread ends the process, with everything else that it was about to do.

use super::orders::{Orders, Post};
use crate::message::Phase;
use nil_pool::{Error, FENCED_STATUS, Tether};
use std::time::Duration;

/// How long the news may take to reach the agent before the process ends.
const NEWS: Duration = Duration::from_millis(50);
/// How often to look for a host that is about to enter its next life.
const LOOK: Duration = Duration::from_millis(10);

impl Orders {
    /// Beats until the worker ends.
    pub(super) fn keep_lease(&self) {
        let mut tether: Option<Tether> = None;
        while !self.has_ended() {
            let Post { control, me } = self.post();
            match &tether {
                Some(tied) if tied.pool().id() == control.pool().id() => {
                    if !tied.beat() {
                        return self.stop_fenced();
                    }
                    std::thread::sleep(tied.terms().interval());
                }
                Some(_) | None => match Tether::new(control.pool(), me) {
                    Ok(tied) => tether = Some(tied),
                    Err(Error::Fenced) => return self.stop_fenced(),
                    Err(_) if control.pool().is_lost() => return self.stop_fenced(),
                    // Its agent is about to return.
                    Err(_) => std::thread::sleep(LOOK),
                },
            }
        }
    }

    /// Ends the process, because its host has no rights in the pool any more: it has been fenced, and by now its guest may be
    /// somebody else's; or there is no pool any more.
    pub(super) fn stop_fenced(&self) {
        let why = self.why_fenced();
        tracing::error!("{why}");
        self.end(Phase::Ended, Some(why));
        std::thread::sleep(NEWS);
        std::process::exit(FENCED_STATUS);
    }

    fn why_fenced(&self) -> String {
        let Post { control, me } = self.post();
        if control.pool().is_lost() {
            let lost = Error::Lost { path: control.pool().path().to_owned() };
            return format!("{lost}; the guest was stopped");
        }
        let life = control.pool().life(me);
        let by = life
            .and_then(|life| control.pool().host(life.fencer?))
            .map_or_else(String::new, |by| format!(" by {}", by.name));
        format!("its host was declared dead{by}, because its lease had stood still; the guest was stopped here")
    }
}
