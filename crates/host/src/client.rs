//! Talking to agents: what `nil ps`, `nil migrate` and the rest of the command line are made of.

use crate::error::{Error, Result};
use crate::message::{AgentReply, AgentRequest, WorkerReply, WorkerRequest};
use crate::name::{GuestName, HostName};
use crate::order::{Migrate, MoveMemory, PinMemory, RunVm};
use crate::report::{GuestReport, HostReport, MemoryMoved, MigrationReport, PinReport, Progress};
use crate::run_dir::HostDir;
use crate::wire::Connection;
use nil_mover::Direction;
use std::io::{self, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::time::Duration;

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

    /// Limits how long the agent may take to answer; `None` waits for ever.
    pub(crate) fn set_patience(&self, patience: Option<Duration>) -> Result<()> {
        self.connection.set_patience(patience)
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
            AgentReply::Guest(guest) => Ok(*guest),
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

    /// Calls the migration of a guest of this host off, and returns when the guest is where it was, with a sentence that
    /// says how things stand.
    ///
    /// # Errors
    /// There is no migration, or it came too late: the guest runs on the target.
    pub fn cancel_migration(&mut self, guest: &GuestName) -> Result<String> {
        match self.ask(&AgentRequest::CancelMigration { guest: guest.clone() }, |_| {})? {
            AgentReply::CalledOff(how) => Ok(how),
            other => Err(self.out_of_turn(&other)),
        }
    }

    /// Decouples or recouples memory of a guest of this host. `progress` hears how far it is. It goes on when the caller
    /// hangs up.
    ///
    /// # Errors
    /// It cannot be moved; the sentence says why. (What was called off or has stalled is no error but an outcome.)
    pub fn move_memory(&mut self, order: &MoveMemory, progress: impl FnMut(&Progress)) -> Result<MemoryMoved> {
        match self.ask(&AgentRequest::Move(order.clone()), progress)? {
            AgentReply::MemoryMoved(report) => Ok(*report),
            other => Err(self.out_of_turn(&other)),
        }
    }

    /// Calls a decoupling or recoupling off, and returns when the memory is where it was, with a sentence that says how
    /// things stand.
    ///
    /// # Errors
    /// Nothing is being moved that way.
    pub fn cancel_move(&mut self, guest: &GuestName, direction: Direction) -> Result<String> {
        match self.ask(&AgentRequest::CancelMove { guest: guest.clone(), direction }, |_| {})? {
            AgentReply::CalledOff(how) => Ok(how),
            other => Err(self.out_of_turn(&other)),
        }
    }

    /// Declares memory of a guest of this host pinned.
    ///
    /// # Errors
    /// It is not all memory, or there is no room for another pin.
    pub fn pin(&mut self, order: &PinMemory) -> Result<PinReport> {
        let mut pins = self.ask_for_pins(&AgentRequest::Pin(order.clone()))?;
        pins.pop().ok_or_else(|| Error::refused(format!("{} did not say which pin it is", self.connection.peer())))
    }

    /// The pins of a guest of this host, holds among them.
    ///
    /// # Errors
    /// The guest is not here.
    pub fn pins(&mut self, guest: &GuestName) -> Result<Vec<PinReport>> {
        self.ask_for_pins(&AgentRequest::Pins { guest: guest.clone() })
    }

    fn ask_for_pins(&mut self, request: &AgentRequest) -> Result<Vec<PinReport>> {
        match self.ask(request, |_| {})? {
            AgentReply::Pins(pins) => Ok(pins),
            other => Err(self.out_of_turn(&other)),
        }
    }

    /// Ends a pin of a guest of this host.
    ///
    /// # Errors
    /// There is no such pin.
    pub fn release_pin(&mut self, guest: &GuestName, pin: &str) -> Result<()> {
        match self.ask(&AgentRequest::ReleasePin { guest: guest.clone(), pin: pin.to_owned() }, |_| {})? {
            AgentReply::Done => Ok(()),
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
            other => Err(Error::refused(format!("the worker of guest {guest} answered {other:?} to another question"))),
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
