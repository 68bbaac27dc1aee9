//! One run of the program, and what is left of it.

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take here; tests run beside others, on few cores.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A directory for temporary files, and the program under test.
pub(crate) struct Stage {
    directory: TempDir,
}

/// A run that goes on.
pub(crate) struct Running {
    child: Child,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory") }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("nil runs")
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        let child = self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("nil starts");
        Running { child }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nil"));
        command.args(arguments).env("TMPDIR", self.path()).stdin(Stdio::null());
        command
    }

    /// Files in the directory, and processes that have it on their command line: both are to be none in the end.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let files =
            fs::read_dir(self.path()).expect("a listing").flatten().map(|entry| entry.path().display().to_string());
        files.chain(self.processes()).collect()
    }

    /// Waits until nothing is left.
    pub(crate) fn assert_clean(&self) {
        let clean = wait_until(|| self.leftovers().is_empty());
        assert!(clean, "left behind: {:?}", self.leftovers());
    }

    /// Command lines of processes that work for a run on this stage.
    pub(crate) fn processes(&self) -> Vec<String> {
        let needle = self.path().display().to_string();
        let command_line = |entry: fs::DirEntry| {
            let raw = fs::read(entry.path().join("cmdline")).ok()?;
            Some(String::from_utf8_lossy(&raw).replace('\0', " "))
        };
        let processes = fs::read_dir("/proc").expect("/proc").flatten();
        processes.filter_map(command_line).filter(|line| line.contains(&needle)).collect()
    }
}

impl Running {
    /// Waits until the run has a pool in /dev/shm mapped, which only a kept pool is, and returns its path.
    pub(crate) fn await_kept_pool(&self) -> PathBuf {
        let maps = format!("/proc/{}/maps", self.child.id());
        let find = || {
            let maps = fs::read_to_string(&maps).ok()?;
            maps.lines().find_map(|line| line.find("/dev/shm/nil-").map(|at| PathBuf::from(&line[at..])))
        };
        assert!(wait_until(|| find().is_some()), "no pool appeared in /dev/shm");
        find().expect("it was there just now")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("the process is there");
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a status").is_none()
    }

    /// Waits for its end, but not for ever.
    pub(crate) fn finish(mut self) -> Output {
        let ended = wait_until(|| !self.is_running());
        if !ended {
            self.child.kill().expect("killed");
        }
        let status = self.child.wait().expect("a status");
        let mut output = Output { status, stdout: Vec::new(), stderr: Vec::new() };
        self.child.stdout.take().expect("piped").read_to_end(&mut output.stdout).expect("its output");
        self.child.stderr.take().expect("piped").read_to_end(&mut output.stderr).expect("its errors");
        assert!(ended, "it did not end: {}", String::from_utf8_lossy(&output.stderr));
        output
    }
}

/// Waits until `done`, but not for ever; whether it was.
pub(crate) fn wait_until(mut done: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        if done() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    done()
}

/// The JSON document that a run has printed.
pub(crate) fn json(output: &Output) -> serde_json::Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.trim()).unwrap_or_else(|error| {
        panic!("no JSON ({error}): {text}\nstandard error: {}", String::from_utf8_lossy(&output.stderr))
    })
}
