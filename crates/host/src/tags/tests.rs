use super::*;
use nil_pool::{CapacityRequest, CreateOptions, GRANULE, HostIdentity, Pool};
use std::fs;
use std::os::unix::fs::symlink;

fn tag(text: &str) -> Tag {
    text.parse().expect("a UUID")
}

const DCD: &str = "6f1f1f46-2a0b-4d5b-9d0e-3f6a1c2b7e90";

fn recorded(tree: &str) -> TagSearch {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mover/testdata/sysfs").join(tree);
    TagSearch { root, pools: Vec::new(), directories: Vec::new() }
}

/// A tree without devices, and a directory to search.
fn here() -> (tempfile::TempDir, TagSearch) {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
    let root = directory.path().join("root");
    fs::create_dir(&root).expect("a directory");
    let files = directory.path().join("files");
    fs::create_dir(&files).expect("a directory");
    let search = TagSearch { root, pools: Vec::new(), directories: vec![files] };
    (directory, search)
}

fn attribute(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
    fs::write(path, text).expect("an attribute");
}

fn dax(root: &Path, name: &str, driver: &str, uuid: &str) {
    let device = format!("sys/bus/dax/devices/{name}");
    attribute(root, &format!("{device}/size"), "2147483648\n");
    attribute(root, &format!("{device}/uuid"), uuid);
    fs::create_dir_all(root.join("sys/bus/dax/drivers").join(driver)).expect("a directory");
    symlink(format!("../../drivers/{driver}"), root.join(device).join("driver")).expect("a link");
}

fn pool_with(path: &Path, tag: Tag) -> Pool {
    let options = CreateOptions { size: Some(16 * GRANULE), ..CreateOptions::default() };
    let pool = Pool::create(path, &options).expect("a pool");
    let request = CapacityRequest::shared(tag, 3 * GRANULE);
    pool.join(&HostIdentity::tool()).expect("membership").add_capacity(&request).expect("capacity");
    pool
}

#[test]
fn a_dax_device_of_dynamic_capacity_is_found_once_by_its_uuid_and_by_its_extents() {
    let place = recorded("cxl-devdax").resolve(tag(DCD)).expect("one place");
    assert_eq!((place.kind, place.path), (PlaceKind::Dax, Some("/dev/dax1.0".into())));
    assert_eq!(place.bytes, Some(16 << 30));
    assert!(place.evidence[0].ends_with("dax1.0/uuid") && place.evidence.len() == 3, "{:?}", place.evidence);
}

#[test]
fn a_tag_that_is_nowhere_is_said_to_be() {
    let refusal = recorded("one-node").resolve(tag(DCD)).expect_err("nowhere").to_string();
    assert!(refusal.contains("nothing on this machine has tag 6f1f1f46") && refusal.contains("--search"), "{refusal}");
    assert!(refusal.contains("looked in no pools of this machine's agents, no dax devices"), "{refusal}");
}

#[test]
fn memory_that_is_online_as_ram_is_refused_with_the_cure() {
    let (_directory, search) = here();
    dax(&search.root, "dax2.0", "kmem", DCD);
    let refusal = search.resolve(tag(DCD)).expect_err("online").to_string();
    assert!(refusal.contains("online as system RAM") && refusal.contains("--force dax2.0"), "{refusal}");
    assert_eq!(search.find(tag(DCD)).places[0].path, None);
}

#[test]
fn a_device_in_a_vm_is_found_by_its_uuid_on_the_nd_bus() {
    let (_directory, search) = here();
    let device = "sys/bus/nd/devices/namespace0.0";
    attribute(&search.root, &format!("{device}/uuid"), &format!("{DCD}\n"));
    attribute(&search.root, &format!("{device}/size"), "1073741824\n");
    fs::create_dir_all(search.root.join(device).join("block/pmem0")).expect("a directory");
    attribute(&search.root, "sys/bus/nd/devices/pfn0.1/uuid", "\n");
    let place = search.resolve(tag(DCD)).expect("one place");
    assert_eq!((place.kind, place.path, place.bytes), (PlaceKind::Nd, Some("/dev/pmem0".into()), Some(1 << 30)));
    assert_eq!(place.evidence, ["/sys/bus/nd/devices/namespace0.0/uuid"]);
}

#[test]
fn a_capacity_is_found_in_the_pool_that_has_it_with_every_stretch() {
    let (_directory, mut search) = here();
    let path = search.directories[0].join("pool");
    let pool = pool_with(&path, tag(DCD));
    let capacity = pool.find_capacity(tag(DCD)).expect("the capacity");
    // Known by another name, too: it is the same pool.
    let link = search.directories[0].join("link");
    symlink(&path, &link).expect("a link");
    search.pools.push(link);
    let place = search.resolve(tag(DCD)).expect("one place");
    assert_eq!((place.kind, place.pool, place.bytes), (PlaceKind::Capacity, Some(pool.id()), Some(3 * GRANULE)));
    let offset = u64::from(capacity.extents[0].first) * GRANULE;
    assert_eq!((place.stretches[0].offset, place.stretches[0].bytes), (offset, 3 * GRANULE));
    let whole = search.resolve(tag(&pool.id().to_string())).expect("one place");
    assert_eq!((whole.kind, whole.bytes), (PlaceKind::Pool, Some(16 * GRANULE)));
}

#[test]
fn a_pool_is_found_by_its_uuid_and_a_capacity_is_none() {
    let (_directory, search) = here();
    let path = search.directories[0].join("pool");
    let pool = pool_with(&path, tag(DCD));
    assert_eq!(search.pool(pool.id()).expect("the pool"), path);
    let refusal = search.pool(DCD.parse().expect("a UUID")).expect_err("a capacity").to_string();
    assert!(refusal.contains("no pool that could be joined") && refusal.contains(&pool.id().to_string()), "{refusal}");
    let nowhere = search.pool(PoolId::random()).expect_err("nowhere").to_string();
    assert!(nowhere.contains(&format!("1 file below {}", search.directories[0].display())), "{nowhere}");
}

#[test]
fn a_file_is_found_by_its_name_and_what_it_lies_on_is_told() {
    let (_directory, search) = here();
    let deeper = search.directories[0].join("deeper");
    fs::create_dir(&deeper).expect("a directory");
    fs::write(deeper.join(format!("{DCD}.mem")), vec![0; 4096]).expect("a file");
    let place = search.resolve(tag(DCD)).expect("one place");
    assert_eq!((place.kind, place.bytes), (PlaceKind::File, Some(4096)));
    assert_eq!(place.evidence, ["its name, on tmpfs"]);
}

#[test]
fn two_memories_with_one_tag_are_an_ambiguity_that_names_both() {
    let (_directory, search) = here();
    pool_with(&search.directories[0].join("pool"), tag(DCD));
    // A copy of a pool is another memory.
    fs::copy(search.directories[0].join("pool"), search.directories[0].join("copy")).expect("a copy");
    dax(&search.root, "dax0.0", "device_dax", DCD);
    let refusal = search.resolve(tag(DCD)).expect_err("three places");
    let Unresolved::Ambiguous { places, .. } = &refusal else { panic!("{refusal}") };
    assert_eq!(places.len(), 3);
    let told = refusal.to_string();
    for part in ["in 3 places", "/copy", "/pool", "/dev/dax0.0", "dax0.0/uuid"] {
        assert!(told.contains(part), "{part}: {told}");
    }
}

#[test]
fn a_pool_that_cannot_be_read_is_told_because_the_tag_may_be_there() {
    let (_directory, search) = here();
    let path = search.directories[0].join("pool");
    pool_with(&path, tag(DCD));
    let file = fs::File::options().write(true).open(&path).expect("the file");
    // A newer version, in both copies.
    for at in [8, (2 << 20) - 4096 + 8] {
        std::os::unix::fs::FileExt::write_all_at(&file, &[9], at).expect("written");
    }
    let refusal = search.resolve(tag(DCD)).expect_err("nobody can read it").to_string();
    assert!(refusal.contains("not all could be looked at") && refusal.contains("format version 9"), "{refusal}");
}
