//! What a pool lies in: a regular file, a hugetlbfs file or a device-dax character device.
//!
//! Size and alignment of a dax device come from sysfs (`drivers/dax/bus.c`: attributes `size` and `align` of the
//! device behind `/sys/dev/char/MAJOR:MINOR`), because it cannot be read, written or stat'ed for its size.

use crate::GRANULE;
use crate::bytes::Bytes;
use crate::error::{Error, Result};
use crate::mapping::Access;
use crate::persist;
use rustix::fs::{self, AtFlags, FallocateFlags, FileType, OFlags, SeekFrom, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// `statfs` type of hugetlbfs (linux/magic.h).
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
/// The step in which files have holes and are mapped.
const PAGE: u64 = 4096;
/// Where devices describe themselves.
const SYSFS_CHAR: &str = "/sys/dev/char";
/// Where dax devices are by name.
const SYSFS_DAX: &str = "/sys/bus/dax/devices";

/// The kinds of memory that differ in how they are sized, mapped and emptied.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum BackingKind {
    /// A regular file: tmpfs, or a disk file system.
    File,
    /// A file on hugetlbfs.
    HugeFile,
    /// `/dev/daxX.Y`.
    Device,
}

/// An opened file or device.
#[derive(Debug)]
pub(crate) struct Backing {
    file: File,
    path: PathBuf,
    kind: BackingKind,
    punches: bool,
    size: u64,
    /// What addresses, offsets and lengths of its mappings are multiples of: its pages, or the device's alignment.
    step: u64,
}

impl Backing {
    pub(crate) fn kind(&self) -> BackingKind {
        self.kind
    }

    /// What addresses, offsets and lengths of its mappings are multiples of; a power of two, at most the granule.
    pub(crate) fn step(&self) -> u64 {
        self.step
    }

    /// Opens what is there; creates nothing, writes nothing.
    pub(crate) fn open(path: &Path, access: Access) -> Result<Self> {
        Self::open_with(path, access, false)
    }

    /// Opens what is there for writing, or makes an empty file. The flag says whether it was made.
    pub(crate) fn open_or_make(path: &Path) -> Result<(Self, bool)> {
        if path.symlink_metadata().is_ok() {
            return Ok((Self::open(path, Access::ReadWrite)?, false));
        }
        // Its device node is not there, and a file must not come in its place.
        refuse_online(Path::new(SYSFS_DAX), path)?;
        Ok((Self::open_with(path, Access::ReadWrite, true)?, true))
    }

    fn open_with(path: &Path, access: Access, make: bool) -> Result<Self> {
        let failed = |source| Error::System { what: "open", path: path.to_owned(), source };
        if !make {
            refuse_online(Path::new(SYSFS_DAX), path)?;
            refuse_wrong_kind(path, &path.metadata().map_err(failed)?)?;
        }
        let file = File::options()
            .read(true)
            .write(access == Access::ReadWrite)
            .create_new(make)
            .mode(0o660)
            // A path that became a FIFO meanwhile must not block.
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(path)
            .map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        refuse_wrong_kind(path, &metadata)?;
        let mode = metadata.mode() & 0o777;
        if access == Access::ReadWrite && mode & 0o222 == 0 {
            return Err(Error::ReadOnlyFile { path: path.to_owned(), mode });
        }
        Self::measure(file, path, &metadata)
    }

    /// Takes what somebody else has opened for reading and writing.
    pub(crate) fn adopt(file: File, path: &Path) -> Result<Self> {
        let failed = |source| Error::System { what: "examine", path: path.to_owned(), source };
        let metadata = file.metadata().map_err(failed)?;
        refuse_wrong_kind(path, &metadata)?;
        Self::measure(file, path, &metadata)
    }

    /// Whether the kernel may be asked for zeros, so that what nobody has reads as zeros.
    pub(crate) fn punches(&self) -> bool {
        self.punches
    }

    /// From now on whoever wants zeros writes them: what the kernel writes is in this host's caches.
    pub(crate) fn stop_punching(&mut self) {
        self.punches = false;
    }

    fn measure(file: File, path: &Path, metadata: &std::fs::Metadata) -> Result<Self> {
        let path = path.to_owned();
        if persist::is_forced() || outlives_this_host(&file, metadata) {
            persist::begin();
        }
        if FileType::from_raw_mode(metadata.mode()) == FileType::CharacterDevice {
            let rdev = metadata.rdev();
            let (size, align) = dax_geometry(Path::new(SYSFS_CHAR), fs::major(rdev), fs::minor(rdev))
                .ok_or(Error::WrongKind { path: path.clone(), what: "a device that is not device-dax" })?;
            refuse_coarse(&path, align)?;
            return Ok(Self { file, path, kind: BackingKind::Device, punches: false, size, step: align });
        }
        let statfs = fs::fstatfs(&file).map_err(|errno| Error::System {
            what: "examine",
            path: path.clone(),
            source: errno.into(),
        })?;
        let size = metadata.size();
        if statfs.f_type == HUGETLBFS_MAGIC {
            let step = u64::try_from(statfs.f_bsize).unwrap_or(u64::MAX);
            refuse_coarse(&path, step)?;
            return Ok(Self { file, path, kind: BackingKind::HugeFile, punches: true, size, step });
        }
        Ok(Self { file, path, kind: BackingKind::File, punches: true, size, step: PAGE })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file or device when it was opened or last resized.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Whether its size is given by the hardware.
    pub(crate) fn is_device(&self) -> bool {
        self.kind == BackingKind::Device
    }

    /// Makes a file longer; a device keeps its size.
    pub(crate) fn grow(&mut self, size: u64) -> Result<()> {
        if size > self.size {
            fs::ftruncate(&self.file, size).map_err(|errno| self.failed("make room in", errno))?;
            self.size = size;
        }
        Ok(())
    }

    /// Whether a regular file holds nothing but holes. `None` when only its bytes could tell.
    pub(crate) fn is_all_hole(&self) -> Option<bool> {
        if self.kind != BackingKind::File {
            return None;
        }
        match fs::seek(&self.file, SeekFrom::Data(0)) {
            Err(Errno::NXIO) => Some(true),
            Ok(_) => Some(false),
            Err(_) => None,
        }
    }

    /// Gives the memory of a range back, after which it reads as zeros. `false` when this backing cannot do that.
    pub(crate) fn punch(&self, offset: u64, bytes: u64) -> bool {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        #[cfg(all(test, not(loom)))]
        if let Some(punched) = crate::medium::punch(self, offset, bytes) {
            return punched;
        }
        self.punches && fs::fallocate(&self.file, flags, offset, bytes).is_ok()
    }

    /// Which parts of a range hold contents, in ascending order: all but the holes of a regular file, and everything
    /// where nobody can say.
    ///
    /// What lies past the end of a file that has been cut short is no hole: it held something, which is lost, and does not
    /// read as zeros. It counts as contents, so that whoever goes to read them learns of it.
    pub(crate) fn data(&self, range: Range<u64>) -> Vec<Range<u64>> {
        if self.kind != BackingKind::File {
            return vec![range];
        }
        let (mut found, mut at) = (Vec::<Range<u64>>::new(), range.start);
        while at < range.end {
            let start = match fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(start) if start < range.end => start,
                Ok(_) | Err(Errno::NXIO) => break,
                Err(_) => return vec![range],
            };
            let end = fs::seek(&self.file, SeekFrom::Hole(start)).unwrap_or(range.end).min(range.end);
            if end > start {
                found.push(start..end);
                at = end;
            } else {
                // It became a hole between the two questions.
                at = start + PAGE;
            }
        }
        let end = self.end_of_file().max(range.start);
        match found.last_mut() {
            _ if end >= range.end => {}
            Some(last) if last.end >= end => last.end = range.end,
            _ => found.push(end..range.end),
        }
        found
    }

    /// Whether any part of a range holds contents, in the sense of [`Backing::data`].
    pub(crate) fn has_data(&self, range: Range<u64>) -> bool {
        if self.kind != BackingKind::File {
            return true;
        }
        match fs::seek(&self.file, SeekFrom::Data(range.start)) {
            Ok(start) if start < range.end => true,
            Ok(_) | Err(Errno::NXIO) => self.end_of_file() < range.end,
            Err(_) => true,
        }
    }

    /// Where the file ends now, whatever its size was when it was opened; 0 when nobody can say.
    fn end_of_file(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.size())
    }

    pub(crate) fn failed(&self, what: &'static str, errno: Errno) -> Error {
        Error::System { what, path: self.path.clone(), source: errno.into() }
    }
}

/// Whether the bytes of a file are memory that is there when this host is not: a device, or a file that is mapped from one
/// without a page cache.
fn outlives_this_host(file: &File, metadata: &std::fs::Metadata) -> bool {
    if FileType::from_raw_mode(metadata.mode()) == FileType::CharacterDevice {
        return true;
    }
    let attributes = fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::empty()).map(|statx| statx.stx_attributes);
    // Kernels before 5.8 do not say. Then better too much than too little.
    attributes.map_or(true, |attributes| attributes.contains(StatxAttributes::DAX))
}

/// Says what a path is that cannot hold a pool, before anything is opened that could block or have an effect.
fn refuse_wrong_kind(path: &Path, metadata: &std::fs::Metadata) -> Result<()> {
    let what = match FileType::from_raw_mode(metadata.mode()) {
        FileType::RegularFile | FileType::CharacterDevice => return Ok(()),
        FileType::Directory => "a directory",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        FileType::BlockDevice => "a block device, which hosts cannot share coherently",
        FileType::Symlink | FileType::Unknown => "of an unknown kind",
    };
    Err(Error::WrongKind { path: path.to_owned(), what })
}

/// Refuses a dax device that the kernel has taken as system RAM: whatever is there is the kernel's. It has no device node
/// then, so it is told by its name.
fn refuse_online(sysfs: &Path, path: &Path) -> Result<()> {
    let Some(name) = path.file_name().filter(|_| path.parent() == Some(Path::new("/dev"))) else { return Ok(()) };
    match sysfs.join(name).join("driver").read_link() {
        Ok(driver) if driver.file_name().is_some_and(|driver| driver == "kmem") => {
            let device = name.to_string_lossy().into_owned();
            Err(Error::OnlineAsRam { path: path.to_owned(), device })
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

fn refuse_coarse(path: &Path, align: u64) -> Result<()> {
    if align == 0 || !GRANULE.is_multiple_of(align) {
        return Err(Error::Alignment { path: path.to_owned(), align: Bytes(align) });
    }
    Ok(())
}

/// Size and alignment of a dax device; `None` when the device is no dax device.
fn dax_geometry(sysfs: &Path, major: u32, minor: u32) -> Option<(u64, u64)> {
    let device = sysfs.join(format!("{major}:{minor}"));
    let subsystem = std::fs::canonicalize(device.join("subsystem")).ok()?;
    if subsystem.file_name()? != "dax" {
        return None;
    }
    let number = |name: &str| -> io::Result<Option<u64>> {
        let text = std::fs::read_to_string(device.join(name))?;
        Ok(text.trim().parse().ok())
    };
    let size = number("size").ok()??;
    // Kernels before 5.10 do not say; their device-dax maps in 2 MiB steps by default.
    let align = number("align").unwrap_or(Some(GRANULE))?;
    Some((size, align))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn fake_device(subsystem: &str, attributes: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        let device = root.path().join("252:0");
        let bus = root.path().join("bus").join(subsystem);
        std::fs::create_dir_all(&device).expect("a directory");
        std::fs::create_dir_all(&bus).expect("a directory");
        std::os::unix::fs::symlink(&bus, device.join("subsystem")).expect("a link");
        for (name, value) in attributes {
            std::fs::write(device.join(name), value).expect("an attribute");
        }
        root
    }

    #[test]
    fn a_dax_device_is_as_large_and_aligned_as_sysfs_says() {
        let root = fake_device("dax", &[("size", "17179869184\n"), ("align", "4096\n")]);
        assert_eq!(dax_geometry(root.path(), 252, 0), Some((16 << 30, 4096)));
    }

    #[test]
    fn a_dax_device_of_an_old_kernel_is_taken_for_2_mib_aligned() {
        let root = fake_device("dax", &[("size", "17179869184\n")]);
        assert_eq!(dax_geometry(root.path(), 252, 0), Some((16 << 30, GRANULE)));
    }

    #[test]
    fn another_character_device_is_no_dax_device() {
        let root = fake_device("mem", &[("size", "1")]);
        assert_eq!(dax_geometry(root.path(), 252, 0), None);
        assert!(matches!(Backing::open(Path::new("/dev/null"), Access::ReadOnly), Err(Error::WrongKind { .. })));
    }

    #[test]
    fn a_dax_device_that_is_online_as_ram_is_refused_with_the_cure() {
        let root = tempfile::tempdir().expect("a directory");
        for (name, driver) in [("dax0.0", "kmem"), ("dax1.0", "device_dax")] {
            std::fs::create_dir_all(root.path().join(name)).expect("a directory");
            std::os::unix::fs::symlink(Path::new("../../drivers").join(driver), root.path().join(name).join("driver"))
                .expect("a link");
        }
        let refusal = refuse_online(root.path(), Path::new("/dev/dax0.0")).expect_err("it is the kernel's").to_string();
        assert!(refusal.contains("system RAM") && refusal.contains("--force dax0.0"), "{refusal}");
        for fine in ["/dev/dax1.0", "/dev/dax2.0", "/dev/shm/dax0.0", "dax0.0", "/"] {
            refuse_online(root.path(), Path::new(fine)).expect(fine);
        }
    }

    #[test]
    fn one_gibibyte_alignment_is_refused_with_the_remedy() {
        let refusal = refuse_coarse(Path::new("/dev/dax0.0"), 1 << 30).expect_err("too coarse");
        assert!(refusal.to_string().contains("daxctl"), "{refusal}");
    }

    #[test]
    fn what_lies_past_the_end_of_a_file_that_was_cut_short_is_no_hole() {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let path = directory.path().join("file");
        let (mut backing, _) = Backing::open_or_make(&path).expect("a file");
        backing.grow(64 * PAGE).expect("room");
        let file = File::options().write(true).open(&path).expect("the file");
        std::os::unix::fs::FileExt::write_all_at(&file, b"contents", 8 * PAGE).expect("written");
        let data = [Range { start: 8 * PAGE, end: 9 * PAGE }];
        assert_eq!(backing.data(0..64 * PAGE), data);
        assert!(!backing.has_data(9 * PAGE..64 * PAGE) && backing.has_data(0..64 * PAGE));

        file.set_len(32 * PAGE).expect("a shorter file");
        assert_eq!(backing.data(0..64 * PAGE), [data[0].clone(), 32 * PAGE..64 * PAGE]);
        assert_eq!(backing.data(40 * PAGE..48 * PAGE), [Range { start: 40 * PAGE, end: 48 * PAGE }]);
        assert_eq!(backing.data(9 * PAGE..32 * PAGE), []);
        assert!(backing.has_data(31 * PAGE..33 * PAGE) && !backing.has_data(9 * PAGE..32 * PAGE));

        file.set_len(8 * PAGE + 4).expect("a shorter file");
        assert_eq!(backing.data(0..64 * PAGE), [Range { start: 8 * PAGE, end: 64 * PAGE }]);
    }
}
