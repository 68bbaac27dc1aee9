//! Looking at a guest's console, which its worker shows itself.

use crate::error::{Error, Result};
use crate::message::{WorkerReply, WorkerRequest};
use crate::name::GuestName;
use crate::run_dir::HostDir;
use crate::wire::Connection;
use rustix::net::sockopt::socket_peercred;
use std::io::{self, BufReader, Read};
use std::os::unix::net::UnixStream;

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

    /// The process that shows it, by the kernel's word.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn worker_pid(&self) -> io::Result<i32> {
        Ok(socket_peercred(self.0.get_ref())?.pid.as_raw_nonzero().get())
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
