//! Commits and going back to them, stopped before every single write; and what is refused.

use super::*;
use crate::fault::armed::crash_after;
use crate::format::GRANULE;
use crate::{
    CreateOptions, Draft, Epoch, GuestKind, GuestRequest, HostId, HostIdentity, HostKind, HostSlot, LogFull,
    Membership, MemoryHome, OutputRule, Ownership, Place, Pool, decode,
};
use std::cell::RefCell;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

/// More writes than any of the operations makes.
const ENOUGH: usize = 20_000;
const GRANULES: u64 = 2;
const KIND: u16 = 7;

/// Memory of a guest in DRAM.
struct Dram(Box<[RefCell<[u8; LOG_PAGE]>]>);

// SAFETY: each page is an array of that length, which lives as long as the whole.
unsafe impl GuestPages for Dram {
    fn pages(&self) -> u64 {
        self.0.len() as u64
    }

    fn page(&self, index: u64) -> *mut u8 {
        self.0[usize::try_from(index).expect("small")].as_ptr().cast()
    }
}

impl Dram {
    fn new(granules: u64) -> Self {
        let pages = granules * GRANULE / LOG_PAGE as u64;
        Self((0..pages).map(|_| RefCell::new([0; LOG_PAGE])).collect())
    }

    fn fill(&self, page: usize, byte: u8) {
        *self.0[page].borrow_mut() = [byte; LOG_PAGE];
    }
}

pub(crate) struct Scene {
    _directory: tempfile::TempDir,
    pool: Pool,
    host: Membership,
    guest: GuestControl,
    pub(crate) protection: Protection,
    image: CapacityMapping,
    memory: Dram,
}

/// At which the guest's owner has it, and at which another takes it.
const OWNED: Epoch = Epoch(1);
pub(crate) const EPOCH: Epoch = Epoch(2);

fn settings() -> ProtectionSettings {
    ProtectionSettings { interval: Duration::from_millis(25), output: OutputRule::Hold }
}

impl Scene {
    /// A guest in DRAM that its owner, at epoch 1, has begun to protect.
    pub(crate) fn build() -> Self {
        Self::sized(GRANULES, 1)
    }

    /// With so many granules of memory, and in each redo log.
    fn sized(granules: u64, log: u64) -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
        let options = CreateOptions { size: Some((32 + granules + 2 * log) * GRANULE), ..CreateOptions::default() };
        let pool = Pool::create(&directory.path().join("pool"), &options).expect("a new pool");
        let identity =
            HostIdentity { id: HostId::random(), name: "a".to_owned(), kind: HostKind::Agent, address: None };
        let host = pool.join(&identity).expect("membership");
        let (name, memory_bytes, home) = ("g".to_owned(), granules * GRANULE, MemoryHome::Dram);
        let request = GuestRequest { name, kind: GuestKind::Vm, memory_bytes, home, vcpus: 2, features: 0 };
        let guest = host.create_guest(&request).expect("a guest");
        guest.publish(host.slot()).expect("published");
        let protection = host.protect(&guest, settings(), Some(log * GRANULE)).expect("protected");
        let image = guest.map_memory().expect("its image");
        Self { _directory: directory, pool, host, guest, protection, image, memory: Dram::new(granules) }
    }

    fn save(&self, half: usize, number: u64) {
        let put = |area: Area, tag: u8| {
            let mut out = area.writer(Commit::mark(number));
            out.put(KIND, 1, 0, &[tag, u8::try_from(number).expect("small")]).expect("it fits");
            out.finish();
        };
        put(self.protection.machine(half), 0xFF);
        (0..2).for_each(|index| put(self.protection.vcpu(half, index), u8::try_from(index).expect("small")));
    }

    /// The guest's memory at commit `n`: page 1 is 10 + n, page 2 is the last even n, page 600 is n, page n + 10 is n.
    fn run_to(&self, number: u64) -> Vec<u64> {
        let byte = u8::try_from(number).expect("small");
        self.memory.fill(1, 10 + byte);
        self.memory.fill(600, byte);
        self.memory.fill(usize::from(byte) + 10, byte);
        let mut pages = vec![1, 600, number + 10];
        if number.is_multiple_of(2) {
            self.memory.fill(2, byte);
            pages.push(2);
        }
        pages
    }

    pub(crate) fn commit(&self, draft: &mut Draft) {
        let number = draft.number();
        for page in self.run_to(number) {
            // Dirty twice: what it held first must not count.
            let half = LOG_PAGE / 2;
            self.memory.0[usize::try_from(page).expect("small")].borrow_mut()[half] ^= 0xFF;
            draft.add(&self.memory, page).expect("there is room");
            self.memory.0[usize::try_from(page).expect("small")].borrow_mut()[half] ^= 0xFF;
            draft.add(&self.memory, page).expect("there is room");
        }
        self.save(draft.half(), number);
        draft.publish(self.host.slot(), OWNED, number).expect("published");
        draft.apply(&self.image, || true).expect("it is ours");
    }

    pub(crate) fn commit_up_to(&self, number: u64) {
        let mut draft = Draft::after_last(&self.protection).expect("idle or active");
        while draft.number() <= number {
            self.commit(&mut draft);
        }
    }

    /// That the image and the state are those of commit `number`, and of no other.
    pub(crate) fn assert_is(&self, number: u64, when: &str) {
        let first = |page: u64| {
            let mut bytes = [0; LOG_PAGE];
            // SAFETY: the image's pages are mapped.
            unsafe { copy_out(self.image.page(page), &mut bytes) };
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{when}: page {page} is torn");
            u64::from(bytes[0])
        };
        assert_eq!(first(1), 10 + number, "{when}");
        assert_eq!(first(2), number / 2 * 2, "{when}");
        assert_eq!(first(600), number, "{when}");
        for page in 1..20 {
            assert_eq!(first(page + 10), if page <= number { page } else { 0 }, "{when}: page {}", page + 10);
        }
        let state = self.guest.map_state().expect("its state");
        let areas = [state.machine(0), state.vcpu(0, 0), state.vcpu(0, 1)];
        for (area, tag) in areas.into_iter().zip([0xFF, 0, 1]) {
            let mut copy = Vec::new();
            area.read_into(&mut copy).expect("whole");
            let sections = decode(&copy, EPOCH).expect("of the epoch at which it is frozen");
            let found: Vec<_> = sections.iter().map(|section| section.payload.to_vec()).collect();
            assert_eq!(found, [[tag, u8::try_from(number).expect("small")]], "{when}");
        }
        let placement = state.placement();
        assert_eq!(placement.away(), 0, "{when}");
        assert!(
            (0..placement.granules()).all(|granule| placement.get(granule).is_ok_and(|at| at.place == Place::Pooled))
        );
    }

    pub(crate) fn restore(&self, epoch: Epoch) -> crate::Result<crate::Restored> {
        self.guest.restore(self.host.slot(), epoch, || true)
    }

    /// Goes back, stopped before each write, and begun anew each time; then once more.
    fn restore_stopping_everywhere(&self) -> u64 {
        for writes in 0..ENOUGH {
            if let Some(restored) = crash_after(writes, || self.restore(EPOCH)) {
                let first = restored.expect("it can be brought back").commit;
                let again = self.restore(EPOCH).expect("as often as one likes");
                assert_eq!((again.commit, again.written), (first, 0), "it had been brought back whole");
                return first;
            }
        }
        panic!("going back makes more than {ENOUGH} writes");
    }
}

#[test]
fn a_guest_comes_back_to_its_last_commit_with_memory_and_state_of_the_same_instant() {
    for last in 1..=5 {
        let scene = Scene::build();
        scene.commit_up_to(last);
        // The guest has run on since.
        let mut draft = Draft::after_last(&scene.protection).expect("active");
        for page in scene.run_to(last + 1) {
            draft.add(&scene.memory, page).expect("there is room");
        }
        scene.save(draft.half(), last + 1);
        let restored = scene.restore(EPOCH).expect("it can be brought back");
        assert_eq!((restored.commit, restored.taken, restored.written), (last, last, 0), "the image had it already");
        scene.assert_is(last, "after going back");
    }
}

#[test]
fn a_crash_anywhere_in_a_commit_or_in_going_back_ends_in_the_last_commit() {
    let mut outcomes = [0; 2];
    for writes in 0..ENOUGH {
        let scene = Scene::build();
        scene.commit_up_to(2);
        let mut draft = Draft::after_last(&scene.protection).expect("active");
        let finished = crash_after(writes, || scene.commit(&mut draft)).is_some();
        let when = format!("stopped before write {writes}");
        let standing = scene.protection.standing().expect("a word");
        let number = scene.restore_stopping_everywhere();
        assert_eq!(standing, Standing::Active(number), "{when}");
        scene.assert_is(number, &when);
        outcomes[usize::from(number == 3)] += 1;
        if finished {
            assert!(outcomes.iter().all(|count| *count > 3), "{outcomes:?}");
            return;
        }
    }
    panic!("a commit makes more than {ENOUGH} writes");
}

#[test]
fn a_former_owner_that_wakes_up_commits_nothing_more() {
    let scene = Scene::build();
    scene.commit_up_to(2);
    let mut draft = Draft::after_last(&scene.protection).expect("active");
    for page in scene.run_to(3) {
        draft.add(&scene.memory, page).expect("there is room");
    }
    scene.save(draft.half(), 3);
    scene.restore(EPOCH).expect("it can be brought back");
    let late = draft.publish(scene.host.slot(), OWNED, 3);
    assert!(matches!(late, Err(Error::ProtectionOver { found: Standing::Sealed(2), .. })), "{late:?}");
    let late = scene.protection.suspend();
    assert!(matches!(late, Err(Error::ProtectionOver { found: Standing::Sealed(2), .. })), "{late:?}");
    scene.assert_is(2, "after a late commit");
    scene.protection.retire().expect("it is about to run elsewhere");
    assert!(scene.restore(EPOCH).is_err(), "once it runs, there is no way back");
}

#[test]
fn a_guest_without_a_whole_commit_of_this_ownership_is_refused_and_nothing_is_written() {
    let refused = |scene: &Scene, epoch, why: &str| {
        let error = crash_after(0, || scene.restore(epoch)).expect("nothing is written").expect_err("refused");
        assert!(error.to_string().contains(why), "{error}");
    };
    let scene = Scene::build();
    refused(&scene, EPOCH, "was not in force");
    scene.commit_up_to(2);
    refused(&scene, OWNED, "not of the owner that died");
    let stranger = HostSlot::new(9).expect("a small slot");
    let other = scene.guest.restore(stranger, EPOCH, || true).expect_err("it is another's commit").to_string();
    assert!(other.contains("not of the owner that died"), "{other}");
    assert_eq!(scene.guest.last_commit(stranger).expect("sound"), None);
    assert_eq!(scene.guest.last_commit(scene.host.slot()).expect("sound").map(|commit| commit.number), Some(2));
    scene.protection.suspend().expect("suspended");
    refused(&scene, EPOCH, "was not in force");
    scene.host.unprotect(&scene.guest).expect("released");
    refused(&scene, EPOCH, "it is not protected");
}

#[test]
fn who_is_taken_for_dead_while_bringing_a_guest_back_stops_and_the_next_one_finishes() {
    let scene = Scene::build();
    let mut draft = Draft::after_last(&scene.protection).expect("idle");
    for page in 0..512 {
        draft.add(&scene.memory, page).expect("there is room");
    }
    scene.save(draft.half(), 1);
    draft.publish(scene.host.slot(), OWNED, 1).expect("published");
    for looks in 0..3 {
        let made = AtomicUsize::new(0);
        let stopped = scene.guest.restore(scene.host.slot(), EPOCH, || made.fetch_add(1, Ordering::Relaxed) < looks);
        assert!(matches!(stopped, Err(Error::TakenAgain { .. })), "{stopped:?}");
    }
    scene.restore(Epoch(3)).expect("at a later epoch");
    let mut copy = Vec::new();
    scene.guest.map_state().expect("its state").machine(1).read_into(&mut copy).expect("whole");
    decode(&copy, Epoch(3)).expect("of the later epoch");
}

#[test]
fn many_pages_are_brought_back_by_several_threads_which_all_stop_when_the_guest_is_taken_again() {
    const PAGES: u64 = 5000;
    let byte = |page: u64| u8::try_from(page % 251 + 1).expect("a byte");
    let scene = Scene::sized(12, 10);
    let mut draft = Draft::after_last(&scene.protection).expect("idle");
    // In runs, with gaps, and not in order.
    let pages: Vec<u64> = (0..PAGES).rev().chain(PAGES..PAGES + 64).filter(|page| page % 100 != 7).collect();
    for &page in &pages {
        scene.memory.fill(usize::try_from(page).expect("small"), byte(page));
        draft.add(&scene.memory, page).expect("there is room");
    }
    scene.save(draft.half(), 1);
    draft.publish(scene.host.slot(), OWNED, 1).expect("published");
    let made = AtomicUsize::new(0);
    let stopped = scene.guest.restore(scene.host.slot(), EPOCH, || made.fetch_add(1, Ordering::Relaxed) < 4);
    assert!(matches!(stopped, Err(Error::TakenAgain { .. })), "{stopped:?}");
    let restored = scene.restore(EPOCH).expect("it can be brought back");
    assert_eq!(restored.pages, pages.len() as u64);
    assert!((1..restored.pages).contains(&restored.written), "{restored:?}");
    for &page in &pages {
        assert!(holds(&scene.image, page, &[byte(page); LOG_PAGE]), "page {page}");
    }
    assert!(holds(&scene.image, 7, &[0; LOG_PAGE]), "it is not in the commit");
    scene.memory.fill(0, 99);
    scene.protection.log(draft.half(), 4000, &scene.memory, 0);
    let damaged = scene.restore(EPOCH).expect_err("a page is damaged").to_string();
    assert!(damaged.contains("of commit 1") && damaged.contains("damaged"), "{damaged}");
}

#[test]
fn whatever_is_damaged_of_a_commit_is_noticed() {
    type Damage = (&'static str, fn(&Scene));
    let damage: [Damage; 5] = [
        ("standing of the protection", |scene| {
            scene.protection.standing_word().store(u64::MAX, Ordering::Release);
        }),
        ("commit 2", |scene| {
            scene.protection.mapping.mapping().word(ProtectionShape::commit_at(0) + 8).store(77, Ordering::Release);
        }),
        ("the index of commit 2", |scene| scene.protection.enter(0, 1, LogEntry { page: 3, crc: 0 })),
        ("the state of commit 2", |scene| drop(scene.protection.vcpu(0, 1).writer(Commit::mark(2)))),
        ("page 0x258 of commit 2", |scene| {
            scene.protection.note_applied(1);
            scene.memory.fill(600, 99);
            scene.protection.log(0, 1, &scene.memory, 600);
        }),
    ];
    for (what, damage) in damage {
        let scene = Scene::build();
        scene.commit_up_to(2);
        damage(&scene);
        let error = scene.restore(EPOCH).expect_err("it is damaged").to_string();
        assert!(error.contains(what) && error.contains("damaged"), "{what}: {error}");
    }
}

#[test]
fn protection_goes_on_after_a_suspension_and_counts_on() {
    let scene = Scene::build();
    scene.commit_up_to(3);
    assert_eq!(scene.protection.suspend().expect("suspended"), 3);
    assert_eq!(scene.protection.standing().expect("a word"), Standing::Idle(3));
    // All of it is copied anew.
    scene.run_to(4);
    let copy = ImageCopy::begin(&scene.image);
    (0..scene.memory.pages()).for_each(|page| copy.copy(&scene.image, &scene.memory, page));
    scene.commit_up_to(5);
    assert_eq!(scene.restore(EPOCH).expect("it can be brought back").commit, 5);
    scene.assert_is(5, "after a suspension");
}

#[test]
fn a_redo_log_that_is_full_says_so_and_the_commit_is_as_it_was() {
    let scene = Scene::build();
    let mut draft = Draft::after_last(&scene.protection).expect("idle");
    for page in 0..512 {
        draft.add(&scene.memory, page).expect("there is room");
    }
    assert_eq!(draft.add(&scene.memory, 512), Err(LogFull { pages: 512 }));
    draft.add(&scene.memory, 511).expect("it is in it already");
    assert_eq!(draft.pages(), 512);
    draft.begin(1);
    draft.add(&scene.memory, 512).expect("it begins anew");
}

#[test]
fn capacities_of_a_protection_come_and_go_whole_and_the_pool_stays_sound() {
    let scene = Scene::build();
    let check = || scene.pool.check(false).findings;
    assert_eq!(check(), [], "of a protected guest");
    scene.host.unplace_memory(&scene.guest).expect("nothing happens");
    assert!(scene.guest.is_placed(), "the image stays as long as the protection does");
    scene.host.unprotect(&scene.guest).expect("released");
    scene.host.unplace_memory(&scene.guest).expect("released");
    assert!(!scene.guest.is_protected() && !scene.guest.is_placed());
    let before = scene.pool.usage();
    scene.host.protect(&scene.guest, settings(), None).expect("again");
    scene.commit_up_to(1);
    scene.host.destroy_guest(&scene.guest).expect("destroyed");
    assert_eq!(check(), []);
    assert!(scene.pool.usage().free > before.free, "nothing is left of guest, memory, state and protection");
    assert_eq!(scene.pool.usage().capacities, 0);
}

#[test]
fn a_crash_anywhere_in_protecting_or_unprotecting_leaves_a_guest_that_can_be_protected() {
    for writes in 0..ENOUGH {
        let scene = Scene::build();
        let finished = crash_after(writes, || {
            scene.host.unprotect(&scene.guest).expect("released");
            scene.host.unplace_memory(&scene.guest).expect("released");
            scene.host.protect(&scene.guest, settings(), None).expect("protected");
        });
        crate::recovery::Actor::new(&scene.pool, scene.host.slot()).recover();
        let report = scene.pool.check(false);
        assert!(report.is_clean(), "stopped before write {writes}: {report:#?}");
        scene.host.protect(&scene.guest, settings(), None).expect("protected");
        assert_eq!(scene.guest.protection().expect("sound").expect("there").settings().expect("sound"), settings());
        if finished.is_some() {
            return;
        }
    }
    panic!("it makes more than {ENOUGH} writes");
}

#[test]
fn a_lost_guest_that_was_protected_can_be_destroyed_by_anybody() {
    let scene = Scene::build();
    scene.commit_up_to(1);
    let owned = Ownership::Owned { host: scene.host.slot(), epoch: OWNED };
    assert!(scene.guest.ownership().transition(owned, Ownership::Lost { host: scene.host.slot(), epoch: OWNED }));
    let identity = HostIdentity { id: HostId::random(), name: "b".to_owned(), kind: HostKind::Agent, address: None };
    let other = scene.pool.join(&identity).expect("membership");
    assert_ne!(other.slot(), HostSlot::new(0).expect("a slot"));
    other.destroy_guest(&scene.guest).expect("destroyed");
    assert_eq!(scene.pool.usage().capacities, 0);
}
