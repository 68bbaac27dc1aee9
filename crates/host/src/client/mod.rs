//! Talking to agents: what `nil ps`, `nil migrate` and the rest of the command line are made of.
//!
//! ```text
//! Client   what can be asked of an agent, one method each        (this file)
//! Caller   one HTTP request after another, waited for            (call.rs)
//! Sse      the events of a stream, from its bytes                (sse.rs)
//! ```
//!
//! Everything that takes long is a job: it is ordered, then followed. When a stream that is followed breaks, the agent
//! is asked once more how the job stands; only when it does not know either is that an error.

mod call;
mod console;
mod sse;

pub use call::Endpoint;
pub(crate) use call::{HangUp, Lines};
pub use console::ConsoleStream;

use crate::body::{AnswerBody, MigrationBody, MoveBody, OfferAnswer, PinBody, ProtectionBody, RehomingBody, RouteBody};
use crate::compatibility::Verdict;
use crate::error::{Error, Result};
use crate::name::{GuestName, HostName};
use crate::order::{
    ArmOrder, Drain, JobFilter, Migrate, MoveMemory, PinMemory, ProtectGuest, Rebalance, Rehome, Route, RunVm,
    SettleOrder, TakeoverOrder,
};
use crate::report::TakeoverReport;
use crate::report::{
    CalledOff, CordonReport, DrainReport, GuestReport, HostReport, JobReport, JobResult, JobSummary, KnownHost,
    MemoryMoved, MigrationReport, OfferReport, PinReport, PlacementPlan, Progress, RebalancePlan, RebalanceReport,
    RehomingReport, RouteReport,
};
use crate::run_dir::HostDir;
use axum::http::Method;
use call::Caller;
use nil_mover::Direction;
use nil_pool::{JobId, Tag};
use serde::de::DeserializeOwned;
use sse::Sse;
use std::time::Duration;

/// How long to leave an agent alone that cannot be followed.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// The agent of one host.
#[derive(Debug)]
pub struct Client {
    caller: Caller,
    host: HostName,
}

impl Client {
    /// Calls the agent of a host of this machine.
    ///
    /// # Errors
    /// [`Error::HostGone`] when it does not run.
    pub fn connect(dir: &HostDir) -> Result<Self> {
        Self::connect_to(&Endpoint::Unix(dir.agent_socket()), dir.name())
    }

    /// Calls the agent of the host `name`, wherever it is.
    ///
    /// # Errors
    /// [`Error::HostGone`] when it does not run.
    pub fn connect_to(endpoint: &Endpoint, name: &HostName) -> Result<Self> {
        let host = name.clone();
        match Caller::connect(endpoint.clone(), format!("the agent of host {host}")) {
            Ok(caller) => Ok(Self { caller, host }),
            Err(Error::NobodyThere { .. }) => Err(Error::HostGone { name: host }),
            Err(error) => Err(error),
        }
    }

    /// Calls it by another name in what is said of it.
    pub(crate) fn known_as(mut self, peer: String) -> Self {
        self.caller.set_peer(peer);
        self
    }

    /// Limits how long the agent may take to answer; `None` waits for ever.
    pub(crate) fn set_patience(&mut self, patience: Option<Duration>) {
        self.caller.set_patience(patience);
    }

    /// Asks something that is to be answered within that time.
    ///
    /// # Errors
    /// [`Error::NoAnswer`] when it is not; as of `question`.
    pub fn within<T>(&mut self, time: Duration, question: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.set_patience(Some(time));
        let answer = question(self);
        self.set_patience(None);
        answer
    }

    /// A handle by which another thread can end the conversation, for good.
    pub(crate) fn hang_up_handle(&self) -> HangUp {
        self.caller.hang_up_handle()
    }

    /// Who is called, to a person.
    pub(crate) fn peer(&self) -> &str {
        self.caller.peer()
    }

    /// The host that is called.
    #[must_use]
    pub fn host(&self) -> &HostName {
        &self.host
    }

    /// What the host says of itself.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn describe(&mut self) -> Result<HostReport> {
        self.get("/v1/host")
    }

    /// The hosts in the pools of this one, as it knows them.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn hosts(&mut self) -> Result<Vec<KnownHost>> {
        self.get("/v1/hosts")
    }

    /// All guests in the host's pools, those of other hosts as the pool has them.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn ps(&mut self) -> Result<Vec<GuestReport>> {
        self.get("/v1/guests")
    }

    /// Starts a VM; it runs when this returns. If the caller dies before, nothing is left of it.
    ///
    /// # Errors
    /// It cannot be started; the sentence says why.
    pub fn run_vm(&mut self, order: &RunVm) -> Result<GuestReport> {
        self.caller.ask(Method::POST, "/v1/guests", Some(order))
    }

    /// Moves a guest of this host to another. `progress` hears of every step.
    ///
    /// # Errors
    /// It cannot be moved; it runs on here. (A guest that was taken back is no error but an outcome.)
    pub fn migrate(&mut self, order: &Migrate, mut progress: impl FnMut(&Progress)) -> Result<MigrationReport> {
        let job = self.begin_migration(order)?;
        let job = self.follow(job.id, &mut progress)?;
        match job.report {
            Some(JobResult::Migration(report)) => Ok(*report),
            _ => Err(job.into_error()),
        }
    }

    /// Begins to move a guest of this host to another, and does not wait for its end.
    pub(crate) fn begin_migration(&mut self, order: &Migrate) -> Result<JobReport> {
        let path = format!("/v1/guests/{}/migrations", order.guest);
        self.caller.ask(Method::POST, &path, Some(&MigrationBody::from(order)))
    }

    /// Begins to send a guest of this host to another, over others, and does not wait for its end.
    pub(crate) fn begin_route(&mut self, order: &Route) -> Result<JobReport> {
        let path = format!("/v1/guests/{}/routes", order.guest);
        self.caller.ask(Method::POST, &path, Some(&RouteBody::from(order)))
    }

    /// Whether a guest of this host could be moved to another, and every reason if it could not. Nothing moves.
    ///
    /// # Errors
    /// It could not be found out.
    pub fn check_migration(&mut self, order: &Migrate) -> Result<Verdict> {
        let path = format!("/v1/guests/{}/migrations/check", order.guest);
        self.caller.ask(Method::POST, &path, Some(&MigrationBody::from(order)))
    }

    /// Calls the migration of a guest of this host off, and returns when the guest is where it was, with a sentence that
    /// says how things stand.
    ///
    /// # Errors
    /// There is no migration, or it came too late: the guest runs on the target.
    pub fn cancel_migration(&mut self, guest: &GuestName) -> Result<String> {
        self.call_off(Method::DELETE, &format!("/v1/guests/{guest}/migrations"))
    }

    /// Moves the home of a guest of this host to another of its pools. `progress` hears how far it is. It goes on when the
    /// caller hangs up.
    ///
    /// # Errors
    /// It cannot be moved; the sentence says why. (What was called off or has stalled is no error but an outcome.)
    pub fn rehome(&mut self, order: &Rehome, mut progress: impl FnMut(&Progress)) -> Result<RehomingReport> {
        let path = format!("/v1/guests/{}/rehomings", order.guest);
        let job: JobReport = self.caller.ask(Method::POST, &path, Some(&RehomingBody::from(order)))?;
        let job = self.follow(job.id, &mut progress)?;
        match job.report {
            Some(JobResult::Rehoming(report)) => Ok(*report),
            _ => Err(job.into_error()),
        }
    }

    /// Calls that off, and returns when the guest is where it was, with a sentence that says how things stand.
    ///
    /// # Errors
    /// Its home is not being moved, or it came too late.
    pub fn cancel_rehoming(&mut self, guest: &GuestName) -> Result<String> {
        self.call_off(Method::DELETE, &format!("/v1/guests/{guest}/rehomings"))
    }

    /// Sends a guest of this host to another with which it shares no pool, over others. `progress` hears of every step. It
    /// goes on when the caller hangs up; it is called off by its job.
    ///
    /// # Errors
    /// There is no way; the guest runs where it was. (What was called off, or ended on the way, is no error but an outcome.)
    pub fn route(&mut self, order: &Route, mut progress: impl FnMut(&Progress)) -> Result<RouteReport> {
        let job = self.begin_route(order)?;
        let job = self.follow(job.id, &mut progress)?;
        match job.report {
            Some(JobResult::Route(report)) => Ok(*report),
            _ => Err(job.into_error()),
        }
    }

    /// Decouples or recouples memory of a guest of this host. `progress` hears how far it is. It goes on when the caller
    /// hangs up.
    ///
    /// # Errors
    /// It cannot be moved; the sentence says why. (What was called off or has stalled is no error but an outcome.)
    pub fn move_memory(&mut self, order: &MoveMemory, mut progress: impl FnMut(&Progress)) -> Result<MemoryMoved> {
        let path = format!("/v1/guests/{}/moves", order.guest);
        let job: JobReport = self.caller.ask(Method::POST, &path, Some(&MoveBody::from(order)))?;
        let job = self.follow(job.id, &mut progress)?;
        match job.report {
            Some(JobResult::Memory(moved)) => Ok(*moved),
            _ => Err(job.into_error()),
        }
    }

    /// Calls a decoupling or recoupling off, and returns when the memory is where it was, with a sentence that says how
    /// things stand.
    ///
    /// # Errors
    /// Nothing is being moved that way.
    pub fn cancel_move(&mut self, guest: &GuestName, direction: Direction) -> Result<String> {
        let verb = direction.verb();
        self.call_off(Method::DELETE, &format!("/v1/guests/{guest}/moves?direction={verb}"))
    }

    /// Has a guest of this host protected, or protected otherwise.
    ///
    /// # Errors
    /// There is no room in the pool, or the guest cannot be protected; the sentence says why.
    pub fn protect(&mut self, order: &ProtectGuest) -> Result<GuestReport> {
        let path = format!("/v1/guests/{}/protection", order.guest);
        self.caller.ask(Method::PUT, &path, Some(&ProtectionBody::from(order)))
    }

    /// Has a guest of this host protected no more.
    ///
    /// # Errors
    /// It is not protected.
    pub fn unprotect(&mut self, guest: &GuestName) -> Result<()> {
        self.caller.ask_for_nothing(Method::DELETE, &format!("/v1/guests/{guest}/protection"))
    }

    /// Declares memory of a guest of this host pinned.
    ///
    /// # Errors
    /// It is not all memory, or there is no room for another pin.
    pub fn pin(&mut self, order: &PinMemory) -> Result<PinReport> {
        let path = format!("/v1/guests/{}/pins", order.guest);
        self.caller.ask(Method::POST, &path, Some(&PinBody::from(order)))
    }

    /// The pins of a guest of this host, holds among them.
    ///
    /// # Errors
    /// The guest is not here.
    pub fn pins(&mut self, guest: &GuestName) -> Result<Vec<PinReport>> {
        self.get(&format!("/v1/guests/{guest}/pins"))
    }

    /// Ends a pin of a guest of this host.
    ///
    /// # Errors
    /// There is no such pin.
    pub fn release_pin(&mut self, guest: &GuestName, pin: &str) -> Result<()> {
        let pin = call::escaped(pin);
        self.caller.ask_for_nothing(Method::DELETE, &format!("/v1/guests/{guest}/pins/{pin}"))
    }

    /// Stops a guest of this host and frees its memory.
    ///
    /// # Errors
    /// It cannot be stopped now; the sentence says why.
    pub fn stop(&mut self, guest: &GuestName) -> Result<()> {
        self.caller.ask_for_nothing(Method::DELETE, &format!("/v1/guests/{guest}"))
    }

    /// Has no more guests come to this host.
    ///
    /// # Errors
    /// A pool cannot be told so.
    pub fn cordon(&mut self) -> Result<CordonReport> {
        self.caller.ask(Method::PUT, "/v1/host/cordon", None::<&()>)
    }

    /// Lets guests come to this host again.
    ///
    /// # Errors
    /// A pool cannot be told so.
    pub fn uncordon(&mut self) -> Result<CordonReport> {
        self.caller.ask(Method::DELETE, "/v1/host/cordon", None::<&()>)
    }

    /// Has this host fence another whose lease has expired, or that of a guest, and take its guests, or that one.
    ///
    /// # Errors
    /// There is none of that name, or it lives.
    pub fn take_over(&mut self, name: &str) -> Result<Vec<TakeoverReport>> {
        self.caller.ask(Method::POST, "/v1/takeovers", Some(&TakeoverOrder { name: name.to_owned() }))
    }

    /// What would go where if this host were emptied now, so many guests at once.
    ///
    /// # Errors
    /// The hosts around contradict each other.
    pub fn drain_plan(&mut self, parallel: u32) -> Result<PlacementPlan> {
        self.get(&format!("/v1/host/drain?parallel={parallel}"))
    }

    /// Empties this host. `progress` hears how far it is. It goes on when the caller hangs up.
    ///
    /// # Errors
    /// It is being emptied already. (Guests that cannot leave are no error but an outcome.)
    pub fn drain(&mut self, order: &Drain, mut progress: impl FnMut(&Progress)) -> Result<DrainReport> {
        let job: JobReport = self.caller.ask(Method::POST, "/v1/host/drain", Some(order))?;
        let job = self.follow(job.id, &mut progress)?;
        match job.report {
            Some(JobResult::Drained(report)) => Ok(*report),
            _ => Err(job.into_error()),
        }
    }

    /// Calls off the emptying of this host, and returns when it has stopped, with a sentence that says how things stand.
    ///
    /// # Errors
    /// It is not being emptied.
    pub fn cancel_drain(&mut self) -> Result<String> {
        self.call_off(Method::DELETE, "/v1/host/drain")
    }

    /// What would go where if the hosts of this machine were evened out now.
    ///
    /// # Errors
    /// The hosts around contradict each other, or the order asks for what cannot be.
    pub fn rebalance_plan(&mut self, order: &Rebalance) -> Result<RebalancePlan> {
        let Rebalance { moves, tolerance_percent, parallel, .. } = order;
        self.get(&format!("/v1/rebalance?moves={moves}&tolerance_percent={tolerance_percent}&parallel={parallel}"))
    }

    /// Has this agent even out the hosts of its machine. `progress` hears how far it is. It goes on when the caller hangs up.
    ///
    /// # Errors
    /// The agent is doing that already. (Guests that cannot move are no error but an outcome.)
    pub fn rebalance(&mut self, order: &Rebalance, mut progress: impl FnMut(&Progress)) -> Result<RebalanceReport> {
        let job: JobReport = self.caller.ask(Method::POST, "/v1/rebalance", Some(order))?;
        let job = self.follow(job.id, &mut progress)?;
        match job.report {
            Some(JobResult::Rebalanced(report)) => Ok(*report),
            _ => Err(job.into_error()),
        }
    }

    /// Calls that off, and returns when it has stopped, with a sentence that says how things stand.
    ///
    /// # Errors
    /// This agent is not evening hosts out.
    pub fn cancel_rebalance(&mut self) -> Result<String> {
        self.call_off(Method::DELETE, "/v1/rebalance")
    }

    /// The capacities that are offered to this host, and what it has answered.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn offers(&mut self) -> Result<Vec<OfferReport>> {
        self.get("/v1/offers")
    }

    /// Has this host accept a capacity that is offered to it.
    ///
    /// # Errors
    /// It is not offered to this host, or cannot be mapped there.
    pub fn accept_offer(&mut self, tag: Tag) -> Result<OfferReport> {
        self.answer_offer(tag, OfferAnswer::Accept)
    }

    /// Has this host refuse a capacity that is offered to it.
    ///
    /// # Errors
    /// It is not offered to this host, or the host has accepted it.
    pub fn refuse_offer(&mut self, tag: Tag) -> Result<OfferReport> {
        self.answer_offer(tag, OfferAnswer::Refuse)
    }

    fn answer_offer(&mut self, tag: Tag, answer: OfferAnswer) -> Result<OfferReport> {
        self.caller.ask(Method::PUT, &format!("/v1/offers/{tag}"), Some(&AnswerBody { answer }))
    }

    /// The jobs of this host that are wanted: those under way, the newest first, then those that are over, the last one first.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn jobs(&mut self, wanted: &JobFilter) -> Result<Vec<JobSummary>> {
        self.get(&format!("/v1/jobs?{wanted}"))
    }

    /// One job of this host.
    ///
    /// # Errors
    /// The agent does not know it.
    pub fn job(&mut self, id: JobId) -> Result<JobReport> {
        self.get(&format!("/v1/jobs/{id}"))
    }

    /// Calls a job off, and returns when everything is as it was, with a sentence that says how things stand.
    ///
    /// # Errors
    /// It came too late.
    pub fn cancel_job(&mut self, id: JobId) -> Result<String> {
        self.call_off(Method::POST, &format!("/v1/jobs/{id}/cancel"))
    }

    /// Follows a job to its end. `progress` hears of every step.
    ///
    /// # Errors
    /// The agent has ended meanwhile, or does not know the job.
    pub fn follow(&mut self, id: JobId, progress: &mut dyn FnMut(&Progress)) -> Result<JobReport> {
        let mut after = 0;
        loop {
            let broken = match self.follow_stream(id, &mut after, progress) {
                Ok(Some(report)) => return Ok(report),
                Ok(None) => Error::Hangup { peer: self.peer().to_owned() },
                Err(error @ (Error::NoAnswer { .. } | Error::NotUnderstood { .. })) => return Err(error),
                Err(error) => error,
            };
            match self.job(id) {
                Ok(report) if report.is_over() => return Ok(report),
                Ok(_) => std::thread::sleep(ASK_AGAIN),
                // It is not there any more, or another that does not know the job is there in its place.
                Err(_) => return Err(broken),
            }
        }
    }

    /// Follows a job until its end, or that of the stream (`None`).
    fn follow_stream(
        &mut self,
        id: JobId,
        after: &mut u64,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Option<JobReport>> {
        let mut bytes = self.caller.open(&format!("/v1/jobs/{id}/events"), *after)?;
        let mut events = Sse::default();
        loop {
            while let Some(event) = events.next() {
                *after = event.id.unwrap_or(*after);
                match event.name.as_str() {
                    "progress" => progress(&self.caller.understand(event.data.as_bytes())?),
                    "end" => return Ok(Some(self.caller.understand(event.data.as_bytes())?)),
                    // What a later version may tell besides.
                    _ => {}
                }
            }
            match self.caller.more(&mut bytes)? {
                Some(more) if events.take(&more).is_ok() => {}
                Some(_) | None => return Ok(None),
            }
        }
    }

    /// Asks a target to get ready.
    pub(crate) fn arm(&mut self, order: &ArmOrder) -> Result<Lines> {
        self.caller.post_for_lines("/v1/peer/arm", order)
    }

    /// The next line of what it says.
    pub(crate) fn next_line<T: DeserializeOwned>(&mut self, lines: &mut Lines) -> Result<T> {
        self.caller.next_line(lines)
    }

    /// Calls off the way of a guest that was sent on to that host.
    pub(crate) fn cancel_onward(&mut self, job: JobId) -> Result<String> {
        self.call_off(Method::POST, &format!("/v1/peer/routes/{job}/cancel"))
    }

    /// Has a target recouple memory of a guest that has come to it.
    pub(crate) fn settle(&mut self, order: &SettleOrder) -> Result<JobReport> {
        self.caller.ask(Method::POST, "/v1/peer/settle", Some(order))
    }

    fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T> {
        self.caller.ask(Method::GET, path, None::<&()>)
    }

    fn call_off(&mut self, method: Method, path: &str) -> Result<String> {
        let called_off: CalledOff = self.caller.ask(method, path, None::<&()>)?;
        Ok(called_off.state)
    }
}
