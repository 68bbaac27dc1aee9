//! Formatting a pool.
//!
//! Order: refuse what is to be refused; make the file as long as the pool; erase old headers; empty the tables; mark
//! the tables' granules in the owner map; write header B, then header A. Whoever dies in between leaves no pool.

use crate::backing::Backing;
use crate::bytes::Bytes;
use crate::error::{Error, Result};
use crate::format::header::{
    COMPAT_REPORTS, Coherence, HEADER_BYTES, Header, INCOMPAT_SOFTWARE_COHERENCE, MAGIC, VERSION,
};
use crate::format::host::HostKind;
use crate::format::layout::{HEADER_A, HEADER_B, Layout};
use crate::format::text::encode_label;
use crate::format::{GRANULE, header::BadHeader};
use crate::ids::PoolId;
use crate::liveness::Liveness;
use crate::mapping::{Access, Mapping, put};
use crate::owner_map::RESERVED;
use crate::persist::{self, Point};
use crate::pool::{Pool, read_headers};
use crate::sync::{Ordering, fence};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// How a pool is to be made.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// Bytes of the pool; needed for a new file. A file or device that is there already has its own size.
    pub size: Option<u64>,
    /// Overwrite a pool or other data.
    pub force: bool,
    /// For people.
    pub label: String,
    /// How its hosts' caches agree.
    pub coherence: Coherence,
}

impl Pool {
    /// Formats a file or device as a pool and opens it. A file that was made for it is removed again on failure.
    ///
    /// # Errors
    /// [`Error`] with the reason and the remedy; then nothing was written to what was there before.
    pub fn create(path: &Path, options: &CreateOptions) -> Result<Self> {
        encode_label("pool label", &options.label)?;
        if let Some(size) = options.size {
            layout_for(path, size, options.coherence)?;
        }
        let (backing, made) = Backing::open_or_make(path)?;
        let created = format(backing, options);
        if made && created.is_err() {
            let _ = std::fs::remove_file(path);
        }
        created
    }
}

fn format(mut backing: Backing, options: &CreateOptions) -> Result<Pool> {
    refuse_members(&backing)?;
    if !options.force {
        refuse_contents(&backing)?;
    }
    let size = choose_size(&backing, options.size)?;
    let layout = layout_for(backing.path(), size, options.coherence)?;
    backing.grow(size)?;
    let header = Header {
        id: PoolId::random(),
        version: VERSION,
        coherence: options.coherence,
        compat: COMPAT_REPORTS,
        ro_compat: 0,
        incompat: if layout.lines.is_some() { INCOMPAT_SOFTWARE_COHERENCE } else { 0 },
        size,
        created: now(),
        generation: 1,
        layout,
        label: options.label.clone(),
    };
    if header.coherence == Coherence::Software {
        persist::begin_software_coherence();
    }
    write_tables(&backing, &header)?;
    Pool::attach(backing, header, Access::ReadWrite)
}

fn layout_for(path: &Path, size: u64, coherence: Coherence) -> Result<Layout> {
    Layout::of_new(size, coherence).map_err(|source| Error::PoolSize { path: path.to_owned(), source })
}

/// A file that is there keeps its size unless a larger one is asked for; a device's last odd bytes are left over.
fn choose_size(backing: &Backing, wanted: Option<u64>) -> Result<u64> {
    let path = backing.path().to_owned();
    match wanted {
        Some(wanted) if backing.is_device() && wanted > backing.size() => {
            Err(Error::DeviceTooSmall { path, has: Bytes(backing.size()), wanted: Bytes(wanted) })
        }
        Some(wanted) => Ok(wanted),
        None if backing.size() == 0 => Err(Error::SizeNeeded { path }),
        None if backing.is_device() => Ok(backing.size() / GRANULE * GRANULE),
        None => Ok(backing.size()),
    }
}

/// Live members are never formatted away from under their feet.
fn refuse_members(backing: &Backing) -> Result<()> {
    let Ok((header, _)) = read_headers(backing)?.into_usable(backing) else { return Ok(()) };
    let again = Backing::open(backing.path(), Access::ReadOnly)?;
    let Ok(pool) = Pool::attach(again, header, Access::ReadOnly) else { return Ok(()) };
    match pool.hosts().into_iter().find(|host| host.liveness == Liveness::Alive && host.kind == HostKind::Agent) {
        Some(host) => Err(Error::InUse { path: backing.path().to_owned(), host: host.name, pid: host.pid }),
        None => Ok(()),
    }
}

fn refuse_contents(backing: &Backing) -> Result<()> {
    let path = backing.path().to_owned();
    let headers = read_headers(backing)?;
    for copy in headers.copies {
        match copy {
            Ok(header) => return Err(Error::AlreadyPool { path, id: header.id }),
            Err(BadHeader::Foreign) => {}
            // It has the magic: a damaged or a newer pool.
            Err(_) => return Err(Error::ForeignData { path }),
        }
    }
    if backing.size() == 0 || backing.is_all_hole() == Some(true) {
        return Ok(());
    }
    // A device or a hugetlbfs file cannot say whether it was written; the first granule must be empty.
    let empty = backing.is_all_hole().is_none() && backing.size() >= GRANULE && first_granule_is_empty(backing)?;
    if empty { Ok(()) } else { Err(Error::ForeignData { path }) }
}

fn first_granule_is_empty(backing: &Backing) -> Result<bool> {
    let length = usize::try_from(GRANULE).map_err(|_| backing.failed("map", rustix::io::Errno::NOMEM))?;
    let mapping = Mapping::map(backing, 0, length, Access::ReadOnly)?;
    Ok(mapping.words(0, length / 8).iter().all(|word| word.load(Ordering::Relaxed) == 0))
}

fn write_tables(backing: &Backing, header: &Header) -> Result<()> {
    let layout = &header.layout;
    let length = usize::try_from(layout.data).map_err(|_| backing.failed("map", rustix::io::Errno::NOMEM))?;
    let mapping = Mapping::map(backing, 0, length, Access::ReadWrite)?;
    for at in [HEADER_A, HEADER_B] {
        put(mapping.word(at), 0, Ordering::Relaxed);
        mapping.persist(Point::Header, at, size_of::<u64>());
    }
    fence(Ordering::SeqCst);
    empty(backing, &mapping, header.size);
    let owners = mapping.words(layout.owners.offset, layout.first_data_granule());
    owners.iter().for_each(|word| put(word, RESERVED, Ordering::Relaxed));
    mapping.persist(Point::Tables, 0, mapping.length());
    let bytes = header.encode();
    for at in [HEADER_B, HEADER_A] {
        write_header(&mapping, at, &bytes);
    }
    Ok(())
}

/// Makes the tables read as zeros, and gives old contents' memory back where that can be done.
fn empty(backing: &Backing, mapping: &Mapping, size: u64) {
    if backing.is_all_hole() == Some(true) || backing.punch(0, size) {
        return;
    }
    for word in mapping.words(0, mapping.length() / 8) {
        put(word, 0, Ordering::Relaxed);
    }
}

/// Writes one header copy, its magic last. It is in the pool's memory when this returns.
pub(crate) fn write_header(mapping: &Mapping, at: u64, bytes: &[u8; HEADER_BYTES]) {
    put(mapping.word(at), 0, Ordering::Relaxed);
    fence(Ordering::Release);
    mapping.write(at + 8, &bytes[8..]);
    put(mapping.word(at), u64::from_le_bytes(MAGIC), Ordering::Release);
    mapping.persist(Point::Header, at, bytes.len());
}

/// Nanoseconds since 1970 by this host's clock; 0 when it stands before that.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
