//! Starting workers, finding those of an earlier agent, and watching over all of them.

use super::Host;
use super::table::{Entry, Reservation};
use crate::error::{Error, Result};
use crate::message::{Phase, WorkerReply, WorkerRequest, WorkerStatus};
use crate::name::GuestName;
use crate::process::{Ending, Process, ProcessId};
use crate::wire::Connection;
use nil_pool::{GuestControl, HostSlot, PoolId};
use std::fs::{self, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// How long a worker may take to say its first word.
const FIRST_WORD: Duration = Duration::from_secs(10);

impl Host {
    /// Starts a worker for the guest whose name is reserved, and begins to watch it. It has nothing to do yet.
    pub(super) fn start_worker(
        self: &Arc<Self>,
        reservation: &Reservation<'_>,
        control: &GuestControl,
        me: HostSlot,
    ) -> Result<Arc<Process>> {
        let name = reservation.name();
        let (ours, theirs) =
            UnixStream::pair().map_err(|error| Error::io("create", "a socket for the worker", error))?;
        let process = Arc::new(Process::spawn(&mut self.worker_command(name, control, me, theirs)?)?);
        let mut connection = Connection::over(ours, format!("the worker of guest {name}"));
        let status = match first_word(&mut connection) {
            Ok(status) => status,
            Err(error) => {
                process.kill();
                process.wait(None);
                let log = self.dir.worker_log(name);
                tracing::warn!("guest {name}: its worker did not come up, see {}", log.display());
                return Err(error);
            }
        };
        reservation.fill(Entry::new(control.clone(), Arc::clone(&process), status));
        self.watch(name.clone(), Arc::clone(&process), connection)?;
        Ok(process)
    }

    fn worker_command(
        &self,
        name: &GuestName,
        control: &GuestControl,
        me: HostSlot,
        stdin: UnixStream,
    ) -> Result<Command> {
        let path = self.dir.worker_log(name);
        let log = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        let log = log.map_err(|error| Error::io("open", &path, error))?;
        let log_too = log.try_clone().map_err(|error| Error::io("open", &path, error))?;
        // Not by its path: the program that runs may have been replaced there by another version.
        let mut command = Command::new("/proc/self/exe");
        command
            .arg("worker")
            .arg("--run-dir")
            .arg(self.dir.run_dir().path())
            .args(["--host", self.dir.name().as_str()])
            .args(["--host-slot", &me.index().to_string()])
            .arg("--pool")
            .arg(control.pool().path());
        for companion in self.pools.paths_beside(control.pool().id()) {
            command.arg("--companion").arg(companion);
        }
        command
            .args(["--guest", name.as_str()])
            .args(["--guest-slot", &control.slot().index().to_string()])
            .args(["--guest-id", &control.id().to_string()])
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(stdin)))
            .stdout(Stdio::from(log))
            .stderr(Stdio::from(log_too));
        Ok(command)
    }

    /// Sends the worker of a guest one request and waits for its answer.
    pub(super) fn order(&self, name: &GuestName, request: &WorkerRequest, patience: Duration) -> Result<WorkerReply> {
        let mut worker = Connection::call(&self.dir.worker_socket(name), format!("the worker of guest {name}"))?;
        worker.set_patience(Some(patience))?;
        worker.send(request)?;
        match worker.expect()? {
            WorkerReply::Refused(why) => Err(Error::refused(why)),
            reply => Ok(reply),
        }
    }

    /// Takes over the workers of an earlier agent of this host, and removes the sockets of dead ones.
    pub(super) fn adopt_workers(self: &Arc<Self>) -> Result<()> {
        for name in self.dir.worker_sockets()? {
            match self.adopt(&name) {
                Ok(()) => tracing::info!("guest {name}: found its worker, which goes on"),
                Err(Error::NobodyThere { .. } | Error::ProcessGone) => {
                    let socket = self.dir.worker_socket(&name);
                    fs::remove_file(&socket).map_err(|error| Error::io("remove", &socket, error))?;
                    tracing::info!("guest {name}: its worker is dead; removed its socket");
                }
                Err(error) => tracing::error!("guest {name}: its worker cannot be adopted: {}", error.story()),
            }
        }
        Ok(())
    }

    fn adopt(self: &Arc<Self>, name: &GuestName) -> Result<()> {
        let mut connection = Connection::call(&self.dir.worker_socket(name), format!("the worker of guest {name}"))?;
        connection.send(&WorkerRequest::Watch)?;
        let status = first_word(&mut connection)?;
        let process = Arc::new(Process::open(status.process)?);
        let control = self.pools.get(status.pool)?.pool().guest(status.slot, status.guest)?;
        let reservation = self.table.reserve(name, self.dir.name(), Duration::ZERO)?;
        let (phase, moving, id, pool) = (status.phase, status.moving.clone(), status.process, status.pool);
        reservation.fill(Entry::new(control, Arc::clone(&process), status));
        self.watch(name.clone(), process, connection)?;
        self.tell_pools(name, pool);
        if matches!(phase, Phase::Empty | Phase::Starting | Phase::Armed) {
            let name = name.clone();
            self.spawn("orphan", move |host| host.see_off_orphan(&name, id))?;
        } else if phase == Phase::Running {
            let name = name.clone();
            self.spawn("orphan", move |host| host.see_to_orphan_move(&name, id, moving.as_ref()))?;
        }
        Ok(())
    }

    /// Tells a worker of an earlier agent which other pools the host has joined now.
    fn tell_pools(&self, name: &GuestName, pool: PoolId) {
        let paths = self.pools.paths_beside(pool);
        if paths.is_empty() {
            return;
        }
        if let Err(error) = self.order(name, &WorkerRequest::KnowPools { paths }, FIRST_WORD) {
            tracing::warn!("guest {name}: its memory cannot be striped: {}", error.story());
        }
    }

    /// Follows what a worker says of itself until it has ended, and then sees to what it left behind.
    fn watch(self: &Arc<Self>, name: GuestName, worker: Arc<Process>, mut connection: Connection) -> Result<()> {
        self.spawn("watch", move |host| {
            loop {
                match connection.receive() {
                    Ok(Some(WorkerReply::Status(status))) => host.heard(&status),
                    Ok(Some(reply)) => tracing::warn!("guest {name}: its worker said {reply:?} out of turn"),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!("guest {name}: {}", error.story());
                        break;
                    }
                }
            }
            if let Some(ending) = worker.wait(None) {
                host.worker_ended(&name, worker.id(), ending);
            }
        })
    }

    fn heard(&self, status: &WorkerStatus) {
        let Some(before) = self.table.note(status) else { return };
        let (name, why) = (&status.name, status.detail.as_deref().unwrap_or("no reason given"));
        match status.phase {
            phase if phase == before => {}
            Phase::Empty | Phase::Starting | Phase::Ended => {}
            Phase::Armed => tracing::info!("guest {name}: ready to take it over"),
            Phase::Leaving => tracing::info!("guest {name}: handing it over"),
            Phase::Running if before == Phase::Leaving => tracing::warn!("guest {name}: taken back: {why}"),
            Phase::Running => tracing::info!("guest {name}: it runs here"),
            Phase::Halted => tracing::info!("guest {name}: it has stopped: {why}"),
            Phase::Released => tracing::info!("guest {name}: it has left"),
            Phase::TornDown => tracing::info!("guest {name}: it did not come: {why}"),
        }
    }

    fn worker_ended(self: &Arc<Self>, name: &GuestName, worker: ProcessId, ending: Ending) {
        // A guest that has left is not in the table any more, or is there again with another worker.
        let Some(entry) = self.table.remove(name, worker) else { return };
        match entry.phase {
            Phase::Released | Phase::TornDown => {}
            // If it never ran, and whoever ordered it is gone with an earlier agent, nobody else clears up.
            Phase::Ended => self.discard_unstarted(name, &entry.control),
            Phase::Empty | Phase::Starting | Phase::Armed | Phase::Running | Phase::Leaving | Phase::Halted => {
                let socket = self.dir.worker_socket(name);
                // If it is gone already, all the better.
                let _ = fs::remove_file(socket);
                tracing::error!("guest {name}: its worker (process {}) {ending}", worker.pid);
                self.recover_guest(name, &entry.control);
            }
        }
    }
}

/// A worker's first status.
fn first_word(connection: &mut Connection) -> Result<WorkerStatus> {
    connection.set_patience(Some(FIRST_WORD))?;
    let word = connection.expect()?;
    connection.set_patience(None)?;
    match word {
        WorkerReply::Status(status) => Ok(*status),
        WorkerReply::Refused(why) => Err(Error::refused(why)),
        _ => Err(Error::refused(format!("{} did not say what it is doing", connection.peer()))),
    }
}
