//! Making and releasing the capacity of a guest's protection.

use super::Protection;
use crate::capacities::granules;
use crate::control::GuestControl;
use crate::error::{Error, Result};
use crate::format::GRANULE;
use crate::format::protection::{PAGES_PER_GRANULE, ProtectionSettings, ProtectionShape, protection_tag};
use crate::membership::Membership;
use crate::state::Shape;

/// Granules of a redo log, unless something else is said: an eighth of the memory, and no less than this.
const LEAST_LOG: u64 = 32;

impl Membership {
    /// Makes a place for commits of a guest: the capacity of its memory, which is to be the image, and that of the protection,
    /// with redo logs of `log_bytes` each (an eighth of the memory and at least 64 MiB, if none are named; never more than the
    /// memory). Where they are there already, only the settings change. For the guest's owner.
    ///
    /// # Errors
    /// As of [`Membership::place_memory`]; then there is no protection, and what memory capacity was made is kept until
    /// [`Membership::unplace_memory`].
    pub fn protect(
        &self,
        guest: &GuestControl,
        settings: ProtectionSettings,
        log_bytes: Option<u64>,
    ) -> Result<Protection> {
        self.require_coherent("protecting a guest")?;
        self.place_memory(guest)?;
        let record = guest.record()?;
        let shape = Shape::of(&record);
        let wanted = log_bytes.map_or(shape.granules / 8, |bytes| bytes.div_ceil(GRANULE)).max(match log_bytes {
            Some(_) => 1,
            None => LEAST_LOG,
        });
        let log_pages = wanted.min(shape.granules) * PAGES_PER_GRANULE;
        let shape = ProtectionShape { guest: shape.guest, vcpus: shape.vcpus, granules: shape.granules, log_pages };
        if let Some(there) = guest.protection()? {
            there.set_settings(settings);
            return Ok(there);
        }
        let size = granules(shape.bytes()).ok_or(Error::GuestMemory { bytes: record.memory_bytes })?;
        let spec = self.guest_capacity_spec(guest, "protection", protection_tag(guest.id()), size)?;
        self.make_for_guest(guest, &spec, |made| {
            let mapping = self.pool().map_reference(made, spec.tag)?;
            Protection::format(&mapping, shape, settings);
            Ok(())
        })?;
        guest.protection()?.ok_or(Error::NoCapacity { tag: spec.tag })
    }

    /// Releases the place for commits of a guest; nothing if there is none. For the guest's owner, which commits nothing more.
    /// The memory capacity stays until [`Membership::unplace_memory`].
    ///
    /// # Errors
    /// [`Error::GuestNotOurs`], [`Error::GuestGone`], [`Error::CapacityBusy`].
    pub fn unprotect(&self, guest: &GuestControl) -> Result<()> {
        self.require_unfenced()?;
        self.require_ours(guest, &guest.record()?)?;
        self.release_protection(guest)
    }

    /// The same, whoever owns the guest: for who destroys it.
    pub(crate) fn release_protection(&self, guest: &GuestControl) -> Result<()> {
        self.release_from(guest, protection_tag(guest.id()), || Ok(()))
    }
}
