//! A guest's way as the host knows it that has the guest, or has sent it on: kept in the host's directory until it is over
//! here, so that the next agent takes it up.

use crate::agent::now_ms;
use crate::error::{Error, Result};
use crate::itinerary::Onward;
use crate::name::{GuestName, HostName};
use crate::run_dir::HostDir;
use nil_pool::{GuestId, JobId, PoolId};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::PathBuf;

/// A guest's way from this host on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Way {
    pub(in crate::agent) guest: GuestName,
    pub(in crate::agent) id: GuestId,
    /// The pool that had its record when it came, or was to set out.
    pub(in crate::agent) pool: PoolId,
    /// The host that has sent it here; `None` where it sets out.
    pub(in crate::agent) from: Option<HostName>,
    /// What is left of it, as it was planned last.
    pub(in crate::agent) onward: Onward,
    /// To whom the guest is being handed over, or was.
    pub(in crate::agent) next: Option<Next>,
    /// When this was written down: milliseconds since 1970.
    pub(in crate::agent) written_ms: u64,
    /// How many agents have taken it up from another.
    pub(in crate::agent) taken_up: u32,
}

/// The next host on a guest's way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(in crate::agent) struct Next {
    pub(in crate::agent) host: HostName,
    /// The number of its job; `None` when the guest is to stay there.
    pub(in crate::agent) job: Option<JobId>,
}

impl Way {
    fn file(&self, dir: &HostDir) -> PathBuf {
        dir.ways().join(format!("{}.json", self.onward.job))
    }

    /// Writes it down, so that it is there as a whole or as it was before.
    pub(in crate::agent) fn keep(&mut self, dir: &HostDir) -> Result<()> {
        self.spend(now_ms());
        let (ways, file) = (dir.ways(), self.file(dir));
        fs::create_dir_all(&ways).map_err(|error| Error::io("create", &ways, error))?;
        let text = serde_json::to_vec(self).map_err(|error| Error::refused(error.to_string()))?;
        let draft = file.with_extension("new");
        fs::write(&draft, text).map_err(|error| Error::io("write", &draft, error))?;
        fs::rename(&draft, &file).map_err(|error| Error::io("write", &file, error))
    }

    /// It is over here.
    pub(in crate::agent) fn forget(&self, dir: &HostDir) {
        let file = self.file(dir);
        if let Err(error) = fs::remove_file(&file)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("guest {}: {}", self.guest, Error::io("remove", &file, error).story());
        }
    }

    /// What has gone by since it was written down last counts towards its limit.
    pub(in crate::agent) fn spend(&mut self, now_ms: u64) {
        let gone = now_ms.saturating_sub(self.written_ms).saturating_mul(1000);
        self.onward.way.spend(if self.written_ms == 0 { 0 } else { gone });
        self.written_ms = now_ms;
    }

    /// Those that an earlier agent has left, the last one of each guest. Older ones are forgotten: the guest has come back.
    pub(super) fn left(dir: &HostDir) -> Vec<Self> {
        let mut ways: Vec<Self> = Vec::new();
        for entry in fs::read_dir(dir.ways()).into_iter().flatten().flatten() {
            let path = entry.path();
            let read = fs::read(&path).map_err(|error| error.to_string());
            match read.and_then(|text| serde_json::from_slice::<Self>(&text).map_err(|error| error.to_string())) {
                Ok(way) if way.file(dir) == path => ways.push(way),
                Ok(_) => {}
                // A draft, or what another version has written.
                Err(error) => {
                    tracing::warn!("{} is no guest's way, and is removed: {error}", path.display());
                    // If it cannot be removed it is found again.
                    let _ = fs::remove_file(&path);
                }
            }
        }
        ways.sort_by_key(|way| (way.id, std::cmp::Reverse(way.written_ms)));
        let (mut last, mut older) = (Vec::<Self>::new(), Vec::new());
        for way in ways {
            if last.last().is_some_and(|newer| newer.id == way.id) { older.push(way) } else { last.push(way) }
        }
        older.iter().for_each(|way| way.forget(dir));
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::RouteBody;
    use crate::order::Route;
    use crate::run_dir::RunDir;

    fn way(id: GuestId, written_ms: u64, time_limit_us: Option<u64>) -> Way {
        let guest: GuestName = "g".parse().expect("a good name");
        let order = Route { time_limit_us, ..Route::new(guest.clone(), "Z".parse().expect("a good name")) };
        let way = RouteBody::from(&order);
        let onward = Onward { job: JobId::random(), way, steps: Vec::new(), failed: Vec::new(), handoffs: 3 };
        Way { guest, id, pool: PoolId::from_bytes([1; 16]), from: None, onward, next: None, written_ms, taken_up: 0 }
    }

    #[test]
    fn the_next_agent_finds_the_last_way_of_each_guest_and_nothing_that_is_over() {
        let run = tempfile::tempdir().expect("a directory");
        let dir = RunDir::at(run.path()).host(&"A".parse().expect("a good name"));
        assert_eq!(Way::left(&dir), []);
        let (id, other) = (GuestId::random(), GuestId::random());
        let (mut older, mut newer, mut over) = (way(id, 0, None), way(id, 0, None), way(other, 0, None));
        for way in [&mut older, &mut newer, &mut over] {
            way.keep(&dir).expect("it is written down");
        }
        newer.written_ms += 1000;
        fs::write(newer.file(&dir), serde_json::to_vec(&newer).expect("a document")).expect("written");
        over.forget(&dir);
        fs::write(dir.ways().join("draft.new"), b"{").expect("written");
        assert_eq!(Way::left(&dir), [newer.clone()]);
        assert_eq!(fs::read_dir(dir.ways()).expect("the directory").count(), 1);
        assert_eq!(Way::left(&dir), [newer]);
    }

    #[test]
    fn time_that_has_gone_by_counts_towards_the_limit() {
        let mut way = way(GuestId::random(), 1_000, Some(5_000_000));
        let left = |way: &Way| way.onward.way.clone().order(way.guest.clone()).time_limit_us;
        way.spend(3_000);
        assert_eq!(left(&way), Some(3_000_000));
        way.spend(60_000);
        assert_eq!(left(&way), Some(1), "what is over is over at once, and not without limit");
    }
}
