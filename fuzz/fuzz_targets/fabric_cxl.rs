//! The reader of what `cxl list` prints: no text makes it panic, alone or beside another listing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nil_fabric::{Bytes, Fabric, Host};

const OTHER: &str = include_str!("../../crates/fabric/testdata/cxl-list-a.json");

fn host(name: &str) -> Host {
    let name = name.parse().expect("a good name");
    Host {
        name,
        rack: None,
        cpus: 1,
        dram: Bytes(0),
        dram_free: Bytes(0),
        load: 0.0,
        into_pool: None,
        out_of_pool: None,
        cordoned: false,
    }
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(fabric) = Fabric::from_cxl(&[(host("A"), text)]) {
        assert_eq!(fabric.hosts().len(), 1);
        assert_eq!(Fabric::from_toml(&fabric.to_toml()).as_ref(), Ok(&fabric));
    }
    if let Ok(fabric) = Fabric::from_cxl(&[(host("A"), OTHER), (host("B"), text)]) {
        assert_eq!(fabric.namespaces().list().iter().map(|space| space.hosts.len()).sum::<usize>(), 2);
    }
});
