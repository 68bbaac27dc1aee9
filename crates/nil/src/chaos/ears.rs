//! What the outside hears of the guests: their consoles, wherever they run.
//!
//! Every guest counts aloud ([`Options::say`](nil_guest_abi::Options)). A guest is run by one worker after the other, and the
//! next is always started after the one before, so under `--output hold` whatever a worker shows must be more than anything
//! that workers before it have shown, and less than what those after it show: else something was undone that was seen.
//!
//! What is heard of a guest is told to the next guest, which checks the same by itself.

use crate::lab::fleet::Fleet;
use crate::lab::lock::lock;
use crate::lab::prey::{self, Worker};
use crate::lab::view::View;
use nil_host::{ConsoleStream, GuestName, HostDir};
use nil_pool::{GuestId, OutputRule};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How often to look for new workers.
const LOOK: Duration = Duration::from_millis(40);
/// How long a worker may take until it shows its guest's console.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where the number of a guest's boot begins in what another guest hears of it.
const BOOT_SHIFT: u32 = 48;

/// When a process was started, in the kernel's ticks; and its number, for those of one tick.
type Born = (u64, i32);

/// What one worker has shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Shown {
    born: Born,
    first: u64,
    last: u64,
}

/// What was heard of one guest, from its boot to its end.
#[derive(Debug)]
pub(super) struct Hearing {
    name: GuestName,
    rule: OutputRule,
    shown: Vec<Shown>,
    lines: u64,
    /// Numbers that were heard again where that is allowed.
    repeated: u64,
    undone: Option<String>,
}

impl Hearing {
    fn new(name: GuestName, rule: OutputRule) -> Self {
        Self { name, rule, shown: Vec::new(), lines: 0, repeated: 0, undone: None }
    }

    fn hear(&mut self, born: Born, number: u64) {
        self.lines += 1;
        let earlier = self.shown.iter().filter(|shown| shown.born < born && number <= shown.last);
        let later = self.shown.iter().filter(|shown| shown.born > born && number >= shown.first);
        let against = earlier.chain(later).next().copied();
        let own = self.shown.iter_mut().find(|shown| shown.born == born);
        let back = own.as_ref().map(|own| own.last).filter(|last| number <= *last);
        match own {
            Some(own) => own.last = own.last.max(number),
            None => self.shown.push(Shown { born, first: number, last: number }),
        }
        let name = &self.name;
        let story = match (against, back) {
            (_, Some(last)) => format!("guest {name}: process {} has shown {number} after {last}", born.1),
            (Some(_), None) if self.rule == OutputRule::Pass => {
                self.repeated += 1;
                return;
            }
            (Some(other), None) => format!(
                "guest {name}: process {} has shown {number}, and process {} {} to {}: output that was seen has been undone",
                born.1, other.born.1, other.first, other.last
            ),
            (None, None) => return,
        };
        self.undone.get_or_insert(story);
    }

    /// The last that was heard.
    fn latest(&self) -> Option<u64> {
        self.shown.iter().max_by_key(|shown| shown.born).map(|shown| shown.last)
    }
}

/// A guest that is listened to.
#[derive(Debug)]
struct Subject {
    id: GuestId,
    boot: u64,
    hearing: Arc<Mutex<Hearing>>,
    /// Where it hears of another, if that is known.
    view: Option<View>,
    told: u64,
}

/// Everything that is heard.
#[derive(Debug)]
pub(super) struct Ears {
    rule: OutputRule,
    /// One for each guest, in their order.
    subjects: Mutex<Vec<Option<Subject>>>,
    /// Of guests that are no more.
    past: Mutex<Heard>,
    over: AtomicBool,
}

/// How much was heard.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Heard {
    pub(super) lines: u64,
    pub(super) repeated: u64,
}

impl Ears {
    pub(super) fn new(guests: usize, rule: OutputRule) -> Self {
        let subjects = (0..guests).map(|_| None).collect();
        Self { rule, subjects: Mutex::new(subjects), past: Mutex::default(), over: AtomicBool::new(false) }
    }

    /// A guest has been booted, for the `boot`-th time under that name.
    pub(super) fn begin(&self, guest: usize, name: &GuestName, id: GuestId, boot: u64) {
        let hearing = Arc::new(Mutex::new(Hearing::new(name.clone(), self.rule)));
        lock(&self.subjects)[guest] = Some(Subject { id, boot, hearing, view: None, told: 0 });
    }

    /// It is no more.
    pub(super) fn end(&self, guest: usize) {
        let ended = lock(&self.subjects)[guest].take();
        lock(&self.past).add(ended.as_ref());
    }

    /// Where a guest is to be told what others say; it has settled there.
    pub(super) fn speak_at(&self, guest: usize, view: Option<View>) {
        if let Some(subject) = &mut lock(&self.subjects)[guest] {
            subject.view = view;
        }
    }

    /// What was undone, if anything was.
    pub(super) fn undone(&self) -> Option<String> {
        lock(&self.subjects).iter().flatten().find_map(|subject| lock(&subject.hearing).undone.clone())
    }

    pub(super) fn heard(&self) -> Heard {
        let mut heard = *lock(&self.past);
        lock(&self.subjects).iter().for_each(|subject| heard.add(subject.as_ref()));
        heard
    }

    /// Lets [`Ears::listen`] return.
    pub(super) fn close(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Listens to every worker as long as it lives, and tells each guest what the one before it says.
    pub(super) fn listen(&self, fleet: &Fleet) {
        let mut known = BTreeSet::new();
        while !self.over.load(Ordering::Acquire) {
            for worker in prey::workers(fleet.run_dir()) {
                let new = born(worker.pid).filter(|born| known.insert(*born));
                if let Some(born) = new {
                    self.attend(fleet, &worker, born);
                }
            }
            self.tell();
            std::thread::sleep(LOOK);
        }
    }

    /// Listens to a worker, on a thread that ends with it.
    fn attend(&self, fleet: &Fleet, worker: &Worker, born: Born) {
        let subjects = lock(&self.subjects);
        let Some(subject) = subjects.iter().flatten().find(|subject| subject.id == worker.guest) else { return };
        let (hearing, name) = (Arc::clone(&subject.hearing), lock(&subject.hearing).name.clone());
        let host = fleet.hosts().iter().find(|host| host.name().as_str() == worker.host);
        let Some(host) = host.cloned() else { return };
        let follow = move || {
            let Some(console) = attach(&host, &name, born) else { return };
            let mut lines = BufReader::new(console);
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                if let Some(number) = number(&line) {
                    lock(&hearing).hear(born, number);
                }
                line.clear();
            }
        };
        // Where no thread can be had, nothing is heard, and the report says how much was.
        let _ = std::thread::Builder::new().name("ear".into()).spawn(follow);
    }

    fn tell(&self) {
        if self.rule != OutputRule::Hold {
            return;
        }
        let mut subjects = lock(&self.subjects);
        for at in 0..subjects.len() {
            let before = (at + subjects.len() - 1) % subjects.len();
            let said = subjects[before].as_ref().and_then(|other| {
                let latest = lock(&other.hearing).latest()?;
                Some(other.boot << BOOT_SHIFT | latest)
            });
            let (Some(said), Some(subject)) = (said, &mut subjects[at]) else { continue };
            if said == subject.told {
                continue;
            }
            // Its process may have ended, or its memory be moving: then it is told when it has settled.
            if subject.view.as_ref().is_some_and(|view| view.let_hear(said).is_ok()) {
                subject.told = said;
            }
        }
    }
}

impl Heard {
    fn add(&mut self, subject: Option<&Subject>) {
        let Some(subject) = subject else { return };
        let hearing = lock(&subject.hearing);
        self.lines += hearing.lines;
        self.repeated += hearing.repeated;
    }
}

/// The console that this very process shows; `None` when it ends before it shows any.
fn attach(host: &HostDir, name: &GuestName, process: Born) -> Option<ConsoleStream> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE && born(process.1) == Some(process) {
        if let Ok(console) = ConsoleStream::attach(host, name)
            && console.worker_pid().is_ok_and(|pid| pid == process.1)
        {
            return Some(console);
        }
        std::thread::sleep(LOOK);
    }
    None
}

/// The number on a line that is whole: `#`, sixteen hexadecimal digits, and its end.
fn number(line: &[u8]) -> Option<u64> {
    let digits = line.strip_prefix(b"#")?.strip_suffix(b"\n")?;
    let is_whole = digits.len() == 16 && digits.iter().all(u8::is_ascii_hexdigit);
    u64::from_str_radix(std::str::from_utf8(digits).ok().filter(|_| is_whole)?, 16).ok()
}

/// Field 22 of `/proc/PID/stat`; `None` of one that has ended.
fn born(pid: i32) -> Option<Born> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 2, the name, may hold blanks.
    let started = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()?;
    Some((started, pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hearing(rule: OutputRule) -> Hearing {
        Hearing::new("g0".parse().expect("a name"), rule)
    }

    #[test]
    fn only_whole_lines_count() {
        assert_eq!(number(b"#0000000000000040\n"), Some(64));
        for line in [
            &b"#40\n"[..],
            b"0000000000000040\n",
            b"#0000000000000040",
            b"#00000000000000400\n",
            b"#+000000000000040\n",
        ] {
            assert_eq!(number(line), None, "{line:?}");
        }
    }

    #[test]
    fn a_number_that_was_seen_at_an_earlier_worker_is_undone_output() {
        let mut hearing = hearing(OutputRule::Hold);
        [64, 128, 192].into_iter().for_each(|number| hearing.hear((1, 10), number));
        [256, 320].into_iter().for_each(|number| hearing.hear((2, 11), number));
        assert_eq!((hearing.undone.clone(), hearing.latest()), (None, Some(320)));
        hearing.hear((3, 12), 320);
        assert!(hearing.undone.expect("it was seen").contains("320"));
    }

    #[test]
    fn it_does_not_matter_who_is_heard_first() {
        let mut hearing = hearing(OutputRule::Hold);
        hearing.hear((2, 11), 128);
        hearing.hear((1, 10), 64);
        assert_eq!((hearing.undone.clone(), hearing.latest()), (None, Some(128)));
        hearing.hear((1, 10), 128);
        assert!(hearing.undone.is_some(), "the former had shown what the latter showed again");
    }

    #[test]
    fn without_holding_output_repeats_are_counted_but_no_process_goes_back() {
        let mut hearing = hearing(OutputRule::Pass);
        hearing.hear((1, 10), 128);
        hearing.hear((2, 11), 64);
        assert_eq!((hearing.undone.clone(), hearing.repeated), (None, 1));
        hearing.hear((2, 11), 64);
        assert!(hearing.undone.is_some());
    }

    #[test]
    fn the_start_of_a_process_is_known_and_that_of_none_is_not() {
        let me = i32::try_from(std::process::id()).expect("a pid");
        assert!(born(me).is_some_and(|(started, pid)| started > 0 && pid == me));
        assert_eq!(born(i32::MAX), None);
    }
}
