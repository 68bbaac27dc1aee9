//! Dax devices: memory that a program maps as a device, or that the kernel has taken as its own.
//!
//! Sources: `Documentation/ABI/testing/sysfs-bus-dax`, `drivers/dax/bus.c`. The attribute `uuid` and the extents below a
//! region belong to CXL dynamic capacity, which is not in the kernel yet (patches "DCD: Add support for Dynamic Capacity
//! Devices"): they are read where they are.

use super::ids::NodeId;
use super::tree::{Dir, Tree};
use nil_pool::{GRANULE, Tag};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

const DEVICES: &str = "sys/bus/dax/devices";

/// A dax device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DaxDevice {
    /// Its name, such as `dax0.0`.
    pub name: String,
    /// Its size.
    pub size_bytes: Option<u64>,
    /// The step in which it can be mapped.
    pub align_bytes: Option<u64>,
    /// The node that its memory becomes when it is online as system RAM.
    pub target_node: Option<NodeId>,
    /// The node with CPUs that is nearest to it.
    pub numa_node: Option<NodeId>,
    /// What has hold of it.
    pub driver: DaxDriver,
    /// What its memory is.
    pub origin: DaxOrigin,
    /// The tag of the dynamic capacity that it is made of, where the kernel gives one.
    pub tag: Option<Tag>,
    /// Its physical address; shown to root only.
    pub physical_address: Option<u64>,
    /// The kernel's alias.
    pub modalias: Option<String>,
    /// The region that it is cut from.
    pub region: Option<DaxRegion>,
}

/// What has hold of a dax device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DaxDriver {
    /// `device_dax`: programs map it.
    DeviceDax,
    /// `kmem`: it is the kernel's memory, like any other.
    Kmem,
    /// Another.
    Other(String),
    /// None: it lies idle.
    Nothing,
}

/// What the memory of a dax device is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DaxOrigin {
    /// A region of CXL memory, with its name.
    Cxl(String),
    /// Persistent memory (an NVDIMM namespace).
    Persistent,
    /// Memory that firmware has set aside for a special purpose: CXL memory or high-bandwidth memory, say.
    Reserved,
    /// Something else.
    Unknown,
}

/// The region from which dax devices are cut.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DaxRegion {
    /// Its number.
    pub id: Option<u64>,
    /// Its size.
    pub size_bytes: Option<u64>,
    /// The step in which it is cut.
    pub align_bytes: Option<u64>,
    /// What no device has yet; `None` where regions cannot be cut.
    pub available_bytes: Option<u64>,
    /// Extents of dynamic capacity.
    pub extents: Vec<Extent>,
}

/// Dynamic capacity that a device has granted this host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Extent {
    /// Its name, such as `extent0.1`.
    pub name: String,
    /// Where it begins in its region.
    pub offset_bytes: Option<u64>,
    /// Its length.
    pub length_bytes: Option<u64>,
    /// The tag of the capacity that it belongs to.
    pub tag: Option<Tag>,
}

impl DaxDevice {
    /// Where programs open it.
    #[must_use]
    pub fn device_path(&self) -> PathBuf {
        PathBuf::from("/dev").join(&self.name)
    }

    /// The step in which it can be mapped, if that is too coarse for granules.
    #[must_use]
    pub fn coarse_align_bytes(&self) -> Option<u64> {
        self.align_bytes.filter(|align| *align == 0 || !GRANULE.is_multiple_of(*align))
    }
}

impl fmt::Display for DaxDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::DeviceDax => "device_dax",
            Self::Kmem => "kmem",
            Self::Other(name) => name,
            Self::Nothing => "none",
        })
    }
}

/// All dax devices.
pub(super) fn read(tree: &Tree<'_>) -> Vec<DaxDevice> {
    let devices = tree.dir(DEVICES).numbered("dax");
    devices
        .into_iter()
        .filter(|entry| entry.numbers.len() == 2)
        .map(|entry| read_device(entry.name, &entry.dir))
        .collect()
}

fn read_device(name: String, dir: &Dir<'_>) -> DaxDevice {
    let (origin, region) = (origin(dir), dir.at(".."));
    DaxDevice {
        name,
        size_bytes: dir.required_number("size"),
        align_bytes: dir.number("align"),
        target_node: dir.node("target_node"),
        numa_node: dir.node("numa_node"),
        driver: driver(dir),
        origin,
        tag: tag(dir, &["uuid"]),
        physical_address: dir.number("resource"),
        modalias: dir.text("modalias"),
        region: read_region(&region),
    }
}

fn driver(dir: &Dir<'_>) -> DaxDriver {
    let Some(link) = dir.link("driver") else { return DaxDriver::Nothing };
    match link.file_name().map(|name| name.to_string_lossy().into_owned()) {
        Some(name) if name == "device_dax" => DaxDriver::DeviceDax,
        Some(name) if name == "kmem" => DaxDriver::Kmem,
        Some(name) => DaxDriver::Other(name),
        None => DaxDriver::Nothing,
    }
}

/// From the devices that it hangs below: `…/region0/dax_region0/dax0.0`, `…/ndbus0/…`, `…/hmem.0/dax1.0`.
fn origin(dir: &Dir<'_>) -> DaxOrigin {
    let lineage = dir.lineage();
    let numbered = |part: &str, prefix: &str| {
        part.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    let below_cxl = lineage.iter().any(|part| numbered(part, "dax_region"));
    // An NVDIMM has regions too, but on an ndbus.
    if lineage.iter().any(|part| numbered(part, "ndbus")) {
        return DaxOrigin::Persistent;
    }
    if let Some(region) = lineage.iter().find(|part| below_cxl && numbered(part, "region")) {
        return DaxOrigin::Cxl(region.clone());
    }
    if lineage.iter().any(|part| part.starts_with("hmem")) { DaxOrigin::Reserved } else { DaxOrigin::Unknown }
}

fn read_region(parent: &Dir<'_>) -> Option<DaxRegion> {
    let dir = parent.at("dax_region");
    dir.exists().then(|| DaxRegion {
        id: dir.number("id"),
        size_bytes: dir.number("size"),
        align_bytes: dir.number("align"),
        available_bytes: dir.number("available_size"),
        extents: parent.numbered("extent").into_iter().map(|entry| read_extent(entry.name, &entry.dir)).collect(),
    })
}

fn read_extent(name: String, dir: &Dir<'_>) -> Extent {
    Extent {
        name,
        offset_bytes: dir.required_number("offset"),
        length_bytes: dir.required_number("length"),
        tag: tag(dir, &["uuid", "tag"]),
    }
}

/// The first of these attributes that is there; all zeros, `0` and nothing stand for no tag.
fn tag(dir: &Dir<'_>, names: &[&str]) -> Option<Tag> {
    let (name, text) = names.iter().find_map(|name| Some((*name, dir.text(name)?)))?;
    if matches!(text.as_str(), "" | "0") {
        return None;
    }
    let tag = dir.parsed(name, &text, "a UUID", |text| text.parse::<Tag>().ok())?;
    (tag.to_bytes() != [0; 16]).then_some(tag)
}
