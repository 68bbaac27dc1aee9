//! Talking to the agent of the host that is to take a guest.

use super::Host;
use super::arming::PATIENCE_WITH_ARMING;
use super::relocating::Hearer;
use crate::client::{Client, HangUp, Lines};
use crate::error::{Error, Result};
use crate::name::HostName;
use crate::order::{ArmOrder, SettleOrder};
use crate::report::{ArmNews, HostReport, JobResult};
use nil_mover::MoveReport;
use std::time::Duration;

/// How long the target's agent may take to say which pools it has joined.
const PATIENCE_WITH_QUESTIONS: Duration = Duration::from_secs(5);
/// How much longer than the target gives its worker its agent may take to say that it is ready.
const MARGIN: Duration = Duration::from_secs(15);
/// How long the target's agent may take to notice that the guest has landed.
const PATIENCE_WITH_NEWS: Duration = Duration::from_secs(10);

/// The agent of a target. While this lives and the guest has not landed, the target stays ready.
#[derive(Debug)]
pub(super) struct Target {
    agent: Client,
    news: Option<Lines>,
}

impl Host {
    pub(super) fn call_target(&self, to: &HostName) -> Result<Target> {
        Ok(Target { agent: self.call_host(to)?.known_as(format!("host {to}")), news: None })
    }
}

impl Target {
    /// A handle by which another thread can end the conversation.
    pub(super) fn hang_up_handle(&self) -> HangUp {
        self.agent.hang_up_handle()
    }

    /// What the target says of itself.
    pub(super) fn describe(&mut self) -> Result<HostReport> {
        self.agent.set_patience(Some(PATIENCE_WITH_QUESTIONS));
        self.agent.describe()
    }

    /// Asks the target to get ready; returns its slot in the pool.
    pub(super) fn arm(&mut self, order: &ArmOrder) -> Result<u16> {
        self.agent.set_patience(Some(PATIENCE_WITH_ARMING + MARGIN));
        let peer = self.agent.peer().to_owned();
        let cannot = |why: &str| Error::refused(format!("{peer} cannot take the guest: {why}"));
        let mut news = match self.agent.arm(order) {
            Ok(news) => news,
            Err(Error::Refused(why)) => return Err(cannot(&why)),
            Err(error) => return Err(error),
        };
        match self.agent.next_line(&mut news)? {
            ArmNews::Armed { slot } => {
                self.news = Some(news);
                Ok(slot)
            }
            ArmNews::Failed(problem) => Err(cannot(&problem.detail)),
            ArmNews::Landed => Err(Error::refused(format!("{peer} has the guest, without having got ready for it"))),
        }
    }

    /// Waits until the target's agent knows that it has the guest. If it never says so, the guest is there all the same.
    pub(super) fn await_landing(&mut self) -> Result<()> {
        self.agent.set_patience(Some(PATIENCE_WITH_NEWS));
        let heard = match self.news.take() {
            Some(mut news) => self.agent.next_line(&mut news),
            None => Err(Error::Hangup { peer: self.agent.peer().to_owned() }),
        };
        let peer = self.agent.peer();
        let landed = match heard {
            Ok(ArmNews::Landed) => Ok(()),
            Ok(other) => Err(Error::refused(format!("{peer} has the guest, and says {other:?}"))),
            Err(error) => Err(error),
        };
        landed.inspect_err(|error| tracing::warn!("{peer} has the guest, and does not say so: {}", error.story()))
    }

    /// Has the target recouple, and passes on how far it is.
    pub(super) fn settle(&mut self, order: &SettleOrder, hear: Hearer<'_>) -> Result<MoveReport> {
        self.agent.set_patience(None);
        let job = self.agent.settle(order)?;
        let job = self.agent.follow(job.id, &mut |progress| hear(progress.clone()))?;
        match job.report {
            Some(JobResult::Settled(report)) => Ok(*report),
            _ => Err(job.into_error()),
        }
    }
}
