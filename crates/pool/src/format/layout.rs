//! Where the tables lie. A new pool's layout follows from its size alone; a reader takes it from the header and checks
//! it, so another implementation may choose other counts.
//!
//! ```text
//! granule 0    header A · host table · journals · reports · … · header B (last 4 KiB)
//! granule 1…   capacity words · tag index · guest words · owner map · guest records · capacity records
//! data         2 MiB granules up to the end
//! ```

use super::GRANULE;
use super::header::Coherence;
use crate::bytes::Bytes;

/// Tables and headers begin at multiples of this.
pub const PAGE: u64 = 4096;
/// Offset of the first header copy.
pub const HEADER_A: u64 = 0;
/// Offset of the second header copy.
pub const HEADER_B: u64 = GRANULE - PAGE;
/// Smallest pool: granule 0, one granule of tables, two of data.
pub const MIN_SIZE: u64 = 4 * GRANULE;
/// Largest pool: 1 PiB, whose owner map is 4 GiB.
pub const MAX_SIZE: u64 = 1 << 50;

/// Bytes of a host entry.
pub const HOST_ENTRY: u32 = 256;
/// Bytes of a host's journal.
pub const JOURNAL_ENTRY: u32 = 4096;
/// Bytes of a slot word, an index word, an owner word.
pub const WORD: u32 = 8;
/// Bytes of a capacity record.
pub const CAPACITY_RECORD: u32 = 1024;
/// Bytes of a guest record: a page of racing words, a page of immutable configuration.
pub const GUEST_RECORD: u32 = 8192;

/// Bytes of an entry of the ring of reports.
pub const REPORT_ENTRY: u32 = 8192;

/// Bytes of a cache line.
pub const LINE: u32 = 64;
/// Bytes of a host's lines, in a pool without hardware coherence: who comes in, whether somebody is in, the host's own.
pub const HOST_LINES: u32 = 4 * LINE;

/// Most hosts that a pool can have (12 bits, one value reserved).
pub const MAX_HOSTS: u32 = 4095;
/// Most capacities (16 bits, one value reserved).
pub const MAX_CAPACITIES: u32 = 65_535;
/// Most guests.
pub const MAX_GUESTS: u32 = 65_535;
/// Most reports.
pub const MAX_REPORTS: u32 = 65_535;

const HOSTS: u32 = 128;
/// Where each guest has a line for each host, all of which are looked at to see who owns it.
const HOSTS_WITH_LINES: u32 = 32;
const REPORTS: u32 = 128;

/// One table: `count` entries of `entry` bytes from `offset`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Table {
    /// Where it begins.
    pub offset: u64,
    /// How many entries.
    pub count: u32,
    /// Bytes of each.
    pub entry: u32,
}

impl Table {
    /// Bytes of the whole table.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.count) * u64::from(self.entry)
    }

    /// Where an entry begins.
    ///
    /// # Panics
    /// When there is no such entry: an index must be checked where it is read.
    #[must_use]
    pub fn at(self, index: usize) -> u64 {
        assert!(index < self.count as usize, "entry {index} of a table of {}", self.count);
        self.offset + index as u64 * u64::from(self.entry)
    }
}

/// All tables of a pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Host entries.
    pub hosts: Table,
    /// One journal per host.
    pub journals: Table,
    /// One slot word per capacity.
    pub capacity_words: Table,
    /// Buckets of references to capacities, by tag.
    pub tags: Table,
    /// One slot word per guest.
    pub guest_words: Table,
    /// One owner word per granule of the pool.
    pub owners: Table,
    /// Guest records.
    pub guests: Table,
    /// Capacity records.
    pub capacities: Table,
    /// The ring of reports; a pool need not have one.
    pub reports: Option<Table>,
    /// The lines that have one writer each; in pools without hardware coherence.
    pub lines: Option<Lines>,
    /// Where the data granules begin.
    pub data: u64,
}

/// Where the lines are that have one writer each, or hold one word each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lines {
    /// Of each host.
    pub hosts: Table,
    /// Of each guest: one line for each host.
    pub guests: Table,
}

/// A layout that contradicts itself or the pool's size.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadLayout {
    /// The size is no multiple of the granule, or too small, or too large.
    #[error("a pool of {}: its size must be a multiple of 2 MiB between 8 MiB and 1 PiB", Bytes(*.0))]
    Size(u64),
    /// A table has a count or an entry size that this version cannot use.
    #[error("the {0} table has a count or an entry size that this version cannot use")]
    Shape(&'static str),
    /// A table is misaligned, reaches out of its area or into another.
    #[error("the {0} table is misplaced")]
    Place(&'static str),
}

impl Layout {
    /// The layout of a new pool of this size, of coherent hosts.
    ///
    /// # Errors
    /// [`BadLayout::Size`].
    pub fn for_size(size: u64) -> Result<Self, BadLayout> {
        Self::of_new(size, Coherence::Hardware)
    }

    /// The layout of a new pool.
    ///
    /// # Errors
    /// [`BadLayout::Size`].
    pub fn of_new(size: u64, coherence: Coherence) -> Result<Self, BadLayout> {
        if !size.is_multiple_of(GRANULE) || !(MIN_SIZE..=MAX_SIZE).contains(&size) {
            return Err(BadLayout::Size(size));
        }
        let granules = u32::try_from(size / GRANULE).map_err(|_| BadLayout::Size(size))?;
        let capacities = granules.next_power_of_two().clamp(256, 1 << 16).min(MAX_CAPACITIES);
        let tag_words = capacities.next_power_of_two() * 2;
        let guests = (granules / 8).next_power_of_two().clamp(16, 1024);

        let host_count = match coherence {
            Coherence::Hardware => HOSTS,
            Coherence::Software => HOSTS_WITH_LINES,
        };

        let mut next = PAGE;
        let mut place = |count: u32, entry: u32| {
            let table = Table { offset: next, count, entry };
            next = (next + table.bytes()).next_multiple_of(PAGE);
            table
        };
        let hosts = place(host_count, HOST_ENTRY);
        let journals = place(host_count, JOURNAL_ENTRY);
        let reports = Some(place(REPORTS, REPORT_ENTRY));
        let host_lines = (coherence == Coherence::Software).then(|| place(host_count, HOST_LINES));

        next = GRANULE;
        let mut place = |count: u32, entry: u32| {
            let table = Table { offset: next, count, entry };
            next = (next + table.bytes()).next_multiple_of(PAGE);
            table
        };
        let capacity_words = place(capacities, WORD);
        let tags = place(tag_words, WORD);
        let guest_words = place(guests, WORD);
        let owners = place(granules, WORD);
        let guests = place(guests, GUEST_RECORD);
        let capacities = place(capacities, CAPACITY_RECORD);
        let lines = host_lines.map(|hosts| Lines { hosts, guests: place(guests.count, host_count * LINE) });
        let data = next.next_multiple_of(GRANULE);
        let layout = Self {
            hosts,
            journals,
            capacity_words,
            tags,
            guest_words,
            owners,
            guests,
            capacities,
            reports,
            lines,
            data,
        };
        layout.validate(size)?;
        Ok(layout)
    }

    /// Checks that every table is where it may be and as large as it may be, before anything is computed from it.
    ///
    /// # Errors
    /// [`BadLayout`] with the table.
    pub fn validate(&self, size: u64) -> Result<(), BadLayout> {
        if !size.is_multiple_of(GRANULE) || !(MIN_SIZE..=MAX_SIZE).contains(&size) {
            return Err(BadLayout::Size(size));
        }
        if !self.data.is_multiple_of(GRANULE) || self.data < 2 * GRANULE || self.data >= size {
            return Err(BadLayout::Place("data"));
        }
        self.validate_shapes(size)?;
        self.validate_places()
    }

    fn validate_shapes(&self, size: u64) -> Result<(), BadLayout> {
        let granules = u32::try_from(size / GRANULE).map_err(|_| BadLayout::Size(size))?;
        let tags = 16..=1 << 24;
        let shapes = [
            ("host", self.hosts, HOST_ENTRY, (1..=MAX_HOSTS).contains(&self.hosts.count)),
            ("journal", self.journals, JOURNAL_ENTRY, self.journals.count == self.hosts.count),
            ("capacity word", self.capacity_words, WORD, (1..=MAX_CAPACITIES).contains(&self.capacity_words.count)),
            ("tag", self.tags, WORD, self.tags.count.is_power_of_two() && tags.contains(&self.tags.count)),
            ("guest word", self.guest_words, WORD, (1..=MAX_GUESTS).contains(&self.guest_words.count)),
            ("owner", self.owners, WORD, self.owners.count == granules),
            ("guest", self.guests, GUEST_RECORD, self.guests.count == self.guest_words.count),
            ("capacity", self.capacities, CAPACITY_RECORD, self.capacities.count == self.capacity_words.count),
        ];
        let lines = self.lines.map(|lines| {
            [
                ("host line", lines.hosts, HOST_LINES, lines.hosts.count == self.hosts.count),
                ("guest line", lines.guests, self.hosts.count * LINE, lines.guests.count == self.guests.count),
            ]
        });
        let reports = self.reports.map(|ring| ("report", ring, REPORT_ENTRY, (1..=MAX_REPORTS).contains(&ring.count)));
        match shapes
            .iter()
            .chain(&reports)
            .chain(lines.iter().flatten())
            .find(|(_, table, entry, count)| table.entry != *entry || !count)
        {
            Some((name, ..)) => Err(BadLayout::Shape(name)),
            None => Ok(()),
        }
    }

    /// The same with a ring of reports there, if it can be there; else with none.
    #[must_use]
    pub fn with_reports(self, ring: Table, size: u64) -> Self {
        let with = Self { reports: Some(ring), ..self };
        if with.validate(size).is_ok() { with } else { Self { reports: None, ..self } }
    }

    fn validate_places(&self) -> Result<(), BadLayout> {
        let mut tables = self.named().to_vec();
        tables.extend(self.reports.map(|ring| ("report", ring)));
        tables.extend(self.lines.iter().flat_map(|lines| [("host line", lines.hosts), ("guest line", lines.guests)]));
        tables.sort_by_key(|(_, table)| table.offset);
        let mut end = PAGE;
        for (name, table) in tables {
            let after = table.offset.checked_add(table.bytes()).ok_or(BadLayout::Place(name))?;
            let over_header_b = table.offset < HEADER_B + PAGE && after > HEADER_B;
            if !table.offset.is_multiple_of(PAGE) || table.offset < end || after > self.data || over_header_b {
                return Err(BadLayout::Place(name));
            }
            end = after;
        }
        Ok(())
    }

    /// Every table that a pool must have, with its name, in the order of the header's descriptors.
    #[must_use]
    pub fn named(&self) -> [(&'static str, Table); 8] {
        [
            ("host", self.hosts),
            ("journal", self.journals),
            ("capacity word", self.capacity_words),
            ("tag", self.tags),
            ("guest word", self.guest_words),
            ("owner", self.owners),
            ("guest", self.guests),
            ("capacity", self.capacities),
        ]
    }

    /// Index of the first data granule.
    #[must_use]
    pub fn first_data_granule(&self) -> usize {
        usize::try_from(self.data / GRANULE).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_small_pool_spends_two_granules_on_its_tables() {
        let layout = Layout::for_size(16 << 20).expect("a small pool");
        assert_eq!(layout.data, 2 * GRANULE);
    }

    #[test]
    fn a_tebibyte_spends_less_than_a_hundred_mebibytes_on_its_tables() {
        let layout = Layout::for_size(1 << 40).expect("a large pool");
        assert_eq!(layout.owners.bytes(), 4 << 20);
        assert!(layout.data < 100 << 20, "{}", layout.data);
    }

    #[test]
    fn sizes_that_are_no_pool_are_refused() {
        for size in [0, 1, GRANULE, 3 * GRANULE, MIN_SIZE + 1, MAX_SIZE + GRANULE, u64::MAX] {
            assert_eq!(Layout::for_size(size), Err(BadLayout::Size(size)));
        }
    }

    #[test]
    fn tables_that_overlap_are_refused() {
        let size = 16 << 20;
        let mut layout = Layout::for_size(size).expect("a small pool");
        layout.owners.offset = layout.guest_words.offset;
        assert_eq!(layout.validate(size), Err(BadLayout::Place("owner")));
        let mut layout = Layout::for_size(size).expect("a small pool");
        layout.journals.offset = HEADER_B;
        assert_eq!(layout.validate(size), Err(BadLayout::Place("journal")));
    }

    #[test]
    fn a_ring_of_reports_that_cannot_be_there_is_none() {
        let size = 16 << 20;
        let layout = Layout::for_size(size).expect("a small pool");
        let ring = layout.reports.expect("a new pool has one");
        assert_eq!(layout.with_reports(ring, size), layout);
        for wrong in [
            Table { offset: layout.hosts.offset, ..ring },
            Table { offset: ring.offset + 8, ..ring },
            Table { offset: HEADER_B - 4096, count: 1, ..ring },
            Table { offset: layout.data, count: 1, ..ring },
            Table { offset: u64::MAX - 4095, ..ring },
            Table { count: 0, ..ring },
            Table { count: u32::MAX, ..ring },
            Table { entry: 4096, ..ring },
            Table { offset: 0, count: 0, entry: 0 },
        ] {
            assert_eq!(layout.with_reports(wrong, size).reports, None, "{wrong:?}");
        }
    }

    #[test]
    fn lines_that_are_not_as_many_as_hosts_and_guests_are_refused() {
        let size = 16 << 20;
        let layout = Layout::of_new(size, Coherence::Software).expect("a small pool");
        let lines = layout.lines.expect("such a pool has lines");
        let few = Table { count: lines.hosts.count - 1, ..lines.hosts };
        let narrow = Table { entry: LINE, ..lines.guests };
        let over = Table { offset: layout.owners.offset, ..lines.guests };
        for (lines, wrong) in [
            (Lines { hosts: few, ..lines }, BadLayout::Shape("host line")),
            (Lines { guests: narrow, ..lines }, BadLayout::Shape("guest line")),
            (Lines { guests: over, ..lines }, BadLayout::Place("guest line")),
        ] {
            assert_eq!(Layout { lines: Some(lines), ..layout }.validate(size), Err(wrong));
        }
    }

    proptest! {
        #[test]
        fn every_size_has_a_valid_layout(granules in MIN_SIZE / GRANULE..=MAX_SIZE / GRANULE) {
            let size = granules * GRANULE;
            for coherence in [Coherence::Hardware, Coherence::Software] {
                let layout = Layout::of_new(size, coherence).expect("a layout");
                prop_assert_eq!(layout.validate(size), Ok(()));
            }
        }
    }
}
