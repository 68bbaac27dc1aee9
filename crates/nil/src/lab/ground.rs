//! The ground that a rack's pool stands on: which file system, with which pages, and who cleans it up.
//!
//! ```text
//! Private   a tmpfs with huge pages, mounted in a mount namespace of our own: nobody else sees it, and the kernel removes
//!           it with the last process of the rack, however that ended
//! Open      a file in /dev/shm (or the directory for temporary files) with 4 KiB pages: where mounting is not permitted,
//!           or where the pool shall be left for inspection
//! ```

use super::memory::Demand;
use anyhow::Context;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where files go that live in memory.
const SHARED_MEMORY: &str = "/dev/shm";
/// The pool's name on a private ground.
const POOL: &str = "pool";

/// With which pages a rack works: in the pool, and in the memory of its processes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Pages {
    /// 2 MiB where the kernel has them, 4 KiB elsewhere.
    Huge,
    /// 4 KiB.
    Small,
}

/// Where the pool lies, or several of them beside each other.
#[derive(Debug)]
pub(crate) struct Ground {
    kind: Kind,
    first: PathBuf,
    others: Vec<PathBuf>,
}

#[derive(Debug)]
enum Kind {
    Private { mount_point: PathBuf, pages: Pages },
    Open { why: Why },
}

/// Why a ground is not private.
#[derive(Debug)]
enum Why {
    /// The pool shall stay.
    Kept,
    /// It shall lie there, and go all the same.
    Wanted,
    /// Mounting failed.
    NotPermitted(io::Error),
}

impl Ground {
    /// Prepares the ground for a pool that vanishes with the rack. `directory` is the rack's own.
    pub(crate) fn fleeting(directory: &Path, demand: Demand, pages: Pages) -> anyhow::Result<Self> {
        demand.check_machine()?;
        let mount_point = directory.join("mnt");
        fs::create_dir(&mount_point).with_context(|| format!("cannot create {}", mount_point.display()))?;
        match mount_privately(&mount_point, demand.pool, pages) {
            Ok(()) => Ok(Self::at(mount_point.join(POOL), Kind::Private { mount_point, pages })),
            Err(error) => Self::open(directory, demand, Why::NotPermitted(error)),
        }
    }

    /// Prepares the ground for a pool that stays.
    pub(crate) fn kept(directory: &Path, demand: Demand) -> anyhow::Result<Self> {
        demand.check_machine()?;
        Self::open(directory, demand, Why::Kept)
    }

    /// Prepares the ground for a pool in the directory `place`, where it stays if it is `kept`.
    pub(crate) fn within(place: &Path, directory: &Path, demand: Demand, kept: bool) -> anyhow::Result<Self> {
        demand.check_machine()?;
        Self::open_in(place, directory, demand, if kept { Why::Kept } else { Why::Wanted })
    }

    fn open(directory: &Path, demand: Demand, why: Why) -> anyhow::Result<Self> {
        let shared_memory = PathBuf::from(SHARED_MEMORY);
        let place = if shared_memory.is_dir() { shared_memory } else { std::env::temp_dir() };
        Self::open_in(&place, directory, demand, why)
    }

    fn open_in(place: &Path, directory: &Path, demand: Demand, why: Why) -> anyhow::Result<Self> {
        demand.check_file_system(place)?;
        let name = directory.file_name().unwrap_or(POOL.as_ref());
        let pool = place.join(name).with_extension(POOL);
        Ok(Self::at(pool, Kind::Open { why }))
    }

    fn at(pool: PathBuf, kind: Kind) -> Self {
        Self { kind, first: pool, others: Vec::new() }
    }

    /// Makes it the ground of so many pools, which share its room.
    pub(crate) fn shared_by(mut self, pools: usize) -> Self {
        let beside = |number: usize| self.first.with_extension(format!("{number}.{POOL}"));
        self.others = (1..pools).map(beside).collect();
        self
    }

    /// Where the pool's file is to be made.
    pub(crate) fn pool(&self) -> &Path {
        &self.first
    }

    /// Where the files of all pools are to be made; one at least.
    pub(crate) fn pools(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(&self.first).chain(&self.others).map(PathBuf::as_path)
    }

    /// Whether the pool stays when the rack goes.
    pub(crate) fn is_kept(&self) -> bool {
        matches!(self.kind, Kind::Open { why: Why::Kept })
    }

    /// A sentence for the report.
    pub(crate) fn describe(&self) -> String {
        match &self.kind {
            Kind::Private { pages: Pages::Huge, .. } => {
                "a private tmpfs with 2 MiB pages where the kernel has them".into()
            }
            Kind::Private { pages: Pages::Small, .. } => "a private tmpfs with 4 KiB pages".into(),
            Kind::Open { why: Why::Kept } => format!("{} with 4 KiB pages (kept)", self.first.display()),
            Kind::Open { why: Why::Wanted } => format!("{} with 4 KiB pages", self.first.display()),
            Kind::Open { why: Why::NotPermitted(error) } => format!(
                "{} with 4 KiB pages: a tmpfs of its own with 2 MiB pages could not be mounted ({error})",
                self.first.display()
            ),
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // What cannot be undone here is undone by the keeper or, at the end of the namespace, by the kernel.
        match &self.kind {
            Kind::Private { mount_point, .. } => {
                let _ = unmount(mount_point, UnmountFlags::DETACH);
            }
            Kind::Open { why: Why::Wanted | Why::NotPermitted(_) } => {
                for pool in self.pools() {
                    let _ = fs::remove_file(pool);
                }
            }
            Kind::Open { why: Why::Kept } => {}
        }
    }
}

/// Moves the calling thread (and whatever it starts from now on) into a mount namespace of its own, and mounts a tmpfs of
/// `size` bytes in it.
fn mount_privately(mount_point: &Path, size: u64, pages: Pages) -> io::Result<()> {
    leave_the_mount_namespace()?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let with_options = |options: String| {
        let options = CString::new(options)?;
        mount("nil", mount_point, "tmpfs", flags, options.as_c_str()).map_err(io::Error::from)
    };
    let huge = match pages {
        Pages::Huge => "advise",
        Pages::Small => "never",
    };
    // A kernel without transparent huge pages refuses the option, and then does without.
    with_options(format!("size={size},mode=0700,huge={huge}"))
        .or_else(|_| with_options(format!("size={size},mode=0700")))
}

#[allow(unsafe_code)]
fn leave_the_mount_namespace() -> io::Result<()> {
    // SAFETY: the call is unsafe for the sake of CLONE_FILES, which would give this thread a file descriptor table of its
    // own. CLONE_NEWNS leaves descriptors alone; other threads keep seeing the old mounts, and none of them opens files of
    // the rack by path.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMAND: Demand = Demand { guest: 2 << 20, pool: 4 << 20, beside: 0 };

    #[test]
    fn a_fleeting_ground_leaves_nothing_behind() {
        let directory = tempfile::tempdir().expect("a directory");
        let ground = Ground::fleeting(directory.path(), DEMAND, Pages::Huge).expect("ground");
        let pool = ground.pool().to_path_buf();
        fs::write(&pool, b"a pool").expect("room for a file");
        drop(ground);
        assert!(!pool.exists(), "{} is still there", pool.display());
    }

    #[test]
    fn a_kept_ground_stays_and_says_where() {
        let directory = tempfile::tempdir().expect("a directory");
        let ground = Ground::kept(directory.path(), DEMAND).expect("ground");
        let pool = ground.pool().to_path_buf();
        fs::write(&pool, b"a pool").expect("room for a file");
        assert!(ground.describe().contains(&pool.display().to_string()));
        drop(ground);
        assert!(pool.exists());
        fs::remove_file(&pool).expect("removed");
    }

    #[test]
    fn a_demand_beyond_the_machine_is_refused_before_anything_is_made() {
        let directory = tempfile::tempdir().expect("a directory");
        let demand = Demand { guest: 1 << 50, pool: 1 << 50, beside: 0 };
        let refusal = Ground::fleeting(directory.path(), demand, Pages::Huge).expect_err("a petabyte");
        assert!(refusal.to_string().contains("--memory"), "{refusal}");
        assert_eq!(fs::read_dir(directory.path()).expect("a listing").count(), 0);
    }
}
