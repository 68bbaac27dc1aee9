//! Starting workers, finding those of an earlier agent, and watching over all of them.

use super::Host;
use super::cgroups::Limits;
use super::table::{Entry, Reservation};
use crate::error::{Error, Result};
use crate::message::{Phase, WorkerReply, WorkerRequest, WorkerStatus};
use crate::name::GuestName;
use crate::process::{Ending, Process, ProcessId};
use crate::versions::{Versions, reads};
use crate::wire::Connection;
use nil_pool::{GuestControl, GuestId, HostSlot, PoolId};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a worker may take to say its first word.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// How long a worker that has hung up may take to end.
const ENDING: Duration = Duration::from_millis(100);
/// How long it may take when it is asked again.
const NEXT_WORD: Duration = Duration::from_secs(1);

impl Host {
    /// Starts a worker for the guest whose name is reserved, and begins to watch it. It has nothing to do yet.
    pub(super) fn start_worker(
        self: &Arc<Self>,
        reservation: &Reservation<'_>,
        control: &GuestControl,
        me: HostSlot,
        image: Option<&Path>,
    ) -> Result<Arc<Process>> {
        let name = reservation.name();
        let (ours, theirs) =
            UnixStream::pair().map_err(|error| Error::io("create", "a socket for the worker", error))?;
        let process = Arc::new(Process::spawn(&mut self.worker_command(name, control, me, image, theirs)?)?);
        let mut connection = Connection::over(ours, format!("the worker of guest {name}"));
        let status = match first_word(&mut connection, FIRST_WORD) {
            Ok(status) => status,
            Err(error) => {
                process.kill();
                process.wait(None);
                // Nobody watches it who would clear up, and the name is reserved: what lies there is its own.
                self.groups.remove(name);
                let _ = fs::remove_file(self.dir.worker_socket(name));
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
        image: Option<&Path>,
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
        let config = control.config()?;
        let limits = Limits::of(&self.workers, config.memory_bytes, config.vcpus);
        let (groups, unmet) = self.groups.make(name, limits);
        for group in groups {
            command.arg("--cgroup").arg(group);
        }
        for sentence in unmet {
            command.args(["--lacks", &sentence]);
        }
        command.args(["--sandbox", self.workers.sandbox.as_str()]);
        for readable in image.into_iter().chain(self.workers.paths.iter().map(AsRef::as_ref)) {
            command.arg("--readable").arg(readable);
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

    /// What the worker of a guest is doing, from itself.
    pub(super) fn ask_worker(&self, name: &GuestName) -> Result<WorkerStatus> {
        let mut worker = Connection::call(&self.dir.worker_socket(name), format!("the worker of guest {name}"))?;
        worker.send(&WorkerRequest::Watch)?;
        first_word(&mut worker, NEXT_WORD)
    }

    /// Takes over the workers of an earlier agent of this host, and removes the sockets of dead ones.
    pub(super) fn adopt_workers(self: &Arc<Self>) -> Result<()> {
        for name in self.dir.worker_sockets()? {
            match self.adopt(&name, FIRST_WORD) {
                Ok(()) => tracing::info!("guest {name}: found its worker, which goes on"),
                Err(error) if is_dead(&error) => {
                    let socket = self.dir.worker_socket(&name);
                    fs::remove_file(&socket).map_err(|error| Error::io("remove", &socket, error))?;
                    tracing::info!("guest {name}: its worker is dead; removed its socket");
                }
                Err(error) => {
                    tracing::error!(
                        "guest {name}: its worker lives and cannot be adopted; it is left alone, and asked again: {}",
                        error.story()
                    );
                    self.unadopted().insert(name);
                }
            }
        }
        Ok(())
    }

    /// Asks the workers again that lived and could not be adopted. Who has died meanwhile is seen to now. A worker that an
    /// earlier agent had started, and that came up only when this one had looked for workers, is asked from the next round on.
    /// `silent` are the sockets at which nobody took a call in the last round: one that has just died leaves its own for a
    /// moment, and those that are there still are dead for good.
    pub(super) fn adopt_again(self: &Arc<Self>, silent: &mut BTreeSet<GuestName>) {
        self.unadopted().retain(|name| !self.table.is_taken(name));
        let mut names = self.unadopted().clone();
        let sockets = self.dir.worker_sockets().unwrap_or_default();
        let strange = sockets.into_iter().filter(|name| !names.contains(name) && !self.table.is_taken(name));
        let takes_calls = |name: &GuestName| UnixStream::connect(self.dir.worker_socket(name)).is_ok();
        let (late, dead): (BTreeSet<_>, BTreeSet<_>) = strange.partition(takes_calls);
        self.unadopted().extend(late);
        let dead_before = std::mem::replace(silent, dead);
        names.extend(dead_before.intersection(silent).cloned());
        for name in names {
            match self.adopt(&name, NEXT_WORD) {
                Ok(()) => {
                    self.unadopted().remove(&name);
                    tracing::info!("guest {name}: its worker answers now, and goes on");
                }
                Err(error) if is_dead(&error) => {
                    // If it is gone already, all the better.
                    let _ = fs::remove_file(self.dir.worker_socket(&name));
                    self.unadopted().remove(&name);
                    tracing::info!("guest {name}: its worker is dead; removed its socket");
                    self.recover_where(|guest| *guest == name);
                }
                Err(error) => tracing::debug!("guest {name}: its worker cannot be adopted: {}", error.story()),
            }
        }
    }

    pub(super) fn unadopted(&self) -> MutexGuard<'_, BTreeSet<GuestName>> {
        self.unadopted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what must not be done with a guest whose worker lives and does not answer.
    pub(super) fn check_adopted(&self, name: &GuestName) -> Result<()> {
        if self.unadopted().contains(name) {
            return Err(Error::refused(format!(
                "the worker of guest {name} lives, and does not answer; it is asked again every second: see {}",
                self.dir.worker_log(name).display()
            )));
        }
        Ok(())
    }

    fn adopt(self: &Arc<Self>, name: &GuestName, patience: Duration) -> Result<()> {
        let mut connection = Connection::call(&self.dir.worker_socket(name), format!("the worker of guest {name}"))?;
        connection.send(&WorkerRequest::Watch)?;
        let status = first_word(&mut connection, patience)?;
        check_protocol(name, &status)?;
        let process = Arc::new(Process::open(status.process)?);
        let control = self.pools.get(status.pool)?.pool().guest(status.slot, status.guest)?;
        let reservation = self.table.reserve(name, self.dir.name(), Duration::ZERO)?;
        let (phase, moving, id, pool) = (status.phase, status.moving.clone(), status.process, status.pool);
        let protocol = status.versions.worker;
        reservation.fill(Entry::new(control, Arc::clone(&process), status));
        self.watch(name.clone(), process, connection)?;
        self.tell_pools(name, pool, protocol);
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
    fn tell_pools(&self, name: &GuestName, pool: PoolId, protocol: u32) {
        let paths = self.pools.paths_beside(pool);
        if paths.is_empty() {
            return;
        }
        let told = match protocol {
            1 => self.order(name, &WorkerRequest::KnowPools { paths }, FIRST_WORD).map(drop),
            _ => self.give_pools(name, paths),
        };
        if let Err(error) = told {
            tracing::warn!("guest {name}: its memory cannot be striped: {}", error.story());
        }
    }

    /// Opens pools for a worker, which may not open them itself.
    fn give_pools(&self, name: &GuestName, paths: Vec<PathBuf>) -> Result<()> {
        let open = |path: &PathBuf| {
            let file = OpenOptions::new().read(true).write(true).open(path);
            file.map_err(|error| Error::io("open the pool", path, error))
        };
        let files = paths.iter().map(open).collect::<Result<Vec<_>>>()?;
        let mut worker = Connection::call(&self.dir.worker_socket(name), format!("the worker of guest {name}"))?;
        worker.set_patience(Some(FIRST_WORD))?;
        worker.send(&WorkerRequest::TakePools { paths })?;
        loop {
            match worker.expect()? {
                WorkerReply::SendFiles => worker.send_files(files.iter().map(AsFd::as_fd))?,
                WorkerReply::Refused(why) => return Err(Error::refused(why)),
                _ => return Ok(()),
            }
        }
    }

    /// Follows what a worker says of itself until it has ended, and then sees to what it left behind.
    fn watch(self: &Arc<Self>, name: GuestName, worker: Arc<Process>, mut connection: Connection) -> Result<()> {
        self.spawn("watch", move |host| {
            let mut ending = None;
            loop {
                match connection.receive() {
                    Ok(Some(WorkerReply::Status(status))) => host.heard(&status),
                    Ok(Some(reply)) => tracing::warn!("guest {name}: its worker said {reply:?} out of turn"),
                    Ok(None) => {
                        ending = worker.wait(Some(ENDING));
                        match ending.is_none().then(|| host.watch_again(&name)).flatten() {
                            Some(again) => connection = again,
                            None => break,
                        }
                    }
                    Err(error) => {
                        tracing::warn!("guest {name}: {}", error.story());
                        break;
                    }
                }
            }
            if let Some(ending) = ending.or_else(|| worker.wait(None)) {
                host.worker_ended(&name, worker.id(), ending);
            }
        })
    }

    /// Calls a worker again that has hung up on us, because we took nothing for too long. `None` when it is ending.
    fn watch_again(&self, name: &GuestName) -> Option<Connection> {
        let peer = format!("the worker of guest {name}");
        let again = Connection::call(&self.dir.worker_socket(name), peer);
        again.and_then(|again| again.send(&WorkerRequest::Watch).map(|()| again)).ok()
    }

    fn heard(&self, status: &WorkerStatus) {
        if status.phase.is_final() {
            self.remove_socket(&status.name, status.process);
        }
        self.follow_home(status);
        let Some(before) = self.table.note(status) else { return };
        let (name, why) = (&status.name, status.detail.as_deref().unwrap_or("no reason given"));
        match status.phase {
            phase if phase == before => return,
            Phase::Empty | Phase::Starting | Phase::Ended => {}
            Phase::Armed => tracing::info!("guest {name}: ready to take it over"),
            Phase::Leaving => tracing::info!("guest {name}: handing it over"),
            Phase::Running if before == Phase::Leaving => tracing::warn!("guest {name}: taken back: {why}"),
            Phase::Running => tracing::info!("guest {name}: it runs here"),
            Phase::Halted => tracing::info!("guest {name}: it has stopped: {why}"),
            Phase::Released => tracing::info!("guest {name}: it has left"),
            Phase::TornDown => tracing::info!("guest {name}: it did not come: {why}"),
        }
        self.tell_phase(status);
    }

    /// A guest whose home has moved is looked for there from now on.
    fn follow_home(&self, status: &WorkerStatus) {
        let entry = self.table.find(&status.name).filter(|entry| entry.worker.id() == status.process);
        if entry.is_none_or(|entry| entry.is_home(status.pool, status.slot)) {
            return;
        }
        let home = self.pools.get(status.pool).and_then(|home| Ok(home.pool().guest(status.slot, status.guest)?));
        match home {
            Ok(control) => self.table.rehouse(&status.name, status.process, &control),
            Err(error) => tracing::error!("guest {}: its home is not found: {}", status.name, error.story()),
        }
    }

    /// Removes the socket of a worker that ends: before its name is free for another one, which has its own in that place.
    fn remove_socket(&self, name: &GuestName, worker: ProcessId) {
        if self.table.find(name).is_some_and(|entry| entry.worker.id() == worker) {
            // If it is gone already, all the better.
            let _ = fs::remove_file(self.dir.worker_socket(name));
        }
    }

    fn worker_ended(self: &Arc<Self>, name: &GuestName, worker: ProcessId, ending: Ending) {
        self.groups.remove(name);
        self.remove_socket(name, worker);
        // Before it is forgotten here: it may be the first sign that its pool is no more.
        if let Some(entry) = self.table.find(name).filter(|entry| entry.worker.id() == worker) {
            self.look_for_loss(&entry);
        }
        // A guest that has left is not in the table any more, or is there again with another worker.
        let Some(entry) = self.table.remove(name, worker) else { return };
        if entry.control.pool().is_lost() {
            tracing::error!("guest {name}: its pool is lost; its worker (process {}) {ending}", worker.pid);
            return self.tell_rest(name, entry.id);
        }
        match entry.phase {
            Phase::Released | Phase::TornDown => {}
            // If it never ran, and whoever ordered it is gone with an earlier agent, nobody else clears up.
            Phase::Ended => self.discard_unstarted(name, &entry.control),
            Phase::Empty | Phase::Starting | Phase::Armed | Phase::Running | Phase::Leaving | Phase::Halted => {
                tracing::error!("guest {name}: its worker (process {}) {ending}", worker.pid);
                self.remember_ending(entry.id, ending);
                self.counted.worker_died();
                let control = self.settle_twins_of(&entry.control);
                self.recover_guest(name, &control);
            }
        }
        self.tell_rest(name, entry.id);
    }
}

impl Host {
    /// How the workers of guests that are lost have ended.
    pub(super) fn endings(&self) -> MutexGuard<'_, BTreeMap<GuestId, Ending>> {
        self.endings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps how a worker has ended, for who asks about its guest, and forgets those of guests that are no more.
    fn remember_ending(&self, guest: GuestId, ending: Ending) {
        let alive: BTreeSet<GuestId> =
            self.pools.all().iter().flat_map(|membership| membership.pool().guests()).map(|guest| guest.id).collect();
        let mut endings = self.endings();
        endings.retain(|guest, _| alive.contains(guest));
        endings.insert(guest, ending);
    }
}

/// Whether a worker is gone that cannot be adopted. Whatever else is wrong with it: it may run its guest.
fn is_dead(error: &Error) -> bool {
    matches!(error, Error::NobodyThere { .. } | Error::ProcessGone)
}

/// Refuses a worker that does not speak as we do. It is left alone: its guest runs on.
fn check_protocol(name: &GuestName, status: &WorkerStatus) -> Result<()> {
    let (ours, theirs) = (Versions::OURS.worker, status.versions.worker);
    if reads(ours, theirs) {
        return Ok(());
    }
    Err(Error::refused(format!(
        "the worker of guest {name} speaks version {theirs} of the worker protocol, this agent version {ours} and the one \
         before: start an agent of the nil that has started the worker, or one that is one version newer"
    )))
}

/// A worker's first status.
fn first_word(connection: &mut Connection, patience: Duration) -> Result<WorkerStatus> {
    connection.set_patience(Some(patience))?;
    let word = connection.expect()?;
    connection.set_patience(None)?;
    match word {
        WorkerReply::Status(status) => Ok(*status),
        WorkerReply::Refused(why) => Err(Error::refused(why)),
        _ => Err(Error::refused(format!("{} did not say what it is doing", connection.peer()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::WORKER_PROTOCOL;

    fn status(protocol: u32) -> WorkerStatus {
        WorkerStatus { versions: Versions { worker: protocol, ..Versions::OURS }, ..WorkerStatus::of_test() }
    }

    #[test]
    fn workers_of_this_version_and_the_one_before_are_adopted_and_those_of_a_later_one_are_not() {
        let check = |protocol| check_protocol(&"g".parse().expect("a good name"), &status(protocol));
        for protocol in [WORKER_PROTOCOL - 1, WORKER_PROTOCOL] {
            check(protocol).expect("understood");
        }
        let error = check(WORKER_PROTOCOL + 1).expect_err("from the future");
        assert!(error.to_string().contains("newer"), "{error}");
        assert!(!is_dead(&error), "it lives, and is left alone");
    }
}
