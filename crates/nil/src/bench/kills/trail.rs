//! What the pool says of a guest, and when it said so: the history of a round.

use super::judge::may_follow;
use nil_pool::{Arm, GuestControl, Ownership, PlacementMap, PlacementSummary};
use std::fmt;
use std::time::Instant;

/// More changes than any round has; what comes after them is not kept.
const MOST: usize = 64;

/// What the pool says of a guest at some instant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Words {
    pub(super) ownership: Ownership,
    pub(super) arm: Arm,
    /// Where its granules are.
    pub(super) places: PlacementSummary,
    /// Whether the capacity of its memory is there.
    pub(super) has_capacity: bool,
}

/// On which side a guest's memory lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Spread {
    Dram,
    Both,
    Pool,
}

/// A guest's words in the pool.
#[derive(Clone, Debug)]
pub(super) struct GuestWords {
    control: GuestControl,
    map: PlacementMap,
}

/// The words of a guest, each change of them with its time.
#[derive(Clone, Debug)]
pub(super) struct Trail {
    begun: Instant,
    now: Option<Words>,
    changes: Vec<(u128, Words)>,
    fault: Option<String>,
}

impl Words {
    pub(super) fn spread(&self) -> Spread {
        let PlacementSummary { local, mixed, pooled, damaged } = self.places;
        match (local, mixed + damaged, pooled) {
            (_, 0, 0) => Spread::Dram,
            (0, 0, _) => Spread::Pool,
            _ => Spread::Both,
        }
    }

    /// Whether both tell the same, apart from how many granules a move has moved so far.
    fn is_like(&self, other: &Self) -> bool {
        let story = |words: &Self| (words.ownership, words.arm, words.spread(), words.has_capacity);
        story(self) == story(other)
    }
}

impl GuestWords {
    pub(super) fn of(control: &GuestControl) -> anyhow::Result<Self> {
        Ok(Self { control: control.clone(), map: control.map_state()?.placement() })
    }

    pub(super) fn map(&self) -> &PlacementMap {
        &self.map
    }

    /// What they say now.
    pub(super) fn now(&self) -> anyhow::Result<Words> {
        Ok(self.with_ownership(self.control.ownership().load()?))
    }

    fn with_ownership(&self, ownership: Ownership) -> Words {
        Words {
            ownership,
            // A damaged arm word costs time, nothing else; `Pool::check` finds it.
            arm: self.control.arm().load().unwrap_or(Arm::Idle),
            places: self.map.summary(),
            has_capacity: self.control.is_placed(),
        }
    }
}

impl Trail {
    pub(super) fn begin() -> Self {
        Self { begun: Instant::now(), now: None, changes: Vec::new(), fault: None }
    }

    /// Looks at the words, and notes whether they are what may follow what they were.
    pub(super) fn look(&mut self, guest: &GuestWords) -> Words {
        let ownership = guest.control.ownership().load().unwrap_or_else(|bad| {
            self.fault(format!("the ownership word is damaged: {bad}"));
            self.now.map_or(Ownership::Vacant, |now| now.ownership)
        });
        let now = guest.with_ownership(ownership);
        if let Some(before) = self.now.filter(|before| !may_follow(before.ownership, ownership)) {
            self.fault(format!("the ownership word went from `{}` to `{ownership}`", before.ownership));
        }
        if self.now.is_none_or(|before| !before.is_like(&now)) && self.changes.len() < MOST {
            self.changes.push((self.begun.elapsed().as_micros(), now));
        }
        self.now = Some(now);
        now
    }

    /// The first thing that was wrong with them.
    pub(super) fn verdict(&self) -> Result<(), String> {
        self.fault.clone().map_or(Ok(()), Err)
    }

    /// When the round began.
    pub(super) fn begun(&self) -> Instant {
        self.begun
    }

    fn fault(&mut self, what: String) {
        self.fault.get_or_insert(what);
    }
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ownership, arm, places, has_capacity } = self;
        write!(f, "{ownership} ({arm}), ")?;
        match (self.spread(), has_capacity) {
            (Spread::Dram, false) => write!(f, "in DRAM"),
            (Spread::Dram, true) => write!(f, "in DRAM with room in the pool"),
            (Spread::Pool, true) => write!(f, "in the pool"),
            (Spread::Pool | Spread::Both, has_capacity) => {
                let PlacementSummary { local, mixed, pooled, damaged } = places;
                write!(f, "{local} granules local, {mixed} mixed, {pooled} pooled, {damaged} damaged")?;
                f.write_str(if *has_capacity { "" } else { ", without room in the pool" })
            }
        }
    }
}

impl fmt::Display for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (micros, words)) in self.changes.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{micros} µs: {words}")?;
        }
        Ok(())
    }
}
