//! Real QEMU processes hand a real guest on. Skipped, with the reason, where there is no QEMU or no KVM.

#[path = "../../../guests/compile.rs"]
mod compile;

use nil_qemu::{Error, Peer, PeerOptions, Stage, Transfer};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const MEMORY: u64 = 64 << 20;

/// Places in the guest's memory, from `nil_guest_abi` (on which this crate does not depend).
const MAGIC: u64 = 0x1_0000;
const STATE: u64 = 0x1_000C;
const COMMAND: u64 = 0x1_0080;
const VCPU: u64 = 0x1_1000;
const COUNTER: u64 = VCPU;
const ACKNOWLEDGED: u64 = VCPU + 192;
const ERRORS: u64 = VCPU + 256;
const RUNNING: u64 = 2;
const VERIFY_ALL: u64 = 1 << 8 | 1;

fn word(memory: &Path, at: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    File::open(memory).ok()?.read_exact_at(&mut bytes, at).ok()?;
    Some(u64::from_le_bytes(bytes))
}

fn stage(memory: &Path) -> Stage {
    let is_there = word(memory, MAGIC) == Some(u64::from_le_bytes(*b"NILGUEST"));
    match word(memory, STATE).map(|word| word & 0xFFFF_FFFF) {
        Some(RUNNING) if is_there => Stage::Ready,
        Some(_) if is_there => Stage::Started,
        _ => Stage::Silent,
    }
}

fn image(name: &str) -> PathBuf {
    assert!(compile::GUESTS.contains(&name), "{name} is compiled");
    let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guests");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
    compile::compile(env!("CARGO"), None, &guests, &target).join(name)
}

/// A guest that runs, and the errors that it had counted before anything was done with it. It is one that verifies its
/// memory alone: QEMU may lose registers ([`nil_qemu::Acceleration`]), which is not what is tested here. The x87 and SSE
/// registers that are lost on the way from emulation to KVM may be ones that it was just filling memory from.
struct Booted {
    peer: Peer,
    errors: Option<u64>,
}

impl Booted {
    fn new(peer: Peer) -> Self {
        let memory = peer.memory_file();
        let turns = word(memory, COUNTER).unwrap_or(0);
        // What it was verifying when it came to KVM it has verified.
        wait_until("the guest goes on under KVM", || word(memory, COUNTER) > Some(turns + 1));
        let errors = word(memory, ERRORS);
        Self { peer, errors }
    }

    /// The guest goes on, and finds every page as it left it.
    fn verify(&self) {
        let memory = self.peer.memory_file();
        let turns = word(memory, COUNTER);
        wait_until("the guest goes on", || word(memory, COUNTER) > turns);
        let command = word(memory, COMMAND).unwrap_or(0) + VERIFY_ALL;
        let file = File::options().write(true).open(memory).expect("the memory file is there");
        file.write_all_at(&command.to_le_bytes(), COMMAND).expect("guest memory can be written");
        wait_until("the guest has verified", || word(memory, ACKNOWLEDGED) == Some(command));
        assert_eq!(word(memory, ERRORS), self.errors);
    }
}

/// Boots the guest, or says why this machine cannot.
fn boot(command_line: &str) -> Option<Booted> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        eprintln!("skipped: /dev/kvm cannot be used: {error}");
        return None;
    }
    match Peer::boot(&PeerOptions::new(image("pages"), MEMORY, command_line.into()), stage) {
        Ok(peer) => Some(Booted::new(peer)),
        Err(error @ Error::NotInstalled { .. }) => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not come to this: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A clock for tests: microseconds of wall time.
fn microseconds() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).expect("the next 500,000 years")
}

fn is_alive(process: u32) -> bool {
    Path::new(&format!("/proc/{process}")).exists()
}

#[test]
fn a_guest_is_handed_on_by_reference_in_the_same_memory() {
    let Some(mut guest) = boot("mode=hot workset=4M") else { return };
    for _ in 0..2 {
        let (memory, process) = (guest.peer.memory_file().to_owned(), guest.peer.process_id());
        let before = microseconds();
        let sample = guest.peer.handoff(Transfer::ByReference, microseconds).expect("a handoff");
        assert_eq!(sample.memory_file, memory);
        assert!(sample.transferred_bytes < 4 << 20, "only device state: {} bytes", sample.transferred_bytes);
        let instants = [before, sample.ordered, sample.stopped, sample.resumed, microseconds()];
        assert!(instants.is_sorted() && sample.ordered <= sample.completed, "{instants:?} {sample:?}");
        assert!(!is_alive(process), "the old process is gone");
        guest.verify();
    }
}

#[test]
fn a_guest_is_copied_into_memory_of_its_own() {
    let Some(mut guest) = boot("mode=idle") else { return };
    let old = guest.peer.memory_file().to_owned();
    let sample = guest.peer.handoff(Transfer::PreCopy { bandwidth: Some(1 << 40) }, microseconds).expect("a handoff");
    assert_ne!(sample.memory_file, old);
    assert!(!old.exists(), "the old memory is given back");
    assert!(sample.transferred_bytes > MEMORY / 2, "{} bytes", sample.transferred_bytes);
    guest.verify();
}

#[test]
fn a_hot_guest_runs_at_the_destination_while_its_memory_follows() {
    let Some(mut guest) = boot("mode=stores") else { return };
    let old = guest.peer.memory_file().to_owned();
    let turns = word(&old, COUNTER);
    let sample = guest.peer.handoff(Transfer::PostCopy { bandwidth: Some(1 << 40) }, microseconds).expect("a handoff");
    assert_ne!(sample.memory_file, old);
    assert!(!old.exists(), "the old memory is given back");
    assert!(sample.transferred_bytes > MEMORY / 2, "{} bytes", sample.transferred_bytes);
    assert!(sample.passes > 1, "it was switched after the first pass: {}", sample.passes);
    assert!(word(&sample.memory_file, COUNTER) > turns, "the guest counts on where it was");
    guest.verify();
}

#[test]
fn a_guest_that_cannot_be_copied_in_time_runs_on_where_it_was() {
    if !Path::new("/dev/kvm").exists() {
        eprintln!("skipped: there is no /dev/kvm");
        return;
    }
    let mut options = PeerOptions::new(image("pages"), MEMORY, "mode=hot".into());
    options.patience = Duration::from_secs(5);
    let mut guest = match Peer::boot(&options, stage) {
        Err(error @ Error::NotInstalled { .. }) => return eprintln!("skipped: {error}"),
        booted => Booted::new(booted.expect("the guest boots")),
    };
    let (memory, process) = (guest.peer.memory_file().to_owned(), guest.peer.process_id());
    let error = guest.peer.handoff(Transfer::PreCopy { bandwidth: Some(1 << 20) }, microseconds).expect_err("too slow");
    assert!(matches!(error, Error::NotConverging { .. }), "{error}");
    assert_eq!((guest.peer.memory_file(), guest.peer.process_id()), (memory.as_path(), process));
    guest.verify();
}

#[test]
fn nothing_is_left_behind() {
    let Some(Booted { peer, .. }) = boot("mode=idle") else { return };
    let (memory, process) = (peer.memory_file().to_owned(), peer.process_id());
    assert!(is_alive(process) && memory.exists());
    drop(peer);
    assert!(!is_alive(process));
    assert!(!memory.parent().is_some_and(Path::exists));
}

#[test]
fn a_missing_qemu_is_named_with_its_remedy() {
    let mut options = PeerOptions::new("/nonexistent/image".into(), MEMORY, String::new());
    options.program = "/nonexistent/qemu".into();
    let error = Peer::boot(&options, stage).expect_err("there is none");
    assert!(error.to_string().starts_with("cannot start /nonexistent/qemu: "), "{error}");
    assert!(error.to_string().ends_with("install QEMU (on Debian: apt-get install qemu-system-x86)"), "{error}");
}

#[test]
fn an_image_that_qemu_cannot_read_is_refused_in_its_words() {
    let options = PeerOptions::new("/nonexistent/image".into(), MEMORY, String::new());
    match Peer::boot(&options, stage).expect_err("there is no image") {
        Error::Exited { said, .. } => assert!(said.contains("/nonexistent/image"), "{said}"),
        Error::NotInstalled { .. } => eprintln!("skipped: QEMU is not installed"),
        error => panic!("{error}"),
    }
}
