//! Loads and stores that are done in KVM's stead.

use super::*;
use crate::dram::Stores;
use crate::memory::Unreached;

#[test]
fn what_kvm_could_not_store_waits_for_the_chunk_and_arrives() {
    let ground = Ground::in_dram(8 * MIB);
    let (memory, chunk) = (&ground.memory, 2 * MIB..4 * MIB);
    memory.watch().raise();
    memory.range().set_stores(&chunk, Stores::Refused).expect("protected");
    std::thread::scope(|scope| {
        let storing = scope.spawn(|| memory.store(0x20_0008, &7u64.to_le_bytes()));
        while memory.watch().take_waits() == 0 {
            std::thread::yield_now();
        }
        assert_eq!(ground.word(2 * MIB + 8).load(Ordering::Relaxed), 0);
        memory.range().set_stores(&chunk, Stores::Permitted).expect("not protected");
        memory.watch().lift();
        assert_eq!(storing.join().expect("a thread that ends"), Ok(()));
    });
    let mut word = [0; 8];
    assert_eq!(memory.load(0x20_0008, &mut word), Ok(()));
    assert_eq!((u64::from_le_bytes(word), ground.word(2 * MIB + 8).load(Ordering::Relaxed)), (7, 7));
    for outside in [0x7F_FFFC, 0x80_0000, 0xFEE0_0000, u64::MAX] {
        assert_eq!(memory.store(outside, &word), Err(Unreached::NoMemory), "{outside:#x}");
    }
}

#[test]
fn what_kvm_could_not_load_because_it_is_lost_is_named() {
    let ground = Ground::in_dram(16 * MIB);
    ground.word(8 * MIB).store(7, Ordering::Relaxed);
    run(&movement(&ground, Direction::Decouple));
    let cut = ground.cut_off(8 * MIB);
    let lost = Unreached::Lost(LostMemory { guest_address: 8 << 20, source: Some(cut) });
    assert_eq!(ground.memory.load(8 << 20, &mut [0; 4]), Err(lost.clone()));
    assert_eq!(ground.memory.store(8 << 20, &[1; 4]), Err(lost));
}
