//! The decoder of state areas: no bytes make it panic, and what it accepts is consistent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nil_pool::{Epoch, SectionWriter, decode, decode_any_epoch};

fn examine(bytes: &[u8]) {
    let _ = decode(bytes, Epoch(1));
    let Ok(sections) = decode_any_epoch(bytes) else { return };
    assert_eq!(sections.iter().count(), sections.count() as usize);
    for section in sections.iter() {
        assert!(sections.get(section.kind, section.instance).is_some());
    }
}

fuzz_target!(|data: &[u8]| {
    examine(data);
    // A right header checksum over the fuzzer's header, and a valid area with the fuzzer's bytes written over it.
    if data.len() >= 32 {
        let mut forged = data.to_vec();
        forged[..8].copy_from_slice(b"nilarea1");
        forged[20..28].fill(0);
        let sum = nil_pool::format::checksum(&forged[..28]);
        forged[28..32].copy_from_slice(&sum.to_le_bytes());
        examine(&forged);
    }
    let mut area = vec![0; 512];
    let mut writer = SectionWriter::over(&mut area, Epoch(1));
    for (instance, payload) in (0..).zip(data.chunks(64).take(4)) {
        writer.put(1, 1, instance, payload).expect("it fits");
    }
    writer.finish();
    assert!(decode(&area, Epoch(1)).is_ok());
    if let [at, byte, ..] = data {
        area[usize::from(*at)] ^= byte;
        examine(&area);
    }
});
