//! Whole trees, read: see `testdata/sysfs/README.md` for where they come from.

use super::{Expander, Found, MemoryUse, NodeId, NodeKind, Topology, Unusable};
use nil_pool::Tag;
use proptest::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

fn tree(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/sysfs").join(name)
}

fn read(name: &str) -> Topology {
    Topology::read(&tree(name))
}

fn kinds(topology: &Topology) -> Vec<NodeKind> {
    topology.nodes.iter().map(|node| node.kind).collect()
}

fn uses(topology: &Topology, found: Found, known: &[Tag]) -> Vec<MemoryUse> {
    topology.dax.iter().flatten().map(|device| device.memory_use(found, known)).collect()
}

/// JSON for people to compare: one line for each value.
fn pretty(topology: &Topology) -> String {
    serde_json::to_string_pretty(topology).expect("plain data")
}

#[test]
fn a_host_with_one_node_has_its_dram_and_nothing_else() {
    let topology = read("one-node");
    assert_eq!(kinds(&topology), [NodeKind::Dram]);
    assert_eq!((topology.dax.as_deref(), topology.cxl.as_ref()), (Some(&[][..]), None));
    assert!(!topology.has_figures());
    assert_eq!(topology.warnings(), []);
    insta::assert_snapshot!("one_node", pretty(&topology));
}

#[test]
fn what_a_kernel_tells_of_an_emulated_machine_is_all_understood() {
    let topology = read("emulated");
    assert_eq!(kinds(&topology), [NodeKind::Dram, NodeKind::Dram, NodeKind::Expander(Expander::Unknown)]);
    assert_eq!(uses(&topology, Found::Nothing, &[]), [MemoryUse::Candidate]);
    assert_eq!(topology.warnings(), []);
    insta::assert_snapshot!("emulated", pretty(&topology));
}

#[test]
fn the_nodes_of_two_sockets_come_with_what_access_costs() {
    let topology = read("two-sockets");
    assert_eq!(kinds(&topology), [NodeKind::Dram, NodeKind::Dram]);
    assert!(topology.has_figures());
    insta::assert_snapshot!("two_sockets", pretty(&topology));
}

#[test]
fn cxl_memory_that_is_online_as_ram_is_an_expander_and_warned_about() {
    let topology = read("cxl-kmem");
    assert_eq!(kinds(&topology), [NodeKind::Dram, NodeKind::Dram, NodeKind::Expander(Expander::Cxl)]);
    assert_eq!(uses(&topology, Found::Pool, &[]), [MemoryUse::Unusable(Unusable::OnlineAsRam)]);
    insta::assert_snapshot!("cxl_kmem", pretty(&topology));
    let warnings: Vec<String> = topology.warnings().iter().map(ToString::to_string).collect();
    insta::assert_snapshot!("cxl_kmem_warnings", warnings.join("\n"));
}

#[test]
fn cxl_memory_that_programs_can_map_is_a_candidate_for_a_pool() {
    let topology = read("cxl-devdax");
    assert_eq!(uses(&topology, Found::Nothing, &[]), [MemoryUse::Candidate, MemoryUse::Candidate]);
    assert_eq!(uses(&topology, Found::Pool, &[]), [MemoryUse::Pool, MemoryUse::Pool]);
    insta::assert_snapshot!("cxl_devdax", pretty(&topology));
    let warnings: Vec<String> = topology.warnings().iter().map(ToString::to_string).collect();
    insta::assert_snapshot!("cxl_devdax_warnings", warnings.join("\n"));
}

#[test]
fn dynamic_capacity_whose_tag_a_pool_knows_is_shared() {
    let topology = read("cxl-devdax");
    let tag: Tag = "6f1f1f46-2a0b-4d5b-9d0e-3f6a1c2b7e90".parse().expect("a tag");
    assert_eq!(uses(&topology, Found::Nothing, &[tag]), [MemoryUse::Candidate, MemoryUse::Capacity(tag)]);
}

#[test]
fn memory_that_is_wider_than_dram_is_high_bandwidth_memory() {
    let topology = read("high-bandwidth");
    assert_eq!(kinds(&topology), [NodeKind::Dram, NodeKind::Expander(Expander::HighBandwidth)]);
    assert_eq!(topology.nodes[1].id, NodeId::new(1).expect("a node"));
    insta::assert_debug_snapshot!("high_bandwidth_evidence", topology.nodes[1].evidence);
}

#[test]
fn a_malformed_tree_is_remarked_upon_file_by_file() {
    let topology = read("malformed");
    let remarks: Vec<String> = topology.remarks.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!("malformed_remarks", remarks.join("\n"));
    insta::assert_snapshot!("malformed", pretty(&Topology { remarks: Vec::new(), ..topology }));
}

#[test]
fn where_there_is_no_sysfs_there_is_nothing_to_tell() {
    let nowhere = tempfile::tempdir().expect("a directory");
    let topology = Topology::read(nowhere.path());
    assert_eq!((topology.nodes.len(), topology.dax.is_some(), topology.cxl.is_some()), (0, false, false));
    assert_eq!(topology.remarks.len(), 1, "{:?}", topology.remarks);
}

#[test]
fn only_the_malformed_tree_gives_cause_for_remarks() {
    for name in ["one-node", "emulated", "two-sockets", "cxl-kmem", "cxl-devdax", "high-bandwidth"] {
        assert_eq!(read(name).remarks, [], "{name}");
    }
}

#[test]
fn a_topology_survives_the_round_trip_through_json() {
    for name in ["one-node", "emulated", "two-sockets", "cxl-kmem", "cxl-devdax", "high-bandwidth", "malformed"] {
        let topology = read(name);
        assert_eq!(serde_json::from_str::<Topology>(&pretty(&topology)).expect("plain data"), topology, "{name}");
    }
}

/// The host that these tests run on, whatever it is.
#[test]
fn this_host_has_a_node_with_memory() {
    let topology = Topology::read(Path::new("/"));
    assert!(topology.nodes.iter().any(super::NumaNode::has_memory), "{topology:?}");
    assert_eq!(topology.remarks, []);
}

/// All files below a directory, links not followed.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a directory") {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("a kind").is_dir() {
            files(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}

/// Copies a tree, links as links.
fn copy(from: &Path, to: &Path) {
    let mut found = Vec::new();
    files(from, &mut found);
    for file in found {
        let place = to.join(file.strip_prefix(from).expect("below"));
        fs::create_dir_all(place.parent().expect("a directory")).expect("a directory");
        match file.read_link() {
            Ok(target) => std::os::unix::fs::symlink(target, place).expect("a link"),
            Err(_) => fs::write(&place, fs::read(&file).expect("read")).expect("write"),
        }
    }
}

/// What may stand in a file, or in its place.
#[derive(Clone, Debug)]
enum Content {
    Bytes(Vec<u8>),
    Text(String),
    Directory,
    Gone,
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..64).prop_map(Content::Bytes),
        "[-0-9a-fx,. :kB\n]{0,40}".prop_map(Content::Text),
        any::<u64>().prop_map(|number| Content::Text(number.to_string())),
        any::<u64>().prop_map(|number| Content::Text(format!("{number:#x}"))),
        Just(Content::Directory),
        Just(Content::Gone),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_content_makes_reading_or_judging_panic(
        name in prop_oneof![Just("emulated"), Just("cxl-kmem"), Just("cxl-devdax"), Just("malformed")],
        changes in proptest::collection::vec((any::<prop::sample::Index>(), content()), 1..40),
    ) {
        let folder = tempfile::tempdir().expect("a directory");
        copy(&tree(name), folder.path());
        let mut all = Vec::new();
        files(folder.path(), &mut all);
        for (index, content) in changes {
            let file = index.get(&all);
            if file.is_dir() {
                continue;
            }
            // The second change of a file finds it gone.
            let _ = fs::remove_file(file);
            match content {
                Content::Bytes(bytes) => fs::write(file, bytes).expect("write"),
                Content::Text(text) => fs::write(file, text).expect("write"),
                Content::Directory => fs::create_dir(file).expect("a directory"),
                Content::Gone => {}
            }
        }
        let topology = Topology::read(folder.path());
        for warning in topology.warnings() {
            prop_assert!(!warning.to_string().is_empty());
        }
        uses(&topology, Found::Nothing, &[]);
        prop_assert!(topology.nodes.len() <= NodeId::LIMIT as usize);
        let again: Topology = serde_json::from_str(&pretty(&topology)).expect("plain data");
        prop_assert_eq!(again, topology);
    }
}
