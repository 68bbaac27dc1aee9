//! NVDIMM devices: persistent memory, and memory that a hypervisor gives a VM as such (virtio-pmem).
//!
//! Sources: `Documentation/ABI/testing/sysfs-bus-nvdimm`, `drivers/nvdimm/{namespace_devs,claim,pfn_devs}.c`. A namespace
//! shows a `uuid` where it has labels; what has been put on top of one (`pfn`, `dax`, `btt`) has one of its own.

use super::tree::{Dir, Numbered, Tree};
use nil_pool::Tag;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const DEVICES: &str = "sys/bus/nd/devices";
/// The kinds of device that have a UUID.
const KINDS: [&str; 4] = ["namespace", "pfn", "dax", "btt"];

/// A device of an NVDIMM bus.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NdDevice {
    /// Its name, such as `namespace0.0`.
    pub name: String,
    /// Its UUID.
    pub tag: Option<Tag>,
    /// Its size.
    pub size_bytes: Option<u64>,
    /// What it is for, in the kernel's words: `raw`, `fsdax`, `devdax`, …
    pub mode: Option<String>,
    /// The block device that it is, such as `pmem0`.
    pub block: Option<String>,
}

impl NdDevice {
    /// All of them, from `sys` below `root`: of this host, that is `/`. What cannot be read is left out.
    #[must_use]
    pub fn read_all(root: &Path) -> Vec<Self> {
        let tree = Tree::new(root);
        let devices = tree.dir(DEVICES);
        let of_kind = |kind: &&str| devices.numbered(kind);
        KINDS.iter().flat_map(of_kind).map(|entry| read(&entry)).collect()
    }

    /// Where programs open it.
    #[must_use]
    pub fn device_path(&self) -> Option<PathBuf> {
        self.block.as_ref().map(|block| Path::new("/dev").join(block))
    }
}

fn read(entry: &Numbered<'_>) -> NdDevice {
    let Numbered { name, dir, .. } = entry;
    NdDevice {
        name: name.clone(),
        tag: tag(dir),
        size_bytes: dir.figure("size"),
        mode: dir.text("mode").filter(|mode| !mode.is_empty()),
        block: dir.at("block").numbered("pmem").into_iter().next().map(|block| block.name),
    }
}

fn tag(dir: &Dir<'_>) -> Option<Tag> {
    let text = dir.text("uuid").filter(|text| !text.is_empty())?;
    let tag = dir.parsed("uuid", &text, "a UUID", |text| text.parse::<Tag>().ok())?;
    (tag.to_bytes() != [0; 16]).then_some(tag)
}
