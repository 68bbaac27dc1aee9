//! Guests that are to be placed, and the limits within which that is done.

use crate::model::{DeviceId, HostId};
use crate::name::Name;
use crate::path::{Begin, End};
use crate::quantity::Bytes;

/// Where a guest's memory lies, and is to lie again when the guest has moved.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Memory {
    /// In its host's DRAM.
    Dram,
    /// On this device; on another one, if its new host does not reach this.
    Device(DeviceId),
}

/// A guest. What it uses is counted in its host's load, its host's DRAM or its device already.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Guest {
    /// Its name.
    pub name: Name,
    /// Where it runs.
    pub host: HostId,
    /// How much memory it has.
    pub memory: Bytes,
    /// Where that lies.
    pub lies: Memory,
    /// Thousandths of a CPU that it keeps busy.
    pub millicpus: u64,
}

impl Guest {
    pub(crate) fn begin(&self) -> Begin {
        match self.lies {
            Memory::Dram => Begin::Dram,
            Memory::Device(device) => Begin::Device(device),
        }
    }

    pub(crate) fn end(&self) -> End {
        match self.lies {
            Memory::Dram => End::Dram,
            Memory::Device(_) => End::Device,
        }
    }
}

/// What a plan keeps within. Of bandwidth it takes the share that the cost model gives to copying.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// So many moves at once have one host as source, target or hop.
    pub moves_per_host: u32,
    /// No host gets guests that would make more than this part of its CPUs busy, in percent.
    pub cpu_percent: u32,
}

impl Default for Limits {
    /// Four moves per host at once, and a tenth of the CPUs left alone.
    fn default() -> Self {
        Self { moves_per_host: 4, cpu_percent: 90 }
    }
}
