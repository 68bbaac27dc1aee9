//! Whether this host takes guests.
//!
//! A cordon stands in the host tables of all pools that the host has joined, for others to plan by, and in its directory, so
//! that it outlives an agent that ends in order and leaves its pools. The guests that are here stay.

use super::Host;
use crate::capabilities::Placement;
use crate::error::{Error, Result};
use crate::report::CordonReport;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

impl Host {
    /// Has no more guests come to this host, until [`Host::uncordon`].
    pub(crate) fn cordon(&self) -> Result<CordonReport> {
        let mark = self.mark();
        fs::write(&mark, b"").map_err(|error| Error::io("write", &mark, error))?;
        for membership in self.pools.all() {
            membership.cordon(membership.slot())?;
        }
        tracing::info!("cordoned: no more guests come here");
        Ok(self.cordon_report())
    }

    /// Lets guests come again.
    pub(crate) fn uncordon(&self) -> Result<CordonReport> {
        for membership in self.pools.all() {
            membership.uncordon(membership.slot())?;
        }
        let mark = self.mark();
        match fs::remove_file(&mark) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io("remove", &mark, error)),
            Ok(()) | Err(_) => {}
        }
        tracing::info!("not cordoned any more: guests may come");
        Ok(self.cordon_report())
    }

    /// Puts back into the pools what the last agent of this host was told.
    pub(super) fn restore_cordon(&self) -> Result<()> {
        if self.mark().exists() { self.cordon().map(|_| ()) } else { Ok(()) }
    }

    pub(crate) fn cordon_report(&self) -> CordonReport {
        CordonReport { host: self.dir.name().clone(), cordoned: self.is_cordoned() }
    }

    /// Whether this host takes no guests. Another host may have cordoned it, in one of the pools.
    fn is_cordoned(&self) -> bool {
        self.pools.placement() == Placement::Cordoned
    }

    /// Refuses a guest that is to come while the host takes none.
    pub(super) fn check_open(&self) -> Result<()> {
        if self.is_cordoned() {
            let name = self.dir.name();
            return Err(Error::refused(format!(
                "host {name} is cordoned: it takes no guests until `nil uncordon {name}`"
            )));
        }
        Ok(())
    }

    fn mark(&self) -> PathBuf {
        self.dir.path().join("cordoned")
    }
}
