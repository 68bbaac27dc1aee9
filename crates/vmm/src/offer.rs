//! What a guest needs of a host's KVM, and what a KVM offers: the two sides of the question whether the one can run there,
//! as plain data that travels between hosts.

use crate::config::Config;
use crate::cpu::{CpuModel, Feature, Features, ModelName, XsaveState, cpuid};
use crate::error::{Error, Result};
use crate::kvm::KvmHost;
use crate::state;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use nil_pool::{GuestControl, StateArea};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A device that KVM or this VMM emulates, and whose state travels.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum DeviceKind {
    /// The 16550 serial port.
    Serial,
    /// PIC, IOAPIC and local APICs of the kernel.
    Irqchip,
    /// The PIT of the kernel.
    Pit,
    /// The paravirtual clock.
    Clock,
}

/// A device, and the version of its saved state.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Device {
    /// Which.
    pub kind: DeviceKind,
    /// The version of its section.
    pub version: u16,
}

/// What a guest was promised when it booted, and what it consists of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GuestNeeds {
    /// How many vCPUs it has.
    pub vcpus: u32,
    /// The CPU model that it was started with; `None`: by a nil that knew of none.
    pub model: Option<ModelName>,
    /// The vendor of the CPU that it sees.
    pub vendor: String,
    /// The CPU features that it sees.
    pub features: Features,
    /// CPUID bits that it sees and that have no name here.
    pub unnamed: Vec<String>,
    /// Where XSAVE puts what, in its saved state.
    pub xsave: Vec<XsaveState>,
    /// The MSRs that travel with its vCPUs.
    pub msrs: BTreeSet<u32>,
    /// Its devices.
    pub devices: Vec<Device>,
    /// The frequency of its TSC in kHz; `None`: it is not known.
    pub tsc_khz: Option<u32>,
}

/// What the KVM of a host offers to guests.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KvmOffer {
    /// The most vCPUs of one guest.
    pub most_vcpus: u32,
    /// The vendor of its CPUs.
    pub vendor: String,
    /// The features of its CPUs and its KVM, and the MSRs that it carries.
    pub cpu: CpuModel,
    /// Features that its guests see whatever their model says: a KVM without hardware to intercept CPUID (PVM) cannot hide
    /// instructions.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub unmaskable: Features,
    /// Where XSAVE puts what.
    pub xsave: Vec<XsaveState>,
    /// The devices that it emulates.
    pub devices: Vec<Device>,
    /// The frequency of its TSC in kHz; `None`: it is not known.
    pub tsc_khz: Option<u32>,
}

impl GuestNeeds {
    /// Reads them from the guest's configuration in the pool.
    ///
    /// # Errors
    /// The configuration is damaged, or of another version.
    pub fn read(control: &GuestControl) -> Result<Self> {
        let config = Config::read(&control.map_state()?.config(), &control.config()?)?;
        let cpuid::Promise { features, unnamed, xsave, vendor } = cpuid::read(config.cpuid.as_slice());
        Ok(Self {
            vcpus: config.machine.vcpus,
            model: config.model,
            vendor,
            features,
            unnamed,
            xsave,
            msrs: config.msr_indices.into_iter().collect(),
            devices: devices(config.machine.irqchip()),
            tsc_khz: config.tsc_khz,
        })
    }
}

/// The CPU model that a guest was started with; `None`: by a nil that knew of none.
///
/// # Errors
/// The guest's configuration is damaged, or of another version.
pub fn model_of(control: &GuestControl, state: &StateArea) -> Result<Option<ModelName>> {
    Ok(Config::read(&state.config(), &control.config()?)?.model)
}

impl KvmOffer {
    /// Asks this host's KVM. Makes an empty VM of two vCPUs for a moment.
    ///
    /// # Errors
    /// There is no KVM, or it cannot do what nil needs.
    pub fn probe() -> Result<Self> {
        let host = KvmHost::open()?;
        let vm = host.kvm().create_vm().map_err(Error::kvm("KVM_CREATE_VM"))?;
        let vcpu = with_cpuid(&vm, 0, host.cpuid())?;
        let msrs = host.carried_msrs(&vcpu)?.into_iter().collect();
        let cpuid::Promise { features, xsave, vendor, .. } = cpuid::read(host.cpuid().as_slice());
        Ok(Self {
            most_vcpus: host.most_vcpus(),
            vendor,
            cpu: CpuModel::new("host".parse()?, features, Some(msrs))?,
            unmaskable: unmaskable(&host, &vm)?,
            xsave,
            devices: devices(host.kvm().check_extension(Cap::Irqchip)),
            tsc_khz: vcpu.get_tsc_khz().ok().filter(|&khz| khz != 0),
        })
    }
}

/// What a guest sees that is shown nothing at all.
fn unmaskable(host: &KvmHost, vm: &VmFd) -> Result<Features> {
    let vcpu = with_cpuid(vm, 1, &cpuid::of_nothing(host.cpuid())?)?;
    let seen = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(Error::kvm("KVM_GET_CPUID2"))?;
    // The kernel itself keeps these as the state of the vCPU has them.
    let by_state = |feature: &Feature| matches!(feature.name(), "apic" | "hypervisor" | "kvm-pv-unhalt");
    Ok(cpuid::read(seen.as_slice()).features.into_iter().filter(|feature| !by_state(feature)).collect())
}

fn with_cpuid(vm: &VmFd, index: u32, cpuid: &CpuId) -> Result<VcpuFd> {
    let vcpu = vm.create_vcpu(u64::from(index)).map_err(Error::kvm("KVM_CREATE_VCPU"))?;
    vcpu.set_cpuid2(&cpuid::for_vcpu(cpuid, index)?).map_err(Error::kvm("KVM_SET_CPUID2"))?;
    Ok(vcpu)
}

fn devices(irqchip: bool) -> Vec<Device> {
    let of_kernel = [DeviceKind::Irqchip, DeviceKind::Pit, DeviceKind::Clock].into_iter().filter(|_| irqchip);
    let device = |kind| Device { kind, version: state::VERSION };
    std::iter::once(DeviceKind::Serial).chain(of_kernel).map(device).collect()
}

impl std::fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Serial => "serial port",
            Self::Irqchip => "interrupt controllers in the kernel",
            Self::Pit => "PIT in the kernel",
            Self::Clock => "paravirtual clock",
        })
    }
}
