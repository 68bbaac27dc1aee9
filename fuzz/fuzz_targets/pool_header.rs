//! The header decoder: no bytes make it panic, and what it accepts it writes back as the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nil_pool::format::header::{HEADER_BYTES, Header};

fuzz_target!(|data: &[u8]| {
    let _ = Header::decode(data);
    // A right checksum, so that the fuzzer gets past it.
    let Some(start) = data.get(..data.len().min(HEADER_BYTES - 4)) else { return };
    let mut bytes = [0; HEADER_BYTES];
    bytes[..start.len()].copy_from_slice(start);
    bytes[..8].copy_from_slice(b"nilpool\x1a");
    bytes[8..16].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
    let sum = nil_pool::format::checksum(&bytes[..HEADER_BYTES - 4]);
    bytes[HEADER_BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
    if let Ok(header) = Header::decode(&bytes) {
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }
});
