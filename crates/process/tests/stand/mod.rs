//! What the tests of this crate have in common: programs that check themselves, a pool, and whether this machine can.
//!
//! A program is a function of [`super::subjects`], run by this very test program in a process of its own. It says `ready`,
//! answers each line that it is told with `good` or with what was wrong, and ends when there are no more lines.

use nil_pool::{CapacityRequest, Class, Coherence, CreateOptions, HostIdentity, Membership, Pool, Tag};
use nil_process::{Guard, Home};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use tempfile::TempDir;

/// Names the program that a process is to run.
pub(crate) const SUBJECT: &str = "NIL_PROCESS_SUBJECT";

/// A pool in a directory of its own, with a capacity for one process.
pub(crate) struct Ground {
    _directory: TempDir,
    pub(crate) member: Membership,
    pub(crate) tag: Tag,
}

impl Ground {
    pub(crate) fn new(mebibytes: u64) -> Self {
        let directory = tempfile::Builder::new().prefix("nil-process-").tempdir_in("/dev/shm").expect("tmpfs");
        let options = CreateOptions { size: Some((mebibytes + 64) << 20), ..CreateOptions::default() };
        let pool = Pool::create(&directory.path().join("pool"), &options).expect("a new pool");
        let member = pool.join(&HostIdentity::tool()).expect("membership");
        let request = CapacityRequest {
            tag: None,
            class: Class::Private,
            coherence: Coherence::Hardware,
            bytes: mebibytes << 20,
            access: Vec::new(),
            label: String::new(),
        };
        let tag = member.add_capacity(&request).expect("capacity").tag;
        Self { _directory: directory, member, tag }
    }

    pub(crate) fn home(&self) -> Home {
        Home::open(self.member.pool(), self.tag).expect("a home on tmpfs")
    }
}

/// Whether processes can be traced and their faults be held up here; says so if not.
pub(crate) fn can_run() -> bool {
    let userfaultfd = std::fs::metadata("/dev/userfaultfd").is_ok();
    let root = rustix::process::geteuid().is_root();
    if !root || !userfaultfd {
        eprintln!("skipped: tracing other processes and userfaultfd take root here");
    }
    root && userfaultfd
}

/// A program that runs.
pub(crate) struct Subject {
    pub(crate) child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Subject {
    pub(crate) fn start(name: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "subject", "--ignored", "--nocapture", "--quiet"])
            .env(SUBJECT, name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let mut subject = Self { child, input, output };
        while subject.line() != "ready" {}
        subject
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.output.read_line(&mut line).expect("its output");
        assert!(read > 0, "the program has ended: {:?}", self.child.wait());
        line.trim().to_owned()
    }

    /// Has it do what it does once more, and check.
    pub(crate) fn check(&mut self) {
        self.input.as_mut().expect("its input").write_all(b"check\n").expect("its input");
        assert_eq!(self.line(), "good");
    }

    /// Has it end by itself.
    pub(crate) fn end(mut self) {
        self.input = None;
        while self.output.read_line(&mut String::new()).expect("its output") > 0 {}
        assert!(self.child.wait().expect("its status").success());
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs something with a guard in a thread of its own, which has no children.
pub(crate) fn guarded<T: Send>(pid: i32, ground: &Ground, work: impl FnOnce(Guard<'_>) -> T + Send) -> T {
    let home = ground.home();
    let home = std::sync::Mutex::new(home);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let home = home.lock().expect("a home");
            work(Guard::attach(pid, &home).expect("a guard"))
        });
        thread.join().expect("the guard's thread")
    })
}

/// Has a program check itself while it is watched.
pub(crate) fn check_under(guard: &mut Guard<'_>, subject: &mut Subject) {
    std::thread::scope(|scope| {
        let check = scope.spawn(|| subject.check());
        guard.watch(|| check.is_finished()).expect("a program that runs");
        check.join().expect("a good answer");
    });
}
