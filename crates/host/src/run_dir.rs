//! Where the agents and workers of this machine meet: the run directory.
//!
//! ```text
//! RUN/hosts/NAME/lock                  held (flock) by the agent for as long as it lives
//!               /host.json             the host's identity, kept across restarts of its agent
//!               /agent.sock            the agent's socket
//!               /workers/GUEST.sock    one per guest: its worker's socket
//!               /workers/GUEST.log     what that worker said
//!               /ways/JOB.json         one per guest that is on its way over several hosts: what is left of that
//! ```
//!
//! `RUN` is `$NIL_RUN_DIR`, else `$XDG_RUNTIME_DIR/nil`, else `/run/nil` for root, else `/tmp/nil-UID`. Everything in it
//! belongs to one user and is readable by nobody else: whoever can open a socket there controls the guests.

use crate::error::{Error, Result};
use crate::name::{GuestName, HostName};
use rustix::process::geteuid;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The longest path that a Unix socket address holds, without its terminating zero.
const LONGEST_SOCKET_PATH: usize = 107;

/// The run directory. It need not exist until a host is put into it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunDir(PathBuf);

/// The directory of one host in the run directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostDir {
    path: PathBuf,
    name: HostName,
}

impl RunDir {
    /// The run directory that the environment asks for.
    #[must_use]
    pub fn from_environment() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let user = geteuid();
        Self(
            variable("NIL_RUN_DIR")
                .or_else(|| variable("XDG_RUNTIME_DIR").map(|dir| dir.join("nil")))
                .or_else(|| user.is_root().then(|| PathBuf::from("/run/nil")))
                .unwrap_or_else(|| std::env::temp_dir().join(format!("nil-{}", user.as_raw()))),
        )
    }

    /// A run directory of the caller's choice.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The directory of the host `name`, whether or not it exists.
    #[must_use]
    pub fn host(&self, name: &HostName) -> HostDir {
        HostDir { path: self.0.join("hosts").join(name.as_str()), name: name.clone() }
    }

    /// The directories of all hosts that ever ran here, by name.
    ///
    /// # Errors
    /// The run directory exists and cannot be read.
    pub fn hosts(&self) -> Result<Vec<HostDir>> {
        let hosts = self.0.join("hosts");
        let entries = match fs::read_dir(&hosts) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("read", &hosts, error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| Error::io("read", &hosts, error))?;
            if let Some(name) = entry.file_name().to_str().and_then(|text| text.parse().ok()) {
                found.push(self.host(&name));
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }
}

impl HostDir {
    /// The host's name.
    #[must_use]
    pub fn name(&self) -> &HostName {
        &self.name
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The run directory it lies in.
    #[must_use]
    pub fn run_dir(&self) -> RunDir {
        let run = self.path.parent().and_then(Path::parent).unwrap_or(&self.path);
        RunDir(run.to_path_buf())
    }

    /// The lock that the agent holds.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.path.join("lock")
    }

    /// The host's persistent identity.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.path.join("host.json")
    }

    /// The agent's socket.
    #[must_use]
    pub fn agent_socket(&self) -> PathBuf {
        self.path.join("agent.sock")
    }

    /// The directory of the workers' sockets and logs.
    #[must_use]
    pub fn workers(&self) -> PathBuf {
        self.path.join("workers")
    }

    /// The directory of what is left of guests' ways.
    pub(crate) fn ways(&self) -> PathBuf {
        self.path.join("ways")
    }

    /// The socket of the worker that runs `guest`.
    #[must_use]
    pub fn worker_socket(&self, guest: &GuestName) -> PathBuf {
        self.workers().join(format!("{guest}.sock"))
    }

    /// The log of the workers that ran `guest` here.
    #[must_use]
    pub fn worker_log(&self, guest: &GuestName) -> PathBuf {
        self.workers().join(format!("{guest}.log"))
    }

    /// The guests that have a worker socket here. The worker behind it may be dead.
    ///
    /// # Errors
    /// The directory exists and cannot be read.
    pub fn worker_sockets(&self) -> Result<Vec<GuestName>> {
        let workers = self.workers();
        let entries = match fs::read_dir(&workers) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("read", &workers, error)),
        };
        let mut guests = Vec::new();
        for entry in entries {
            let file = entry.map_err(|error| Error::io("read", &workers, error))?.file_name();
            let guest = file.to_str().and_then(|file| file.strip_suffix(".sock")).and_then(|name| name.parse().ok());
            guests.extend(guest);
        }
        guests.sort();
        Ok(guests)
    }

    /// Creates the directory for this user alone, and checks that the sockets in it will have usable addresses.
    ///
    /// # Errors
    /// It cannot be created, belongs to somebody else, or its path is too long.
    pub(crate) fn prepare(&self) -> Result<()> {
        let longest: GuestName = "x".repeat(31).parse().expect("31 letters are a name");
        let socket = self.worker_socket(&longest);
        if socket.as_os_str().len() > LONGEST_SOCKET_PATH {
            return Err(Error::PathTooLong { path: self.path.clone() });
        }
        let workers = self.workers();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&workers)
            .map_err(|error| Error::io("create", &workers, error))?;
        let owner = fs::metadata(&self.path).map_err(|error| Error::io("look at", &self.path, error))?;
        if owner.uid() == geteuid().as_raw() && owner.mode() & 0o022 == 0 {
            Ok(())
        } else {
            Err(Error::ForeignRunDir { path: self.path.clone() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(run: &RunDir, name: &str) -> HostDir {
        run.host(&name.parse().expect("a good name"))
    }

    #[test]
    fn a_run_directory_lists_the_hosts_that_were_put_into_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let run = RunDir::at(dir.path());
        assert_eq!(run.hosts().expect("an empty list"), []);
        for name in ["B", "A"] {
            host(&run, name).prepare().expect("room for a host");
        }
        fs::create_dir(dir.path().join("hosts/not a host")).expect("a stray directory");
        let names: Vec<String> = run.hosts().expect("a list").iter().map(|host| host.name().to_string()).collect();
        assert_eq!(names, ["A", "B"]);
    }

    #[test]
    fn a_host_directory_is_closed_to_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let host = host(&RunDir::at(dir.path()), "A");
        host.prepare().expect("room for a host");
        assert_eq!(fs::metadata(host.path()).expect("metadata").mode() & 0o777, 0o700);
    }

    #[test]
    fn a_path_that_no_socket_address_holds_is_refused_at_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let host = host(&RunDir::at(dir.path().join("x".repeat(80))), "A");
        assert!(matches!(host.prepare(), Err(Error::PathTooLong { .. })));
    }

    #[test]
    fn a_host_directory_that_others_may_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let host = host(&RunDir::at(dir.path()), "A");
        fs::create_dir_all(host.path()).expect("a directory");
        fs::set_permissions(host.path(), fs::Permissions::from_mode(0o777)).expect("permissions");
        assert!(matches!(host.prepare(), Err(Error::ForeignRunDir { .. })));
    }
}
