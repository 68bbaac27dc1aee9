//! Whether guests can run kernels here: code at CPL 0.
//!
//! A KVM on VT-x or SVM runs it natively. A KVM without hardware underneath (PVM) emulates it, one instruction after the
//! other, and not every instruction: stock kernels are too slow there, and die. So a few instructions are run in a machine of
//! 2 MiB that is thrown away: a loop, timed, and one that Linux needs and emulators tend to lack.
#![allow(unsafe_code)]

use crate::cpu::cpuid;
use crate::error::{Error, Result};
use crate::kvm::KvmHost;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const MEMORY: usize = 2 << 20;
const TABLES: [u64; 3] = [0x1000, 0x2000, 0x3000];
const CODE: u64 = 0x8000;
const OPERAND: u64 = 0x9000;
const PORT: u16 = 0xF4;

/// Turns of the loop.
const TURNS: u64 = 20_000;
/// What they take at most where they run natively: a hundred times what any CPU needs, a tenth of what an emulator does.
const NATIVE: Duration = Duration::from_millis(2);
/// The machine may be paused in one of them.
const ATTEMPTS: usize = 5;

/// ```text
///         mov  rdi, OPERAND
///         mov  esi, TURNS
/// again:  dec  esi
///         jnz  again
///         xor  eax, eax ; xor edx, edx ; xor ebx, ebx ; xor ecx, ecx
///         lock cmpxchg16b [rdi]
///         out  PORT, al
/// ```
const PROGRAM: [u8; 31] = [
    0x48, 0xC7, 0xC7, 0x00, 0x90, 0x00, 0x00, // mov rdi
    0xBE, 0x20, 0x4E, 0x00, 0x00, // mov esi
    0xFF, 0xCE, // dec
    0x75, 0xFC, // jnz
    0x31, 0xC0, 0x31, 0xD2, 0x31, 0xDB, 0x31, 0xC9, // xor
    0xF0, 0x48, 0x0F, 0xC7, 0x0F, // lock cmpxchg16b
    0xE6, 0xF4, // out
];
const _: () = {
    assert!(u32::from_le_bytes([PROGRAM[3], PROGRAM[4], PROGRAM[5], PROGRAM[6]]) as u64 == OPERAND);
    assert!(u32::from_le_bytes([PROGRAM[8], PROGRAM[9], PROGRAM[10], PROGRAM[11]]) as u64 == TURNS);
    assert!(PROGRAM[30] as u16 == PORT);
};

/// How a guest's kernel would run here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KernelMode {
    /// As fast as the CPU is: stock kernels boot.
    Native,
    /// Each instruction takes so long: stock kernels do not come far.
    Emulated {
        /// Of one instruction.
        per_instruction: Duration,
    },
    /// An instruction that kernels need cannot be emulated: stock kernels die.
    Incomplete {
        /// What KVM did instead.
        exit: String,
    },
}

impl KernelMode {
    /// Finds out. Takes milliseconds.
    ///
    /// # Errors
    /// There is no KVM, or it refuses to make a machine.
    pub fn probe() -> Result<Self> {
        let host = KvmHost::open()?;
        let mut shortest = Duration::MAX;
        for _ in 0..ATTEMPTS {
            let begun = Instant::now();
            if let Err(exit) = run_once(&host)? {
                return Ok(Self::Incomplete { exit });
            }
            shortest = shortest.min(begun.elapsed());
            if shortest <= NATIVE {
                return Ok(Self::Native);
            }
        }
        // Two instructions a turn.
        Ok(Self::Emulated { per_instruction: shortest.div_f64(2.0 * TURNS as f64) })
    }
}

/// Runs the program in a new machine; or what came instead of its end.
fn run_once(host: &KvmHost) -> Result<std::result::Result<(), String>> {
    let memory = memory()?;
    let vm = host.kvm().create_vm().map_err(Error::kvm("KVM_CREATE_VM"))?;
    let address = memory.get_host_address(GuestAddress(0)).map_err(|_| not_mappable())?;
    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: address as u64,
    };
    // SAFETY: the range is `memory`'s, which is dropped after the VM and its vCPU.
    unsafe { vm.set_user_memory_region(slot) }.map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(Error::kvm("KVM_CREATE_VCPU"))?;
    vcpu.set_cpuid2(&cpuid::for_vcpu(host.cpuid(), 0)?).map_err(Error::kvm("KVM_SET_CPUID2"))?;
    enter(&vcpu)?;
    Ok(match vcpu.run() {
        Ok(VcpuExit::IoOut(PORT, _)) => Ok(()),
        Ok(other) => Err(format!("{other:?}")),
        Err(error) => Err(error.to_string()),
    })
}

/// The program, and page tables that map the machine's memory to itself: one page of 2 MiB.
fn memory() -> Result<GuestMemoryMmap> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).map_err(|_| not_mappable())?;
    let [root, pointers, directory] = TABLES;
    let entries = [
        (root, pointers | PRESENT_WRITABLE),
        (pointers, directory | PRESENT_WRITABLE),
        (directory, PRESENT_WRITABLE | LARGE),
    ];
    for (at, entry) in entries {
        memory.write_obj(entry, GuestAddress(at)).map_err(|_| not_mappable())?;
    }
    memory.write_slice(&PROGRAM, GuestAddress(CODE)).map_err(|_| not_mappable())?;
    Ok(memory)
}

fn not_mappable() -> Error {
    Error::NotMappable { bytes: MEMORY as u64 }
}

/// 64-bit mode at CPL 0, as a kernel is entered.
fn enter(vcpu: &VcpuFd) -> Result<()> {
    let mut sregs = vcpu.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
    supervisor_mode_64(&mut sregs);
    vcpu.set_sregs(&sregs).map_err(Error::kvm("KVM_SET_SREGS"))?;
    let regs = kvm_regs { rip: CODE, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).map_err(Error::kvm("KVM_SET_REGS"))
}

fn supervisor_mode_64(sregs: &mut kvm_sregs) {
    let code =
        kvm_segment { selector: 8, limit: u32::MAX, type_: 11, present: 1, s: 1, l: 1, g: 1, ..Default::default() };
    let data = kvm_segment { selector: 16, type_: 3, l: 0, db: 1, ..code };
    (sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (code, data, data, data, data, data);
    // PG, NE, ET, PE; PAE; LMA, LME.
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8000_0031, TABLES[0], 0x20, 0x500);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_says_the_same_of_itself_twice() {
        match KernelMode::probe() {
            Err(error) => eprintln!("skipped: {error}"),
            Ok(first) => {
                let second = KernelMode::probe().expect("a KVM that was there a moment ago");
                assert_eq!(std::mem::discriminant(&first), std::mem::discriminant(&second), "{first:?} {second:?}");
            }
        }
    }
}
