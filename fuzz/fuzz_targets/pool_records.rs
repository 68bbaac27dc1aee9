//! The decoders of host, capacity, guest, journal, pin, report and protection records and of all words: no bytes make them panic, and what they
//! accept they write back as the same thing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nil_pool::format::answers::Answers;
use nil_pool::format::capacity::{CapacityRecord, RECORD_BYTES};
use nil_pool::format::demand::Demand;
use nil_pool::format::fence::{FenceWord, decode_any_terms, decode_terms, encode_terms};
use nil_pool::format::guest::GuestRecord;
use nil_pool::format::host::{HostFlags, HostRecord};
use nil_pool::format::journal::Entry;
use nil_pool::format::lines::Said;
use nil_pool::format::pin::{PinRecord, PinWord};
use nil_pool::format::protection::{Commit, ProtectionSettings, ProtectionShape, Standing, decode_index};
use nil_pool::format::report::ReportRecord;
use nil_pool::format::slot_word::{LAST_GENERATION, Reference, SlotState};
use nil_pool::{
    Arm, Class, Coherence, Composition, Epoch, GRANULE, HostId, Leg, Ownership, Placed, PoolId, Stripe, Tag,
};

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
    if let Ok(said) = Said::decode(word) {
        assert_eq!(said.encode(), word);
    }
    if let Ok(arm) = Arm::decode(word) {
        assert_eq!(arm.encode(), word);
    }
    if let Some(placed) = Placed::decode(word) {
        assert_eq!(placed.encode(), word);
    }
    for generation in [1, word & LAST_GENERATION] {
        let answers = Answers::decode(word, generation);
        assert_eq!(Answers::decode(answers.encode(), generation), answers);
        let _ = (0..16).map(|place| answers.get(place)).count();
        if let Some(demand) = Demand::decode(word, generation) {
            assert_eq!(demand.encode(generation), word);
        }
    }
    let flags = HostFlags::decode(word, HostId::from_bytes([1; 16]));
    assert_eq!(HostFlags::decode(flags.encode(), HostId::from_bytes([1; 16])), flags);
    if let Some(standing) = Standing::decode(word) {
        assert_eq!(standing.encode(), word);
    }
    if let Some(fence) = FenceWord::decode(word) {
        assert_eq!(fence.encode(), word);
    }
    if let Some(terms) = decode_any_terms(word) {
        let life = Epoch(u32::try_from(word & 0xFF_FFFF).expect("24 bits"));
        assert_eq!((encode_terms(terms, life), decode_terms(word, life)), (word, Some(terms)));
    }
    if let Some(settings) = ProtectionSettings::decode(word) {
        assert_eq!(settings.encode(), word);
    }
    if let Some(pin) = PinWord::decode(word) {
        assert_eq!(pin.encode(), word);
    }
}

fn capacity(bytes: &[u8; RECORD_BYTES]) {
    let Ok(capacity) = CapacityRecord::decode(bytes) else { return };
    assert_eq!(CapacityRecord::decode(&capacity.encode()), Ok(capacity.clone()));
    let _ = capacity.fits(2, 1024);
    if let Composition::Striped(stripe) = &capacity.composition {
        let sizes = stripe.leg_bytes(capacity.bytes);
        assert_eq!(sizes.iter().sum::<u64>(), capacity.bytes);
        assert!(sizes.iter().all(|bytes| *bytes > 0));
    }
}

/// A valid record of a striped capacity, changed at places that the data gives.
fn changed_stripe(data: &[u8]) -> [u8; RECORD_BYTES] {
    let leg = |digit, weight| Leg { pool: PoolId::from_bytes([digit; 16]), tag: Tag::from_bytes([digit; 16]), weight };
    let record = CapacityRecord {
        tag: Tag::from_bytes([1; 16]),
        generation: 1,
        bytes: 16 * GRANULE,
        created: 0,
        class: Class::Shared,
        coherence: Coherence::Hardware,
        access: Vec::new(),
        extents: Vec::new(),
        composition: Composition::Striped(Stripe { granularity: GRANULE, legs: vec![leg(2, 3), leg(3, 1)] }),
        label: String::new(),
    };
    let mut bytes = record.encode();
    for change in data.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % RECORD_BYTES;
        bytes[at] = change[2];
    }
    bytes
}

fuzz_target!(|data: &[u8]| {
    let Some((which, data)) = data.split_first() else { return };
    match which % 9 {
        0 => {
            if let Ok(host) = HostRecord::decode(&record(data)) {
                assert_eq!(HostRecord::decode(&host.encode()), Ok(host));
            }
        }
        1 => {
            capacity(&record(data));
            capacity(&record(&changed_stripe(data)));
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
        5 => {
            if let Ok(report) = ReportRecord::decode(&record(data)) {
                assert_eq!(ReportRecord::decode(&report.encode()), Ok(report));
            }
        }
        6 => {
            if let Ok(shape) = ProtectionShape::decode(&record(data)) {
                assert_eq!(ProtectionShape::decode(&shape.encode()), Ok(shape));
                assert!(shape.bytes() >= shape.log_pages * 8192);
            }
        }
        7 => {
            if let Ok(commit) = Commit::decode(&record(data)) {
                assert_eq!(Commit::decode(&commit.encode()), Ok(commit));
            }
            if let Ok(entries) = decode_index(data, nil_pool::format::checksum(data), 1000) {
                assert!(entries.iter().all(|entry| entry.page < 1000));
                assert_eq!(entries.iter().flat_map(|entry| entry.encode()).collect::<Vec<_>>(), data);
            }
        }
        _ => data.chunks_exact(8).for_each(|word| words(u64::from_le_bytes(word.try_into().expect("eight bytes")))),
    }
});
