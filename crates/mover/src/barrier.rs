//! What keeps stores out of a chunk while it moves.
//!
//! | Barrier | A thread that stores | A vCPU | Where |
//! |---|---|---|---|
//! | `Userfault` | waits in the kernel | waits in `KVM_RUN` | anonymous memory, tmpfs, hugetlbfs |
//! | `Protect` | SIGSEGV; its handler waits | `KVM_RUN` says `EFAULT`; its thread waits, tries again | everything else: DAX |
//!
//! Loads go through with both. A barrier is lifted either because something else is mapped there now (it is gone with
//! the mapping that it was on; who waits has only to be told), or because the chunk stays where it is.

use crate::dram::{AddressRange, Stores};
use crate::error::{Error, Result};
use crate::lost::Watch;
use crate::userfault::Userfault;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// How stores are kept out.
#[derive(Debug)]
pub(crate) enum Barrier {
    /// By a userfaultfd.
    Userfault(Arc<Userfault>),
    /// By mprotect.
    Protect,
    /// Not at all: stores are lost. It proves that the tests would see it.
    #[cfg(any(test, feature = "testing"))]
    Unprotected,
}

/// The chunk's memory, and who looks out for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ground<'a> {
    pub(crate) range: &'a AddressRange,
    pub(crate) watch: &'a Watch,
}

impl Ground<'_> {
    fn addresses(&self, part: &Range<usize>) -> Range<usize> {
        let start = self.range.at(part.start).addr();
        start..start + part.len()
    }
}

impl Barrier {
    /// The barrier for this part of a guest's memory: a userfaultfd if all that is mapped there can be registered with it.
    pub(crate) fn choose(userfault: Arc<Userfault>, ground: Ground<'_>, part: &Range<usize>) -> Result<Self> {
        let barrier = Self::Userfault(userfault);
        match barrier.prepare(ground, part) {
            Ok(()) => Ok(barrier),
            // Some of it is memory of which the kernel's userfaultfd knows nothing: a DAX device's.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Self::Protect),
            Err(source) => Err(Error::Barrier { what: "get ready to write-protect", source }),
        }
    }

    /// Gets ready to protect this part, chunk by chunk.
    pub(crate) fn prepare(&self, ground: Ground<'_>, part: &Range<usize>) -> io::Result<()> {
        match self {
            Self::Userfault(userfault) => userfault.register(&ground.addresses(part)),
            Self::Protect => Ok(()),
            #[cfg(any(test, feature = "testing"))]
            Self::Unprotected => Ok(()),
        }
    }

    /// From now on stores into the chunk wait. If it fails, a part of it may be protected: whatever comes of it,
    /// [`Barrier::lift`] or [`Barrier::replaced`] ends it.
    pub(crate) fn raise(&self, ground: Ground<'_>, chunk: &Range<usize>) -> Result<()> {
        let failed = |source| Error::Barrier { what: "write-protect", source };
        match self {
            Self::Userfault(userfault) => {
                let addresses = ground.addresses(chunk);
                match userfault.protect(&addresses) {
                    // What lies there has not been registered: it came since the move began.
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                        userfault.register(&addresses).map_err(failed)?;
                        userfault.protect(&addresses).map_err(failed)
                    }
                    result => result.map_err(failed),
                }
            }
            Self::Protect => {
                ground.watch.raise();
                ground.range.set_stores(chunk, Stores::Refused).map_err(failed)
            }
            #[cfg(any(test, feature = "testing"))]
            Self::Unprotected => Ok(()),
        }
    }

    /// How many stores have begun to wait for the chunk since it was asked last.
    pub(crate) fn waiting(&self, ground: Ground<'_>, chunk: &Range<usize>) -> Result<usize> {
        match self {
            Self::Userfault(userfault) => userfault
                .drain(&ground.addresses(chunk))
                .map_err(|source| Error::Barrier { what: "read from the userfaultfd of", source }),
            Self::Protect => Ok(ground.watch.take_waits()),
            #[cfg(any(test, feature = "testing"))]
            Self::Unprotected => Ok(0),
        }
    }

    /// Something else is mapped in place of the chunk: stores go on, into that.
    pub(crate) fn replaced(&self, ground: Ground<'_>, chunk: &Range<usize>) -> Result<()> {
        match self {
            Self::Userfault(userfault) => userfault
                .wake(&ground.addresses(chunk))
                .map_err(|source| Error::Barrier { what: "wake the stores that wait for", source }),
            Self::Protect => {
                ground.watch.lift();
                Ok(())
            }
            #[cfg(any(test, feature = "testing"))]
            Self::Unprotected => Ok(()),
        }
    }

    /// The chunk stays where it is: stores go on, at least as far as to find that they are refused once more.
    pub(crate) fn lift(&self, ground: Ground<'_>, chunk: &Range<usize>) -> Result<()> {
        let failed = |source| Error::Barrier { what: "lift the write protection of", source };
        match self {
            Self::Userfault(userfault) => {
                let addresses = ground.addresses(chunk);
                userfault.unprotect(&addresses).map_err(|source| {
                    // The first error is the one that counts.
                    let _ = userfault.wake(&addresses);
                    failed(source)
                })
            }
            Self::Protect => {
                let unprotected = ground.range.set_stores(chunk, Stores::Permitted);
                ground.watch.lift();
                unprotected.map_err(failed)
            }
            #[cfg(any(test, feature = "testing"))]
            Self::Unprotected => Ok(()),
        }
    }
}
