//! A device in the guise of io_uring: buffers registered with the kernel, into which it reads a file, whatever becomes of
//! the guest's memory around them.

use io_uring::{IoUring, opcode, types};
use nil_mover::{
    Budget, Direction, GuestMemory, Move, MoveControl, MoveOutcome, MovePlan, MoveProgress, MoveReport, Pace,
    StallReason,
};
use nil_pool::{
    CreateOptions, Epoch, GuestControl, GuestKind, GuestRequest, HostId, HostIdentity, HostKind, Membership,
    MemoryHome, PinId, PinRequest, Pool, StateArea,
};
use rustix::io::FdFlags;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use tempfile::TempDir;

const GRANULE: usize = 2 << 20;
const GRANULES: usize = 4;
/// The buffer: in the second granule, not at its beginning.
const OFFSET: usize = GRANULE + (12 << 10);
const LENGTH: usize = 64 << 10;
const OWNER: &str = "disk 0";
const REASON: &str = "io_uring fixed buffer";

/// What is pinned is counted per process, so these tests run one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A guest's memory, and room for it in a pool.
struct Guest {
    memory: Arc<GuestMemory>,
    control: GuestControl,
    _state: StateArea,
    host: Membership,
    directory: TempDir,
}

impl Guest {
    fn new(home: MemoryHome) -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let size = Some((GRANULES * GRANULE) as u64 + (64 << 20));
        let pool = Pool::create(&directory.path().join("pool"), &CreateOptions { size, ..CreateOptions::default() });
        let agent = HostIdentity { id: HostId::random(), name: "a".to_owned(), kind: HostKind::Agent, address: None };
        let host = pool.expect("a pool").join(&agent).expect("a membership");
        let request = GuestRequest {
            name: "g".to_owned(),
            kind: GuestKind::Vm,
            memory_bytes: (GRANULES * GRANULE) as u64,
            home,
            vcpus: 1,
            features: 0,
        };
        let control = host.create_guest(&request).expect("a guest");
        control.publish(host.slot()).expect("an owner");
        let state = control.map_state().expect("its state area");
        let memory = match home {
            MemoryHome::Dram => GuestMemory::in_dram(&control, &state, None),
            MemoryHome::Pool => GuestMemory::in_pool(&control, &state),
        };
        let memory = Arc::new(memory.expect("its memory"));
        memory.set_owner(host.slot(), Epoch(1));
        host.place_memory(&control).expect("a capacity for its memory");
        let guest = Self { memory, control, _state: state, host, directory };
        (0..GRANULES * GRANULE).step_by(4096).for_each(|offset| guest.word(offset).store(7, Ordering::Relaxed));
        guest
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.memory.len());
        // SAFETY: the word lies in the memory, which stays mapped, and is accessed by atomics and by the kernel only.
        unsafe { AtomicU64::from_ptr(self.memory.as_ptr().add(offset).cast()) }
    }

    /// Whether the whole buffer reads as this byte.
    fn buffer_reads(&self, byte: u8) -> bool {
        let expected = u64::from_ne_bytes([byte; 8]);
        (OFFSET..OFFSET + LENGTH).step_by(8).all(|offset| self.word(offset).load(Ordering::Relaxed) == expected)
    }

    fn pin(&self) -> PinId {
        let (owner, reason) = (OWNER.to_owned(), REASON.to_owned());
        let (offset, bytes, host) = (OFFSET as u64, LENGTH as u64, self.host.slot());
        self.memory.pins().take(&PinRequest { offset, bytes, owner, reason, host }).expect("a pin")
    }

    fn pooled_granules(&self) -> u64 {
        self.memory.placement().summary().pooled
    }

    fn movement(&self, direction: Direction, stall_timeout_us: u64) -> Move {
        let budget = Budget { pace: Pace::Fast, bandwidth: None };
        let plan = MovePlan { budget, stall_timeout_us, ..MovePlan::of_everything(direction) };
        Move::new(Arc::clone(&self.memory), plan, Vec::new()).expect("a move")
    }

    fn moved(&self, direction: Direction, stall_timeout_us: u64) -> MoveReport {
        self.movement(direction, stall_timeout_us).run(&MoveControl::default(), |_| ()).expect("a move that ends")
    }
}

/// A ring with the guest's buffer registered, and a file to read from.
struct Device {
    ring: IoUring,
    buffer: *mut u8,
    file: File,
}

impl Device {
    /// `None`, said aloud, where there is no io_uring.
    fn over(guest: &Guest) -> Option<Self> {
        let ring = match IoUring::new(4) {
            Ok(ring) => ring,
            Err(error) => {
                eprintln!("skipped: this kernel lets nobody have an io_uring ({error})");
                return None;
            }
        };
        // SAFETY: the buffer lies in the guest's memory.
        let buffer = unsafe { guest.memory.as_ptr().add(OFFSET) };
        let file = tempfile::tempfile_in(guest.directory.path()).expect("a file");
        let device = Self { ring, buffer, file };
        device.register();
        Some(device)
    }

    fn register(&self) {
        let buffer = libc::iovec { iov_base: self.buffer.cast(), iov_len: LENGTH };
        // SAFETY: the guest outlives the device in each of these tests, and its memory keeps its addresses.
        unsafe { self.ring.submitter().register_buffers(&[buffer]) }.expect("a buffer can be registered");
    }

    fn unregister(&self) {
        self.ring.submitter().unregister_buffers().expect("a buffer can be unregistered");
    }

    /// Has the kernel read a file full of this byte into the buffer.
    fn read(&mut self, byte: u8) {
        self.file = tempfile::tempfile().expect("a file");
        self.file.write_all(&[byte; LENGTH]).expect("room for a file");
        let length = u32::try_from(LENGTH).expect("a short buffer");
        let read = opcode::ReadFixed::new(types::Fd(self.file.as_raw_fd()), self.buffer, length, 0).offset(0).build();
        // SAFETY: the buffer is registered with index 0, and the file is open until the read is complete.
        unsafe { self.ring.submission().push(&read) }.expect("room in the ring");
        self.ring.submit_and_wait(1).expect("a read that ends");
        let complete = self.ring.completion().next().expect("a completion");
        assert_eq!(complete.result(), i32::try_from(LENGTH).expect("a short buffer"));
    }
}

/// Runs a move on another thread; `meanwhile` gets what it tells.
fn while_moving(
    guest: &Guest,
    direction: Direction,
    meanwhile: impl FnOnce(&mpsc::Receiver<MoveProgress>),
) -> MoveReport {
    let movement = guest.movement(direction, MovePlan::STALL_TIMEOUT_US);
    let control = MoveControl::default();
    let (sender, progress) = mpsc::channel();
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| movement.run(&control, |told| drop(sender.send(told.clone()))));
        meanwhile(&progress);
        mover.join().expect("a move that does not panic").expect("a move that ends")
    })
}

fn wait_for_stall(progress: &mpsc::Receiver<MoveProgress>) -> nil_mover::Stall {
    progress.iter().find_map(|told| told.stall).expect("the move stalls")
}

#[test]
fn a_declared_pin_stalls_the_move_by_name_while_io_lands_and_lets_it_go_on_by_itself() {
    let _alone = alone();
    let guest = Guest::new(MemoryHome::Dram);
    let pin = guest.pin();
    let Some(mut device) = Device::over(&guest) else { return };
    let report = while_moving(&guest, Direction::Decouple, |progress| {
        let stall = wait_for_stall(progress);
        assert_eq!(stall.reason, StallReason::Pinned { owner: OWNER.to_owned(), reason: REASON.to_owned() });
        assert_eq!(stall.bytes, LENGTH as u64);
        assert_eq!(stall.guest_address, guest.memory.guest_address(OFFSET));
        assert_eq!(guest.pooled_granules(), GRANULES as u64 - 1, "the others do not wait for it");
        for byte in 1..=20 {
            device.read(byte);
            assert!(guest.buffer_reads(byte), "read {byte} did not land in the guest's memory");
        }
        device.unregister();
        guest.memory.pins().release(pin).expect("the pin is there");
    });
    assert_eq!((report.outcome, report.undeclared), (MoveOutcome::Done, vec![]));
    assert!(report.stalled_us > 0);
    assert_eq!(guest.memory.placement().away(), 0);
    assert!(guest.buffer_reads(20), "what the device wrote last has moved along");

    device.register();
    device.read(21);
    assert!(guest.buffer_reads(21), "a buffer in the pool is as good");
}

#[test]
fn an_undeclared_buffer_stalls_the_move_and_is_reported() {
    let _alone = alone();
    let guest = Guest::new(MemoryHome::Dram);
    let Some(mut device) = Device::over(&guest) else { return };
    let report = guest.moved(Direction::Decouple, 100_000);
    let MoveOutcome::Stalled(stall) = report.outcome else { panic!("{:?}", report.outcome) };
    let StallReason::Undeclared(found) = &stall.reason else { panic!("{stall}") };
    assert_eq!((found.offset, found.bytes), (Some(OFFSET as u64), LENGTH as u64));
    assert!(found.holder.contains("io_uring"), "{stall}");
    assert_eq!(report.undeclared, std::slice::from_ref(found));
    assert_eq!(guest.pooled_granules(), GRANULES as u64 - 1);
    device.read(3);
    assert!(guest.buffer_reads(3), "the device has not lost the guest's memory");

    let report = while_moving(&guest, Direction::Decouple, |progress| {
        wait_for_stall(progress);
        device.unregister();
    });
    assert_eq!(report.outcome, MoveOutcome::Done);
    assert!(guest.buffer_reads(3));
}

#[test]
fn a_pin_on_pooled_memory_keeps_it_there_and_io_goes_on_in_the_pool() {
    let _alone = alone();
    let guest = Guest::new(MemoryHome::Pool);
    let pin = guest.pin();
    let Some(mut device) = Device::over(&guest) else { return };

    let decoupled = guest.moved(Direction::Decouple, 100_000);
    assert_eq!((decoupled.outcome, decoupled.chunks), (MoveOutcome::Done, 0), "it is in the pool already");
    let report = guest.moved(Direction::Recouple, 100_000);
    let MoveOutcome::Stalled(stall) = report.outcome else { panic!("{:?}", report.outcome) };
    assert_eq!(stall.reason, StallReason::Pinned { owner: OWNER.to_owned(), reason: REASON.to_owned() });
    assert_eq!(guest.pooled_granules(), 1, "the others have left");

    device.read(5);
    assert!(guest.buffer_reads(5));
    let pool = guest.control.map_memory().expect("the guest's memory in the pool");
    // SAFETY: the byte lies in the mapping; the device has finished writing.
    let in_the_pool = unsafe { pool.as_ptr().add(OFFSET).read_volatile() };
    assert_eq!(in_the_pool, 5);

    device.unregister();
    guest.memory.pins().release(pin).expect("the pin is there");
    assert_eq!(guest.moved(Direction::Recouple, 100_000).outcome, MoveOutcome::Done);
    assert!(guest.buffer_reads(5), "what the device wrote last has come along");
}

/// A buffer in the guest that only a process has registered which is not the guest's: the kernel counts it as pinned, and
/// does not tell where it is.
struct HiddenBuffer {
    other: Child,
}

impl HiddenBuffer {
    /// `None`, said aloud, where there is no io_uring.
    fn in_memory_of(guest: &Guest) -> Option<Self> {
        let device = Device::over(guest)?;
        // SAFETY: the ring has its descriptor open until the device is dropped, at the end.
        let ring = unsafe { BorrowedFd::borrow_raw(device.ring.as_raw_fd()) };
        rustix::io::fcntl_setfd(ring, FdFlags::empty()).expect("a descriptor can be inherited");
        let other = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        Some(Self { other: other.expect("cat can be started") })
    }

    fn unregister(mut self) {
        drop(self.other.stdin.take());
        self.other.wait().expect("cat ends with its input");
    }
}

#[test]
fn a_pin_that_may_be_anywhere_stalls_all_of_the_move_by_name_until_it_is_gone() {
    let _alone = alone();
    let guest = Guest::new(MemoryHome::Dram);
    let Some(hidden) = HiddenBuffer::in_memory_of(&guest) else { return };
    let report = guest.moved(Direction::Decouple, 100_000);
    let MoveOutcome::Stalled(stall) = report.outcome else { panic!("{:?}", report.outcome) };
    let StallReason::Undeclared(found) = &stall.reason else { panic!("{stall}") };
    assert_eq!((found.offset, found.bytes >= LENGTH as u64), (None, true), "{stall}");
    assert_eq!((stall.guest_address, guest.pooled_granules()), (guest.memory.guest_address(0), 0));
    assert_eq!(report.undeclared, std::slice::from_ref(found));

    let report = while_moving(&guest, Direction::Decouple, |progress| {
        wait_for_stall(progress);
        hidden.unregister();
    });
    assert_eq!(report.outcome, MoveOutcome::Done);
    assert_eq!(report.undeclared.len(), 1, "{report:?}");
    assert_eq!(guest.pooled_granules(), GRANULES as u64);
}

#[test]
fn a_pin_that_may_be_anywhere_stalls_nothing_more_once_it_is_declared() {
    let _alone = alone();
    let guest = Guest::new(MemoryHome::Dram);
    let Some(hidden) = HiddenBuffer::in_memory_of(&guest) else { return };
    let mut pin = None;
    let report = while_moving(&guest, Direction::Decouple, |progress| {
        wait_for_stall(progress);
        let taken = *pin.insert(guest.pin());
        let is_declared = |told: &MoveProgress| {
            told.stall.as_ref().is_some_and(|stall| matches!(stall.reason, StallReason::Pinned { .. }))
        };
        progress.iter().find(is_declared).expect("the move stalls still");
        assert_eq!(guest.pooled_granules(), GRANULES as u64 - 1, "the others do not wait for it");
        hidden.unregister();
        guest.memory.pins().release(taken).expect("the pin is there");
    });
    assert_eq!((report.outcome, guest.pooled_granules()), (MoveOutcome::Done, GRANULES as u64));
}
