//! A run directory and a pool of a test's own, and the processes in it.
//!
//! Whatever happens in a test, no process of it is left: agents are children, and workers are found by the run directory
//! on their command lines, which no other process has.

use nil_pool::{Access, CreateOptions, Pool};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Playground {
    dir: TempDir,
}

/// A running agent. Killed when it goes out of scope.
pub(crate) struct Agent {
    child: Child,
    /// What it said when it was up.
    pub(crate) up: serde_json::Value,
}

impl Playground {
    /// With a pool of 512 MiB, of which no byte is used yet.
    pub(crate) fn new() -> Self {
        let dir = TempDir::with_prefix_in("nil-test-", "/dev/shm").expect("a directory in /dev/shm");
        let playground = Self { dir };
        playground.add_pool("pool");
        playground
    }

    pub(crate) fn add_pool(&self, name: &str) {
        let options = CreateOptions { size: Some(512 << 20), ..CreateOptions::default() };
        Pool::create(&self.dir.path().join(name), &options).expect("a pool");
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("a path in UTF-8").to_owned()
    }

    pub(crate) fn pool(&self) -> String {
        self.path("pool")
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub(crate) fn host_dir(&self, host: &str) -> PathBuf {
        self.run_dir().join("hosts").join(host)
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nil"));
        command.args(args).env("NIL_RUN_DIR", self.run_dir()).env_remove("NIL_LOG").stdin(Stdio::null());
        command
    }

    /// Runs `nil` with these arguments to its end.
    pub(crate) fn nil(&self, args: &[&str]) -> Answer {
        Answer::of(self.command(args).output().expect("nil runs"))
    }

    /// Runs `nil --json` with these arguments; it must succeed.
    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        let answer = self.nil(&[&["--json"], args].concat());
        assert!(answer.status.success(), "nil {args:?}: {}", answer.stderr);
        serde_json::from_str(&answer.stdout).expect("JSON")
    }

    /// Starts an agent on the pool and waits until it is up.
    pub(crate) fn agent(&self, name: &str) -> Agent {
        self.agent_with(name, &["--pool", &self.pool()])
    }

    pub(crate) fn agent_with(&self, name: &str, args: &[&str]) -> Agent {
        self.agent_of(name, self.command(&[&["--json", "host", "run", "--name", name], args].concat()))
    }

    /// Starts an agent by a command of the test's own, and waits until it is up.
    pub(crate) fn agent_of(&self, name: &str, mut command: Command) -> Agent {
        let log = fs::File::create(self.dir.path().join(format!("agent-{name}.log"))).expect("a log");
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().expect("nil runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("its first line");
        let up = serde_json::from_str(&line).unwrap_or_else(|_| panic!("host {name}: {}", self.agent_log(name)));
        Agent { child, up }
    }

    pub(crate) fn agent_log(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(format!("agent-{name}.log"))).unwrap_or_default()
    }

    /// What `nil ps` says of a guest; `None` when it does not know it.
    pub(crate) fn guest(&self, name: &str) -> Option<serde_json::Value> {
        let listing = self.json(&["ps"]);
        let guests = listing["guests"].as_array().expect("a list of guests").clone();
        guests.into_iter().find(|guest| guest["name"] == name)
    }

    /// Waits until `nil ps` shows the guest in that state.
    pub(crate) fn await_state(&self, guest: &str, state: &str) -> serde_json::Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.guest(guest);
            if let Some(found) = found.as_ref().filter(|found| found["state"] == state) {
                return found.clone();
            }
            assert!(Instant::now() < deadline, "{guest} should be {state}: {found:?}\n{}", self.agent_log("A"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts a small VM that runs until it is stopped.
    pub(crate) fn run_vm(&self, name: &str, host: &str) -> serde_json::Value {
        self.run_image(name, host, "builtin:pages")
    }

    pub(crate) fn run_image(&self, name: &str, host: &str, image: &str) -> serde_json::Value {
        let pool = self.pool();
        self.json(&["vm", "run", image, "--memory", "64M", "--name", name, "--pool", &pool, "--host", host])
    }

    /// Starts `nil` with these arguments, and does not wait for its end.
    pub(crate) fn start(&self, args: &[&str]) -> Started {
        let mut command = self.command(args);
        Started(Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("nil")))
    }

    /// The pool, opened by the test itself.
    pub(crate) fn open_pool(&self) -> Pool {
        Pool::open(Path::new(&self.pool()), Access::ReadWrite).expect("the pool")
    }

    /// Bytes that the pool could still give.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.open_pool().usage().free
    }

    /// The workers that live.
    pub(crate) fn workers(&self) -> Vec<i32> {
        self.workers_where(|_| true)
    }

    /// The workers of one host that live.
    pub(crate) fn workers_of(&self, host: &str) -> Vec<i32> {
        self.workers_where(|args| args.windows(2).any(|pair| pair == [&b"--host"[..], host.as_bytes()]))
    }

    fn workers_where(&self, chosen: impl Fn(&[&[u8]]) -> bool) -> Vec<i32> {
        let run_dir = self.run_dir();
        let run_dir = run_dir.to_str().expect("a path in UTF-8").as_bytes();
        let processes = fs::read_dir("/proc").expect("/proc");
        let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        let is_worker = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let args: Vec<&[u8]> = line.split(|&byte| byte == 0).collect();
            args.get(1) == Some(&&b"worker"[..]) && args.contains(&run_dir) && chosen(&args)
        };
        pids.filter(is_worker).collect()
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["A", "B"] {
                eprintln!("--- agent {name}\n{}", self.agent_log(name));
            }
            for log in fs::read_dir(self.host_dir("A").join("workers")).into_iter().flatten().flatten() {
                eprintln!("--- {}\n{}", log.path().display(), fs::read_to_string(log.path()).unwrap_or_default());
            }
        }
        for pid in self.workers() {
            kill(pid, Signal::KILL);
        }
    }
}

impl Agent {
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    /// Ends it by a signal and waits until it has ended.
    pub(crate) fn end(self, signal: Signal) -> ExitStatus {
        kill(self.pid(), signal);
        self.wait()
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("the agent's status") {
                return status;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the agent did not end");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended; what counts is that it has.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that runs. Killed when it goes out of scope.
pub(crate) struct Started(Option<Child>);

impl Started {
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.0.as_ref().expect("it runs").id()).expect("a pid")
    }

    /// What it said when it has ended.
    pub(crate) fn answer(mut self) -> Answer {
        let child = self.0.take().expect("it runs");
        Answer::of(child.wait_with_output().expect("its output"))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // It may have ended; what counts is that it has.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a command said.
pub(crate) struct Answer {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Answer {
    fn of(output: Output) -> Self {
        Self {
            status: output.status,
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    /// The document that it printed.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("no JSON: {}{}", self.stdout, self.stderr))
    }

    /// Asserts that the command failed with that status and said all of that.
    #[track_caller]
    pub(crate) fn refuses(&self, status: i32, words: &[&str]) {
        assert_eq!(self.status.code(), Some(status), "{}{}", self.stdout, self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "`{word}` is missing in: {}", self.stderr);
        }
    }
}

/// Waits until `happened` is true.
#[track_caller]
pub(crate) fn await_that(what: &str, happened: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn kill(pid: i32, signal: Signal) {
    // It may be gone already.
    let _ = kill_process(Pid::from_raw(pid).expect("a pid"), signal);
}
