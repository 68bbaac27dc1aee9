//! CXL memory devices, the decoders that route addresses to them, and the regions that these make up.
//!
//! Source: `Documentation/ABI/testing/sysfs-bus-cxl`. Partitions of dynamic capacity (`dynamic_ram_a`) come from the
//! patches named in `dax`.

use super::ids::NodeId;
use super::tree::{Dir, Tree};
use nil_pool::Tag;
use serde::{Deserialize, Serialize};

const DEVICES: &str = "sys/bus/cxl/devices";
/// How many targets of a region are looked at: the specification permits 16-way interleave.
const MOST_WAYS: u64 = 16;
/// Names of partitions of dynamic capacity.
const DYNAMIC: [&str; 1] = ["dynamic_ram_a"];

/// What is on the CXL bus.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Cxl {
    /// Memory devices.
    pub memory_devices: Vec<MemoryDevice>,
    /// Decoders, of all kinds.
    pub decoders: Vec<Decoder>,
    /// Regions.
    pub regions: Vec<Region>,
}

/// A CXL memory device, such as `mem0`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MemoryDevice {
    /// Its name.
    pub name: String,
    /// Its serial number.
    pub serial: Option<u64>,
    /// Volatile capacity.
    pub ram_bytes: Option<u64>,
    /// Persistent capacity.
    pub pmem_bytes: Option<u64>,
    /// Capacity that the device grants and takes back, by partition.
    pub dynamic: Vec<DynamicPartition>,
    /// The node with CPUs that is nearest.
    pub numa_node: Option<NodeId>,
    /// Its firmware.
    pub firmware_version: Option<String>,
}

/// A partition of dynamic capacity.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DynamicPartition {
    /// Its name.
    pub name: String,
    /// Its size, whatever of it is granted now.
    pub size_bytes: Option<u64>,
}

/// A decoder, such as `decoder0.0`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Decoder {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub kind: DecoderKind,
    /// Where its window of addresses begins; shown to root only.
    pub start: Option<u64>,
    /// The window's size.
    pub size_bytes: Option<u64>,
    /// Which partition it decodes (`ram`, `pmem`, `none`), of decoders at an endpoint.
    pub mode: Option<String>,
    /// Across how many targets it interleaves.
    pub interleave_ways: Option<u64>,
    /// In which steps.
    pub interleave_granularity_bytes: Option<u64>,
}

/// Where a decoder stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecoderKind {
    /// A window that firmware has given to CXL.
    Root,
    /// In a host bridge or switch.
    Switch,
    /// In a memory device.
    Endpoint,
    /// Something else, or not told.
    Unknown,
}

/// A region, such as `region0`: addresses that are memory of one or several devices.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Region {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size_bytes: Option<u64>,
    /// Its name for life, of persistent regions.
    pub uuid: Option<String>,
    /// `ram`, `pmem`, or a partition of dynamic capacity.
    pub mode: Option<String>,
    /// Its physical address; shown to root only.
    pub physical_address: Option<u64>,
    /// Across how many devices it interleaves.
    pub interleave_ways: Option<u64>,
    /// In which steps.
    pub interleave_granularity_bytes: Option<u64>,
    /// Whether addresses are decoded.
    pub committed: Option<bool>,
    /// The decoders that it interleaves across, in order.
    pub targets: Vec<String>,
    /// The memory devices of these.
    pub memory_devices: Vec<String>,
}

/// Everything on the bus; `None` when the kernel has none.
pub(super) fn read(tree: &Tree<'_>) -> Option<Cxl> {
    let dir = tree.dir(DEVICES);
    dir.exists().then(|| Cxl {
        memory_devices: dir
            .numbered("mem")
            .into_iter()
            .map(|entry| read_memory_device(entry.name, &entry.dir))
            .collect(),
        decoders: dir.numbered("decoder").into_iter().map(|entry| read_decoder(entry.name, &entry.dir)).collect(),
        regions: dir.numbered("region").into_iter().map(|entry| read_region(entry.name, &entry.dir, &dir)).collect(),
    })
}

fn read_memory_device(name: String, dir: &Dir<'_>) -> MemoryDevice {
    let dynamic = DYNAMIC.iter().filter(|partition| dir.at(partition).exists());
    MemoryDevice {
        name,
        serial: dir.number("serial"),
        ram_bytes: dir.number("ram/size"),
        pmem_bytes: dir.number("pmem/size"),
        dynamic: dynamic
            .map(|name| DynamicPartition { name: (*name).to_owned(), size_bytes: dir.at(name).required_number("size") })
            .collect(),
        numa_node: dir.node("numa_node"),
        firmware_version: dir.text("firmware_version").filter(|text| !text.is_empty()),
    }
}

fn read_decoder(name: String, dir: &Dir<'_>) -> Decoder {
    let kind = match dir.required_text("devtype").as_deref() {
        Some("cxl_decoder_root") => DecoderKind::Root,
        Some("cxl_decoder_switch") => DecoderKind::Switch,
        Some("cxl_decoder_endpoint") => DecoderKind::Endpoint,
        Some(_) | None => DecoderKind::Unknown,
    };
    Decoder {
        name,
        kind,
        start: dir.number("start"),
        size_bytes: dir.number("size"),
        mode: dir.text("mode"),
        interleave_ways: dir.number("interleave_ways"),
        interleave_granularity_bytes: dir.number("interleave_granularity"),
    }
}

fn read_region(name: String, dir: &Dir<'_>, devices: &Dir<'_>) -> Region {
    let interleave_ways = dir.number("interleave_ways");
    let ways = interleave_ways.unwrap_or(0);
    if ways > MOST_WAYS {
        dir.remark("interleave_ways", format!("{ways} ways are more than the {MOST_WAYS} that CXL permits"));
    }
    let targets: Vec<String> = (0..ways.min(MOST_WAYS))
        .filter_map(|position| dir.text(&format!("target{position}")))
        .filter(|target| !target.is_empty())
        .collect();
    let memory_devices = targets.iter().filter_map(|target| memory_device_of(target, devices)).collect();
    Region {
        name,
        size_bytes: dir.required_number("size"),
        uuid: region_uuid(dir),
        mode: dir.text("mode"),
        physical_address: dir.number("resource"),
        interleave_ways,
        interleave_granularity_bytes: dir.number("interleave_granularity"),
        committed: dir.number("commit").map(|commit| commit != 0),
        targets,
        memory_devices,
    }
}

/// Volatile regions have an empty one.
fn region_uuid(dir: &Dir<'_>) -> Option<String> {
    let text = dir.text("uuid").filter(|text| !text.is_empty())?;
    dir.parsed("uuid", &text, "a UUID", |text| text.parse::<Tag>().ok()).map(|uuid| uuid.to_string())
}

/// A decoder `decoder5.0` belongs to `endpoint5`, whose `uport` is a memory device.
fn memory_device_of(decoder: &str, devices: &Dir<'_>) -> Option<String> {
    let port =
        decoder.strip_prefix("decoder")?.split('.').next().filter(|port| port.bytes().all(|b| b.is_ascii_digit()))?;
    let link = devices.at(format!("endpoint{port}")).link("uport")?;
    Some(link.file_name()?.to_string_lossy().into_owned())
}
