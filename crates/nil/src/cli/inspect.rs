//! `nil host inspect`: the memory of a host, and what nil can use it for.

mod page;

use super::Output;
use anyhow::{Result, bail};
use nil_mover::topology::{DaxDevice, DaxDriver, Found, MemoryUse, NodeId, NumaNode, Topology, Warning};
use nil_pool::{Access, Error, Pool, PoolId, Tag};
use serde::Serialize;
use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A pool to show as well. May be given several times. Those on dax devices are found without.
    #[arg(long = "pool", value_name = "PATH")]
    pools: Vec<PathBuf>,
    /// Look at a recorded tree instead of this machine: a directory in which `sys` lies.
    #[arg(long, value_name = "ROOT")]
    sysfs: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    output.print(&Inspection::take(args)?)?;
    Ok(ExitCode::SUCCESS)
}

/// All that there is to tell.
#[derive(Debug, Serialize)]
struct Inspection {
    #[serde(flatten)]
    topology: Topology,
    /// What the memory of each node is for.
    node_uses: BTreeMap<NodeId, MemoryUse>,
    /// What each dax device is for.
    dax_uses: BTreeMap<String, MemoryUse>,
    pools: Vec<FoundPool>,
    warnings: Vec<Told>,
}

/// A pool that lies on a device of this host, or that was given.
#[derive(Debug, Serialize)]
struct FoundPool {
    path: PathBuf,
    id: PoolId,
    label: String,
    total_bytes: u64,
    free_bytes: u64,
    backing: Backing,
    #[serde(skip)]
    tags: Vec<Tag>,
}

/// What a pool lies in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Backing {
    Device,
    File,
}

/// A warning, with its sentence.
#[derive(Debug, Serialize)]
struct Told {
    message: String,
    #[serde(flatten)]
    warning: About,
}

/// What a warning is about.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum About {
    Memory(Warning),
    /// A device that could not be looked at.
    Unseen {
        device: String,
    },
}

/// What looking at a dax device brought.
enum Look {
    Pool(FoundPool),
    Nothing,
    Failed(Told),
}

impl Inspection {
    fn take(args: &Args) -> Result<Self> {
        let root = args.sysfs.as_deref().unwrap_or(Path::new("/"));
        if !root.join("sys/devices/system").is_dir() {
            bail!("there is no sysfs in {}; give a directory with sys/devices/system in it", root.display());
        }
        let topology = Topology::read(root);
        let mut warnings: Vec<Told> = topology.warnings().into_iter().map(Told::about).collect();
        let mut pools = Vec::new();
        // A recorded tree tells of another machine, whose devices are not here.
        let devices = topology.dax.iter().flatten().filter(|_| args.sysfs.is_none());
        for device in devices.filter(|device| device.driver == DaxDriver::DeviceDax) {
            match look_at(device) {
                Look::Pool(pool) => pools.push(pool),
                Look::Failed(told) => warnings.push(told),
                Look::Nothing => {}
            }
        }
        for path in &args.pools {
            let pool = FoundPool::of(&Pool::open(path, Access::ReadOnly)?);
            if pools.iter().all(|known| known.path != pool.path) {
                pools.push(pool);
            }
        }
        let node_uses = topology.nodes.iter().filter_map(|node| Some((node.id, NumaNode::memory_use(node)?))).collect();
        let dax_uses = dax_uses(&topology, &pools);
        Ok(Self { topology, node_uses, dax_uses, pools, warnings })
    }
}

fn look_at(device: &DaxDevice) -> Look {
    match Pool::open(&device.device_path(), Access::ReadOnly) {
        Ok(pool) => Look::Pool(FoundPool::of(&pool)),
        Err(Error::NotAPool { .. } | Error::Alignment { .. }) => Look::Nothing,
        Err(error) => Look::Failed(Told {
            message: format!("{} may hold a pool or not: {error}", device.name),
            warning: About::Unseen { device: device.name.clone() },
        }),
    }
}

fn dax_uses(topology: &Topology, pools: &[FoundPool]) -> BTreeMap<String, MemoryUse> {
    let known: Vec<Tag> = pools.iter().flat_map(|pool| pool.tags.iter().copied()).collect();
    let of_device = |device: &DaxDevice| {
        let path = device.device_path();
        let found = if pools.iter().any(|pool| pool.path == path) { Found::Pool } else { Found::Nothing };
        (device.name.clone(), device.memory_use(found, &known))
    };
    topology.dax.iter().flatten().map(of_device).collect()
}

impl FoundPool {
    fn of(pool: &Pool) -> Self {
        let (header, usage) = (pool.header(), pool.usage());
        let path = pool.path().to_owned();
        Self {
            id: pool.id(),
            label: header.label,
            total_bytes: usage.total,
            free_bytes: usage.free,
            backing: Backing::of(&path),
            tags: pool.capacities().into_iter().map(|capacity| capacity.tag).collect(),
            path,
        }
    }
}

impl Backing {
    fn of(path: &Path) -> Self {
        let device = path.metadata().is_ok_and(|metadata| metadata.file_type().is_char_device());
        if device { Self::Device } else { Self::File }
    }
}

impl Told {
    fn about(warning: Warning) -> Self {
        Self { message: warning.to_string(), warning: About::Memory(warning) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page about a tree of the mover's.
    fn page(tree: &str) -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mover/testdata/sysfs").join(tree);
        Inspection::take(&Args { pools: Vec::new(), sysfs: Some(root) }).expect("a tree").to_string()
    }

    #[test]
    fn the_page_of_a_host_with_one_node_says_what_is_not_there() {
        insta::assert_snapshot!(page("one-node"), @r"
        NODE  KIND  CPUS  MEMORY    FREE      LATENCY  BANDWIDTH  DISTANCE  FOR NIL
        0     DRAM  0-1   18.5 GiB  12.9 GiB  -        -          10        private

        guests' own memory (private):  node 0
        not there: latency and bandwidth of the nodes (the kernel has no HMAT from the firmware)
        not there: dax devices
        not there: CXL devices (this kernel has no CXL bus)
        not there: pools on dax devices; `nil pool list` looks for files, --pool PATH shows one here
        ");
    }

    #[test]
    fn the_page_of_a_host_with_an_expander_warns_that_it_is_online() {
        insta::assert_snapshot!(page("cxl-kmem"), @r"
        NODE  KIND          CPUS          MEMORY     FREE       LATENCY  BANDWIDTH    DISTANCE  FOR NIL
        0     DRAM          0-31,64-95    257.6 GiB  197.0 GiB  113 ns   227000 MB/s  10 21 14  private
        1     DRAM          32-63,96-127  257.9 GiB  249.0 GiB  113 ns   227000 MB/s  21 10 24  private
        2     CXL expander  -             128 GiB    127.2 GiB  271 ns   27500 MB/s   14 24 10  private
        node 2 (CXL expander): made of dax0.0; cut from CXL region0; 271 ns to read (DRAM: 113 ns)

        DAX     SIZE     ALIGN  DRIVER  MADE OF      NEAR NODE  FOR NIL
        dax0.0  128 GiB  2 MiB  kmem    CXL region0  0          not for nil: online as RAM

        CXL   SERIAL      RAM      PMEM  DYNAMIC  NEAR NODE  FIRMWARE
        mem0  0x5c1e00a7  128 GiB  -     -        0          1.4.2

        REGION   SIZE     MODE  WAYS  GRANULARITY  CXL   DAX
        region0  128 GiB  ram   1     256 B        mem0  dax0.0

        guests' own memory (private):  node 0, 1, 2
        not there: pools on dax devices; `nil pool list` looks for files, --pool PATH shows one here
        warning: dax0.0 is online as system RAM (node 2): it cannot be a pool, and shared capacity must never be onlined; `daxctl reconfigure-device --mode=devdax --force dax0.0` takes it back
        ");
    }

    #[test]
    fn the_page_of_a_host_with_mappable_cxl_memory_names_it_as_a_candidate() {
        insta::assert_snapshot!(page("cxl-devdax"), @r"
        NODE  KIND  CPUS  MEMORY     FREE       LATENCY  BANDWIDTH    DISTANCE  FOR NIL
        0     DRAM  0-63  503.7 GiB  392.6 GiB  98 ns    307000 MB/s  10        private

        DAX     SIZE     ALIGN  DRIVER      MADE OF      NEAR NODE  FOR NIL
        dax0.0  256 GiB  2 MiB  device_dax  CXL region0  0          candidate for a pool
        dax1.0  16 GiB   2 MiB  device_dax  CXL region1  0          candidate for a pool

        CXL   SERIAL      RAM      PMEM    DYNAMIC  NEAR NODE  FIRMWARE
        mem0  0x5c1e0101  128 GiB  -       -        0          2.0.1
        mem1  0x5c1e0102  128 GiB  -       -        0          2.0.1
        mem2  0x9d0000d1  -        -       64 GiB   0          0.9
        mem3  0x77e00003  -        32 GiB  -        0          1.1

        REGION   SIZE     MODE           WAYS  GRANULARITY  CXL        DAX
        region0  256 GiB  ram            2     4 KiB        mem0 mem1  dax0.0
        region1  64 GiB   dynamic_ram_a  1     256 B        mem2       dax1.0

        guests' own memory (private):  node 0
        could become a pool:           `nil pool create /dev/dax0.0`
        could become a pool:           `nil pool create /dev/dax1.0` (tagged 6f1f1f46-2a0b-4d5b-9d0e-3f6a1c2b7e90)
        not there: pools on dax devices; `nil pool list` looks for files, --pool PATH shows one here
        warning: mem3 has 32 GiB that no region uses; `cxl create-region -m mem3` puts them to use
        ");
    }

    #[test]
    fn the_page_of_a_malformed_tree_names_the_oddities() {
        let page = page("malformed");
        assert!(page.contains("odd: /sys/bus/dax/devices/dax0.0/size: '-5' is not a number"), "{page}");
    }

    #[test]
    fn a_root_without_sysfs_is_refused_with_what_to_give() {
        let args = Args { pools: Vec::new(), sysfs: Some("/proc".into()) };
        let error = Inspection::take(&args).expect_err("no sysfs there").to_string();
        assert!(error.contains("no sysfs in /proc; give a directory with"), "{error}");
    }

    #[test]
    fn a_pool_in_a_file_is_shown_as_given() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("pool");
        let options = nil_pool::CreateOptions { size: Some(64 << 20), ..Default::default() };
        Pool::create(&path, &options).expect("a pool");
        let inspection = Inspection::take(&Args { pools: vec![path.clone()], sysfs: None }).expect("this host");
        let [pool] = &inspection.pools[..] else { panic!("one pool: {:?}", inspection.pools) };
        assert_eq!((&pool.path, pool.backing, pool.total_bytes), (&path, Backing::File, 64 << 20));
        assert!(inspection.to_string().contains("shared by the hosts of this machine"), "{inspection}");
    }

    #[test]
    fn the_json_holds_the_page_s_facts() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mover/testdata/sysfs/cxl-kmem");
        let inspection = Inspection::take(&Args { pools: Vec::new(), sysfs: Some(root) }).expect("a tree");
        let json = serde_json::to_value(&inspection).expect("plain data");
        assert_eq!(json["node_uses"]["2"], "private");
        assert_eq!(json["dax_uses"]["dax0.0"]["unusable"], "online_as_ram");
        assert_eq!(json["warnings"][0]["memory"]["online_as_ram"]["node"], 2);
        assert_eq!(json["nodes"][2]["access"][0]["read_latency_ns"], 271);
    }
}
