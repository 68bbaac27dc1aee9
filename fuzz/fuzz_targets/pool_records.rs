//! The decoders of host, capacity, guest, journal and pin records and of all words: no bytes make them panic, and what they
//! accept they write back as the same thing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nil_pool::format::capacity::CapacityRecord;
use nil_pool::format::guest::GuestRecord;
use nil_pool::format::host::HostRecord;
use nil_pool::format::journal::Entry;
use nil_pool::format::pin::{PinRecord, PinWord};
use nil_pool::format::slot_word::{Reference, SlotState};
use nil_pool::{Arm, Composition, Ownership, Placed};

/// The data as a record of this length with a right checksum.
fn record<const N: usize>(data: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    let length = data.len().min(N - 4);
    bytes[..length].copy_from_slice(&data[..length]);
    let sum = nil_pool::format::checksum(&bytes[..N - 4]);
    bytes[N - 4..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn words(word: u64) {
    if let Ok(state) = SlotState::decode(word) {
        assert_eq!(state.encode(), word);
    }
    if let Some(reference) = Reference::decode(word) {
        assert_eq!(reference.encode(), word);
    }
    if let Ok(ownership) = Ownership::decode(word) {
        assert_eq!(ownership.encode(), word);
    }
    if let Ok(arm) = Arm::decode(word) {
        assert_eq!(arm.encode(), word);
    }
    if let Some(placed) = Placed::decode(word) {
        assert_eq!(placed.encode(), word);
    }
    if let Some(pin) = PinWord::decode(word) {
        assert_eq!(pin.encode(), word);
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((which, data)) = data.split_first() else { return };
    match which % 6 {
        0 => {
            if let Ok(host) = HostRecord::decode(&record(data)) {
                assert_eq!(HostRecord::decode(&host.encode()), Ok(host));
            }
        }
        1 => {
            if let Ok(capacity) = CapacityRecord::decode(&record(data)) {
                assert_eq!(CapacityRecord::decode(&capacity.encode()), Ok(capacity.clone()));
                let _ = capacity.fits(2, 1024);
                if let Composition::Striped(stripe) = &capacity.composition {
                    assert_eq!(stripe.leg_bytes(capacity.bytes).iter().sum::<u64>(), capacity.bytes);
                    assert!(stripe.leg_bytes(capacity.bytes).iter().all(|bytes| *bytes > 0));
                }
            }
        }
        2 => {
            if let Ok(guest) = GuestRecord::decode(&record(data)) {
                assert_eq!(GuestRecord::decode(&guest.encode()), Ok(guest));
            }
        }
        3 => {
            if let Ok(entry) = Entry::decode(&record(data)) {
                assert_eq!(Entry::decode(&entry.encode()), Ok(entry));
            }
        }
        4 => {
            if let Ok(pin) = PinRecord::decode(&record(data)) {
                assert_eq!(PinRecord::decode(&pin.encode().expect("its texts fit")), Ok(pin));
            }
        }
        _ => data.chunks_exact(8).for_each(|word| words(u64::from_le_bytes(word.try_into().expect("eight bytes")))),
    }
});
