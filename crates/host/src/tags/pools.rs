//! Capacities of nil pools, and the pools themselves.

use super::{PlaceKind, Stretch, TagPlace, TagsFound};
use nil_pool::{Access, CapacityInfo, Error, Pool, Tag};
use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Looks through the pools at these paths; what is none is passed over.
pub(super) fn find(tag: Tag, candidates: &[PathBuf], found: &mut TagsFound) {
    let pools = open(candidates, &mut found.unseen);
    for pool in &pools {
        // Stripes of its capacities may lie in any of the others.
        pools.iter().for_each(|other| pool.add_companion(other));
        found.places.extend(pool.find_capacity(tag).map(|capacity| in_pool(pool, &capacity)));
        if pool.id().to_bytes() == tag.to_bytes() {
            found.places.push(whole(pool));
        }
    }
}

/// Opens each pool once, under whatever names its file or device is given.
fn open(candidates: &[PathBuf], unseen: &mut Vec<String>) -> Vec<Pool> {
    let mut known = HashSet::new();
    let mut pools = Vec::new();
    for path in candidates {
        let Ok(metadata) = path.metadata() else { continue };
        if !known.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        match Pool::open(path, Access::ReadOnly) {
            Ok(pool) => pools.push(pool),
            // What is not nil's is passed over; a pool that cannot be read may have the tag.
            Err(Error::NotAPool { reason: nil_pool::format::header::BadHeader::Foreign, .. }) => {}
            Err(Error::WrongKind { .. } | Error::Alignment { .. }) => {}
            Err(error) => unseen.push(error.to_string()),
        }
    }
    pools
}

fn in_pool(pool: &Pool, capacity: &CapacityInfo) -> TagPlace {
    let stretches = pool.stretches(capacity.tag);
    let unusable = stretches.as_ref().err().map(ToString::to_string);
    let stretches = stretches.unwrap_or_default().into_iter();
    let stretches = stretches.map(|(source, bytes)| Stretch { path: source.path, offset: source.pool_offset.0, bytes });
    TagPlace {
        kind: PlaceKind::Capacity,
        path: Some(pool.path().to_owned()),
        bytes: Some(capacity.bytes),
        pool: Some(pool.id()),
        stretches: stretches.collect(),
        unusable: unusable.or_else(|| capacity.damage.clone()),
        evidence: vec![format!("capacity {} in pool {} at {}", capacity.slot, pool.id(), pool.path().display())],
    }
}

fn whole(pool: &Pool) -> TagPlace {
    let (path, bytes) = (pool.path().to_owned(), pool.usage().total);
    TagPlace {
        kind: PlaceKind::Pool,
        path: Some(path.clone()),
        bytes: Some(bytes),
        pool: Some(pool.id()),
        evidence: vec![format!("the header of the pool at {}", path.display())],
        stretches: vec![Stretch { path, offset: 0, bytes }],
        unusable: None,
    }
}
