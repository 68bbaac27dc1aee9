//! The reader of fabrics: no text makes it panic, and what it accepts is written so that it is read as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nil_fabric::{Fabric, Picture};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(fabric) = Fabric::from_toml(text) else { return };
    assert_eq!(Fabric::from_toml(&fabric.to_toml()).as_ref(), Ok(&fabric));
    let spaces = fabric.namespaces();
    assert_eq!(spaces.list().iter().map(|space| space.hosts.len()).sum::<usize>(), fabric.hosts().len());
    assert!(fabric.critical().iter().all(|one| one.parts.len() > 1));
    assert!(Picture::of(&fabric).svg().ends_with("</svg>\n"));
});
