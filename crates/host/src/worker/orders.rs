//! What a worker does when it is told to, and what it makes of the VMM's events.

use super::BuiltinImages;
use super::moves::Moves;
use super::protecting::Protecting;
use super::status::StatusBoard;
use crate::error::{Error, Result};
use crate::message::{Phase, WorkerReply};
use crate::order::ImageSource;
use crate::wire::Connection;

use nil_pool::{GuestControl, HostSlot};
use nil_vmm::{BootRequest, CpuModel, Vm, VmEvent, WaitStyle};
use rustix::net::{Shutdown, shutdown};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

/// How often to look for new console output.
const LOOK_FOR_OUTPUT: Duration = Duration::from_millis(5);
/// How often to look whether the guest is still ours.
const LOOK_FOR_LOSS: Duration = Duration::from_millis(100);

/// Where the worker's guest has its home. It moves when the guest is rehomed.
#[derive(Clone, Debug)]
pub(super) struct Post {
    /// The guest's record.
    pub(super) control: GuestControl,
    /// The host's slot in the pool of that.
    pub(super) me: HostSlot,
}

/// A worker's VM, and the orders that it takes.
pub(super) struct Orders {
    post: RwLock<Post>,
    pub(super) board: StatusBoard,
    listener: Arc<UnixListener>,
    images: BuiltinImages,
    vm: Mutex<Option<Arc<Vm>>>,
    /// Held during a handoff.
    pub(super) handing_over: Mutex<()>,
    /// Whether a handoff is on that can be called off. Held while it begins, ends, and is called off, and not in between.
    pub(super) cancellable: Mutex<bool>,
    pub(super) moves: Moves,
    pub(super) protecting: Protecting,
    ended: AtomicBool,
    /// Held for reading while an order is carried out and answered.
    answers: RwLock<()>,
}

impl Orders {
    pub(super) fn new(
        control: GuestControl,
        me: HostSlot,
        board: StatusBoard,
        listener: Arc<UnixListener>,
        images: BuiltinImages,
    ) -> Self {
        Self {
            post: RwLock::new(Post { control, me }),
            board,
            listener,
            images,
            vm: Mutex::default(),
            handing_over: Mutex::default(),
            cancellable: Mutex::default(),
            moves: Moves::default(),
            protecting: Protecting::default(),
            ended: AtomicBool::new(false),
            answers: RwLock::default(),
        }
    }

    pub(super) fn board(&self) -> &StatusBoard {
        &self.board
    }

    /// Where the guest has its home now.
    pub(super) fn post(&self) -> Post {
        self.post.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn take_post(&self, post: Post) {
        *self.post.write().unwrap_or_else(PoisonError::into_inner) = post;
    }

    /// Keeps the worker from ending before an order has been answered.
    pub(super) fn answering(&self) -> RwLockReadGuard<'_, ()> {
        self.answers.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until every order has been answered.
    pub(super) fn await_answers(&self) {
        drop(self.answers.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Loads an image and runs it.
    pub(super) fn boot(self: &Arc<Self>, image: &ImageSource, command_line: &str, cpu: Option<CpuModel>) -> Result<()> {
        let Post { control, me } = self.post();
        self.build(Phase::Running, || {
            let memory_bytes = control.config()?.memory_bytes;
            let image = self.load_image(image, memory_bytes)?;
            let request = BootRequest { image, command_line: command_line.to_owned(), irqchip: false, cpu };
            let vm = Vm::boot(&control, me, &request)?;
            vm.start()?;
            Ok(vm)
        })
    }

    /// Builds the machine and waits for the guest, which lands by itself when it is handed over.
    pub(super) fn arm(self: &Arc<Self>) -> Result<()> {
        let Post { control, me } = self.post();
        self.build(Phase::Armed, || Ok(Vm::arm(&control, me, WaitStyle::Auto)?))
    }

    /// Runs the guest that an earlier worker had frozen when it died.
    pub(super) fn thaw(self: &Arc<Self>) -> Result<()> {
        // It runs when it has landed, of which an event will tell.
        let Post { control, me } = self.post();
        self.build(Phase::Starting, || Ok(Vm::thaw(&control, me)?))
    }

    /// Makes the worker's VM. A worker that cannot make it has nothing more to do.
    fn build(self: &Arc<Self>, then: Phase, make: impl FnOnce() -> Result<Vm>) -> Result<()> {
        self.enter(&[Phase::Empty], Phase::Starting, None)?;
        let made = make().and_then(|vm| self.keep(vm));
        if let Err(error) = &made {
            self.end(Phase::Ended, Some(error.story()));
        } else {
            // The guest may have landed or stopped by itself already; then that stands.
            let _ = self.board.enter(&[Phase::Starting], then, None);
        }
        made
    }

    /// Takes charge of a VM, and begins to follow its events.
    fn keep(self: &Arc<Self>, vm: Vm) -> Result<()> {
        let vm = Arc::new(vm);
        self.show_memory(&vm);
        *self.vm.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&vm));
        let orders = Arc::clone(self);
        super::spawn("events", move || orders.follow(&vm))
    }

    fn follow(self: &Arc<Self>, vm: &Vm) {
        while !self.board.phase().is_final() {
            match vm.next_event(LOOK_FOR_LOSS) {
                None => {
                    self.check_ownership(vm);
                    self.check_demand(vm);
                }
                Some(VmEvent::Landed { .. }) => {
                    self.take_pins_over();
                    let _ = self.board.enter(&[Phase::Starting, Phase::Armed], Phase::Running, None);
                    self.protect_comer();
                }
                Some(VmEvent::Displaced) if vm.is_fenced() => self.stop_fenced(),
                Some(VmEvent::Displaced) => self.check_ownership(vm),
                Some(VmEvent::TornDown { why }) => self.end(Phase::TornDown, Some(why)),
                Some(VmEvent::Ended { why } | VmEvent::Faulted { why }) => {
                    let from = [Phase::Starting, Phase::Armed, Phase::Running, Phase::Leaving];
                    let _ = self.board.enter(&from, Phase::Halted, Some(why));
                }
            }
        }
    }

    /// A guest that was protected where it has come from is protected here, too, once all of its memory is in DRAM.
    fn protect_comer(self: &Arc<Self>) {
        if self.post().control.is_protected()
            && let Err(error) = self.protect()
        {
            tracing::warn!("the guest is not protected here: {}", error.story());
        }
    }

    /// Stops a guest that somebody has declared lost, or taken, although we run it: it must not run twice.
    fn check_ownership(&self, vm: &Vm) {
        let Ok(_no_handoff) = self.handing_over.try_lock() else { return };
        if self.board.phase() == Phase::Running && !vm.owns() {
            self.moves.close();
            vm.halt();
            let why = "the pool says that it is not this host's any more; it was stopped, so that it cannot run twice";
            let _ = self.board.enter(&[Phase::Running], Phase::Halted, Some(why.to_owned()));
        }
    }

    /// Stops the guest; the worker ends.
    pub(super) fn stop(&self) -> Result<()> {
        let stoppable = [Phase::Empty, Phase::Running, Phase::Halted];
        // Told at once while a handoff is on; one that begins in this moment is waited for.
        self.check(&stoppable)?;
        let _no_handoff = self.no_handoff(&stoppable)?;
        self.protecting.end();
        self.moves.close();
        if let Ok(vm) = self.vm() {
            vm.halt();
        }
        self.end(Phase::Ended, None);
        Ok(())
    }

    /// Sends what the guest has written to its serial port from byte `from` on, until the guest is no longer here.
    pub(super) fn stream_console(&self, client: Connection, from: u64) {
        let vm = match self.vm() {
            Ok(vm) => vm,
            Err(error) => {
                // If the client has gone, it does not want to know.
                let _ = client.send(&super::refusal(error));
                return;
            }
        };
        if client.send(&WorkerReply::Done).is_err() {
            return;
        }
        let mut stream = client.into_bytes().into_inner();
        // Whoever has stopped reading may go on later. Nobody but this thread waits for that.
        if stream.set_write_timeout(None).is_err() {
            return;
        }
        let console = vm.console();
        let mut at = from;
        loop {
            // Asked before the output is read: what a guest writes before it stops is shown.
            let phase = self.board.phase();
            let (bytes, next) = console.read_from(at);
            if stream.write_all(&bytes).is_err() {
                return;
            }
            at = next;
            if phase.is_final() || phase == Phase::Halted {
                return;
            }
            std::thread::sleep(LOOK_FOR_OUTPUT);
        }
    }

    fn load_image(&self, image: &ImageSource, memory: u64) -> Result<Vec<u8>> {
        match image {
            ImageSource::Builtin(name) => (self.images)(name)
                .ok_or_else(|| Error::refused(format!("this version of nil has no built-in image named {name}"))),
            ImageSource::File(path) => read_image(path, memory),
        }
    }

    pub(super) fn vm(&self) -> Result<Arc<Vm>> {
        let vm = self.vm.lock().unwrap_or_else(PoisonError::into_inner).clone();
        vm.ok_or_else(|| Error::refused("the guest's worker has no guest yet; try again in a moment"))
    }

    pub(super) fn check(&self, allowed: &[Phase]) -> Result<()> {
        let phase = self.board.phase();
        if allowed.contains(&phase) { Ok(()) } else { Err(not_now(phase)) }
    }

    pub(super) fn enter(&self, from: &[Phase], phase: Phase, detail: Option<String>) -> Result<()> {
        self.board.enter(from, phase, detail).map_err(not_now)
    }

    /// Whether the worker has entered its last phase.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Enters the worker's last phase. Nobody calls it from then on: a new worker for the guest may come, and take its
    /// socket's place, as soon as the agent knows of it. The agent removes the socket; this process may remove no file.
    pub(super) fn end(&self, phase: Phase, detail: Option<String>) {
        if self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        // It cannot fail: the socket listens.
        let _ = shutdown(&self.listener, Shutdown::Both);
        let alive = [Phase::Empty, Phase::Starting, Phase::Armed, Phase::Running, Phase::Leaving, Phase::Halted];
        let _ = self.board.enter(&alive, phase, detail);
    }
}

fn not_now(phase: Phase) -> Error {
    Error::refused(match phase {
        Phase::Empty | Phase::Starting => "the guest has not started yet; try again in a moment",
        Phase::Armed => "the guest has not arrived here yet; try again in a moment",
        Phase::Running => "the guest is running here already",
        Phase::Leaving => "the guest is on its way to another host",
        Phase::Halted => "the guest has stopped by itself",
        Phase::Released => "the guest has left for another host",
        Phase::TornDown | Phase::Ended => "the guest's worker is ending",
    })
}

/// Reads an image that can fit into the guest's memory, and refuses every other before reading it.
fn read_image(path: &Path, memory: u64) -> Result<Vec<u8>> {
    let mut file = File::open(path).map_err(|error| Error::io("open the guest image", path, error))?;
    let size = file.metadata().map_err(|error| Error::io("look at", path, error))?.len();
    if size > memory {
        return Err(Error::refused(format!(
            "the image {} has {size} bytes, more than the guest's memory of {memory}; give it more with --memory",
            path.display()
        )));
    }
    let mut image = Vec::new();
    (&mut file).take(memory).read_to_end(&mut image).map_err(|error| Error::io("read", path, error))?;
    Ok(image)
}
