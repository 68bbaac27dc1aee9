//! One QEMU process.

use crate::error::{Error, Result};
use crate::qmp::Qmp;
use serde_json::json;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long QEMU may take until it listens on its control socket.
const START: Duration = Duration::from_secs(20);
/// How much of what QEMU wrote goes into an error.
const SAID_BYTES: usize = 600;

/// What QEMU is to run. Source and destination of a migration must be alike in all but memory file and accelerator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine {
    /// The QEMU program.
    pub program: PathBuf,
    /// A PVH kernel image.
    pub image: PathBuf,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// The image's command line.
    pub command_line: String,
    /// `-cpu`.
    pub cpu: String,
}

/// How a process begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Begin {
    /// It boots the image.
    Boot,
    /// It waits for a guest.
    Incoming,
}

/// A QEMU process, with its control socket. Killed and reaped when dropped, and its runtime directory removed.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    qmp: Qmp,
    runtime: TempDir,
}

impl Qemu {
    /// Starts QEMU with `accelerator` (`kvm` or `tcg`) on the file `memory`, which QEMU makes if it does not exist.
    pub(crate) fn start(machine: &Machine, accelerator: &str, memory: &Path, begin: Begin) -> Result<Self> {
        let directory = |path: PathBuf| move |source| Error::Directory { path, source };
        let temporary = std::env::temp_dir();
        let runtime = TempDir::with_prefix("nil-qemu-").map_err(directory(temporary))?;
        let socket = runtime.path().join("qmp");
        let log = runtime.path().join("log");
        let said = File::create(&log).map_err(directory(log.clone()))?;
        let mut child = command(machine, accelerator, memory, begin, &socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said)
            .spawn()
            .map_err(|source| Error::NotInstalled { program: machine.program.clone(), source })?;
        match connect(&mut child, &socket, &log) {
            Ok(qmp) => Ok(Self { child, qmp, runtime }),
            Err(error) => {
                end(&mut child);
                Err(error)
            }
        }
    }

    /// The control connection.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// The operating system's number of the process.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// A place for sockets that lives as long as the process.
    pub(crate) fn runtime(&self) -> &Path {
        self.runtime.path()
    }

    /// Fails if the process has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.child.try_wait() {
            Ok(Some(status)) => Err(exited(status, &self.runtime.path().join("log"))),
            Ok(None) | Err(_) => Ok(()),
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Kills and reaps. Both only fail if the process has ended and been reaped already.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn command(machine: &Machine, accelerator: &str, memory: &Path, begin: Begin, socket: &Path) -> Command {
    let backend = json!({
        "qom-type": "memory-backend-file", "id": "memory", "size": machine.memory_bytes, "mem-path": memory, "share": true,
    });
    let mut command = Command::new(&machine.program);
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-machine", "pc,memory-backend=memory", "-accel", accelerator, "-cpu", &machine.cpu, "-smp", "1"])
        .args(["-m", &format!("{}k", machine.memory_bytes >> 10)])
        .args(["-object", &backend.to_string()])
        .arg("-kernel")
        .arg(&machine.image)
        .args(["-append", &machine.command_line])
        .args(["-chardev", &format!("socket,id=control,path={},server=on,wait=off", escaped(socket))])
        .args(["-mon", "chardev=control,mode=control"]);
    if begin == Begin::Incoming {
        command.args(["-incoming", "defer"]);
    }
    command
}

/// Commas separate QEMU's options; one within a value is doubled.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn connect(child: &mut Child, socket: &Path, log: &Path) -> Result<Qmp> {
    let begun = Instant::now();
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(exited(status, log));
        }
        match Qmp::connect(socket) {
            Err(Error::Socket(_)) if begun.elapsed() < START => std::thread::sleep(Duration::from_millis(2)),
            Err(Error::Socket(_)) => {
                return Err(Error::Timeout { what: "its control socket".into(), waited: begun.elapsed() });
            }
            connected => return connected,
        }
    }
}

fn exited(status: ExitStatus, log: &Path) -> Error {
    let said = std::fs::read(log).unwrap_or_default();
    let tail = &said[said.len().saturating_sub(SAID_BYTES)..];
    let said = String::from_utf8_lossy(tail).trim().to_owned();
    Error::Exited { status: status.to_string(), said: if said.is_empty() { "it said nothing".into() } else { said } }
}
