//! Where the memory with a tag is on this machine, whatever it is called here.
//!
//! ```text
//! tag ──▶ pools (of agents, on dax devices, in directories):   the capacity, or the pool itself
//!     ──▶ /sys/bus/dax:   a dax device, or its extents of dynamic capacity
//!     ──▶ /sys/bus/nd:    persistent memory; in a VM, what the hypervisor gives it as such
//!     ──▶ directories:    a file that is named after the tag
//! ```
//!
//! It is the same on bare metal as in a VM, and with CXL as without. Every place is told with the evidence for it. One
//! memory that shows in two ways (a device and its extents) is one place; two memories with one tag are an ambiguity,
//! which nobody here decides. Memory that is online as system RAM is a place that cannot be used.

mod files;
mod pools;

use crate::error::{Error, Result};
use crate::run_dir::RunDir;
use crate::survey::Survey;
use nil_mover::topology::{DaxDevice, DaxDriver, NdDevice, Topology};
use nil_pool::{Bytes, PoolId, Tag};
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};

/// Where to look.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TagSearch {
    /// The directory in which `sys` lies: `/` of this machine. Devices are opened only if it is that.
    pub root: PathBuf,
    /// Pools that are known, such as those that this machine's agents have joined.
    pub pools: Vec<PathBuf>,
    /// Directories in which files with pools, and files named after tags, may lie; two levels deep.
    pub directories: Vec<PathBuf>,
}

/// Memory that has a tag.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct TagPlace {
    /// What it is.
    pub kind: PlaceKind,
    /// What to open; `None` when programs cannot.
    pub path: Option<PathBuf>,
    /// Its size; `None` when nobody says.
    pub bytes: Option<u64>,
    /// The pool that it belongs to, if it does.
    pub pool: Option<PoolId>,
    /// Where its bytes are, in their order.
    pub stretches: Vec<Stretch>,
    /// Why nil cannot use it as it is, and what changes that.
    pub unusable: Option<String>,
    /// What says that it is this memory.
    pub evidence: Vec<String>,
}

/// What kind of thing has the tag.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PlaceKind {
    /// A capacity of a nil pool.
    Capacity,
    /// A nil pool as a whole.
    Pool,
    /// A dax device, whole or in extents.
    Dax,
    /// Persistent memory, or a virtual device that looks like it.
    Nd,
    /// A file.
    File,
}

/// Contiguous bytes of the memory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Stretch {
    /// What they lie in.
    pub path: PathBuf,
    /// Where there they begin.
    pub offset: u64,
    /// How many they are.
    pub bytes: u64,
}

/// All that was found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct TagsFound {
    /// The places.
    pub places: Vec<TagPlace>,
    /// Where was looked, in words.
    pub looked_in: Vec<String>,
    /// What could not be looked at, with the reason: the tag may be there.
    pub unseen: Vec<String>,
}

/// Why a tag does not lead to one place.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unresolved {
    /// It is nowhere.
    #[error(
        "nothing on this machine has tag {tag} (looked in {}){}; name directories with --search (`search` in a host's \
         configuration), or join its pool",
        .looked_in.join(", "),
        among(.unseen)
    )]
    Nowhere {
        /// The tag.
        tag: Tag,
        /// Where was looked, in words.
        looked_in: Vec<String>,
        /// What could not be looked at.
        unseen: Vec<String>,
    },
    /// It is in several places.
    #[error("tag {tag} is in {} places, and only one can be meant:{}", .places.len(), listed(.places))]
    Ambiguous {
        /// The tag.
        tag: Tag,
        /// All of them.
        places: Vec<TagPlace>,
    },
    /// It is there, and cannot be used.
    #[error("tag {tag} is {}: {}", .place, .place.unusable.as_deref().unwrap_or("it cannot be used"))]
    Unusable {
        /// The tag.
        tag: Tag,
        /// Where.
        place: Box<TagPlace>,
    },
}

fn among(unseen: &[String]) -> String {
    if unseen.is_empty() { String::new() } else { format!(" (but not all could be looked at: {})", unseen.join("; ")) }
}

fn listed(places: &[TagPlace]) -> String {
    places.iter().map(|place| format!("\n  {place}: {}", place.evidence.join(", "))).collect()
}

impl TagSearch {
    /// Where files lie that nobody has told about.
    const USUAL: &str = "/dev/shm";

    /// On this machine: its devices, the pools that its agents have joined, and files in these directories, or in the usual
    /// one if none is named. An agent that does not answer has no pools to tell of.
    #[must_use]
    pub fn of_this_machine(run_dir: &RunDir, directories: Vec<PathBuf>) -> Self {
        let hosts = Survey::take(run_dir).map(|survey| survey.hosts).unwrap_or_default();
        let pools = hosts.into_iter().flat_map(|host| host.pools).map(|pool| pool.path).collect();
        Self { pools, ..Self::of_a_recording("/".into(), directories) }
    }

    /// In a recorded tree, a directory in which `sys` lies, and in these directories, or in the usual one.
    #[must_use]
    pub fn of_a_recording(root: PathBuf, directories: Vec<PathBuf>) -> Self {
        let directories = if directories.is_empty() { vec![Self::USUAL.into()] } else { directories };
        Self { root, pools: Vec::new(), directories }
    }

    /// Where the pool of a UUID is, or the pool on the memory with that tag.
    ///
    /// # Errors
    /// It is nowhere (and the error says where was looked), in several places, or is no pool.
    pub fn pool(&self, id: PoolId) -> Result<PathBuf> {
        let place = self.resolve(Tag::from_bytes(id.to_bytes())).map_err(|error| Error::refused(error.to_string()))?;
        match (place.kind, &place.path) {
            (PlaceKind::Pool | PlaceKind::Dax | PlaceKind::Nd | PlaceKind::File, Some(path)) => Ok(path.clone()),
            (_, _) => {
                let pool = place.pool.map(|pool| format!("; its pool is {pool}")).unwrap_or_default();
                Err(Error::refused(format!("{id} is {place}, which is no pool that could be joined{pool}")))
            }
        }
    }

    /// The one place of a tag.
    ///
    /// # Errors
    /// [`Unresolved`], with all places if there are several.
    pub fn resolve(&self, tag: Tag) -> std::result::Result<TagPlace, Unresolved> {
        let TagsFound { mut places, looked_in, unseen } = self.find(tag);
        match places.len() {
            0 => Err(Unresolved::Nowhere { tag, looked_in, unseen }),
            1 => {
                let place = places.remove(0);
                if place.unusable.is_some() {
                    return Err(Unresolved::Unusable { tag, place: Box::new(place) });
                }
                Ok(place)
            }
            _ => Err(Unresolved::Ambiguous { tag, places }),
        }
    }

    /// Every place of a tag.
    #[must_use]
    pub fn find(&self, tag: Tag) -> TagsFound {
        let mut found = TagsFound::default();
        let topology = Topology::read(&self.root);
        let dax = topology.dax.unwrap_or_default();
        let files = files::below(&self.directories, &mut found.unseen);
        let nd = NdDevice::read_all(&self.root);
        found.looked_in = self.looked_in(dax.len(), nd.len(), files.len());
        let devices = dax.iter().filter(|device| device.driver == DaxDriver::DeviceDax && self.root == Path::new("/"));
        let mut candidates = self.pools.clone();
        candidates.extend(devices.map(DaxDevice::device_path));
        candidates.extend(files.iter().cloned());
        pools::find(tag, &candidates, &mut found);
        found.places.extend(dax.iter().filter_map(|device| on_dax(tag, device)));
        found.places.extend(nd.iter().filter_map(|device| on_nd(tag, device)));
        files::find(tag, &files, &mut found);
        found
    }
}

impl TagSearch {
    /// Where is looked, in words.
    fn looked_in(&self, dax: usize, nd: usize, files: usize) -> Vec<String> {
        let count = |count: usize, one: &str, many: &str| match count {
            0 => format!("no {many}"),
            1 => format!("1 {one}"),
            count => format!("{count} {many}"),
        };
        let directories: Vec<String> = self.directories.iter().map(|path| path.display().to_string()).collect();
        vec![
            count(self.pools.len(), "pool of this machine's agents", "pools of this machine's agents"),
            count(dax, "dax device", "dax devices"),
            count(nd, "device of persistent memory", "devices of persistent memory"),
            format!("{} below {}", count(files, "file", "files"), directories.join(" and ")),
        ]
    }
}

/// A dax device that has the tag, or extents of it.
fn on_dax(tag: Tag, device: &DaxDevice) -> Option<TagPlace> {
    let sysfs = format!("/sys/bus/dax/devices/{}", device.name);
    let path = device.device_path();
    let mut evidence = Vec::new();
    if device.tag == Some(tag) {
        evidence.push(format!("{sysfs}/uuid"));
    }
    let mut stretches = Vec::new();
    for extent in device.region.iter().flat_map(|region| &region.extents).filter(|extent| extent.tag == Some(tag)) {
        evidence.push(format!("the uuid of {} in its region", extent.name));
        if let (Some(offset), Some(bytes)) = (extent.offset_bytes, extent.length_bytes) {
            stretches.push(Stretch { path: path.clone(), offset, bytes });
        }
    }
    if evidence.is_empty() {
        return None;
    }
    // A device that has the tag is made of all extents that have it; where those lie in their region is its own affair.
    if device.tag == Some(tag) {
        stretches =
            device.size_bytes.map(|bytes| Stretch { path: path.clone(), offset: 0, bytes }).into_iter().collect();
    }
    let bytes = stretches.iter().map(|stretch| stretch.bytes).fold(0_u64, u64::saturating_add);
    let unusable = unusable(device);
    Some(TagPlace {
        kind: PlaceKind::Dax,
        path: unusable.is_none().then_some(path),
        bytes: (bytes > 0).then_some(bytes),
        pool: None,
        stretches,
        unusable,
        evidence,
    })
}

/// Why a dax device cannot be mapped, and the cure.
fn unusable(device: &DaxDevice) -> Option<String> {
    let name = &device.name;
    match &device.driver {
        DaxDriver::DeviceDax => None,
        DaxDriver::Kmem => Some(format!(
            "it is online as system RAM, where shared capacity must never be; `daxctl reconfigure-device --mode=devdax \
             --force {name}` takes it back"
        )),
        DaxDriver::Other(_) | DaxDriver::Nothing => {
            Some(format!("no program can map it; `daxctl reconfigure-device --mode=devdax {name}` makes it mappable"))
        }
    }
}

fn on_nd(tag: Tag, device: &NdDevice) -> Option<TagPlace> {
    if device.tag != Some(tag) {
        return None;
    }
    let path = device.device_path();
    let bytes = device.size_bytes;
    let whole = path.clone().zip(bytes).map(|(path, bytes)| Stretch { path, offset: 0, bytes });
    let unusable =
        path.is_none().then(|| format!("{} is no block device here; `ndctl list -N` says what has it", device.name));
    Some(TagPlace {
        kind: PlaceKind::Nd,
        path,
        bytes,
        pool: None,
        stretches: whole.into_iter().collect(),
        unusable,
        evidence: vec![format!("/sys/bus/nd/devices/{}/uuid", device.name)],
    })
}

impl fmt::Display for TagPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            PlaceKind::Capacity => "a capacity",
            PlaceKind::Pool => "a pool",
            PlaceKind::Dax => "a dax device",
            PlaceKind::Nd => "persistent memory",
            PlaceKind::File => "a file",
        })?;
        if let Some(bytes) = self.bytes {
            write!(f, " of {}", Bytes(bytes))?;
        }
        match (&self.path, self.stretches.first()) {
            (Some(path), _) => write!(f, ", {}", path.display()),
            (None, Some(stretch)) => write!(f, ", {}", stretch.path.display()),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
