//! A KVM virtual machine whose memory lies in a pool, and which freezes and thaws between two instructions.
//!
//! ```text
//! Vm ── assemble ── memory    the guest's RAM, in DRAM or in the pool, one slot of KVM per region
//!    │           ├─ vcpu      one vCPU: a `Part` that saves and loads itself
//!    │           ├─ machine   devices and in-kernel irqchip: the other `Part`
//!    │           └─ config    what a target must know before it can build the machine
//!    ├─ cpu                   CPU models: what the guest may rely on
//!    ├─ offer                 what a guest needs, what a host offers
//!    ├─ kernel_mode           whether guests can run kernels here
//!    ├─ boot                  image loader
//!    ├─ warm                  second-level page tables, ahead of time
//!    ├─ run                   the life of a vCPU thread
//!    ├─ kick                  out of the guest
//!    ├─ relocation            its memory moves, between DRAM and pool
//!    ├─ protect               commits, to which another host can bring it back
//!    ├─ rehoming              its record and state area move, between pools
//!    └─ handing_over          it leaves for another host
//! ```
//!
//! The handoff itself is `nil_migrate`'s: vCPU threads run its steps. `docs/vmm.md` says what travels and which traps
//! there are.

mod assemble;
pub mod boot;
mod config;
mod core_dump;
mod cpu;
mod devices;
mod error;
mod handing_over;
mod kernel_mode;
mod kick;
mod kvm;
mod machine;
mod memory;
mod offer;
mod placement;
mod protect;
mod rehoming;
mod relocation;
mod run;
mod shared;
mod state;
mod vcpu;
mod vm;
mod warm;

pub use core_dump::{CoreReport, write_core};
pub use cpu::{BadModel, CpuModel, Feature, Features, ModelName, UnknownFeature, XsaveState};
pub use devices::Console;
pub use error::{Error, Result};
pub use handing_over::{Deadlines, HandoffOutcome};
pub use kernel_mode::KernelMode;
pub use kvm::{KvmHost, Paging};
pub use nil_migrate::{HandoffReport, Phases, Reason, WaitStyle};
pub use offer::{Device, DeviceKind, GuestNeeds, KvmOffer, model_of};
pub use protect::{Cycle, ProtectionControl, ProtectionEvent};
pub use rehoming::Rehomed;
pub use state::VERSION as STATE_VERSION;
pub use vm::{BootRequest, Vm, VmEvent, check_host, confine_vcpu_threads};
