//! Two hosts that share a pool, in one process.

use nil_pool::{
    CreateOptions, GuestControl, GuestKind, GuestRequest, HostId, HostIdentity, HostKind, Membership, MemoryHome, Pool,
};
use nil_vmm::{BootRequest, CpuModel, Error, Vm};
use std::time::Duration;

/// Where the guest counts: the loader leaves this page free.
pub(crate) const COUNTER: usize = 0x1_0000;

/// Counts in RBX and writes every count to memory, for ever:
/// `mov rdi, 0x10000; next: inc rbx; mov [rdi], rbx; jmp next`
pub(crate) const COUNTING: [u8; 15] =
    [0x48, 0xC7, 0xC7, 0x00, 0x00, 0x01, 0x00, 0x48, 0xFF, 0xC3, 0x48, 0x89, 0x1F, 0xEB, 0xF8];

/// Counts as well, and rests for as long as it may before each count:
/// `mov rdi, 0x10000; mov edx, 0xF6; next: mov eax, -1; out dx, eax; inc rbx; mov [rdi], rbx; jmp next`
pub(crate) const RESTING: [u8; 26] = [
    0x48, 0xC7, 0xC7, 0x00, 0x00, 0x01, 0x00, 0xBA, 0xF6, 0x00, 0x00, 0x00, 0xB8, 0xFF, 0xFF, 0xFF, 0xFF, 0xEF, 0x48,
    0xFF, 0xC3, 0x48, 0x89, 0x1F, 0xEB, 0xF2,
];

/// Two hosts and a pool.
pub(crate) struct Rack {
    pub(crate) hosts: [Membership; 2],
    _directory: tempfile::TempDir,
}

impl Rack {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
        let path = directory.path().join("pool");
        let options = CreateOptions { size: Some(64 << 20), ..CreateOptions::default() };
        let pool = Pool::create(&path, &options).expect("a pool");
        let join = |name: &str| {
            let identity =
                HostIdentity { id: HostId::random(), name: name.into(), kind: HostKind::Agent, address: None };
            pool.join(&identity).expect("a free host slot")
        };
        Self { hosts: [join("a"), join("b")], _directory: directory }
    }

    /// A counting guest (or another image) on the first host, ready to start.
    pub(crate) fn boot(&self, image: &[u8], irqchip: bool, home: MemoryHome) -> (GuestControl, Vm) {
        self.boot_as(image, irqchip, home, None).expect("a machine")
    }

    /// The same with a CPU model.
    pub(crate) fn boot_as(
        &self,
        image: &[u8],
        irqchip: bool,
        home: MemoryHome,
        cpu: Option<CpuModel>,
    ) -> Result<(GuestControl, Vm), Error> {
        let (name, kind, memory_bytes) = ("counter".into(), GuestKind::Vm, 8 << 20);
        let request = GuestRequest { name, kind, memory_bytes, vcpus: 1, features: 0, home };
        let control = self.hosts[0].create_guest(&request).expect("room for a guest");
        let boot = BootRequest { image: image.to_vec(), command_line: String::new(), irqchip, cpu };
        let vm = Vm::boot(&control, self.hosts[0].slot(), &boot)?;
        Ok((control, vm))
    }
}

/// How far the guest has counted.
pub(crate) fn counter(vm: &Vm) -> u64 {
    // SAFETY: the counter lies inside the guest's memory; the guest writes it with single aligned stores.
    unsafe { vm.memory().as_ptr().add(COUNTER).cast::<u64>().read_volatile() }
}

/// Waits until the guest has counted further.
pub(crate) fn await_progress(vm: &Vm, from: u64) -> u64 {
    for _ in 0..2000 {
        let now = counter(vm);
        if now > from {
            return now;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the guest does not get beyond {from}");
}

/// Whether this machine can run the test at all.
pub(crate) fn kvm() -> bool {
    match nil_vmm::KvmHost::open() {
        Ok(_) => true,
        Err(error) => {
            println!("skipped: {error}");
            false
        }
    }
}
