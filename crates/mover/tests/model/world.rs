//! The state of the model: a guest's memory, its placement, two moves, and a handoff.
//!
//! What is in a chunk is a number: which store of the guest's life was the last that reached it.

pub(crate) const GRANULES: usize = 2;
pub(crate) const CHUNKS_PER_GRANULE: usize = 2;
pub(crate) const CHUNKS: usize = GRANULES * CHUNKS_PER_GRANULE;
/// The moves: one that decouples everything, one that pulls the first granule back.
pub(crate) const MOVERS: usize = 2;
pub(crate) const PULLED_BACK: usize = 0;
/// The chunk that a device stores into.
pub(crate) const DEVICE_CHUNK: usize = 1;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Side {
    Dram,
    Pool,
}

/// What the placement map says of a granule.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Word {
    Local,
    Mixed,
    Pooled,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Chunk {
    /// What the host's DRAM has.
    pub(crate) dram: u8,
    /// What the pool has.
    pub(crate) pool: u8,
    /// What the guest stored last. (Known to the model only.)
    pub(crate) last: u8,
    /// What the guest's stores reach.
    pub(crate) mapped: Side,
    pub(crate) protected: bool,
}

/// Where a move stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Mover {
    NotBegun,
    /// Before its next chunk.
    Between,
    /// At this chunk, so many steps of which are done. It has the turn.
    At {
        chunk: usize,
        done: usize,
    },
    Ended,
}

/// Who has the turn: nobody else may move memory, or hand it off.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Turn {
    Mover(usize),
    Handoff,
}

/// Where the handoff stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Handoff {
    None,
    /// Nothing moves any more.
    Closed,
    /// The guest stands still, its state is in the pool, and the target may claim it.
    Frozen,
}

/// Where a device stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Device {
    Idle,
    /// Its pin is written down.
    Declared,
    /// It has taken hold of pages there.
    Holds(Side),
}

/// Whose guest it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Owner {
    Source,
    Target,
}

/// What may still happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Budget {
    pub(crate) stores: u8,
    pub(crate) pins: u8,
    pub(crate) pullbacks: u8,
    pub(crate) handoffs: u8,
    pub(crate) cancels: u8,
    pub(crate) crashes: u8,
}

/// What has happened that ought to be possible.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Deeds {
    pub(crate) stored_at_the_target: bool,
    pub(crate) refused: bool,
    pub(crate) withdrawn: bool,
    pub(crate) source_died: bool,
    pub(crate) device_stored: bool,
    pub(crate) pin_seen_late: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct World {
    pub(crate) chunks: [Chunk; CHUNKS],
    pub(crate) words: [Word; GRANULES],
    pub(crate) away: u8,
    pub(crate) owner: Owner,
    pub(crate) source_lives: bool,
    pub(crate) movers: [Mover; MOVERS],
    pub(crate) turn: Option<Turn>,
    /// Whether somebody keeps the pulled back granule from returning.
    pub(crate) is_held: bool,
    pub(crate) is_cancelled: bool,
    pub(crate) handoff: Handoff,
    pub(crate) device: Device,
    pub(crate) stores: u8,
    pub(crate) budget: Budget,
    pub(crate) deeds: Deeds,
}

impl World {
    /// A guest that runs in its host's DRAM, about to be decoupled.
    pub(crate) fn booted(budget: Budget) -> Self {
        Self {
            chunks: [Chunk { dram: 0, pool: u8::MAX, last: 0, mapped: Side::Dram, protected: false }; CHUNKS],
            words: [Word::Local; GRANULES],
            away: u8::try_from(GRANULES).expect("few granules"),
            owner: Owner::Source,
            source_lives: true,
            movers: [Mover::Between, Mover::NotBegun],
            turn: None,
            is_held: false,
            is_cancelled: false,
            handoff: Handoff::None,
            device: Device::Idle,
            stores: 0,
            budget,
            deeds: Deeds::default(),
        }
    }

    pub(crate) fn word_of(&self, chunk: usize) -> Word {
        self.words[chunk / CHUNKS_PER_GRANULE]
    }

    pub(crate) fn not_pooled(&self) -> u8 {
        u8::try_from(self.words.iter().filter(|&&word| word != Word::Pooled).count()).expect("few granules")
    }

    /// Whether the guest is gone: it died with its worker.
    pub(crate) fn is_dead(&self) -> bool {
        !self.source_lives && self.owner == Owner::Source
    }
}
