//! Talking to the agent of the host that is to take a guest.

use super::Host;
use super::arming::PATIENCE_WITH_ARMING;
use super::relocating::Hearer;
use crate::error::{Error, Result};
use crate::message::{AgentReply, AgentRequest, ArmOrder, SettleOrder};
use crate::name::HostName;
use crate::report::known;
use crate::wire::Connection;
use nil_mover::MoveReport;
use std::time::Duration;

/// How long the target's agent may take to say which pools it has joined.
pub(super) const PATIENCE_WITH_QUESTIONS: Duration = Duration::from_secs(5);
/// How much longer than the target gives its worker its agent may take to say that it is ready.
const MARGIN: Duration = Duration::from_secs(15);
/// How long the target's agent may take to notice that the guest has landed.
const PATIENCE_WITH_NEWS: Duration = Duration::from_secs(10);

impl Host {
    pub(super) fn call_target(&self, to: &HostName) -> Result<Connection> {
        let run_dir = self.dir.run_dir();
        let target = run_dir.host(to);
        if !target.path().is_dir() {
            let names: Vec<_> = run_dir.hosts()?.into_iter().map(|host| host.name().clone()).collect();
            return Err(Error::UnknownHost { name: to.to_string(), known: known("host", names) });
        }
        match Connection::call(&target.agent_socket(), format!("host {to}")) {
            Err(Error::NobodyThere { .. }) => Err(Error::HostGone { name: to.clone() }),
            other => other,
        }
    }
}

/// Asks the target's agent to get ready; returns the target's slot in the pool.
pub(super) fn arm(target: &mut Connection, order: ArmOrder) -> Result<u16> {
    target.set_patience(Some(PATIENCE_WITH_ARMING + MARGIN))?;
    target.send(&AgentRequest::Arm(order))?;
    match target.expect()? {
        AgentReply::Armed(slot) => Ok(slot),
        AgentReply::Refused(why) => Err(Error::refused(format!("{} cannot take the guest: {why}", target.peer()))),
        other => Err(Error::refused(format!("{} answered {other:?} when it was to get ready", target.peer()))),
    }
}

/// Waits until the target's agent knows that it has the guest. If it never says so, the guest is there all the same.
pub(super) fn await_landing(target: &mut Connection) -> Result<()> {
    let heard = target.set_patience(Some(PATIENCE_WITH_NEWS)).and_then(|()| target.expect::<AgentReply>());
    let landed = match heard {
        Ok(AgentReply::Landed) => target.set_patience(None),
        Ok(other) => Err(Error::refused(format!("{} has the guest, and says {other:?}", target.peer()))),
        Err(error) => Err(error),
    };
    landed
        .inspect_err(|error| tracing::warn!("{} has the guest, and does not say so: {}", target.peer(), error.story()))
}

/// Has the target's agent recouple, and passes on how far it is.
pub(super) fn settle(target: &mut Connection, order: SettleOrder, hear: Hearer<'_>) -> Result<MoveReport> {
    target.send(&AgentRequest::Settle(order))?;
    loop {
        match target.expect()? {
            AgentReply::Progress(progress) => hear(progress),
            AgentReply::Settled(report) => return Ok(*report),
            AgentReply::Refused(why) => return Err(Error::refused(why)),
            other => return Err(Error::refused(format!("{} answered {other:?} while it recoupled", target.peer()))),
        }
    }
}
