//! The immutable configuration of a guest, as it lies in the configuration area of its state capacity.
//!
//! Written once, before the guest is first owned; every target builds its machine from it.

use crate::cpu::{ModelName, cpuid};
use crate::error::{Error, Result};
use crate::kvm::KvmHost;
use crate::state::{self, Kind};
use crate::vm::BootRequest;
use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use nil_pool::{Area, Epoch, GuestConfig, Sections};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The machine around the vCPUs: 32 bytes, little-endian.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct MachineConfig {
    /// Number of vCPUs.
    pub(crate) vcpus: u32,
    /// [`MachineConfig::IRQCHIP`] and the like.
    pub(crate) flags: u32,
    /// Guest-physical address of the prewarm stub; 0: there is none.
    pub(crate) prewarm_stub: u64,
    /// Guest-physical address of the top-level page table that the stub runs with.
    pub(crate) page_table_root: u64,
    /// Bytes of guest memory.
    pub(crate) memory_bytes: u64,
}
const _: () = assert!(size_of::<MachineConfig>() == 32);

impl MachineConfig {
    /// PIC, IOAPIC, local APICs and PIT are emulated by the kernel.
    pub(crate) const IRQCHIP: u32 = 1;
    /// The guest never changes its page tables.
    pub(crate) const STATIC_PAGE_TABLES: u32 = 2;

    pub(crate) fn irqchip(&self) -> bool {
        self.flags & Self::IRQCHIP != 0
    }

    pub(crate) fn static_page_tables(&self) -> bool {
        self.flags & Self::STATIC_PAGE_TABLES != 0
    }
}

/// All that a target must know before it can build the machine.
pub(crate) struct Config {
    pub(crate) machine: MachineConfig,
    pub(crate) cpuid: CpuId,
    pub(crate) msr_indices: Vec<u32>,
    /// The CPU model; `None`: it was started by a nil that knew of none.
    pub(crate) model: Option<ModelName>,
    /// The frequency of its TSC; `None`: it is not known.
    pub(crate) tsc_khz: Option<u32>,
}

impl Config {
    /// The configuration of a guest that is booted on `host`, as far as it does not depend on its image.
    pub(crate) fn for_boot(host: &KvmHost, guest: &GuestConfig, request: &BootRequest) -> Result<Self> {
        let (cpuid, model) = match &request.cpu {
            Some(model) => (cpuid::of_model(model, host.cpuid())?, model.name().clone()),
            None => (host.cpuid().clone(), "host".parse()?),
        };
        let flags = if request.irqchip { MachineConfig::IRQCHIP } else { 0 };
        let GuestConfig { memory_bytes, vcpus, .. } = *guest;
        let machine = MachineConfig { vcpus, memory_bytes, flags, ..Default::default() };
        Ok(Self { machine, cpuid, msr_indices: Vec::new(), model: Some(model), tsc_khz: None })
    }

    /// Number of vCPUs.
    pub(crate) fn vcpus(&self) -> usize {
        self.machine.vcpus as usize
    }

    /// Writes the configuration area.
    pub(crate) fn write(&self, area: &Area) -> Result<()> {
        let mut out = area.writer(Epoch(0));
        state::put(&mut out, Kind::Machine, 0, &self.machine)?;
        state::put(&mut out, Kind::Cpuid, 0, self.cpuid.as_slice())?;
        state::put(&mut out, Kind::MsrIndices, 0, self.msr_indices.as_slice())?;
        if let Some(model) = &self.model {
            state::put(&mut out, Kind::CpuModel, 0, model.as_str().as_bytes())?;
        }
        if let Some(khz) = &self.tsc_khz {
            state::put(&mut out, Kind::TscFrequency, 0, khz)?;
        }
        out.finish();
        Ok(())
    }

    /// Reads the configuration area, which must agree with the guest's record.
    pub(crate) fn read(area: &Area, guest: &GuestConfig) -> Result<Self> {
        let mut buffer = Vec::with_capacity(area.len());
        area.read_into(&mut buffer)?;
        let config = Self::from_sections(&nil_pool::decode(&buffer, Epoch(0))?)?;
        let MachineConfig { vcpus, memory_bytes, .. } = config.machine;
        if (vcpus, memory_bytes) != (guest.vcpus, guest.memory_bytes) {
            return Err(Error::Disagreement { vcpus, memory_bytes });
        }
        Ok(config)
    }

    fn from_sections(sections: &Sections<'_>) -> Result<Self> {
        let area = "configuration area";
        let machine = state::parse(Kind::Machine, state::bytes(sections, area, Kind::Machine, 0)?)?;
        let entries: Vec<kvm_cpuid_entry2> =
            state::parse_all(Kind::Cpuid, state::bytes(sections, area, Kind::Cpuid, 0)?)?;
        let cpuid = CpuId::from_entries(&entries).map_err(|_| Error::CpuidTooLong { entries: entries.len() })?;
        let msr_indices = state::parse_all(Kind::MsrIndices, state::bytes(sections, area, Kind::MsrIndices, 0)?)?;
        // Guests of earlier versions have neither of these.
        let model = state::find(sections, Kind::CpuModel, 0)?.map(|name| String::from_utf8_lossy(name).parse());
        let tsc_khz = state::find(sections, Kind::TscFrequency, 0)?.map(|khz| state::parse(Kind::TscFrequency, khz));
        Ok(Self { machine, cpuid, msr_indices, model: model.transpose()?, tsc_khz: tsc_khz.transpose()? })
    }

    /// Whether this host can run a guest of this configuration.
    pub(crate) fn check_runs_on(&self, host: &KvmHost) -> Result<()> {
        let (promised, offered) = (cpuid::read(self.cpuid.as_slice()), cpuid::read(host.cpuid().as_slice()));
        let lacking = promised.features.difference(&offered.features).map(ToString::to_string);
        let missing: Vec<String> = lacking.chain(promised.unnamed).collect();
        if !missing.is_empty() {
            return Err(Error::IncompatibleCpu { missing });
        }
        check_vcpu_count(self.machine.vcpus, host)
    }
}

/// Refuses a number of vCPUs that this host cannot run.
pub(crate) fn check_vcpu_count(asked: u32, host: &KvmHost) -> Result<()> {
    let most = host.most_vcpus();
    if (1..=most).contains(&asked) { Ok(()) } else { Err(Error::VcpuCount { asked, most }) }
}
