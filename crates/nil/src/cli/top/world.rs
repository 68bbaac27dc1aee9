//! What `nil top` knows of the hosts, from what it has seen of them over time.
//!
//! Agents say how their guests and jobs are. Put together, moments tell more: which guest has gone from where to where
//! although no agent here tells of it, and how fast memory moved. Nothing here looks at a clock or asks anybody.

mod moves;

use nil_host::{GuestReport, HostReport, JobSummary, Survey};
use nil_pool::{GuestId, PoolId};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

pub(super) use moves::{Ending, Move, Past, Step};

/// How many moments of bandwidth are kept.
const MOMENTS: usize = 240;
/// How many moves that are over are kept.
pub(super) const PAST: u16 = 100;

/// What was seen, and when: since 1970.
#[derive(Clone, Debug)]
pub(crate) struct Sighting {
    pub(crate) at: Duration,
    pub(crate) survey: Survey,
    /// The jobs of all agents, each once.
    pub(crate) jobs: Vec<JobSummary>,
}

/// Everything that was seen, put together.
#[derive(Debug, Default, Serialize)]
pub(super) struct World {
    pub(super) hosts: Vec<HostReport>,
    pub(super) pools: Vec<Pool>,
    pub(super) guests: Vec<GuestReport>,
    pub(super) moves: Vec<Move>,
    /// The newest first.
    pub(super) past: Vec<Past>,
    /// Bytes per second that all moves together made at each moment, the newest last.
    #[serde(skip)]
    pub(super) rates: VecDeque<u64>,
    /// When the last look was taken.
    #[serde(skip)]
    pub(super) seen: Option<Duration>,
    /// Guests that came to another host, the newest first.
    #[serde(skip)]
    arrivals: VecDeque<Past>,
}

/// A pool, as all of its hosts together describe it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Pool {
    pub(super) id: PoolId,
    /// Where the first of them finds it.
    pub(super) path: PathBuf,
    pub(super) used_bytes: u64,
    pub(super) total_bytes: u64,
    pub(super) hosts: Vec<String>,
    /// Guests whose record is there.
    pub(super) guests: usize,
}

impl World {
    /// Takes note of a moment.
    pub(super) fn see(&mut self, sighting: Sighting) {
        let Sighting { at, survey: Survey { guests, hosts, .. }, jobs } = sighting;
        self.note_arrivals(&guests, at);
        self.pools = pools(&hosts, &guests);
        self.moves = moves::under_way(&jobs, &guests);
        self.past = moves::over(&jobs, &self.arrivals, PAST.into());
        self.hosts = hosts;
        self.guests = guests;
        self.seen = Some(at);
        self.rates.push_back(self.rate());
        if self.rates.len() > MOMENTS {
            self.rates.pop_front();
        }
    }

    /// Bytes per second that all moves together make.
    pub(super) fn rate(&self) -> u64 {
        self.moves.iter().fold(0, |sum, moving| sum.saturating_add(moving.rate()))
    }

    /// The same, of the guests of one host.
    pub(super) fn rate_of(&self, host: &str) -> u64 {
        let of_host = self.moves.iter().filter(|moving| moving.host.as_deref() == Some(host));
        of_host.fold(0, |sum, moving| sum.saturating_add(moving.rate()))
    }

    /// A guest that had one host and has another now has moved.
    fn note_arrivals(&mut self, guests: &[GuestReport], at: Duration) {
        let before: BTreeMap<GuestId, &str> =
            self.guests.iter().filter_map(|guest| Some((guest.id, guest.host.as_deref()?))).collect();
        let mut arrivals = Vec::new();
        for guest in guests {
            let (Some(from), Some(to)) = (before.get(&guest.id), &guest.host) else { continue };
            if from != to {
                arrivals.push(Past::arrival(guest, from, to, at));
            }
        }
        for arrival in arrivals {
            self.arrivals.push_front(arrival);
        }
        self.arrivals.truncate(PAST.into());
    }
}

/// The pools of all hosts, by their paths.
fn pools(hosts: &[HostReport], guests: &[GuestReport]) -> Vec<Pool> {
    let mut pools: Vec<Pool> = Vec::new();
    for host in hosts {
        for report in &host.pools {
            if let Some(pool) = pools.iter_mut().find(|pool| pool.id == report.id) {
                pool.hosts.push(host.name.to_string());
                continue;
            }
            pools.push(Pool {
                id: report.id,
                path: report.path.clone(),
                used_bytes: report.total_bytes.saturating_sub(report.free_bytes),
                total_bytes: report.total_bytes,
                hosts: vec![host.name.to_string()],
                guests: guests.iter().filter(|guest| guest.pool == report.path).count(),
            });
        }
    }
    pools.sort_by(|a, b| a.path.cmp(&b.path));
    pools
}

#[cfg(test)]
mod tests {
    use super::super::scene;
    use super::*;

    fn world(sighting: Sighting) -> World {
        let mut world = World::default();
        world.see(sighting);
        world
    }

    #[test]
    fn pools_are_put_together_from_what_each_of_their_hosts_says() {
        let world = world(scene::rack());
        let pool = &world.pools[0];
        assert_eq!((pool.hosts.len(), pool.used_bytes, pool.total_bytes), (3, 5 << 30, 16 << 30));
    }

    #[test]
    fn a_guest_that_is_on_another_host_than_before_has_moved_also_when_no_agent_tells_of_it() {
        let (mut world, mut later) = (world(scene::rack()), scene::rack());
        let known = world.past.len();
        later.at += Duration::from_secs(1);
        scene::guest(&mut later, "settler").host = Some("A".to_owned());
        world.see(later.clone());
        let past = &world.past[0];
        assert_eq!((past.guest.as_str(), past.from.as_deref(), past.to.as_deref()), ("settler", Some("B"), Some("A")));
        assert_eq!((past.blackout_ns, past.at), (None, later.at));
        world.see(later);
        assert_eq!(world.past.len(), known + 1);
    }

    #[test]
    fn a_move_of_which_an_agent_tells_is_told_once() {
        let (mut world, mut later) = (world(scene::rack()), scene::rack());
        let known = world.past.len();
        scene::guest(&mut later, "rover").host = Some("B".to_owned());
        world.see(later);
        assert_eq!(world.past.len(), known, "scene has the job that took rover to B");
    }

    #[test]
    fn what_all_moves_make_is_the_sum_of_what_each_makes() {
        let world = world(scene::rack());
        assert_eq!(world.rate(), (3 << 28) + (1 << 28));
        assert_eq!(world.rate_of("A"), 3 << 28);
        assert_eq!(world.rates, [1 << 30]);
    }

    #[test]
    fn a_move_that_waits_or_stands_does_not_say_how_long_it_will_take() {
        let mut sighting = scene::rack();
        scene::guest(&mut sighting, "settler").moving.as_mut().expect("it moves").bytes_per_s = 0;
        let world = world(sighting);
        let left = |guest: &str| world.moves.iter().find(|moving| moving.guest == guest).and_then(Move::left);
        assert_eq!((left("settler"), left("pinned")), (None, None));
        assert_eq!(left("roamer"), Some(Duration::from_secs(1)));
    }

    #[test]
    fn moments_and_past_moves_do_not_pile_up() {
        let (mut world, mut here, mut there) = (World::default(), scene::rack(), scene::rack());
        scene::guest(&mut there, "settler").host = Some("C".to_owned());
        for second in 0..300 {
            let next = if second % 2 == 0 { &mut here } else { &mut there };
            next.at = Duration::from_secs(second);
            world.see(next.clone());
        }
        assert_eq!((world.rates.len(), world.past.len()), (MOMENTS, usize::from(PAST)));
    }
}
