//! The worker: the process that runs one guest.
//!
//! It opens the pool, listens on its own socket, and does as its agent says; once a guest runs, the agent may come and
//! go. The agent that starts a worker holds the other end of its standard input, a socket on which it watches the
//! worker from its first moment; a later agent finds the worker's socket in the run directory and watches there.
//!
//! The handoff's critical path runs in the VMM's own threads. Nothing here is on it.

mod demand;
mod lease;
mod leaving;
mod memory;
mod moves;
mod orders;
mod protecting;
mod rehoming;
mod sandbox;
mod status;

use crate::config::SandboxMode;
use crate::error::{Error, Result, story};
use crate::message::{Phase, WorkerReply, WorkerRequest, WorkerStatus};
use crate::name::GuestName;
use crate::process::ProcessId;
use crate::report::SandboxReport;
use crate::run_dir::HostDir;
use crate::versions::Versions;
use crate::wire::{self, Connection};
use nil_mover::MoveProgress;
use nil_pool::{Access, GuestId, GuestSlot, HostSlot, Pool};
use orders::Orders;
use status::StatusBoard;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Gives the bytes of an image that is built into the program, by name.
pub type BuiltinImages = fn(&str) -> Option<Vec<u8>>;

/// What a worker is told when it is started.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// The host it works for.
    pub host: HostDir,
    /// The host's slot in the pool.
    pub host_slot: HostSlot,
    /// Where the pool is.
    pub pool: PathBuf,
    /// Where the other pools are that its host has joined, over which memory of the guest may be striped.
    pub companions: Vec<PathBuf>,
    /// The guest's slot in the pool.
    pub guest_slot: GuestSlot,
    /// The guest's identity.
    pub guest_id: GuestId,
    /// The guest's name.
    pub guest: GuestName,
    /// How it is to be confined.
    pub sandbox: WorkerSandbox,
}

/// How a worker is to be confined.
#[derive(Clone, Debug, Default)]
pub struct WorkerSandbox {
    /// Whether, and how strictly.
    pub mode: SandboxMode,
    /// What it may read besides what it always needs: the guest's image.
    pub readable: Vec<PathBuf>,
    /// The control groups that its agent has made for it.
    pub groups: Vec<PathBuf>,
    /// What its agent could not limit, in sentences.
    pub lacks: Vec<String>,
}

/// How long a worker lives on after its guest has left: tearing a VM down takes CPU time that belongs to the guest's
/// first moments on the target.
const LINGER: Duration = Duration::from_millis(50);

/// How long the agent may take to send a file that it has announced.
const PATIENCE_WITH_FILES: Duration = Duration::from_secs(5);

/// Runs a worker until it has nothing more to do.
///
/// # Errors
/// The pool, the guest's record or the socket cannot be opened.
pub fn run_worker(options: &WorkerOptions, images: BuiltinImages) -> Result<()> {
    leave_terminal();
    let agent = agent_connection()?;
    let orders = match start(options, images) {
        Ok(orders) => orders,
        Err(error) => {
            // The agent may have hung up; then the log has the reason.
            let _ = agent.send(&WorkerReply::Refused(error.story()));
            return Err(error);
        }
    };
    orders.board().watch(agent);
    let phase = orders.board().wait_final();
    tracing::info!("guest {}: {}", options.guest, farewell(phase));
    orders.await_answers();
    if phase == Phase::Released {
        if let Err(error) = orders.post().control.write_back_memory() {
            tracing::debug!("its memory is not written back from here: {error}");
        }
        std::thread::sleep(LINGER);
    }
    Ok(())
}

fn farewell(phase: Phase) -> &'static str {
    match phase {
        Phase::Released => "it has left, and so does its worker",
        Phase::TornDown => "it did not come, its worker ends",
        Phase::Empty
        | Phase::Starting
        | Phase::Armed
        | Phase::Running
        | Phase::Leaving
        | Phase::Halted
        | Phase::Ended => "stopped, its worker ends",
    }
}

/// Begins a session of its own: the Ctrl-C that stops an agent in a terminal is not meant for its guests.
fn leave_terminal() {
    // It fails only for the leader of a process group, which a worker that an agent started is not.
    let _ = rustix::process::setsid();
}

/// The agent's end of our standard input.
fn agent_connection() -> Result<Connection> {
    let stdin = std::io::stdin();
    let fd = stdin.as_fd().try_clone_to_owned().map_err(|error| Error::io("use", "standard input", error))?;
    Ok(Connection::over(UnixStream::from(fd), "the agent"))
}

/// Opens what the worker needs and begins to listen.
fn start(options: &WorkerOptions, images: BuiltinImages) -> Result<Arc<Orders>> {
    let pool = Pool::open(&options.pool, Access::ReadWrite)?.on_behalf_of(options.host_slot)?;
    pool.show_presence(options.host_slot)?;
    add_companions(&pool, &options.companions);
    let socket = options.host.worker_socket(&options.guest);
    // What lies there was left by a dead worker: the agent starts one per guest at most.
    let (listener, _) = wire::listen(&socket)?;
    let listener = Arc::new(listener);
    let process = ProcessId::current()?;
    let sandbox = confine(options)?;
    let control = pool.guest(options.guest_slot, options.guest_id)?;
    let board = StatusBoard::new(WorkerStatus {
        process,
        guest: options.guest_id,
        pool: pool.id(),
        slot: options.guest_slot,
        name: options.guest.clone(),
        phase: Phase::Empty,
        detail: None,
        moving: None,
        move_limit: None,
        memory_address: None,
        versions: Versions::OURS,
        sandbox,
        protection: None,
    });
    let orders = Arc::new(Orders::new(control, options.host_slot, board, Arc::clone(&listener), images));
    let keeping = Arc::clone(&orders);
    spawn("lease", move || keeping.keep_lease())?;
    let serving = Arc::clone(&orders);
    spawn("listener", move || accept(&listener, &serving))?;
    Ok(orders)
}

/// Nothing that a guest, or another host, could have made has been touched before this.
fn confine(options: &WorkerOptions) -> Result<SandboxReport> {
    let report = sandbox::confine(&options.sandbox)?;
    tracing::info!("guest {}: sandbox: {report}", options.guest);
    Ok(report)
}

/// Opens the pools in which stripes of the guest's memory may lie. Most guests need none of them: one that cannot be
/// opened is missed by who needs it.
fn add_companions(pool: &Pool, paths: &[PathBuf]) {
    for path in paths {
        match Pool::open(path, Access::ReadWrite) {
            Ok(companion) => pool.add_companion(&companion),
            Err(error) => tracing::warn!("no stripe in pool {} can be used: {}", path.display(), story(&error)),
        }
    }
}

/// The same for pools that the agent has opened, because this process may not.
fn take_companions(agent: &Connection, pool: &Pool, paths: &[PathBuf]) -> Result<()> {
    agent.send(&WorkerReply::SendFiles)?;
    agent.set_patience(Some(PATIENCE_WITH_FILES))?;
    let files = agent.receive_files(paths.len())?;
    agent.set_patience(None)?;
    for (path, file) in paths.iter().zip(files) {
        pool.add_companion(&Pool::open_file(file.into(), path)?);
    }
    Ok(())
}

fn accept(listener: &UnixListener, orders: &Arc<Orders>) {
    for stream in listener.incoming() {
        if orders.has_ended() {
            return;
        }
        let orders = Arc::clone(orders);
        let served = stream
            .map_err(|error| Error::io("accept on", "the worker's socket", error))
            .and_then(|stream| spawn("order", move || serve(Connection::over(stream, "the agent"), &orders)));
        if let Err(error) = served {
            tracing::warn!("{}", error.story());
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map(|_| ())
        .map_err(|error| Error::io("start", "a thread", error))
}

fn serve(mut connection: Connection, orders: &Arc<Orders>) {
    loop {
        let request = match connection.receive() {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(error) => return tracing::warn!("{}", error.story()),
        };
        let answering = orders.answering();
        let reply = match request {
            WorkerRequest::Watch => return orders.board().watch(connection),
            WorkerRequest::Console { from } => {
                drop(answering);
                return orders.stream_console(connection, from);
            }
            WorkerRequest::Boot { image, command_line, cpu } => done(orders.boot(&image, &command_line, cpu)),
            WorkerRequest::Arm => done(orders.arm()),
            WorkerRequest::Thaw => done(orders.thaw()),
            WorkerRequest::Move { lane, plan, bandwidth } => {
                let tell = |progress: &MoveProgress| {
                    // Whoever ordered it may have gone, or may not read; the move goes on.
                    let _ = connection.send_now(&WorkerReply::Moving(progress.clone()));
                };
                let moved = orders.move_memory(lane, plan, bandwidth, tell);
                moved.map_or_else(refusal, |report| WorkerReply::Moved(Box::new(report)))
            }
            WorkerRequest::CancelMove { lane } => done(orders.cancel_move(lane)),
            WorkerRequest::SetBandwidth { lane, bytes_per_s } => done(orders.set_bandwidth(lane, bytes_per_s)),
            WorkerRequest::Pin { range, owner, reason } => {
                orders.pin(range, owner, reason).map_or_else(refusal, WorkerReply::Pinned)
            }
            WorkerRequest::ReleasePin { pin } => done(orders.release_pin(&pin)),
            WorkerRequest::KnowPools { paths } => {
                add_companions(orders.post().control.pool(), &paths);
                WorkerReply::Done
            }
            WorkerRequest::TakePools { paths } => {
                done(take_companions(&connection, orders.post().control.pool(), &paths))
            }
            WorkerRequest::Protect => done(orders.protect()),
            WorkerRequest::Unprotect => {
                orders.unprotect();
                WorkerReply::Done
            }
            WorkerRequest::Rehome(home) => orders.rehome(&home).unwrap_or_else(refusal),
            WorkerRequest::CancelHandoff => done(orders.cancel_handoff()),
            WorkerRequest::Disarm => done(orders.disarm()),
            WorkerRequest::Stop => done(orders.stop()),
            WorkerRequest::Handoff { to, deadline_us } => {
                orders.handoff(to, Duration::from_micros(deadline_us)).unwrap_or_else(refusal)
            }
        };
        if let Err(error) = connection.send(&reply) {
            return tracing::warn!("{}", error.story());
        }
        drop(answering);
    }
}

fn done(result: Result<()>) -> WorkerReply {
    result.map_or_else(refusal, |()| WorkerReply::Done)
}

#[allow(clippy::needless_pass_by_value)] // it is the error arm of a Result
fn refusal(error: Error) -> WorkerReply {
    WorkerReply::Refused(error.story())
}
