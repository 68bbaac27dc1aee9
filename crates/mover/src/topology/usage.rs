//! What nil can use memory for, and what a person should do about memory that it cannot use.

use super::dax::{DaxDevice, DaxDriver};
use super::ids::NodeId;
use super::node::NumaNode;
use super::{Cxl, Topology};
use nil_pool::{Bytes, Tag};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What nil can use memory for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryUse {
    /// Guests' memory while it is not in a pool: this host's own.
    Private,
    /// A pool lies on it: shared with the hosts that have it too.
    Pool,
    /// It is the capacity with this tag, which a pool knows: shared.
    Capacity(Tag),
    /// A pool could be made on it, if nothing else is there.
    Candidate,
    /// Nothing, as it is.
    Unusable(Unusable),
}

/// Why memory cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unusable {
    /// It is online as system RAM.
    OnlineAsRam,
    /// Programs cannot map it, for another driver has it, or none.
    NotMappable,
    /// It can only be mapped in steps that are larger than a granule.
    Coarse,
    /// It has no size.
    NoSize,
}

/// Something that a person should know, and do something about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Warning {
    /// A dax device is online as system RAM.
    OnlineAsRam {
        /// The device.
        device: String,
        /// The node that it has become.
        node: Option<NodeId>,
    },
    /// A dax device that no program can map.
    NotMappable {
        /// The device.
        device: String,
        /// What has it.
        driver: DaxDriver,
    },
    /// A dax device that can only be mapped in steps larger than a granule.
    Coarse {
        /// The device.
        device: String,
        /// Its step.
        align_bytes: u64,
    },
    /// A CXL memory device that no region uses.
    Idle {
        /// The memory device.
        device: String,
        /// What it has.
        bytes: u64,
    },
}

impl NumaNode {
    /// What nil can use its memory for; `None` when it has none.
    #[must_use]
    pub fn memory_use(&self) -> Option<MemoryUse> {
        self.has_memory().then_some(MemoryUse::Private)
    }
}

impl DaxDevice {
    /// What nil can use it for, given what was found on it and the tags of all pools that were found anywhere.
    #[must_use]
    pub fn memory_use(&self, found: Found, known: &[Tag]) -> MemoryUse {
        match (&self.driver, self.tag.filter(|tag| known.contains(tag))) {
            (DaxDriver::Kmem, _) => MemoryUse::Unusable(Unusable::OnlineAsRam),
            (DaxDriver::Other(_) | DaxDriver::Nothing, _) => MemoryUse::Unusable(Unusable::NotMappable),
            (DaxDriver::DeviceDax, _) if found == Found::Pool => MemoryUse::Pool,
            (DaxDriver::DeviceDax, Some(tag)) => MemoryUse::Capacity(tag),
            (DaxDriver::DeviceDax, None) if self.size_bytes.unwrap_or(0) == 0 => MemoryUse::Unusable(Unusable::NoSize),
            (DaxDriver::DeviceDax, None) if self.coarse_align_bytes().is_some() => {
                MemoryUse::Unusable(Unusable::Coarse)
            }
            (DaxDriver::DeviceDax, None) => MemoryUse::Candidate,
        }
    }
}

/// What was found on a device by looking at its first bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// A pool.
    Pool,
    /// Nothing of nil's, or nobody looked.
    Nothing,
}

/// What a person should know about a host's memory.
pub(super) fn warnings(topology: &Topology) -> Vec<Warning> {
    let of_dax = topology.dax.iter().flatten().filter_map(about_device);
    let of_cxl = topology.cxl.iter().flat_map(about_idle_devices);
    of_dax.chain(of_cxl).collect()
}

fn about_device(device: &DaxDevice) -> Option<Warning> {
    let name = device.name.clone();
    match &device.driver {
        DaxDriver::Kmem => Some(Warning::OnlineAsRam { device: name, node: device.target_node }),
        // A region without free capacity keeps a device of size 0 as a seed; that one is as it should be.
        DaxDriver::Other(_) | DaxDriver::Nothing if device.size_bytes == Some(0) => None,
        driver @ (DaxDriver::Other(_) | DaxDriver::Nothing) => {
            Some(Warning::NotMappable { device: name, driver: driver.clone() })
        }
        DaxDriver::DeviceDax => {
            device.coarse_align_bytes().map(|align_bytes| Warning::Coarse { device: name, align_bytes })
        }
    }
}

fn about_idle_devices(cxl: &Cxl) -> impl Iterator<Item = Warning> {
    let used = |name: &String| cxl.regions.iter().any(|region| region.memory_devices.contains(name));
    cxl.memory_devices.iter().filter(move |device| !used(&device.name)).filter_map(|device| {
        let bytes = device.ram_bytes.unwrap_or(0).saturating_add(device.pmem_bytes.unwrap_or(0));
        (bytes > 0).then(|| Warning::Idle { device: device.name.clone(), bytes })
    })
}

impl fmt::Display for MemoryUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Private => "private",
            Self::Pool => "shared: a pool",
            Self::Capacity(_) => "shared: a capacity",
            Self::Candidate => "candidate for a pool",
            Self::Unusable(Unusable::OnlineAsRam) => "not for nil: online as RAM",
            Self::Unusable(Unusable::NotMappable) => "not for nil: cannot be mapped",
            Self::Unusable(Unusable::Coarse) => "not for nil: aligned too coarsely",
            Self::Unusable(Unusable::NoSize) => "not for nil: has no size",
        })
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnlineAsRam { device, node } => {
                write!(f, "{device} is online as system RAM")?;
                if let Some(node) = node {
                    write!(f, " (node {node})")?;
                }
                write!(
                    f,
                    ": it cannot be a pool, and shared capacity must never be onlined; \
                     `daxctl reconfigure-device --mode=devdax --force {device}` takes it back"
                )
            }
            Self::NotMappable { device, driver } => {
                match driver {
                    DaxDriver::Nothing => write!(f, "{device} has no driver")?,
                    driver => write!(f, "{device} belongs to the driver {driver}")?,
                }
                write!(
                    f,
                    ", so it cannot be mapped; `daxctl reconfigure-device --mode=devdax {device}` makes it mappable"
                )
            }
            Self::Coarse { device, align_bytes } => {
                let align = Bytes(*align_bytes);
                write!(
                    f,
                    "{device} can only be mapped in steps of {align}, nil needs 2 MiB; \
                     `daxctl reconfigure-device --align 2M {device}` changes that"
                )
            }
            Self::Idle { device, bytes } => {
                let bytes = Bytes(*bytes);
                write!(f, "{device} has {bytes} that no region uses; `cxl create-region -m {device}` puts them to use")
            }
        }
    }
}
