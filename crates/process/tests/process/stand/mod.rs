//! What the tests of this crate have in common: programs that check themselves, a pool, and whether this machine can.
//!
//! A program is a function of [`crate::subjects`], run by this very test program in a process of its own. It says `ready`,
//! answers each line that it is told with `good` or with what was wrong, and ends when there are no more lines.

use nil_pool::{CapacityRequest, CreateOptions, HostIdentity, Membership, Pool, Tag};
use nil_process::{Guard, Home, Leave};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Names the program that a process is to run.
pub(crate) const SUBJECT: &str = "NIL_PROCESS_SUBJECT";

/// A directory by which a program that has no pipes is talked to: `orders` counts what it is told, `answers` are its lines.
pub(crate) const ORDERS: &str = "NIL_PROCESS_ORDERS";

/// A pool in a directory of its own, with a capacity for one process.
pub(crate) struct Ground {
    pub(crate) directory: TempDir,
    pub(crate) member: Membership,
    pub(crate) tag: Tag,
}

impl Ground {
    pub(crate) fn new(mebibytes: u64) -> Self {
        let directory = tempfile::Builder::new().prefix("nil-process-").tempdir_in("/dev/shm").expect("tmpfs");
        let options = CreateOptions { size: Some((mebibytes + 64) << 20), ..CreateOptions::default() };
        let pool = Pool::create(&directory.path().join("pool"), &options).expect("a new pool");
        let member = pool.join(&HostIdentity::tool()).expect("membership");
        let tag = member.add_capacity(&CapacityRequest::private(mebibytes << 20)).expect("capacity").tag;
        Self { directory, member, tag }
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
    line: Line,
}

/// How it is talked to.
enum Line {
    Pipes(Option<ChildStdin>, BufReader<ChildStdout>),
    Files(PathBuf, usize),
}

impl Subject {
    pub(crate) fn start(name: &str) -> Self {
        let mut child = command(name).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a process");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let line = Line::Pipes(child.stdin.take(), output);
        Self { child, line }.ready()
    }

    /// One that is alone in a session of its own and has nothing open but files, as CRIU wants it.
    pub(crate) fn start_alone(name: &str, directory: &Path) -> Self {
        let output = File::create(directory.join("output")).expect("a file");
        let mut command = command(name);
        command.env(ORDERS, directory).current_dir("/").stdin(Stdio::null());
        command.stderr(output.try_clone().expect("a file")).stdout(output);
        let child = command.spawn().expect("a process");
        Self { child, line: Line::Files(directory.to_owned(), 0) }.ready()
    }

    fn ready(mut self) -> Self {
        while self.line() != "ready" {}
        self
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    fn line(&mut self) -> String {
        match &mut self.line {
            Line::Pipes(_, output) => {
                let mut line = String::new();
                let read = output.read_line(&mut line).expect("its output");
                assert!(read > 0, "the program has ended: {:?}", self.child.wait());
                line.trim().to_owned()
            }
            Line::Files(directory, heard) => loop {
                let answers = std::fs::read_to_string(directory.join("answers")).unwrap_or_default();
                if let Some((line, true)) =
                    answers.split_inclusive('\n').nth(*heard).map(|line| (line, line.ends_with('\n')))
                {
                    *heard += 1;
                    break line.trim().to_owned();
                }
                let status = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
                assert!(!status.is_empty() && !status.contains(") Z"), "the program has ended: {status}");
                std::thread::sleep(Duration::from_millis(1));
            },
        }
    }

    /// Has it do what it does once more, and check.
    pub(crate) fn check(&mut self) {
        match &mut self.line {
            Line::Pipes(input, _) => input.as_mut().expect("its input").write_all(b"check\n").expect("its input"),
            Line::Files(directory, heard) => {
                std::fs::write(directory.join("orders"), heard.to_string()).expect("an order");
            }
        }
        assert_eq!(self.line(), "good");
    }

    /// Has it end by itself.
    pub(crate) fn end(mut self) {
        let Line::Pipes(input, output) = &mut self.line else { return };
        *input = None;
        while output.read_line(&mut String::new()).expect("its output") > 0 {}
        assert!(self.child.wait().expect("its status").success());
    }
}

fn command(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "subject", "--ignored", "--nocapture", "--quiet"]).env(SUBJECT, name);
    command
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

/// Brings all of a program's memory back, and lets it run on by itself.
pub(crate) fn bring_back(mut guard: Guard<'_>) {
    guard.recouple().expect("recoupled");
    guard.leave(Leave::Running).expect("left");
}

/// Has a program check itself while it is watched.
pub(crate) fn check_under(guard: &mut Guard<'_>, subject: &mut Subject) {
    std::thread::scope(|scope| {
        let check = scope.spawn(|| subject.check());
        guard.watch(|| check.is_finished()).expect("a program that runs");
        check.join().expect("a good answer");
    });
}
