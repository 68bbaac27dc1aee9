//! Two hosts on this machine, with a pool between them.
//!
//! Both are ordinary hosts: agents started by `nil host run`, workers started by them, a run directory of their own. All
//! of it is gone when the [`Rack`] is dropped, in this order: processes, pool, directory.

use super::ground::{Ground, Pages};
use super::interrupt;
use super::keeper::{self, HostPlan, Keeper};
use super::memory::Demand;
use anyhow::{Context, bail};
use nil_host::{Client, HostDir, HostName, RunDir};
use nil_pool::Bytes;
use nil_pool::{Access, CreateOptions, GRANULE, Pool};
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// The names of the two hosts.
const HOSTS: [&str; 2] = ["A", "B"];
/// What a pool needs besides its guest's memory: its tables, and the guest's state. One part in 256 more for large ones.
const OVERHEAD: u64 = 64 << 20;
/// The smallest guest that has room for an image and something to test.
const SMALLEST_GUEST: u64 = 16 << 20;
/// How long two agents may take to join a pool.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many lines of each log are shown when something went wrong.
const LOG_LINES: usize = 6;

/// What a rack is to be built for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RackPlan {
    /// Bytes of memory of the one guest that will run on it.
    pub(crate) memory_bytes: u64,
    /// What becomes of the pool.
    pub(crate) pool: PoolFate,
    /// Where that guest's memory may come to lie.
    pub(crate) reach: Reach,
    /// With which pages.
    pub(crate) pages: Pages,
}

/// Where a guest's memory may come to lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reach {
    /// In the pool.
    Pool,
    /// In the pool, and in the DRAM of its host.
    PoolAndDram,
}

/// What becomes of a rack's pool when the rack goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PoolFate {
    /// It goes too.
    Fleeting,
    /// It stays, for inspection.
    Kept,
}

/// Two hosts and a pool. The order of the fields is the order of their end.
#[derive(Debug)]
pub(crate) struct Rack {
    pool: Pool,
    hosts: [HostDir; 2],
    keeper: Keeper,
    ground: Ground,
    directory: TempDir,
}

impl RackPlan {
    /// A rack for a guest that lives in the pool, with huge pages, and that goes as it came.
    pub(crate) fn fleeting(memory_bytes: u64) -> Self {
        Self { memory_bytes, pool: PoolFate::Fleeting, reach: Reach::Pool, pages: Pages::Huge }
    }

    /// Refuses what cannot be built, with the reason, before anything is made.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let memory = Bytes(self.memory_bytes);
        if self.memory_bytes < SMALLEST_GUEST {
            bail!("a guest of {memory} has no room for anything to verify; try --memory 64M");
        }
        if !self.memory_bytes.is_multiple_of(GRANULE) {
            let up = self.memory_bytes.div_ceil(GRANULE).saturating_mul(GRANULE);
            bail!("a guest's memory comes in pieces of 2 MiB, and {memory} is no multiple; try --memory {}M", up >> 20);
        }
        self.demand().check_machine()?;
        check_kvm(Path::new("/dev/kvm"))
    }

    fn demand(&self) -> Demand {
        let overhead = OVERHEAD + (self.memory_bytes >> 8).next_multiple_of(GRANULE);
        let beside = match self.reach {
            Reach::Pool => 0,
            Reach::PoolAndDram => self.memory_bytes,
        };
        Demand { guest: self.memory_bytes, pool: self.memory_bytes.saturating_add(overhead), beside }
    }
}

impl Rack {
    /// Builds a rack and waits until both hosts are up.
    pub(crate) fn build(plan: &RackPlan) -> anyhow::Result<Self> {
        plan.check()?;
        let directory = tempfile::Builder::new().prefix("nil-").tempdir().context("cannot make a directory")?;
        let demand = plan.demand();
        let ground = match plan.pool {
            PoolFate::Fleeting => Ground::fleeting(directory.path(), demand, plan.pages)?,
            PoolFate::Kept => Ground::kept(directory.path(), demand)?,
        };
        let options = CreateOptions { size: Some(demand.pool), label: "nil rack".into(), ..CreateOptions::default() };
        drop(Pool::create(ground.pool(), &options)?);
        let run_dir = RunDir::at(keeper::run_directory(directory.path()));
        let hosts = [host_dir(&run_dir, HOSTS[0])?, host_dir(&run_dir, HOSTS[1])?];
        let host = |name: &str| HostPlan { name: name.to_owned(), pools: vec![0] };
        let keeper = Keeper::start(directory.path(), &ground, plan.pages, &HOSTS.map(host))?;
        let pool = Pool::open(ground.pool(), Access::ReadWrite)?;
        let mut rack = Self { pool, hosts, keeper, ground, directory };
        match rack.await_hosts() {
            Ok(()) => Ok(rack),
            Err(error) if error.is::<interrupt::Interrupted>() => Err(error),
            Err(error) => Err(error.context(format!("the hosts did not come up{}", rack.logs()))),
        }
    }

    /// The pool between the hosts.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Where the pool's file is.
    pub(crate) fn pool_path(&self) -> &Path {
        self.ground.pool()
    }

    /// Whether the pool stays when the rack goes.
    pub(crate) fn keeps_pool(&self) -> bool {
        self.ground.is_kept()
    }

    /// A phrase that says where the pool lies.
    pub(crate) fn ground(&self) -> String {
        self.ground.describe()
    }

    /// One of the two hosts.
    pub(crate) fn host(&self, side: Side) -> &HostDir {
        &self.hosts[side.index()]
    }

    /// Calls the agent of a host.
    pub(crate) fn call(&self, side: Side) -> anyhow::Result<Client> {
        Ok(Client::connect(self.host(side))?)
    }

    /// Has the agent of a host started again, as it was started at first. The earlier one must have ended.
    pub(crate) fn start_again(&self, side: Side) -> anyhow::Result<()> {
        self.keeper.start_again(self.host(side).name().as_str())
    }

    /// The last lines that the rack's processes have said, to be shown beneath an error; empty if they said nothing.
    pub(crate) fn logs(&self) -> String {
        let mut paths = vec![self.directory.path().join("keeper.log")];
        for host in &self.hosts {
            paths.push(keeper::host_log(self.directory.path(), host.name().as_str()));
            let workers = fs::read_dir(host.workers()).into_iter().flatten().flatten();
            paths.extend(workers.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "log")));
        }
        last_lines(&paths)
    }

    fn await_hosts(&mut self) -> anyhow::Result<()> {
        let id = self.pool.id();
        for side in [Side::A, Side::B] {
            let dir = self.host(side).clone();
            let keeper = &mut self.keeper;
            interrupt::wait_for("a host has not joined the pool", PATIENCE, || {
                if !keeper.is_alive() {
                    bail!("the process that looks after the hosts has ended");
                }
                let joined = Client::connect(&dir).and_then(|mut client| client.describe());
                Ok(joined.is_ok_and(|host| host.pools.iter().any(|pool| pool.id == id)).then_some(()))
            })?;
        }
        Ok(())
    }
}

/// One of a rack's two hosts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    /// The host on which the guest is booted.
    A,
    /// The other one.
    B,
}

impl Side {
    /// The other host.
    pub(crate) fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    fn index(self) -> usize {
        match self {
            Self::A => 0,
            Self::B => 1,
        }
    }
}

/// The last lines of each log, to be shown beneath an error; empty if they say nothing.
pub(super) fn last_lines(logs: &[PathBuf]) -> String {
    let mut text = String::new();
    for path in logs {
        let log = fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
            // Writing into a String cannot fail.
            let _ = write!(text, "\n  {}: {line}", path.file_stem().unwrap_or_default().to_string_lossy());
        }
    }
    text
}

pub(super) fn host_dir(run_dir: &RunDir, name: &str) -> anyhow::Result<HostDir> {
    Ok(run_dir.host(&name.parse::<HostName>()?))
}

/// Refuses when there is no KVM for us, and says what to do about it.
pub(super) fn check_kvm(device: &Path) -> anyhow::Result<()> {
    let name = device.display();
    match fs::OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
            "there is no {name}, which runs virtual machines; load the module kvm_intel or kvm_amd, switch virtualisation \
             on in the firmware, or, inside a virtual machine, have nested virtualisation enabled"
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => bail!(
            "you may not use {name}; add yourself to its group (`sudo usermod -aG kvm $USER`, then log in again), or run \
             as root"
        ),
        Err(error) => Err(error).with_context(|| format!("cannot open {name}, which runs virtual machines")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(memory_bytes: u64) -> String {
        RackPlan::fleeting(memory_bytes).check().expect_err("an impossible rack").to_string()
    }

    #[test]
    fn impossible_guests_are_refused_with_a_size_that_works() {
        assert!(refusal(2 << 20).ends_with("try --memory 64M"));
        assert!(refusal((64 << 20) + 4096).ends_with("try --memory 66M"));
        assert!(refusal(1 << 62).contains("try a smaller guest with --memory"));
    }

    #[test]
    fn a_machine_without_kvm_is_told_what_to_do() {
        let directory = tempfile::tempdir().expect("a directory");
        let error = check_kvm(&directory.path().join("kvm")).expect_err("no device");
        assert!(error.to_string().contains("kvm_intel or kvm_amd"), "{error}");
    }

    #[test]
    fn from_each_side_the_guest_goes_to_the_other() {
        assert_eq!((Side::A.other(), Side::B.other()), (Side::B, Side::A));
    }
}
