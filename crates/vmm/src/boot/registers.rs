//! The registers that a vCPU starts with.

use crate::boot::low_memory::GDT_LIMIT;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use nil_guest_abi::layout::{GDT, STACK_BYTES, STACKS, START_INFO, USER_CODE, USER_DATA};
use std::arch::x86_64::__cpuid_count;

/// RFLAGS of a guest at CPL 3: IOPL 3, so that it may use I/O ports; interrupts off.
pub const RFLAGS: u64 = 0x3002;

/// PG, AM, WP, NE, ET, MP, PE.
const CR0: u64 = 0x8005_0033;
/// PAE, OSFXSR, OSXMMEXCPT, OSXSAVE.
const CR4: u64 = 0x0004_0620;
const CR4_FSGSBASE: u64 = 1 << 16;
/// LMA, LME, SCE.
const EFER: u64 = 0x501;

/// Where and with what one vCPU starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryState {
    /// Entry point.
    pub rip: u64,
    /// Top of its stack.
    pub rsp: u64,
    /// The PVH start info.
    pub rdi: u64,
    /// Index of this vCPU.
    pub rsi: u64,
    /// Number of vCPUs.
    pub rdx: u64,
}

impl EntryState {
    pub(crate) fn new(entry: u64, index: u32, vcpus: u32) -> Self {
        let rsp = STACKS + (u64::from(index) + 1) * STACK_BYTES;
        Self { rip: entry, rsp, rdi: START_INFO, rsi: u64::from(index), rdx: u64::from(vcpus) }
    }

    /// All general registers.
    #[must_use]
    pub fn regs(&self) -> kvm_regs {
        let Self { rip, rsp, rdi, rsi, rdx } = *self;
        kvm_regs { rip, rsp, rdi, rsi, rdx, rflags: RFLAGS, ..Default::default() }
    }
}

/// Turns a fresh vCPU's special registers into those of 64-bit mode at CPL 3. XCR0 and, with an in-kernel irqchip, the
/// state "runnable" of every vCPU are the caller's to set.
pub fn user_mode_64(sregs: &mut kvm_sregs, page_table_root: u64) {
    let code = kvm_segment {
        selector: USER_CODE,
        limit: u32::MAX,
        type_: 11,
        present: 1,
        dpl: 3,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment { selector: USER_DATA, type_: 3, l: 0, db: 1, ..code };
    sregs.cs = code;
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.gdt.base = GDT;
    sregs.gdt.limit = GDT_LIMIT;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0;
    sregs.cr3 = page_table_root;
    sregs.cr4 = if host_has_fsgsbase() { CR4 | CR4_FSGSBASE } else { CR4 };
    sregs.efer = EFER;
}

/// Whether RDFSBASE and its kin exist: CPUID leaf 7, EBX bit 0.
fn host_has_fsgsbase() -> bool {
    __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).ebx & 1 != 0
}
