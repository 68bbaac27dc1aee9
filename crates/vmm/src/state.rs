//! The sections of a guest's state: their kinds, and their way between KVM's structures and bytes.
//!
//! Every section is one KVM structure in its own binary layout (little-endian, as `linux/kvm.h` defines it for x86-64),
//! so that saving is one copy and a reader in another language needs no more than the kernel's header.
//! Section kinds below 0x40 belong to a vCPU area, 0x40–0x5F to the machine area, from 0x60 to the configuration area.

use crate::error::{Error, Result};
use nil_pool::{SectionWriter, Sections};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The version of every section that this VMM writes, and the only one that it reads.
pub const VERSION: u16 = 1;

/// What a section holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub(crate) enum Kind {
    /// `struct kvm_regs`
    Regs = 0x10,
    /// `struct kvm_sregs`
    Sregs = 0x11,
    /// `struct kvm_vcpu_events`
    Events = 0x12,
    /// `struct kvm_xsave` (4096 bytes)
    Xsave = 0x13,
    /// `struct kvm_xcrs`
    Xcrs = 0x14,
    /// `struct kvm_debugregs`
    DebugRegs = 0x15,
    /// an array of `struct kvm_msr_entry`, in the order of [`Kind::MsrIndices`]
    Msrs = 0x16,
    /// `struct kvm_mp_state`; only with an in-kernel irqchip
    MpState = 0x17,
    /// `struct kvm_lapic_state`; only with an in-kernel irqchip
    Lapic = 0x18,
    /// `i64`: guest TSC minus host TSC, in cycles (`KVM_VCPU_TSC_OFFSET`)
    TscOffset = 0x19,
    /// registers of the 16550 serial port
    Serial = 0x40,
    /// `struct kvm_irqchip`; instance 0, 1: PIC, 2: IOAPIC
    Irqchip = 0x41,
    /// `struct kvm_pit_state2`
    Pit = 0x42,
    /// `struct kvm_clock_data`
    Clock = 0x43,
    /// an array of `struct kvm_cpuid_entry2`
    Cpuid = 0x60,
    /// an array of `u32`
    MsrIndices = 0x61,
    /// [`crate::config::MachineConfig`] as bytes
    Machine = 0x62,
    /// the name of the guest's CPU model, in ASCII; absent in guests of a nil that knew of none
    CpuModel = 0x63,
    /// `u32`: the frequency of the guest's TSC in kHz; absent where it is not known
    TscFrequency = 0x64,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Regs => "general registers",
            Self::Sregs => "special registers",
            Self::Events => "vCPU events",
            Self::Xsave => "XSAVE",
            Self::Xcrs => "XCR",
            Self::DebugRegs => "debug registers",
            Self::Msrs => "MSR",
            Self::MpState => "MP state",
            Self::Lapic => "local APIC",
            Self::TscOffset => "TSC offset",
            Self::Serial => "serial port",
            Self::Irqchip => "irqchip",
            Self::Pit => "PIT",
            Self::Clock => "kvmclock",
            Self::Cpuid => "CPUID",
            Self::MsrIndices => "MSR list",
            Self::Machine => "machine configuration",
            Self::CpuModel => "CPU model",
            Self::TscFrequency => "TSC frequency",
        }
    }
}

/// Appends one section whose payload is `value`'s bytes.
pub(crate) fn put<T>(out: &mut SectionWriter<'_>, kind: Kind, instance: u32, value: &T) -> Result<()>
where
    T: IntoBytes + Immutable + ?Sized,
{
    Ok(out.put(kind as u16, VERSION, instance, value.as_bytes())?)
}

/// The payload of a section that may be absent.
pub(crate) fn find<'a>(sections: &Sections<'a>, kind: Kind, instance: u32) -> Result<Option<&'a [u8]>> {
    let Some(section) = sections.get(kind as u16, instance) else { return Ok(None) };
    if section.version != VERSION {
        let (version, found) = (section.version, section.payload.len());
        return Err(Error::BadSection { section: kind.name(), version, found, expected: found });
    }
    Ok(Some(section.payload))
}

/// The payload of a section that must be there.
pub(crate) fn bytes<'a>(sections: &Sections<'a>, area: &'static str, kind: Kind, instance: u32) -> Result<&'a [u8]> {
    find(sections, kind, instance)?.ok_or(Error::MissingSection { area, section: kind.name() })
}

/// A payload that is exactly one `T`.
pub(crate) fn parse<T: FromBytes>(kind: Kind, payload: &[u8]) -> Result<T> {
    T::read_from_bytes(payload).map_err(|_| Error::BadSection {
        section: kind.name(),
        version: VERSION,
        found: payload.len(),
        expected: size_of::<T>(),
    })
}

/// A payload that is a whole number of `T`s.
pub(crate) fn parse_all<T: FromBytes>(kind: Kind, payload: &[u8]) -> Result<Vec<T>> {
    payload.chunks(size_of::<T>()).map(|chunk| parse(kind, chunk)).collect()
}
