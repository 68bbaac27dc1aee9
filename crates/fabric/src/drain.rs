//! Emptying hosts.

use crate::guest::{Guest, Limits};
use crate::model::HostId;
use crate::plan::Plan;
use crate::planner::Planner;
use crate::schedule::{Order, Schedule};
use std::cmp::Reverse;

impl Planner<'_> {
    /// A plan by which hosts are emptied: each guest on them that is in the list goes to a host with room for it that is
    /// neither cordoned nor emptied. The largest are placed first. Guests of other hosts stay.
    #[must_use]
    pub fn drain(&self, guests: &[Guest], hosts: &[HostId], limits: Limits) -> Plan {
        let mut leaving: Vec<usize> = (0..guests.len()).filter(|at| hosts.contains(&guests[*at].host)).collect();
        leaving.sort_by_key(|at| (Reverse(guests[*at].memory), &guests[*at].name, *at));
        let orders = leaving.into_iter().map(|guest| Order { guest, to: None }).collect();
        Schedule::new(self, guests, hosts, limits).run(orders)
    }
}
