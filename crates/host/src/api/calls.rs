//! From a request to the agent's threads and back.
//!
//! ```text
//! glance     answered from what the agent knows by heart, at once
//! question   answered from what it has to look for: a thread of a small pool, within a time
//! order      waits for a worker or a guest: a thread of its own, within the time that the agent gives it
//! job        takes long: a thread of its own that nobody waits for (see `crate::agent`)
//! ```

use super::limits::{ORDERS, QUESTION_TIME};
use super::problem::{Answer, Refusal};
use crate::agent::{Host, Work};
use crate::error::{Error, Result};
use crate::report::{CalledOff, JobReport};
use axum::Json;
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// What every handler has.
#[derive(Clone, Debug)]
pub(super) struct Api {
    host: Arc<Host>,
    orders: Arc<Semaphore>,
    pub(super) streams: Arc<Semaphore>,
}

impl Api {
    pub(super) fn new(host: Arc<Host>, streams: usize) -> Self {
        Self { host, orders: Arc::new(Semaphore::new(ORDERS)), streams: Arc::new(Semaphore::new(streams)) }
    }

    pub(super) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Asks the agent something that takes it no longer to tell than another thread would take to begin: on a machine with
    /// much to do that is some milliseconds. Whoever calls next waits for it.
    pub(super) fn glance<T>(&self, look: impl FnOnce(&Host) -> Result<T>) -> Answer<T> {
        let _order = self.host.begin_order()?;
        Ok(look(&self.host)?)
    }

    /// Asks the agent something that it has to look for.
    pub(super) async fn question<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Host) -> Result<T> + Send + 'static,
    ) -> Answer<T> {
        let host = Arc::clone(&self.host);
        let asked = tokio::task::spawn_blocking(move || {
            let _order = host.begin_order()?;
            ask(&host)
        });
        match tokio::time::timeout(QUESTION_TIME, asked).await {
            Ok(Ok(answer)) => Ok(answer?),
            Ok(Err(_)) => Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the agent could not answer")),
            Err(_) => Err(Refusal::new(StatusCode::GATEWAY_TIMEOUT, "the agent could not answer in time")),
        }
    }

    /// Permits one more order that waits for a worker or a guest.
    pub(super) fn admit(&self) -> Answer<OwnedSemaphorePermit> {
        Arc::clone(&self.orders).try_acquire_owned().map_err(|_| Refusal::busy("orders"))
    }

    /// Has the agent do something, however long that takes. It is done also when the caller hangs up.
    pub(super) async fn order<T: Send + 'static>(
        &self,
        obey: impl FnOnce(&Arc<Host>) -> Result<T> + Send + 'static,
    ) -> Answer<T> {
        let (answer, answered) = oneshot::channel();
        let permit = self.admit()?;
        self.host.spawn("order", move |host| {
            let outcome = host.begin_order().and_then(|_order| obey(host));
            drop(permit);
            // Whoever has hung up does not want to know.
            let _ = answer.send(outcome);
        })?;
        Ok(answered.await.unwrap_or_else(|_| Err(self.stopping()))?)
    }

    async fn job(&self, work: Work) -> Answer<JobReport> {
        let (begun, heard) = oneshot::channel();
        self.host.undertake(work, begun)?;
        Ok(heard.await.unwrap_or_else(|_| Err(self.stopping()))?)
    }

    /// Has the agent begin a job; answers with it, and where it can be followed.
    pub(super) async fn begin(&self, work: Work) -> Answer<Response> {
        let job = self.job(work).await?;
        let location = format!("/v1/jobs/{}", job.id);
        Ok((StatusCode::ACCEPTED, [(LOCATION, location)], Json(job)).into_response())
    }

    /// Has the agent call something off; answers when it is known how things stand.
    pub(super) async fn call_off(
        &self,
        call_off: impl FnOnce(&Arc<Host>) -> Result<String> + Send + 'static,
    ) -> Answer<Json<CalledOff>> {
        let state = self.order(call_off).await?;
        Ok(Json(CalledOff { state }))
    }

    fn stopping(&self) -> Error {
        Error::Stopping { name: self.host.name().clone() }
    }
}
