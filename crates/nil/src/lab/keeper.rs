//! The keeper: a process that ends everything a rack consists of, whatever happened to the process that built it.
//!
//! ```text
//! nil demo ──pipe──▶ nil lab-keeper        its standard input: a host's name on a line is the order to start its agent
//!                      │                   again, and its end is the order to clear up
//!                      ├─ nil host run --name A ─ workers …
//!                      └─ nil host run --name B ─ workers …
//! ```
//!
//! Workers outlive their agents by design, so ending the agents is not enough, and after SIGKILL of `nil demo` nobody would
//! be left to end anything. The keeper is the *subreaper* of all of them: whatever loses its parent becomes the keeper's
//! child, so that "kill my children until there are none" ends them all, and no pid is ever guessed.

use super::ground::{Ground, Pages};
use anyhow::Context;
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, wait};
use rustix::thread::disable_transparent_huge_pages;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::fmt;
use std::fs;
use std::io::{BufRead, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The hidden subcommand that runs [`run`].
pub(crate) const SUBCOMMAND: &str = "lab-keeper";
/// How long clearing up may take: gigabytes of mappings take a moment to unmap.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the keeper is told on its command line.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The rack's directory: run directory, logs, mount point. Removed at the end.
    #[arg(long)]
    directory: PathBuf,
    /// A pool for hosts to join; may be repeated.
    #[arg(long = "pool")]
    pools: Vec<PathBuf>,
    /// Leave the pools' files in place.
    #[arg(long)]
    keep_pool: bool,
    /// Have hosts and workers do without transparent huge pages.
    #[arg(long)]
    small_pages: bool,
    /// A host to run, and which of the pools it joins, counted from 0: `A=0,2`; may be repeated.
    #[arg(long = "host")]
    hosts: Vec<HostPlan>,
}

/// A host that is to run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct HostPlan {
    pub(crate) name: String,
    /// Which of the ground's pools it joins.
    pub(crate) pools: Vec<usize>,
}

impl fmt::Display for HostPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pools: Vec<String> = self.pools.iter().map(usize::to_string).collect();
        write!(f, "{}={}", self.name, pools.join(","))
    }
}

impl FromStr for HostPlan {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (name, pools) = text.split_once('=').context("a host to run is written like A=0,2")?;
        let pools = pools.split(',').map(str::parse).collect::<Result<_, _>>()?;
        Ok(Self { name: name.to_owned(), pools })
    }
}

/// The keeper, as seen by the process that started it. Dropping it ends the keeper, and with it all that it keeps.
#[derive(Debug)]
pub(crate) struct Keeper {
    process: Child,
}

impl Keeper {
    /// Starts a keeper, which starts the hosts.
    pub(crate) fn start(directory: &Path, ground: &Ground, pages: Pages, hosts: &[HostPlan]) -> anyhow::Result<Self> {
        let log = fs::File::create(directory.join("keeper.log")).context("cannot write into the rack's directory")?;
        let mut command = Command::new(own_binary());
        command.arg(SUBCOMMAND).arg("--directory").arg(directory);
        for pool in ground.pools() {
            command.arg("--pool").arg(pool);
        }
        command.args(hosts.iter().flat_map(|host| ["--host".to_owned(), host.to_string()]));
        if ground.is_kept() {
            command.arg("--keep-pool");
        }
        if pages == Pages::Small {
            command.arg("--small-pages");
        }
        // In a process group of its own, so that Ctrl-C reaches only us, and we end it in order.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        let process = command.spawn().context("cannot start the process that looks after the hosts")?;
        Ok(Self { process })
    }

    /// Has it start the agent of a host again, whose earlier agent has died.
    pub(crate) fn start_again(&self, host: &str) -> anyhow::Result<()> {
        let mut orders = self.process.stdin.as_ref().context("the process that looks after the hosts is ending")?;
        writeln!(orders, "{host}").context("the process that looks after the hosts has ended")
    }

    /// Whether it is still there.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let begin = Instant::now();
        while self.is_alive() && begin.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(2));
        }
        if self.is_alive() {
            eprintln!("nil: the processes of the rack have not ended within {PATIENCE:?}; look for `nil worker`");
        }
    }
}

/// The keeper's life.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    set_child_subreaper(Some(getpid())).context("cannot become the subreaper")?;
    if args.small_pages {
        // Whatever is started from here on inherits it.
        disable_transparent_huge_pages(true).context("cannot do without huge pages")?;
    }
    let started = args.hosts.iter().try_for_each(|host| start_host(args, host));
    let obeyed = started.and_then(|()| obey(args));
    end_all_children();
    clear_up(args);
    obeyed
}

fn start_host(args: &Args, host: &HostPlan) -> anyhow::Result<()> {
    let HostPlan { name, pools } = host;
    let log = fs::OpenOptions::new().create(true).append(true).open(host_log(&args.directory, name))?;
    let mut command = Command::new(own_binary());
    command.args(["host", "run", "--name", name]);
    // What its builder has written for it before the keeper began.
    let config = host_config(&args.directory, name);
    if config.exists() {
        command.arg("--config").arg(config);
    }
    for index in pools {
        let pool =
            args.pools.get(*index).with_context(|| format!("host {name} is to join a pool that there is not"))?;
        command.arg("--pool").arg(pool);
    }
    command
        .env("NIL_RUN_DIR", run_directory(&args.directory))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start host {name}"))?;
    Ok(())
}

/// Where the hosts of a rack meet.
pub(crate) fn run_directory(directory: &Path) -> PathBuf {
    directory.join("run")
}

/// What the agent of a host is to read besides, if it is there.
pub(crate) fn host_config(directory: &Path, name: &str) -> PathBuf {
    directory.join(name).with_extension("toml")
}

/// What the agent of a host said.
pub(crate) fn host_log(directory: &Path, name: &str) -> PathBuf {
    directory.join(name).with_extension("log")
}

/// Ourselves, even if the file has been replaced since.
fn own_binary() -> &'static str {
    "/proc/self/exe"
}

/// What the keeper is told while it lives.
enum Order {
    StartAgain(String),
    End,
}

/// Starts the agents of hosts again that have lost theirs; returns when standard input ends or a signal asks for the end.
fn obey(args: &Args) -> anyhow::Result<()> {
    let (tell, told) = mpsc::channel();
    let by_signal = tell.clone();
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        // The receiver goes away only when the process ends.
        signals.forever().next().map(|_| by_signal.send(Order::End))
    });
    std::thread::spawn(move || {
        // The lines end when the last writer is gone.
        for host in std::io::stdin().lock().lines().map_while(Result::ok) {
            tell.send(Order::StartAgain(host))?;
        }
        tell.send(Order::End)
    });
    while let Order::StartAgain(host) = told.recv()? {
        reap_the_dead();
        if let Some(host) = args.hosts.iter().find(|known| known.name == host) {
            start_host(args, host)?;
        }
    }
    Ok(())
}

/// Forgets children that have ended: agents, and workers that have lost theirs.
fn reap_the_dead() {
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}

/// Kills all children, and what they leave behind, which become children in turn, until there is none.
fn end_all_children() {
    loop {
        for child in children() {
            // It fails only when the child has ended by itself.
            let _ = kill_process(child, Signal::KILL);
        }
        match wait(WaitOptions::empty()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// The direct children of this process, by field 4 of `/proc/PID/stat`.
fn children() -> Vec<Pid> {
    let me = getpid().as_raw_nonzero().get();
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pid_of_child = |entry: fs::DirEntry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        (parent(&stat)? == me).then(|| Pid::from_raw(pid))?
    };
    processes.flatten().filter_map(pid_of_child).collect()
}

/// Field 4 of a `/proc/PID/stat` line. Field 2, the name, may hold spaces and parentheses, so count from its end.
fn parent(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Removes what the rack has put into the file system. Most of it is gone already if its builder ended in order.
fn clear_up(args: &Args) {
    for pool in args.pools.iter().filter(|_| !args.keep_pool) {
        let _ = fs::remove_file(pool);
    }
    let ground = args.pools.first().and_then(|pool| pool.parent());
    if let Some(mount_point) = ground.filter(|parent| parent.starts_with(&args.directory)) {
        let _ = rustix::mount::unmount(mount_point, rustix::mount::UnmountFlags::DETACH);
    }
    let _ = fs::remove_dir_all(&args.directory);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_behind_a_hostile_name() {
        assert_eq!(parent("7 (a) R (b) S 41 7 7 0 -1"), Some(41));
        assert_eq!(parent("7 (cut"), None);
    }

    #[test]
    fn a_host_is_told_with_its_pools() {
        let plan = HostPlan { name: "A".into(), pools: vec![0, 2] };
        assert_eq!(plan.to_string(), "A=0,2");
        assert_eq!("A=0,2".parse::<HostPlan>().expect("well-formed"), plan);
        assert!("A".parse::<HostPlan>().is_err() && "A=x".parse::<HostPlan>().is_err());
    }

    #[test]
    fn a_started_process_is_among_the_children() {
        let mut sleeper = Command::new("sleep").arg("60").spawn().expect("sleep starts");
        let pid = i32::try_from(sleeper.id()).ok().and_then(Pid::from_raw).expect("a pid");
        assert!(children().contains(&pid));
        sleeper.kill().expect("killed");
        sleeper.wait().expect("reaped");
        assert!(!children().contains(&pid));
    }
}
