//! A machine of a few lines around `/dev/kvm`: just enough to run a test guest without the product's VMM.
//!
//! Every vCPU has a thread. A test reaches into a vCPU by an *intervention*, a closure that its thread runs between two
//! runs of the guest.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_userspace_memory_region, kvm_xcr, kvm_xcrs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use nil_guest_abi::layout::{EXIT_PORT, PREWARM_PORT, REST_PORT, SERIAL_PORT};
use nil_guest_abi::{Command, CommandWord, ControlBlock, GuestState};
use nil_vmm::boot::{self, BootOptions, BootState};
use std::arch::x86_64::__cpuid_count;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

type Intervention = Box<dyn FnOnce(&mut VcpuFd) + Send>;

struct VcpuThread {
    interventions: Sender<Intervention>,
    thread: Option<JoinHandle<()>>,
}

/// A running guest.
pub(crate) struct Machine {
    memory: GuestMemoryMmap,
    serial: Arc<Mutex<Vec<u8>>>,
    leave: Arc<AtomicBool>,
    vcpus: Vec<VcpuThread>,
    _vm: VmFd,
}

/// `/dev/kvm`, or `None` with the reason printed: the test then proves nothing on this machine.
pub(crate) fn kvm() -> Option<Kvm> {
    match Kvm::new() {
        Ok(kvm) => Some(kvm),
        Err(error) => {
            eprintln!("skipped: /dev/kvm cannot be used: {error}");
            None
        }
    }
}

impl Machine {
    /// Boots a guest and lets it run.
    pub(crate) fn boot(kvm: &Kvm, image: &[u8], options: &BootOptions) -> Self {
        let (vm, memory) = empty_vm(kvm, options.memory_bytes);
        let state = boot::load(image, &memory, options).expect("the guest loads");
        let serial = Arc::new(Mutex::new(Vec::new()));
        let leave = Arc::new(AtomicBool::new(false));
        install_kick();
        let fds: Vec<_> =
            (0u64..).zip(&state.vcpus).map(|(id, entry)| new_vcpu(kvm, &vm, id, &state, &entry.regs())).collect();
        let start = |fd: VcpuFd| {
            let (interventions, orders) = channel();
            let (serial, leave) = (Arc::clone(&serial), Arc::clone(&leave));
            let thread = std::thread::spawn(move || run(fd, &orders, &serial, &leave));
            VcpuThread { interventions, thread: Some(thread) }
        };
        let vcpus = fds.into_iter().map(start).collect();
        Self { memory, serial, leave, vcpus, _vm: vm }
    }

    /// The guest's control block.
    pub(crate) fn control(&self) -> &ControlBlock {
        let start = self.memory.get_host_address(GuestAddress(0)).expect("RAM starts at 0");
        // SAFETY: the first region of guest memory holds at least 4 MiB, is page aligned and lives as long as `self`;
        // tests touch the block through its atomics alone.
        unsafe { ControlBlock::in_memory(start) }
    }

    /// The guest's memory.
    pub(crate) fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// What the guest wrote to its serial port.
    pub(crate) fn serial(&self) -> String {
        String::from_utf8_lossy(&self.serial.lock().expect("no thread panics with it")).into_owned()
    }

    /// Waits until the guest's memory shows it.
    pub(crate) fn wait_until(&self, what: &str, is_so: impl Fn(&ControlBlock) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self.control()) {
            assert!(Instant::now() < deadline, "the guest did not come to this: {what}; it said: {}", self.serial());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until the guest is in its main loop.
    pub(crate) fn wait_until_running(&self) {
        self.wait_until("running", |control| control.guest_state() == Some(GuestState::Running));
    }

    /// Gives a command and waits until every vCPU has carried it out.
    pub(crate) fn command(&self, command: Command) -> CommandWord {
        let word = self.control().give(command);
        self.wait_until("the command is carried out", |control| control.all_acknowledged(word));
        word
    }

    /// Runs `action` on a vCPU's thread while the guest is out of it, and waits for its result.
    pub(crate) fn with_vcpu<T: Send + 'static>(
        &self,
        index: usize,
        action: impl FnOnce(&mut VcpuFd) -> T + Send + 'static,
    ) -> T {
        let (result, received) = channel();
        let vcpu = &self.vcpus[index];
        let intervention = Box::new(move |fd: &mut VcpuFd| result.send(action(fd)).expect("the test waits for it"));
        vcpu.interventions.send(intervention).expect("the vCPU's thread lives");
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.kick(index);
            match received.recv_timeout(Duration::from_millis(2)) {
                Ok(value) => return value,
                Err(_) => assert!(Instant::now() < deadline, "vCPU {index} does not leave the guest"),
            }
        }
    }

    /// Interrupts KVM_RUN. A signal that comes just before it does nothing, so callers kick until they see the effect.
    fn kick(&self, index: usize) {
        if let Some(thread) = &self.vcpus[index].thread {
            // SAFETY: the thread has not been joined, so its pthread_t is valid; SIGUSR1 has a handler.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGUSR1) };
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.leave.store(true, Ordering::Release);
        for index in 0..self.vcpus.len() {
            while self.vcpus[index].thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
                self.kick(index);
                std::thread::sleep(Duration::from_millis(1));
            }
            let ended = self.vcpus[index].thread.take().map(JoinHandle::join);
            assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the thread of vCPU {index} panicked");
        }
    }
}

/// Runs the prewarm stub over `start..end` and gives RBX at its end.
pub(crate) fn prewarm(kvm: &Kvm, image: &[u8], options: &BootOptions, start: u64, end: u64) -> u64 {
    let (vm, memory) = empty_vm(kvm, options.memory_bytes);
    let state = boot::load(image, &memory, options).expect("the guest loads");
    let stub = state.prewarm_stub.expect("the loader places one").0;
    let regs = kvm_regs { rip: stub, rbx: start, rcx: end, rflags: boot::RFLAGS, ..Default::default() };
    let mut fd = new_vcpu(kvm, &vm, 0, &state, &regs);
    match fd.run().expect("the stub runs") {
        VcpuExit::IoOut(port, _) => assert_eq!(port, PREWARM_PORT),
        exit => panic!("unexpected exit {exit:?}"),
    }
    fd.get_regs().expect("registers can be read").rbx
}

fn empty_vm(kvm: &Kvm, memory_bytes: u64) -> (VmFd, GuestMemoryMmap) {
    let vm = kvm.create_vm().expect("a VM can be made");
    let usize_of = |bytes: u64| usize::try_from(bytes).expect("a 64-bit host");
    let ranges: Vec<_> =
        boot::ram_regions(memory_bytes).iter().map(|&(start, bytes)| (GuestAddress(start), usize_of(bytes))).collect();
    let memory = GuestMemoryMmap::from_ranges(&ranges).expect("memory for the guest");
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is mapped as long as `memory`, which its users keep beside the VM.
        unsafe { vm.set_user_memory_region(region) }.expect("KVM takes the memory");
    }
    (vm, memory)
}

fn new_vcpu(kvm: &Kvm, vm: &VmFd, id: u64, state: &BootState, regs: &kvm_regs) -> VcpuFd {
    let fd = vm.create_vcpu(id).expect("a vCPU can be made");
    fd.set_cpuid2(&cpuid(kvm)).expect("KVM takes the CPUID");
    let mut sregs = fd.get_sregs().expect("special registers can be read");
    boot::user_mode_64(&mut sregs, state.page_table_root);
    fd.set_sregs(&sregs).expect("KVM takes the special registers");
    fd.set_regs(regs).expect("KVM takes the registers");
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: 7, ..Default::default() };
    fd.set_xcrs(&xcrs).expect("KVM takes XCR0 = 7");
    fd
}

/// What KVM supports. A KVM that emulates in software may leave AVX and XSAVE out of it, though guests can use them: they
/// are taken from the host then.
fn cpuid(kvm: &Kvm) -> CpuId {
    const XSAVE: u32 = 1 << 26;
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).expect("KVM tells its CPUID");
    let has_xsave = cpuid.as_slice().iter().any(|entry| entry.function == 1 && entry.ecx & XSAVE != 0);
    for entry in cpuid.as_mut_slice().iter_mut().filter(|_| !has_xsave) {
        let host = __cpuid_count(entry.function, entry.index);
        match entry.function {
            1 => (entry.ecx, entry.edx) = (entry.ecx | host.ecx, entry.edx | host.edx),
            7 => (entry.ebx, entry.ecx, entry.edx) = (entry.ebx | host.ebx, entry.ecx | host.ecx, entry.edx | host.edx),
            // The states that XCR0 names below: a process must ask for those of AMX before KVM lets a guest have them.
            0xD if entry.index == 0 => {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (host.eax & 7, host.ebx, host.ecx, 0);
            }
            0xD => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (host.eax, host.ebx, host.ecx, host.edx),
            _ => {}
        }
    }
    cpuid
}

fn run(mut fd: VcpuFd, orders: &Receiver<Intervention>, serial: &Mutex<Vec<u8>>, leave: &AtomicBool) {
    while !leave.load(Ordering::Acquire) {
        orders.try_iter().for_each(|intervention| intervention(&mut fd));
        match fd.run() {
            Ok(VcpuExit::IoOut(SERIAL_PORT, bytes)) => serial.lock().expect("no thread panics with it").extend(bytes),
            Ok(VcpuExit::IoOut(REST_PORT, time)) => {
                let microseconds = u32::from_le_bytes(time.try_into().expect("a 32-bit word"));
                std::thread::sleep(Duration::from_micros(microseconds.into()));
            }
            Ok(VcpuExit::IoOut(EXIT_PORT, _)) => std::thread::sleep(Duration::from_millis(1)),
            Err(error) if error.errno() == libc::EINTR => {}
            exit => {
                let exit = format!("{exit:?}");
                panic!("the guest left with {exit} at {:#x?}", fd.get_regs());
            }
        }
    }
}

/// SIGUSR1 does nothing but interrupt.
fn install_kick() {
    extern "C" fn nothing(_: libc::c_int) {}
    let handler = nothing as extern "C" fn(libc::c_int);
    // SAFETY: the handler does nothing, so it may run at any point.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
    }
}

/// Reads a word of guest memory.
pub(crate) fn word(memory: &GuestMemoryMmap, address: u64) -> u64 {
    memory.read_obj(GuestAddress(address)).expect("guest memory")
}

/// Writes a word of guest memory.
pub(crate) fn set_word(memory: &GuestMemoryMmap, address: u64, value: u64) {
    memory.write_obj(value, GuestAddress(address)).expect("guest memory");
}
