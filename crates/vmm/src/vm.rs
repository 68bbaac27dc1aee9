//! A virtual machine in this process: booted here, armed to receive a guest, or thawed at home.
//!
//! | | built from | becomes the owner by | its vCPUs start |
//! |---|---|---|---|
//! | [`Vm::boot`] | an image | [`Vm::start`] | at the image's entry point |
//! | [`Vm::arm`] | the configuration in the pool | claiming what the source freezes | where the source stopped them |
//! | [`Vm::thaw`] | the configuration in the pool | taking back what died frozen | where they were frozen |

use crate::assemble::Assembled;
use crate::config::{Config, check_vcpu_count};
use crate::cpu::CpuModel;
use crate::devices::Console;
use crate::error::{Error, Result};
use crate::kick;
use crate::kvm::{KvmHost, Paging};
use crate::machine::Machine;
use crate::memory::GuestRam;
use crate::run::Runner;
use crate::shared::{Request, Shared};
use crate::warm::WarmUp;
use kvm_ioctls::VmFd;
use nil_migrate::{Source, Target, WaitStyle};
use nil_mover::GuestMemory;
use nil_pool::{Epoch, GuestControl, HostSlot, Ownership, StateArea};
use std::os::unix::thread::JoinHandleExt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long both sides keep still once the guest has landed. Where CPUs are scarce, whatever they did would take one from
/// the guest in its first moments; nobody waits for their reports.
pub(crate) const HUSH: Duration = Duration::from_millis(2);

/// How often to look whether the guest has landed. Not more often, for the same reason.
const LOOK_FOR_LANDING: Duration = Duration::from_millis(4);

/// What to boot.
#[derive(Clone, Debug)]
pub struct BootRequest {
    /// The kernel: an ELF or flat 64-bit image.
    pub image: Vec<u8>,
    /// What the guest is told.
    pub command_line: String,
    /// Whether the kernel emulates interrupt controllers and timer.
    pub irqchip: bool,
    /// The CPU that it is promised; `None` is all that this host has.
    pub cpu: Option<CpuModel>,
}

/// What happens to a guest by itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VmEvent {
    /// The guest has landed here and runs.
    Landed {
        /// The epoch of this host's ownership.
        epoch: Epoch,
    },
    /// The guest that this VM was armed for does not come.
    TornDown {
        /// Why.
        why: String,
    },
    /// The guest has ended by itself.
    Ended {
        /// Why.
        why: String,
    },
    /// KVM could not go on.
    Faulted {
        /// Why.
        why: String,
    },
    /// The guest is not this worker's any more, or its host has been fenced. The vCPU that found out has stopped for good.
    Displaced,
}

/// What the coordinator of a [`Vm`] has to do before it runs.
pub(crate) enum Role {
    /// Booted, and not yet started.
    Ready(Vec<Runner>),
    /// Armed or thawing.
    Landing(Arc<Target>),
    /// Started.
    Running,
    /// Released, stopped, or taken from this worker.
    Over,
}

/// A virtual machine in this process.
pub struct Vm {
    pub(crate) role: Mutex<Role>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) threads: Mutex<Vec<JoinHandle<()>>>,
    events: Mutex<Receiver<VmEvent>>,
    console: Console,
    pub(crate) tsc_hz: u64,
    machine: OnceLock<Arc<Mutex<Machine>>>,
    /// Kept until the threads have ended, in this order.
    vm: Arc<VmFd>,
    ram: Arc<GuestRam>,
}

/// What vCPU threads begin with.
static CONFINE: OnceLock<fn()> = OnceLock::new();

/// Has every vCPU thread of this process begin with `confine`: it runs what the guest gives it to run, and needs less than
/// other threads. What is said once stands.
pub fn confine_vcpu_threads(confine: fn()) {
    let _ = CONFINE.set(confine);
}

impl Vm {
    /// Builds a machine around the guest's memory, loads the image into it, and writes configuration and boot state to
    /// the pool. The guest is nobody's yet, and does not run.
    ///
    /// # Errors
    /// Whatever makes this host, this pool or this image unfit, by name.
    pub fn boot(control: &GuestControl, me: HostSlot, request: &BootRequest) -> Result<Self> {
        let host = KvmHost::open()?;
        let mut config = Config::for_boot(&host, &control.config()?, request)?;
        config.check_runs_on(&host)?;
        let state = map_state(control)?;
        let ram = GuestRam::new(control, &state, config.machine.memory_bytes)?;
        ram.memory().set_owner(me, Epoch(1));
        let mut assembled = Assembled::new(&host, ram, &config)?;
        assembled.load_image(&host, &mut config, request)?;
        config.write(&state.config())?;
        assembled.write_boot_state(&state)?;
        let source = Source::new(control.clone(), state, me, Epoch(1), assembled.vcpus.len())?;
        let mut vm = Self::around(source, &assembled, Role::Over);
        let runners = vm.runners(assembled);
        *vm.role_mut() = Role::Ready(runners);
        Ok(vm)
    }

    /// Makes `me` the guest's owner and lets it run.
    ///
    /// # Errors
    /// [`Error::NotNow`] when it runs already or somebody else owns it; [`Error::Thread`].
    pub fn start(&self) -> Result<()> {
        let mut role = lock(&self.role);
        let Role::Ready(runners) = std::mem::replace(&mut *role, Role::Over) else {
            return Err(Error::NotNow { wanted: "be started", state: "not freshly booted" });
        };
        let source = self.shared.source();
        let owned = Ownership::Owned { host: source.host(), epoch: Epoch(1) };
        if !source.control().ownership().transition(Ownership::Vacant, owned) {
            return Err(Error::NotNow { wanted: "be started", state: "owned already" });
        }
        for runner in runners {
            self.spawn(runner.index, move || runner.start())?;
        }
        *role = Role::Running;
        Ok(())
    }

    /// Builds a machine for the guest that another host runs, warms it up, loads the guest's earlier state ahead, and
    /// announces that it is armed. The guest lands by itself when it is handed over; see [`Vm::next_event`].
    ///
    /// # Errors
    /// Whatever keeps this host from taking the guest, by name. The source is told that it will not come.
    pub fn arm(control: &GuestControl, me: HostSlot, wait: WaitStyle) -> Result<Self> {
        let state = map_state(control)?;
        let config = Config::read(&state.config(), &control.config()?)?;
        let target = Target::new(control.clone(), Arc::clone(&state), me, config.vcpus(), wait)?;
        target.begin()?;
        Self::land(control, me, &state, &config, &target).inspect_err(|_| target.refuse())
    }

    /// Builds a machine for a guest that an earlier worker of `me` froze before it died, and takes it back from there
    /// unless its target claims it first.
    ///
    /// # Errors
    /// Whatever keeps this host from running the guest.
    pub fn thaw(control: &GuestControl, me: HostSlot) -> Result<Self> {
        let state = map_state(control)?;
        let config = Config::read(&state.config(), &control.config()?)?;
        let target = Target::home(control.clone(), Arc::clone(&state), me, config.vcpus())?;
        Self::land(control, me, &state, &config, &target)
    }

    fn land(
        control: &GuestControl,
        me: HostSlot,
        state: &Arc<StateArea>,
        config: &Config,
        target: &Arc<Target>,
    ) -> Result<Self> {
        let host = KvmHost::open()?;
        config.check_runs_on(&host)?;
        // Whoever was to bring the guest back to its last commit has done so. Once it has run, that commit is nothing.
        if matches!(control.ownership().load(), Ok(Ownership::Frozen { .. }))
            && let Some(protection) = control.protection()?
        {
            protection.retire()?;
        }
        let ram = GuestRam::of_comer(control, state, config.machine.memory_bytes)?;
        let mut assembled = Assembled::new(&host, ram, config)?;
        assembled.carry(&config.msr_indices)?;
        if !config.machine.static_page_tables() && host.paging() == Paging::Shadow {
            assembled.machine.replug_before_landing(Arc::clone(&assembled.ram));
        }
        target.preload_machine(&mut assembled.machine)?;
        let epoch = target.handoff().next_epoch();
        let source = Source::new(control.clone(), Arc::clone(state), me, epoch, assembled.vcpus.len())?;
        let role = Role::Landing(Arc::clone(target));
        let vm = Self::around(source, &assembled, role);
        let warm_up = WarmUp::new(config.machine, assembled.ram.touched(control)?);
        let (ready, all_ready) = channel();
        for runner in vm.runners(assembled) {
            let (seat, warm_up, ready) = (target.seat(runner.index), warm_up.clone(), ready.clone());
            vm.spawn(runner.index, move || runner.land(seat, &warm_up, ready))?;
        }
        drop(ready);
        all_ready.iter().collect::<Result<()>>()?;
        target.arm()?;
        Ok(vm)
    }

    fn around(source: Source, parts: &Assembled, role: Role) -> Self {
        let (sender, events) = channel();
        Self {
            role: Mutex::new(role),
            shared: Arc::new(Shared::new(source, sender, parts.vcpus.len())),
            threads: Mutex::default(),
            events: Mutex::new(events),
            console: parts.console.clone(),
            tsc_hz: parts.tsc_hz,
            machine: OnceLock::new(),
            vm: Arc::clone(&parts.vm),
            ram: Arc::clone(&parts.ram),
        }
    }

    fn runners(&self, parts: Assembled) -> Vec<Runner> {
        let devices = parts.machine.share_devices();
        let machine = Arc::new(Mutex::new(parts.machine));
        let _ = self.machine.set(Arc::clone(&machine));
        let runner = |(index, vcpu)| {
            let (machine, devices, shared) = (Arc::clone(&machine), Arc::clone(&devices), Arc::clone(&self.shared));
            Runner { index, vcpu, machine, devices, shared, memory: Arc::clone(self.memory()) }
        };
        parts.vcpus.into_iter().enumerate().map(runner).collect()
    }

    fn role_mut(&mut self) -> &mut Role {
        self.role.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn spawn(&self, index: usize, body: impl FnOnce() + Send + 'static) -> Result<()> {
        kick::block()?;
        let confined = move || {
            if let Some(confine) = CONFINE.get() {
                confine();
            }
            body();
        };
        let thread = thread::Builder::new().name(format!("vcpu{index}")).spawn(confined).map_err(Error::Thread)?;
        lock(&self.threads).push(thread);
        Ok(())
    }

    /// Waits for the next thing that happens to the guest by itself.
    pub fn next_event(&self, timeout: Duration) -> Option<VmEvent> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(event) = self.report_landing() {
                return Some(event);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let landing = matches!(*lock(&self.role), Role::Landing(_));
            let patience = if landing { left.min(LOOK_FOR_LANDING) } else { left };
            match lock(&self.events).recv_timeout(patience) {
                Ok(event) => return Some(event),
                Err(RecvTimeoutError::Timeout) if !left.is_zero() => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Notices, once, that the guest has landed.
    pub(crate) fn report_landing(&self) -> Option<VmEvent> {
        let mut role = lock(&self.role);
        let Role::Landing(target) = &*role else { return None };
        let epoch = target.landed()?;
        thread::sleep(HUSH);
        *role = Role::Running;
        self.memory().set_owner(self.shared.source().host(), epoch);
        self.shared.unbind_threads();
        Some(VmEvent::Landed { epoch })
    }

    pub(crate) fn fd(&self) -> &Arc<VmFd> {
        &self.vm
    }

    pub(crate) fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// The machine around the vCPUs.
    pub(crate) fn machine(&self) -> Result<Arc<Mutex<Machine>>> {
        self.machine.get().cloned().ok_or(Error::NotNow { wanted: "be saved", state: "not built yet" })
    }

    /// The guest's memory: where it lies, and what is pinned.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        self.ram.memory()
    }

    /// What the guest has written to its console since it is here.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Whether the ownership word says that the guest is this worker's.
    #[must_use]
    pub fn owns(&self) -> bool {
        self.shared.source().owns()
    }

    /// Whether this host has been fenced. Then this process is to end.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        !self.shared.source().tether().holds()
    }

    /// Stops the vCPUs for good. The ownership word stays as it is.
    pub fn halt(&self) {
        self.memory().disown();
        self.shared.ask(Request::Stop);
        if let Role::Landing(target) = &*lock(&self.role) {
            target.abort();
        }
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            while !thread.is_finished() {
                kick::kick(thread.as_pthread_t());
                thread::sleep(Duration::from_micros(200));
            }
            thread.join().ok();
        }
        *lock(&self.role) = Role::Over;
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.halt();
    }
}

/// Maps the guest's state area, with every page in place.
pub(crate) fn map_state(control: &GuestControl) -> Result<Arc<StateArea>> {
    let state = control.map_state()?;
    state.populate().map_err(|source| Error::Populate { source })?;
    Ok(Arc::new(state))
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Refuses, before any pool is touched, what no host could boot.
///
/// # Errors
/// [`Error::NoKvm`] and the like; [`Error::VcpuCount`].
pub fn check_host(vcpus: u32) -> Result<()> {
    check_vcpu_count(vcpus, &KvmHost::open()?)
}
