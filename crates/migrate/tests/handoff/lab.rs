//! Two hosts as threads of one process over a real pool file, and a guest whose parts are plain bytes.
//!
//! Each host opens the pool by itself and so has a mapping of its own, as it would in a process of its own.

use nil_migrate::{Freeze, Landing, Outcome, Part, Seat, Source, Target, Ticket, WaitStyle};
use nil_pool::{
    Access, CreateOptions, Epoch, GuestControl, GuestKind, GuestRequest, HostId, HostIdentity, HostKind, HostSlot,
    Membership, MemoryHome, Ownership, Pool, SectionWriter, Sections, StateArea,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

pub(crate) const SHORT: Duration = Duration::from_millis(30);
pub(crate) const LONG: Duration = Duration::from_secs(60);

const KIND: u16 = 0x7E57;
const BYTES: usize = 2048;

/// Why a part did not do its work: the test told it so, or the state is not what it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Failure(pub(crate) &'static str);

/// What a part does when it is to load the frozen state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Loads {
    #[default]
    Well,
    Refuses,
    /// Takes so long that the source has given up meanwhile.
    Slowly(Duration),
    /// Its thread dies.
    Dies,
}

/// A part of the guest: some bytes that follow from how often it has run.
#[derive(Debug)]
pub(crate) struct Bytes {
    index: u32,
    /// How often the guest has run on some host.
    pub(crate) runs: u64,
    content: Vec<u8>,
    pub(crate) saves: bool,
    pub(crate) loads: Loads,
}

impl Bytes {
    pub(crate) fn new(index: usize) -> Self {
        let index = u32::try_from(index).expect("few parts");
        let mut bytes = Self { index, runs: 0, content: vec![0; BYTES], saves: true, loads: Loads::Well };
        bytes.fill();
        bytes
    }

    /// What the guest does when it runs: every byte changes.
    pub(crate) fn run(&mut self) {
        self.runs += 1;
        self.fill();
    }

    fn fill(&mut self) {
        let seed = self.runs.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ u64::from(self.index);
        self.content[..8].copy_from_slice(&self.runs.to_le_bytes());
        for (at, byte) in self.content.iter_mut().enumerate().skip(8) {
            *byte = seed.to_le_bytes()[at % 8].wrapping_add(at.to_le_bytes()[0]);
        }
    }
}

impl Part for Bytes {
    type Error = Failure;

    fn save(&mut self, out: &mut SectionWriter<'_>) -> Result<(), Failure> {
        if !self.saves {
            return Err(Failure("does not save"));
        }
        out.put(KIND, 1, self.index, &self.content).map_err(|_| Failure("does not fit"))
    }

    fn load(&mut self, sections: &Sections<'_>) -> Result<(), Failure> {
        match self.loads {
            Loads::Well => {}
            Loads::Refuses => return Err(Failure("does not load")),
            Loads::Slowly(time) => thread::sleep(time),
            Loads::Dies => panic!("the loading thread dies, as the test wants it"),
        }
        let section = sections.get(KIND, self.index).ok_or(Failure("is not there"))?;
        let [r0, r1, r2, r3, r4, r5, r6, r7, ..] = *section.payload else { return Err(Failure("is too short")) };
        self.runs = u64::from_le_bytes([r0, r1, r2, r3, r4, r5, r6, r7]);
        self.fill();
        if self.content == section.payload { Ok(()) } else { Err(Failure("is not what was saved")) }
    }
}

/// The guest's parts as one host has them.
pub(crate) struct Body {
    pub(crate) vcpus: Vec<Bytes>,
    pub(crate) machine: Mutex<Bytes>,
}

impl Body {
    pub(crate) fn new(vcpus: usize) -> Self {
        Self { vcpus: (0..vcpus).map(Bytes::new).collect(), machine: Mutex::new(Bytes::new(vcpus)) }
    }

    /// The guest runs for a while on this host; checks that all of its parts belong together.
    pub(crate) fn run(&mut self) {
        self.machine.get_mut().expect("no part panics while it is locked").run();
        self.vcpus.iter_mut().for_each(Bytes::run);
        let runs = self.runs();
        assert!(self.vcpus.iter().all(|part| part.runs == runs), "the parts are of different times");
    }

    pub(crate) fn runs(&self) -> u64 {
        self.machine.lock().expect("no part panics while it is locked").runs
    }
}

/// A pool with one guest, and what two hosts have of it.
pub(crate) struct Lab {
    pub(crate) hosts: [LabHost; 2],
    pub(crate) vcpus: usize,
    _folder: tempfile::TempDir,
}

/// One host's own mapping of everything.
pub(crate) struct LabHost {
    pub(crate) slot: HostSlot,
    pub(crate) control: GuestControl,
    pub(crate) state: Arc<StateArea>,
    _membership: Membership,
}

impl Lab {
    /// Host 0 has booted the guest: its boot state lies in slot 0 as epoch 0.
    pub(crate) fn new(vcpus: usize) -> Self {
        let shm = std::path::Path::new("/dev/shm");
        let folder = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
        let folder = folder.expect("a folder for the pool");
        let path = folder.path().join("pool");
        let options = CreateOptions { size: Some(64 << 20), ..CreateOptions::default() };
        drop(Pool::create(&path, &options).expect("a pool"));
        let join = |name: &str| {
            let pool = Pool::open(&path, Access::ReadWrite).expect("the pool opens");
            let identity =
                HostIdentity { id: HostId::random(), name: name.to_owned(), kind: HostKind::Agent, address: None };
            pool.join(&identity).expect("there is room for a host")
        };
        let (first, second) = (join("one"), join("two"));
        let request = GuestRequest {
            name: "guest".to_owned(),
            kind: GuestKind::Vm,
            memory_bytes: 2 << 20,
            home: MemoryHome::Pool,
            vcpus: u32::try_from(vcpus).expect("few vCPUs"),
            features: 0,
        };
        let created = first.create_guest(&request).expect("there is room for a guest");
        let hosts = [first, second].map(|membership| {
            let control = membership.pool().guest(created.slot(), created.id()).expect("the guest is there");
            let state = Arc::new(control.map_state().expect("its state area maps"));
            LabHost { slot: membership.slot(), control, state, _membership: membership }
        });
        let lab = Self { hosts, vcpus, _folder: folder };
        lab.write_state(0, &mut Body::new(vcpus), Epoch(0), vcpus + 1);
        created.publish(lab.hosts[0].slot).expect("the guest has no owner yet");
        lab
    }

    /// Writes the first `parts` parts of a guest (the machine is the last one) into the slot of `epoch`.
    pub(crate) fn write_state(&self, host: usize, body: &mut Body, epoch: Epoch, parts: usize) {
        let state = &self.hosts[host].state;
        for (index, part) in body.vcpus.iter_mut().enumerate().take(parts) {
            let area = state.vcpu(epoch.slot(), index);
            let mut writer = area.writer(epoch);
            part.save(&mut writer).expect("the part fits");
            writer.finish();
        }
        if parts > self.vcpus {
            let area = state.machine(epoch.slot());
            let mut writer = area.writer(epoch);
            body.machine.get_mut().expect("not poisoned").save(&mut writer).expect("the part fits");
            writer.finish();
        }
    }

    pub(crate) fn word(&self) -> Ownership {
        self.hosts[0].control.ownership().load().expect("a valid word")
    }

    pub(crate) fn owned(&self, host: usize, epoch: Epoch) -> Ownership {
        Ownership::Owned { host: self.hosts[host].slot, epoch }
    }

    pub(crate) fn source(&self, host: usize, epoch: Epoch) -> Source {
        let LabHost { slot, control, state, .. } = &self.hosts[host];
        Source::new(control.clone(), Arc::clone(state), *slot, epoch, self.vcpus).expect("the guest has vCPUs")
    }

    pub(crate) fn target(&self, host: usize, style: WaitStyle) -> Arc<Target> {
        let LabHost { slot, control, state, .. } = &self.hosts[host];
        Target::new(control.clone(), Arc::clone(state), *slot, self.vcpus, style).expect("the guest is to be had")
    }

    pub(crate) fn home(&self, host: usize) -> Arc<Target> {
        let LabHost { slot, control, state, .. } = &self.hosts[host];
        Target::home(control.clone(), Arc::clone(state), *slot, self.vcpus).expect("the guest is frozen by this host")
    }
}

/// Clears the way for a target and arms it.
pub(crate) fn arm(source: &Source, target: &Target) {
    source.clear_arm();
    target.begin().expect("the arm word is clear");
    target.arm().expect("the target has begun");
}

/// A target's vCPU threads: preload, then land. A thread that dies has no landing.
pub(crate) fn land(target: &Arc<Target>, body: &mut Body, preloads: bool) -> Vec<Option<Landing<Failure>>> {
    let Body { vcpus, machine } = body;
    let machine = &*machine;
    if preloads {
        target.preload_machine(&mut *machine.lock().expect("not poisoned")).expect("the machine takes its past state");
    }
    let landing = |part: &mut Bytes, mut seat: Seat| {
        catch_unwind(AssertUnwindSafe(|| {
            if preloads {
                seat.preload(part).expect("the part takes its past state");
            }
            seat.land(part, machine)
        }))
    };
    thread::scope(|scope| {
        let threads: Vec<_> = vcpus
            .iter_mut()
            .enumerate()
            .map(|(index, part)| (target.seat(index), part))
            .map(|(seat, part)| scope.spawn(move || landing(part, seat).ok()))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("panics are caught")).collect()
    })
}

/// Whether every vCPU thread has landed, and at which epoch.
pub(crate) fn landed(landings: &[Option<Landing<Failure>>]) -> Option<Epoch> {
    let epoch = |landing: &Option<Landing<Failure>>| match landing {
        Some(Landing::Landed { epoch }) => Some(*epoch),
        Some(Landing::TornDown(_)) | None => None,
    };
    let epochs: Vec<_> = landings.iter().filter_map(epoch).collect();
    assert!(epochs.is_empty() || epochs.len() == landings.len(), "some vCPUs landed and some did not: {landings:?}");
    epochs.first().copied()
}

/// A source's vCPU threads and its coordinator, through one handoff. All vCPUs are told the same outcome.
pub(crate) fn hand_over(source: &Source, body: &mut Body, to: HostSlot, patience: Duration) -> Outcome {
    let Body { vcpus, machine } = body;
    let (machine, kicked) = (&*machine, AtomicBool::new(false));
    let handoff = source.offer(to, LONG).expect("the target is poised");
    thread::scope(|scope| {
        let threads: Vec<_> = vcpus
            .iter_mut()
            .enumerate()
            .map(|(index, part)| {
                let kicked = &kicked;
                scope.spawn(move || {
                    while !kicked.load(Ordering::Acquire) {
                        thread::yield_now();
                    }
                    match source.freeze(index, part, machine) {
                        Freeze::Saved(ticket) | Freeze::Failed(ticket, _) => Some(source.outcome(&ticket)),
                        Freeze::NoOffer => None,
                    }
                })
            })
            .collect();
        source.kick(|| kicked.store(true, Ordering::Release));
        let outcome = source.settle(&handoff, patience);
        for thread in threads {
            let told = thread.join().expect("a vCPU thread ends");
            assert!(told.is_none_or(|told| told == outcome), "told {told:?}, settled {outcome:?}");
        }
        outcome
    })
}

/// A source that freezes and then dies: nobody waits for the outcome, nobody settles.
pub(crate) fn freeze_and_die(source: &Source, body: &mut Body, to: HostSlot) -> Vec<Ticket> {
    source.offer(to, LONG).expect("the target is poised");
    let Body { vcpus, machine } = body;
    let frozen = vcpus.iter_mut().enumerate().map(|(index, part)| source.freeze(index, part, machine));
    frozen
        .map(|freeze| match freeze {
            Freeze::Saved(ticket) => ticket,
            Freeze::Failed(..) | Freeze::NoOffer => panic!("{freeze:?}"),
        })
        .collect()
}
