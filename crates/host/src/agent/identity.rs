//! Who a host is: one agent per name, and the same host after every restart.

use crate::error::{Error, Result};
use crate::name::HostName;
use crate::run_dir::HostDir;
use nil_pool::HostId;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;

/// The right to be the agent of a host, held until the process ends, however it ends.
#[derive(Debug)]
pub(super) struct AgentLock(#[expect(dead_code, reason = "held for its lock")] File);

impl AgentLock {
    /// # Errors
    /// [`Error::NameTaken`] when another agent of that name runs.
    pub(super) fn take(dir: &HostDir) -> Result<Self> {
        let path = dir.lock();
        let failed = |doing| move |error: io::Error| Error::io(doing, dir.lock(), error);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).map_err(failed("read"))?;
                return Err(Error::NameTaken { name: dir.name().clone(), pid: pid.trim().to_owned() });
            }
            Err(error) => return Err(failed("lock")(error.into())),
        }
        file.set_len(0).map_err(failed("write"))?;
        file.rewind().map_err(failed("write"))?;
        writeln!(file, "{}", std::process::id()).map_err(failed("write"))?;
        Ok(Self(file))
    }
}

/// What `host.json` holds.
#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    name: HostName,
    id: HostId,
}

/// Whether there was such a host before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Novelty {
    New,
    Known,
}

/// The host's identity: the one of last time, or a new one. Needs the lock, so that two agents do not write at once.
pub(super) fn load_or_create(dir: &HostDir, _lock: &AgentLock) -> Result<(HostId, Novelty)> {
    let path = dir.identity();
    match fs::read(&path) {
        Ok(bytes) => {
            let identity: Identity = serde_json::from_slice(&bytes).map_err(|error| {
                Error::refused(format!(
                    "{} is damaged ({error}); if host {} has no guests, remove it",
                    path.display(),
                    dir.name()
                ))
            })?;
            Ok((identity.id, Novelty::Known))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let identity = Identity { name: dir.name().clone(), id: HostId::random() };
            let text = serde_json::to_vec_pretty(&identity).map_err(|error| Error::io("write", &path, error.into()))?;
            let draft = path.with_extension("json.new");
            fs::write(&draft, text).map_err(|error| Error::io("write", &draft, error))?;
            fs::rename(&draft, &path).map_err(|error| Error::io("write", &path, error))?;
            Ok((identity.id, Novelty::New))
        }
        Err(error) => Err(Error::io("read", &path, error)),
    }
}

/// Removes what a host that never came to be has left in the run directory, and nothing else.
pub(super) fn forget(dir: &HostDir, _lock: &AgentLock) {
    // What cannot be removed does no harm.
    let _ = fs::remove_file(dir.identity());
    let _ = fs::remove_dir(dir.workers());
    let _ = fs::remove_file(dir.lock());
    let _ = fs::remove_dir(dir.path());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_dir::RunDir;

    fn host_dir(run: &tempfile::TempDir) -> HostDir {
        let dir = RunDir::at(run.path()).host(&"A".parse().expect("a good name"));
        dir.prepare().expect("room for a host");
        dir
    }

    #[test]
    fn a_second_agent_of_the_same_name_is_told_who_was_first() {
        let run = tempfile::tempdir().expect("a directory");
        let dir = host_dir(&run);
        let first = AgentLock::take(&dir).expect("the lock is free");
        let error = AgentLock::take(&dir).expect_err("the lock is taken");
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(first);
        AgentLock::take(&dir).expect("the lock is free again");
    }

    #[test]
    fn a_host_keeps_its_identity() {
        let run = tempfile::tempdir().expect("a directory");
        let dir = host_dir(&run);
        let lock = AgentLock::take(&dir).expect("the lock is free");
        let (id, novelty) = load_or_create(&dir, &lock).expect("an identity");
        assert_eq!(novelty, Novelty::New);
        assert_eq!(load_or_create(&dir, &lock).expect("an identity"), (id, Novelty::Known));
    }

    #[test]
    fn a_host_that_never_came_to_be_leaves_nothing() {
        let run = tempfile::tempdir().expect("a directory");
        let dir = host_dir(&run);
        let lock = AgentLock::take(&dir).expect("the lock is free");
        load_or_create(&dir, &lock).expect("an identity");
        forget(&dir, &lock);
        assert!(!dir.path().exists());
    }

    #[test]
    fn a_damaged_identity_is_not_replaced_behind_the_persons_back() {
        let run = tempfile::tempdir().expect("a directory");
        let dir = host_dir(&run);
        let lock = AgentLock::take(&dir).expect("the lock is free");
        fs::write(dir.identity(), "{").expect("written");
        let error = load_or_create(&dir, &lock).expect_err("damaged");
        assert!(error.to_string().contains("damaged"), "{error}");
    }
}
