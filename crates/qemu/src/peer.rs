//! A guest under QEMU that is handed from process to process.
//!
//! It runs under KVM. QEMU boots it there directly if it can. Where KVM cannot run a firmware (it emulates kernel mode in
//! software, or lacks what QEMU wants of it), the guest is booted in an emulating QEMU (TCG), and handed by reference to
//! one that uses KVM. Which of the two works is found out by trying, once per process.

use crate::clock::Instants;
use crate::error::{Error, Result};
use crate::migration::{Migrated, Transfer, migrate};
use crate::process::{Begin, Machine, Qemu};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a guest may show no sign of life before booting it that way is given up.
const SILENCE: Duration = Duration::from_secs(4);
/// How often the guest's memory is looked at while it boots.
const POLL: Duration = Duration::from_millis(5);
/// The CPU of guests that boot under TCG: what TCG and every KVM can do.
const PLAIN_CPU: &str = "qemu64";

/// Whether booting under KVM directly has failed in this process.
static NO_DIRECT_BOOT: AtomicBool = AtomicBool::new(false);

/// What guest QEMU is to run, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerOptions {
    /// The QEMU program.
    pub program: PathBuf,
    /// The guest's image: an ELF with a PVH entry.
    pub image: PathBuf,
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// The guest's command line.
    pub command_line: String,
    /// Where memory files are made; best on a tmpfs.
    pub memory_directory: PathBuf,
    /// How long the guest may take to be ready, and a migration to end.
    pub patience: Duration,
}

impl PeerOptions {
    /// QEMU from the search path, memory in `/dev/shm`, a minute's patience.
    #[must_use]
    pub fn new(image: PathBuf, memory_bytes: u64, command_line: String) -> Self {
        Self {
            program: "qemu-system-x86_64".into(),
            image,
            memory_bytes,
            command_line,
            memory_directory: "/dev/shm".into(),
            patience: Duration::from_secs(60),
        }
    }
}

/// How far a guest has come, as its memory shows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// It has not shown itself yet.
    Silent,
    /// It has booted and prepares itself.
    Started,
    /// It does what it is to be measured doing.
    Ready,
}

/// How the guest came to run under KVM. Either way QEMU 7.2 loses registers of a guest that has them in use when it is handed
/// on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Acceleration {
    /// It booted there. Where KVM does not hide the CPU's AVX from the guest (PVM does not), the upper lanes of YMM are lost
    /// every now and then, whatever `-cpu` says.
    Kvm,
    /// It booted under TCG and was handed over. QEMU does not take the x87 and SSE registers along from TCG to KVM (it takes
    /// them for unused, and KVM makes new ones): a guest that has them in use at that moment notices.
    KvmAfterTcg,
}

/// A guest that runs in a QEMU process.
#[derive(Debug)]
pub struct Peer {
    machine: Machine,
    acceleration: Acceleration,
    patience: Duration,
    qemu: Qemu,
    memory: PathBuf,
    /// Number of memory files made.
    files: u32,
    directory: TempDir,
}

/// One handoff from a QEMU process to another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerSample {
    /// The file that is the guest's memory now. By reference it is the same as before.
    pub memory_file: PathBuf,
    /// When the order was given, in ticks of the caller's clock.
    pub ordered: u64,
    /// When everything was at the destination, to a few milliseconds.
    pub completed: u64,
    /// When the source had stopped the vCPU, in ticks of the caller's clock. What the guest saw of the handoff is the one
    /// pause that contains this instant and `resumed`.
    pub stopped: u64,
    /// When the destination was about to start it.
    pub resumed: u64,
    /// The whole migration, by QEMU's account.
    pub total: Duration,
    /// The downtime by QEMU's account (in whole milliseconds).
    pub downtime: Duration,
    /// Bytes of memory that QEMU sent.
    pub transferred_bytes: u64,
    /// Times that QEMU asked the kernel which pages the guest has dirtied.
    pub passes: u64,
    /// Pages that the guest touched at the destination before they were there, by QEMU's account.
    pub page_requests: u64,
}

impl Peer {
    /// Starts a guest and waits until it is ready, by what `stage` sees in its memory file (which may not exist or be
    /// empty yet).
    ///
    /// # Errors
    /// When QEMU is not installed or cannot run the guest in either way; the error is that of the last one tried.
    pub fn boot(options: &PeerOptions, mut stage: impl FnMut(&Path) -> Stage) -> Result<Self> {
        if !NO_DIRECT_BOOT.load(Ordering::Relaxed) {
            match Self::boot_as(options, Acceleration::Kvm, &mut stage) {
                Err(error @ Error::NotInstalled { .. }) => return Err(error),
                Err(_) => NO_DIRECT_BOOT.store(true, Ordering::Relaxed),
                booted => return booted,
            }
        }
        Self::boot_as(options, Acceleration::KvmAfterTcg, &mut stage)
    }

    fn boot_as(
        options: &PeerOptions,
        acceleration: Acceleration,
        stage: &mut impl FnMut(&Path) -> Stage,
    ) -> Result<Self> {
        let (accelerator, cpu) = match acceleration {
            Acceleration::Kvm => ("kvm", "host"),
            Acceleration::KvmAfterTcg => ("tcg", PLAIN_CPU),
        };
        let machine = Machine {
            program: options.program.clone(),
            image: options.image.clone(),
            memory_bytes: options.memory_bytes,
            command_line: options.command_line.clone(),
            cpu: cpu.into(),
        };
        let directory = TempDir::with_prefix_in("nil-qemu-", &options.memory_directory)
            .map_err(|source| Error::Directory { path: options.memory_directory.clone(), source })?;
        let memory = directory.path().join("memory-0");
        let qemu = Qemu::start(&machine, accelerator, &memory, Begin::Boot)?;
        let mut peer = Self { machine, acceleration, patience: options.patience, qemu, memory, files: 1, directory };
        match acceleration {
            Acceleration::Kvm => peer.await_stage(Stage::Started, SILENCE, stage)?,
            Acceleration::KvmAfterTcg => {
                peer.await_stage(Stage::Started, peer.patience, stage)?;
                peer.hand_on(Transfer::ByReference)?;
            }
        }
        peer.await_stage(Stage::Ready, peer.patience, stage)?;
        Ok(peer)
    }

    /// The file that is the guest's memory: what lies at guest-physical address A below 3 GiB lies at offset A.
    #[must_use]
    pub fn memory_file(&self) -> &Path {
        &self.memory
    }

    /// The operating system's number of the QEMU process that runs the guest.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.qemu.process_id()
    }

    /// How the guest came to run under KVM.
    #[must_use]
    pub fn acceleration(&self) -> Acceleration {
        self.acceleration
    }

    /// Hands the guest to a new QEMU process and ends the old one. `clock` reads the clock in which the instants are to be
    /// told.
    ///
    /// # Errors
    /// When the migration fails, or is cancelled because it does not converge; the guest then runs on where it was. A
    /// post-copy that fails after its switch loses the guest.
    pub fn handoff(&mut self, transfer: Transfer, clock: fn() -> u64) -> Result<PeerSample> {
        let before = Instants::now(clock);
        let migrated = self.hand_on(transfer)?;
        let after = Instants::now(clock);
        let ticks = |wall| {
            before.ticks_at(after, wall).ok_or_else(|| Error::Protocol {
                what: "the host's wall clock was set while a guest was handed over; measure again".into(),
            })
        };
        Ok(PeerSample {
            memory_file: self.memory.clone(),
            ordered: ticks(migrated.ordered)?,
            completed: ticks(migrated.completed)?,
            stopped: ticks(migrated.stopped)?,
            resumed: ticks(migrated.resumed)?,
            total: migrated.total,
            downtime: migrated.downtime,
            transferred_bytes: migrated.transferred,
            passes: migrated.passes,
            page_requests: migrated.page_requests,
        })
    }

    fn hand_on(&mut self, transfer: Transfer) -> Result<Migrated> {
        let memory = if transfer.copies() {
            self.directory.path().join(format!("memory-{}", self.files))
        } else {
            self.memory.clone()
        };
        let mut destination = Qemu::start(&self.machine, "kvm", &memory, Begin::Incoming)?;
        let migrated = migrate(&mut self.qemu, &mut destination, transfer, self.patience);
        if memory != self.memory {
            self.files += 1;
            let unused = if migrated.is_ok() { &self.memory } else { &memory };
            // It is gone with the directory at the latest.
            let _ = std::fs::remove_file(unused);
        }
        let migrated = migrated?;
        self.memory = memory;
        self.qemu = destination;
        Ok(migrated)
    }

    fn await_stage(&mut self, wanted: Stage, patience: Duration, stage: &mut impl FnMut(&Path) -> Stage) -> Result<()> {
        let begun = Instant::now();
        while stage(&self.memory) < wanted {
            self.qemu.check()?;
            if begun.elapsed() > patience {
                let what = if wanted == Stage::Ready { "a guest that is ready" } else { "a guest that has booted" };
                return Err(Error::Timeout { what: what.into(), waited: begun.elapsed() });
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

/// Boots a guest and hands it over once. The guest runs on until the [`Peer`] is dropped.
///
/// # Errors
/// As [`Peer::boot`] and [`Peer::handoff`].
pub fn peer_sample(
    options: &PeerOptions,
    transfer: Transfer,
    clock: fn() -> u64,
    stage: impl FnMut(&Path) -> Stage,
) -> Result<(Peer, PeerSample)> {
    let mut peer = Peer::boot(options, stage)?;
    let sample = peer.handoff(transfer, clock)?;
    Ok((peer, sample))
}
