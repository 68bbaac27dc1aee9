//! One vCPU: how it is built, how its state leaves it and comes back.
//!
//! The state that changes all the time (general, special registers and pending events) travels through the `kvm_run`
//! page (`KVM_CAP_SYNC_REGS`), so that saving and loading it costs no ioctl. The rest is read with one ioctl each on the
//! way out, and on the way in only what differs from what this vCPU already holds is written: a target has loaded the
//! guest's previous state ahead of time, and MSRs, XCRs, debug registers rarely change between two handoffs.

use crate::cpu::cpuid::{self, Controls};
use crate::error::{Error, Result};
use crate::kick;
use crate::kvm::KvmHost;
use crate::state::{self, Kind};
use kvm_bindings::{
    CpuId, KVM_MP_STATE_RUNNABLE, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Msrs, kvm_debugregs, kvm_device_attr,
    kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_sync_regs, kvm_vcpu_events, kvm_xcr,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{SyncReg, VcpuExit, VcpuFd, VmFd};
use nil_migrate::Part;
use nil_pool::{SectionWriter, Sections};
use std::io;
use std::os::fd::AsRawFd;
use zerocopy::IntoBytes;

/// `_IOW(KVMIO, 0xe1, struct kvm_device_attr)`; kvm-ioctls has the pair for device fds only.
const KVM_SET_DEVICE_ATTR: libc::c_ulong = 0x4018_AEE1;
/// `_IOW(KVMIO, 0xe2, struct kvm_device_attr)`
const KVM_GET_DEVICE_ATTR: libc::c_ulong = 0x4018_AEE2;
const _: () = assert!(size_of::<kvm_device_attr>() == 0x18);

const IA32_TSC_ADJUST: u32 = 0x3B;
const SYNC: [SyncReg; 3] = [SyncReg::Register, SyncReg::SystemRegister, SyncReg::VcpuEvents];

/// The slow-changing state that the KVM vCPU is known to hold. `None`: not known.
#[derive(Default)]
struct Held {
    xsave: Option<Box<kvm_xsave>>,
    xcrs: Option<kvm_xcrs>,
    debug_regs: Option<kvm_debugregs>,
    mp_state: Option<kvm_mp_state>,
    tsc_offset: Option<i64>,
    tsc_adjust: Option<u64>,
    /// Whether special registers have been loaded by ioctl once, so that KVM has judged them before the critical path.
    primed: bool,
}

/// A vCPU with all that is needed to freeze and thaw it without allocating.
pub(crate) struct Vcpu {
    fd: VcpuFd,
    irqchip: bool,
    /// What its CPUID lets it turn on.
    controls: Controls,
    /// What is read into on save: entries in the order of the guest's MSR list.
    msrs: Msrs,
    /// What the KVM vCPU holds, in the same order; and the entries that differ, on load.
    held_msrs: Vec<kvm_msr_entry>,
    differing: Msrs,
    held: Held,
}

impl Vcpu {
    /// Creates vCPU `index` of `vm` with the guest's CPUID.
    pub(crate) fn new(vm: &VmFd, index: u32, cpuid: &CpuId, irqchip: bool) -> Result<Self> {
        let mut fd = vm.create_vcpu(u64::from(index)).map_err(Error::kvm("KVM_CREATE_VCPU"))?;
        fd.set_cpuid2(&cpuid::for_vcpu(cpuid, index)?).map_err(Error::kvm("KVM_SET_CPUID2"))?;
        for register in SYNC {
            fd.set_sync_valid_reg(register);
        }
        let msrs = Msrs::new(0).map_err(|_| Error::IncompatibleMsr { index: 0 })?;
        let differing = msrs.clone();
        Ok(Self {
            fd,
            irqchip,
            controls: Controls::of(cpuid),
            msrs,
            held_msrs: Vec::new(),
            differing,
            held: Held::default(),
        })
    }

    /// Fixes which MSRs travel with this vCPU (the guest's list), and checks that KVM gives and takes each of them.
    pub(crate) fn carry_msrs(&mut self, indices: &[u32]) -> Result<()> {
        let entries: Vec<_> = indices.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        let too_many = |_| Error::IncompatibleMsr { index: indices.last().copied().unwrap_or(0) };
        self.msrs = Msrs::from_entries(&entries).map_err(too_many)?;
        self.differing = Msrs::from_entries(&entries).map_err(too_many)?;
        self.read_msrs()?;
        self.held_msrs = self.msrs.as_slice().to_vec();
        Ok(())
    }

    /// The MSRs that KVM would let a guest booted here carry.
    pub(crate) fn restorable_msrs(&self, host: &KvmHost) -> Result<Vec<u32>> {
        host.carried_msrs(&self.fd)
    }

    /// Puts the vCPU at a guest's entry point, with what the guest's CPUID lets it have turned on.
    pub(crate) fn enter_at(&mut self, regs: &kvm_regs, change: impl FnOnce(&mut kvm_sregs)) -> Result<()> {
        let mut sregs = self.fd.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
        change(&mut sregs);
        sregs.cr4 &= self.controls.cr4;
        self.fd.set_sregs(&sregs).map_err(Error::kvm("KVM_SET_SREGS"))?;
        self.fd.set_regs(regs).map_err(Error::kvm("KVM_SET_REGS"))?;
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: self.controls.xcr0, ..Default::default() };
        self.fd.set_xcrs(&xcrs).map_err(Error::kvm("KVM_SET_XCRS"))?;
        if self.irqchip {
            // Every vCPU starts at its entry point; without this, all but the first would wait for a SIPI.
            let running = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
            self.fd.set_mp_state(running).map_err(Error::kvm("KVM_SET_MP_STATE"))?;
        }
        let events = self.fd.get_vcpu_events().map_err(Error::kvm("KVM_GET_VCPU_EVENTS"))?;
        *self.fd.sync_regs_mut() = kvm_sync_regs { regs: *regs, sregs, events };
        Ok(())
    }

    /// Frequency of the TSC that the guest sees.
    pub(crate) fn tsc_hz(&self) -> u64 {
        self.fd.get_tsc_khz().map_or(0, |khz| u64::from(khz) * 1000)
    }

    /// Runs the guest until the next exit.
    pub(crate) fn run(&mut self) -> Result<VcpuExit<'_>, kvm_ioctls::Error> {
        self.fd.run()
    }

    /// Makes the calling thread the one that runs this vCPU, and whose kicks stop it.
    pub(crate) fn make_kickable(&self) -> Result<()> {
        kick::make_kickable(&self.fd)
    }

    fn read_msrs(&mut self) -> Result<()> {
        let wanted = self.msrs.as_slice().len();
        let got = self.fd.get_msrs(&mut self.msrs).map_err(Error::kvm("KVM_GET_MSRS"))?;
        match self.msrs.as_slice().get(got) {
            Some(entry) if got < wanted => Err(Error::IncompatibleMsr { index: entry.index }),
            _ => Ok(()),
        }
    }

    /// Reads the TSC offset if it is not known, or if the guest has moved its TSC since (which shows in TSC_ADJUST).
    fn refresh_tsc_offset(&mut self) {
        let adjust = self.msrs.as_slice().iter().find(|e| e.index == IA32_TSC_ADJUST).map(|e| e.data);
        if self.held.tsc_offset.is_none() || adjust != self.held.tsc_adjust {
            self.held.tsc_adjust = adjust;
            self.held.tsc_offset = self.tsc_offset();
        }
    }

    fn tsc_offset(&self) -> Option<i64> {
        let mut offset = 0;
        self.tsc_offset_ioctl(KVM_GET_DEVICE_ATTR, &mut offset).ok().map(|()| offset)
    }

    /// Gets or sets `KVM_VCPU_TSC_OFFSET` (Documentation/virt/kvm/devices/vcpu.rst).
    fn tsc_offset_ioctl(&self, request: libc::c_ulong, offset: &mut i64) -> io::Result<()> {
        let attr = kvm_device_attr {
            group: KVM_VCPU_TSC_CTRL,
            attr: u64::from(KVM_VCPU_TSC_OFFSET),
            addr: std::ptr::from_mut(offset) as u64,
            flags: 0,
        };
        // SAFETY: the fd is a vCPU's, `attr` is alive, and its address points at a live i64, which is what this
        // attribute reads or writes.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), request, &raw const attr) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn load_sync_regs(&mut self, sections: &Sections<'_>) -> Result<()> {
        let regs: kvm_regs = required(sections, Kind::Regs)?;
        let sregs: kvm_sregs = required(sections, Kind::Sregs)?;
        let events: kvm_vcpu_events = required(sections, Kind::Events)?;
        if !self.held.primed {
            self.fd.set_sregs(&sregs).map_err(Error::kvm("KVM_SET_SREGS"))?;
            self.fd.set_regs(&regs).map_err(Error::kvm("KVM_SET_REGS"))?;
            self.fd.set_vcpu_events(&events).map_err(Error::kvm("KVM_SET_VCPU_EVENTS"))?;
            self.held.primed = true;
        }
        *self.fd.sync_regs_mut() = kvm_sync_regs { regs, sregs, events };
        for register in SYNC {
            self.fd.set_sync_dirty_reg(register);
        }
        Ok(())
    }

    fn load_xsave(&mut self, sections: &Sections<'_>) -> Result<()> {
        let payload = state::bytes(sections, "vCPU area", Kind::Xsave, 0)?;
        if self.held.xsave.as_ref().is_some_and(|held| held.as_bytes() == payload) {
            return Ok(());
        }
        let xsave: kvm_xsave = state::parse(Kind::Xsave, payload)?;
        // SAFETY: KVM_SET_XSAVE reads the 4096 bytes of the structure; more only if dynamically enabled states were
        // requested by arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM), which this process never does.
        unsafe { self.fd.set_xsave(&xsave) }.map_err(Error::kvm("KVM_SET_XSAVE"))?;
        match &mut self.held.xsave {
            Some(held) => **held = xsave,
            none => *none = Some(Box::new(xsave)),
        }
        Ok(())
    }

    fn load_registers(&mut self, sections: &Sections<'_>) -> Result<()> {
        let xcrs: kvm_xcrs = required(sections, Kind::Xcrs)?;
        if self.held.xcrs != Some(xcrs) {
            self.fd.set_xcrs(&xcrs).map_err(Error::kvm("KVM_SET_XCRS"))?;
            self.held.xcrs = Some(xcrs);
        }
        let debug_regs: kvm_debugregs = required(sections, Kind::DebugRegs)?;
        if self.held.debug_regs != Some(debug_regs) {
            self.fd.set_debug_regs(&debug_regs).map_err(Error::kvm("KVM_SET_DEBUGREGS"))?;
            self.held.debug_regs = Some(debug_regs);
        }
        if self.irqchip {
            let mp_state: kvm_mp_state = required(sections, Kind::MpState)?;
            if self.held.mp_state != Some(mp_state) {
                self.fd.set_mp_state(mp_state).map_err(Error::kvm("KVM_SET_MP_STATE"))?;
                self.held.mp_state = Some(mp_state);
            }
            let lapic: kvm_lapic_state = required(sections, Kind::Lapic)?;
            self.fd.set_lapic(&lapic).map_err(Error::kvm("KVM_SET_LAPIC"))?;
        }
        Ok(())
    }

    /// Sets the MSRs that differ from what the vCPU holds, in one call; none if none do.
    fn load_msrs(&mut self, sections: &Sections<'_>) -> Result<()> {
        let payload = state::bytes(sections, "vCPU area", Kind::Msrs, 0)?;
        let bad = || Error::BadSection {
            section: Kind::Msrs.name(),
            version: 1,
            found: payload.len(),
            expected: self.held_msrs.len() * size_of::<kvm_msr_entry>(),
        };
        if payload.len() != self.held_msrs.len() * size_of::<kvm_msr_entry>() {
            return Err(bad());
        }
        let mut count = 0;
        for (chunk, held) in payload.chunks_exact(size_of::<kvm_msr_entry>()).zip(&mut self.held_msrs) {
            let entry: kvm_msr_entry = state::parse(Kind::Msrs, chunk)?;
            if entry.index != held.index {
                return Err(Error::IncompatibleMsr { index: entry.index });
            }
            if entry.data != held.data {
                self.differing.as_mut_slice()[count] = entry;
                held.data = entry.data;
                count += 1;
            }
        }
        if count == 0 {
            return Ok(());
        }
        let set = self.set_first_msrs(count)?;
        if set < count {
            return Err(Error::IncompatibleMsr { index: self.differing.as_slice()[set].index });
        }
        Ok(())
    }

    /// `KVM_SET_MSRS` of the first `count` entries of `differing`; returns how many were set.
    fn set_first_msrs(&mut self, count: usize) -> Result<usize> {
        let all = self.differing.as_fam_struct_ref().nmsrs;
        let shortened = u32::try_from(count).map_or(all, |count| count.min(all));
        // SAFETY: `nmsrs` is only ever lowered below the number of entries that were allocated, and is restored below.
        unsafe { self.differing.as_mut_fam_struct() }.nmsrs = shortened;
        let set = self.fd.set_msrs(&self.differing);
        // SAFETY: `all` is the number of entries that were allocated.
        unsafe { self.differing.as_mut_fam_struct() }.nmsrs = all;
        set.map_err(Error::kvm("KVM_SET_MSRS"))
    }

    fn load_tsc_offset(&mut self, sections: &Sections<'_>) -> Result<()> {
        let Some(payload) = state::find(sections, Kind::TscOffset, 0)? else { return Ok(()) };
        let offset: i64 = state::parse(Kind::TscOffset, payload)?;
        if self.held.tsc_offset != Some(offset) {
            let ioctl = "KVM_SET_DEVICE_ATTR(KVM_VCPU_TSC_OFFSET)";
            let mut value = offset;
            self.tsc_offset_ioctl(KVM_SET_DEVICE_ATTR, &mut value).map_err(|source| Error::Kvm { ioctl, source })?;
            self.held.tsc_offset = Some(offset);
        }
        Ok(())
    }
}

impl Part for Vcpu {
    type Error = Error;

    fn save(&mut self, out: &mut SectionWriter<'_>) -> Result<()> {
        let kvm_sync_regs { regs, sregs, events } = self.fd.sync_regs();
        state::put(out, Kind::Regs, 0, &regs)?;
        state::put(out, Kind::Sregs, 0, &sregs)?;
        state::put(out, Kind::Events, 0, &events)?;
        let xsave = self.fd.get_xsave().map_err(Error::kvm("KVM_GET_XSAVE"))?;
        state::put(out, Kind::Xsave, 0, &xsave)?;
        let xcrs = self.fd.get_xcrs().map_err(Error::kvm("KVM_GET_XCRS"))?;
        state::put(out, Kind::Xcrs, 0, &xcrs)?;
        let debug_regs = self.fd.get_debug_regs().map_err(Error::kvm("KVM_GET_DEBUGREGS"))?;
        state::put(out, Kind::DebugRegs, 0, &debug_regs)?;
        self.read_msrs()?;
        state::put(out, Kind::Msrs, 0, self.msrs.as_slice())?;
        if self.irqchip {
            let mp_state = self.fd.get_mp_state().map_err(Error::kvm("KVM_GET_MP_STATE"))?;
            state::put(out, Kind::MpState, 0, &mp_state)?;
            let lapic = self.fd.get_lapic().map_err(Error::kvm("KVM_GET_LAPIC"))?;
            state::put(out, Kind::Lapic, 0, &lapic)?;
        }
        self.refresh_tsc_offset();
        if let Some(offset) = self.held.tsc_offset {
            state::put(out, Kind::TscOffset, 0, &offset)?;
        }
        Ok(())
    }

    fn load(&mut self, sections: &Sections<'_>) -> Result<()> {
        self.load_sync_regs(sections)?;
        self.load_xsave(sections)?;
        self.load_registers(sections)?;
        self.load_msrs(sections)?;
        self.load_tsc_offset(sections)
    }
}

fn required<T: zerocopy::FromBytes>(sections: &Sections<'_>, kind: Kind) -> Result<T> {
    state::parse(kind, state::bytes(sections, "vCPU area", kind, 0)?)
}
