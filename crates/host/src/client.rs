//! Talking to agents: what `nil ps`, `nil migrate` and the rest of the command line are made of.

use crate::error::{Error, Result};
use crate::message::{AgentReply, AgentRequest, Migrate, RunVm, WorkerReply, WorkerRequest};
use crate::name::{GuestName, HostName};
use crate::report::{GuestReport, HostReport, MigrationReport, Progress};
use crate::run_dir::HostDir;
use crate::wire::Connection;
use std::io::{self, BufReader, Read};
use std::os::unix::net::UnixStream;

/// A connection to the agent of one host.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    host: HostName,
}

impl Client {
    /// Calls the agent of a host.
    ///
    /// # Errors
    /// [`Error::HostGone`] when it does not run.
    pub fn connect(dir: &HostDir) -> Result<Self> {
        let host = dir.name().clone();
        match Connection::call(&dir.agent_socket(), format!("the agent of host {host}")) {
            Ok(connection) => Ok(Self { connection, host }),
            Err(Error::NobodyThere { .. }) => Err(Error::HostGone { name: host }),
            Err(error) => Err(error),
        }
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
        match self.ask(&AgentRequest::Describe, |_| {})? {
            AgentReply::Host(report) => Ok(report),
            other => Err(self.out_of_turn(&other)),
        }
    }

    /// All guests in the host's pools, those of other hosts as the pool has them.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn ps(&mut self) -> Result<Vec<GuestReport>> {
        match self.ask(&AgentRequest::List, |_| {})? {
            AgentReply::Guests(guests) => Ok(guests),
            other => Err(self.out_of_turn(&other)),
        }
    }

    /// Starts a VM; it runs when this returns. If the caller dies before, nothing is left of it.
    ///
    /// # Errors
    /// It cannot be started; the sentence says why.
    pub fn run_vm(&mut self, order: &RunVm) -> Result<GuestReport> {
        match self.ask(&AgentRequest::Run(order.clone()), |_| {})? {
            AgentReply::Guest(guest) => Ok(guest),
            other => Err(self.out_of_turn(&other)),
        }
    }

    /// Moves a guest of this host to another. `progress` hears of every step.
    ///
    /// # Errors
    /// It cannot be moved; it runs on here. (A guest that was taken back is no error but an outcome.)
    pub fn migrate(&mut self, order: &Migrate, progress: impl FnMut(&Progress)) -> Result<MigrationReport> {
        match self.ask(&AgentRequest::Migrate(order.clone()), progress)? {
            AgentReply::Migrated(report) => Ok(*report),
            other => Err(self.out_of_turn(&other)),
        }
    }

    /// Stops a guest of this host and frees its memory.
    ///
    /// # Errors
    /// It cannot be stopped now; the sentence says why.
    pub fn stop(&mut self, guest: &GuestName) -> Result<()> {
        match self.ask(&AgentRequest::Stop { guest: guest.clone() }, |_| {})? {
            AgentReply::Done => Ok(()),
            other => Err(self.out_of_turn(&other)),
        }
    }

    fn ask(&mut self, request: &AgentRequest, mut progress: impl FnMut(&Progress)) -> Result<AgentReply> {
        self.connection.send(request)?;
        loop {
            match self.connection.expect()? {
                AgentReply::Progress(step) => progress(&step),
                AgentReply::Refused(why) => return Err(Error::Refused(why)),
                reply => return Ok(reply),
            }
        }
    }

    fn out_of_turn(&self, reply: &AgentReply) -> Error {
        Error::refused(format!("{} answered {reply:?} to another question", self.connection.peer()))
    }
}

/// What a guest writes to its serial port, as a stream that ends when the guest leaves its host or stops.
#[derive(Debug)]
pub struct ConsoleStream(BufReader<UnixStream>);

impl ConsoleStream {
    /// Attaches to the worker that runs `guest` on the host of `dir`, from the first byte that it still keeps.
    ///
    /// # Errors
    /// The guest has no worker there.
    pub fn attach(dir: &HostDir, guest: &GuestName) -> Result<Self> {
        let mut worker = Connection::call(&dir.worker_socket(guest), format!("the worker of guest {guest}"))?;
        worker.send(&WorkerRequest::Console { from: 0 })?;
        match worker.expect()? {
            WorkerReply::Done => Ok(Self(worker.into_bytes())),
            WorkerReply::Refused(why) => Err(Error::Refused(why)),
            other @ (WorkerReply::Status(_) | WorkerReply::Released(_) | WorkerReply::TakenBack(_)) => {
                Err(Error::refused(format!("the worker of guest {guest} answered {other:?} to another question")))
            }
        }
    }
}

impl Read for ConsoleStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(0),
            other => other,
        }
    }
}
