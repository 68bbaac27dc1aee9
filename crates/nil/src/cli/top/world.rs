//! What `nil top` knows of the hosts, from what it has seen of them over time.
//!
//! A [`Survey`] is a moment. Put together, moments tell more: which guest has gone from where to where, and how fast memory
//! moved meanwhile. Nothing here looks at a clock or asks anybody.

use nil_host::{GuestReport, GuestState, HostReport, Survey};
use nil_mover::{Direction, MoveProgress};
use nil_pool::{GuestId, PoolId};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

/// How many moments of bandwidth are kept.
const MOMENTS: usize = 240;
/// How many moves that are over are kept.
const PAST: usize = 100;

/// What was seen, and when: since the beginning.
#[derive(Clone, Debug)]
pub(crate) struct Sighting {
    pub(crate) at: Duration,
    pub(crate) survey: Survey,
}

/// Everything that was seen, put together.
#[derive(Debug, Default, Serialize)]
pub(super) struct World {
    pub(super) hosts: Vec<HostReport>,
    pub(super) pools: Vec<Pool>,
    pub(super) guests: Vec<GuestReport>,
    pub(super) moves: Vec<Move>,
    /// The newest first.
    pub(super) past: VecDeque<Past>,
    /// Bytes per second that all moves together made at each moment, the newest last.
    #[serde(skip)]
    pub(super) rates: VecDeque<u64>,
    /// When the last look was taken.
    #[serde(skip)]
    pub(super) seen: Option<Duration>,
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

/// What is being done with a guest's memory, or with the guest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Move {
    pub(super) guest: String,
    pub(super) host: Option<String>,
    pub(super) step: Step,
    pub(super) progress: Option<MoveProgress>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Step {
    Decoupling,
    Recoupling,
    HandingOver,
}

/// A guest has gone from one host to another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Past {
    pub(super) guest: String,
    pub(super) from: String,
    pub(super) to: String,
    /// When it was seen there: since the beginning.
    #[serde(skip)]
    pub(super) at: Duration,
}

impl World {
    /// Takes note of a moment.
    pub(super) fn see(&mut self, sighting: Sighting) {
        let Sighting { at, survey: Survey { guests, hosts } } = sighting;
        self.note_arrivals(&guests, at);
        self.pools = pools(&hosts, &guests);
        self.moves = guests.iter().filter_map(Move::of).collect();
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
                arrivals.push(Past { guest: guest.name.clone(), from: (*from).to_owned(), to: to.clone(), at });
            }
        }
        for arrival in arrivals {
            self.past.push_front(arrival);
        }
        self.past.truncate(PAST);
    }
}

impl Move {
    fn of(guest: &GuestReport) -> Option<Self> {
        let step = match (&guest.moving, guest.state) {
            (_, GuestState::Migrating) => Step::HandingOver,
            (Some(MoveProgress { direction: Direction::Decouple, .. }), _) => Step::Decoupling,
            (Some(MoveProgress { direction: Direction::Recouple, .. }), _) => Step::Recoupling,
            (None, _) => return None,
        };
        Some(Self { guest: guest.name.clone(), host: guest.host.clone(), step, progress: guest.moving.clone() })
    }

    /// Bytes per second.
    pub(super) fn rate(&self) -> u64 {
        self.progress.as_ref().map_or(0, |progress| progress.bytes_per_s)
    }

    /// How long it will take at this rate; `None` when it does not get on.
    pub(super) fn left(&self) -> Option<Duration> {
        let progress = self.progress.as_ref().filter(|progress| progress.stall.is_none())?;
        let bytes = progress.total_bytes.saturating_sub(progress.done_bytes);
        bytes.checked_div(progress.bytes_per_s).map(Duration::from_secs)
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

    #[test]
    fn pools_are_put_together_from_what_each_of_their_hosts_says() {
        let mut world = World::default();
        world.see(scene::rack());
        let pool = &world.pools[0];
        assert_eq!((pool.hosts.len(), pool.used_bytes, pool.total_bytes), (3, 5 << 30, 16 << 30));
    }

    #[test]
    fn a_guest_that_is_on_another_host_than_before_has_moved() {
        let (mut world, mut later) = (World::default(), scene::rack());
        world.see(scene::rack());
        assert!(world.past.is_empty(), "whoever sees a guest for the first time does not know where it was");
        later.at += Duration::from_secs(1);
        scene::guest(&mut later, "rover").host = Some("B".to_owned());
        world.see(later.clone());
        let past = world.past.front().expect("rover has moved");
        assert_eq!((past.guest.as_str(), past.from.as_str(), past.to.as_str()), ("rover", "A", "B"));
        world.see(later);
        assert_eq!(world.past.len(), 1);
    }

    #[test]
    fn what_all_moves_make_is_the_sum_of_what_each_makes() {
        let mut world = World::default();
        world.see(scene::rack());
        assert_eq!(world.rate(), (3 << 28) + (1 << 28));
        assert_eq!(world.rate_of("A"), 3 << 28);
        assert_eq!(world.rates, [1 << 30]);
    }

    #[test]
    fn a_move_that_waits_or_stands_does_not_say_how_long_it_will_take() {
        let mut world = World::default();
        let mut sighting = scene::rack();
        scene::guest(&mut sighting, "roamer").moving.as_mut().expect("it moves").bytes_per_s = 0;
        world.see(sighting);
        assert!(world.moves.iter().all(|moving| moving.guest != "roamer" || moving.left().is_none()));
        assert!(world.moves.iter().any(|moving| moving.left().is_some()));
    }

    #[test]
    fn moments_and_past_moves_do_not_pile_up() {
        let (mut world, mut here, mut there) = (World::default(), scene::rack(), scene::rack());
        scene::guest(&mut there, "rover").host = Some("C".to_owned());
        for second in 0..300 {
            let next = if second % 2 == 0 { &mut here } else { &mut there };
            next.at = Duration::from_secs(second);
            world.see(next.clone());
        }
        assert_eq!((world.rates.len(), world.past.len()), (MOMENTS, PAST));
    }
}
