//! What must hold of a pool, of a guest's memory in it, and of what a guest has found in itself.

use super::verdict::Verdict;
use anyhow::ensure;
use nil_pool::{Epoch, HostSlot, Place, PlacementMap, Pool, Severity};

/// What has become of a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    Runs,
    Lost,
}

/// A granule of a guest's memory that is nowhere, or in a place where it cannot be while nothing moves; a count that is
/// wrong.
pub(crate) fn misplaced(map: &PlacementMap, (owner, now): (HostSlot, Epoch), fate: Fate) -> Option<String> {
    for granule in 0..map.granules() {
        let place = match map.get(granule) {
            Ok(placed) => placed.place,
            Err(bad) => return Some(bad.to_string()),
        };
        let is_possible = match place {
            Place::Local { host, epoch } => host == owner && epoch <= now,
            Place::Mixed { host, epoch } => host == owner && epoch <= now && fate == Fate::Lost,
            Place::Pooled => true,
        };
        if !is_possible {
            return Some(format!("granule {granule} of the guest's memory is {place}"));
        }
    }
    let (away, counted) = (map.away(), map.summary().away());
    (away != counted).then(|| format!("{counted} granules are away from the pool, and `away` says {away}"))
}

/// Fails when the pool's own check finds anything but notes.
pub(crate) fn require_sound(pool: &Pool) -> anyhow::Result<()> {
    let report = pool.check(false);
    let wrong = report.findings.iter().filter(|finding| finding.severity != Severity::Note && !finding.repaired);
    let wrong: Vec<String> = wrong.map(|finding| format!("{}: {}", finding.place, finding.what)).collect();
    ensure!(report.is_clean(), "the pool is not sound: {}", wrong.join("; "));
    Ok(())
}

/// Fails when a guest has found an error.
pub(crate) fn require_clean(verdict: &Verdict) -> anyhow::Result<()> {
    ensure!(verdict.is_clean(), "the guest found an error: {}", verdict.first_error.as_deref().unwrap_or_default());
    Ok(())
}
