//! The ring of reports: what agents want to be known about jobs that have ended, whichever of them is asked.
//!
//! ```text
//!            claim                       commit
//! Free(s) ─────────► Making(h, s+n·k) ─────────► Live(s+n·k) ──claim──▶ …       n entries; report s is in entry s mod n
//!    ▲                     │ h is dead
//!    └─────────────────────┘
//! ```
//!
//! A report's sequence number is larger than all that are there. The newest overwrites the oldest. Whoever writes claims
//! an entry by compare-and-swap on its word, so several hosts write at once; whoever reads looks at the word before and
//! after, and at the checksum. A writer that dies loses that entry, until it is known to be dead. One that was taken for
//! dead and goes on may spoil the report that is in its entry by then, which its checksum shows.
//!
//! The words are worked on as slices of atomics, so that loom can walk through it.

use crate::create::now;
use crate::error::{Error, Result};
use crate::format::BadRecord;
use crate::format::report::{MAX_REPORT, ReportRecord};
use crate::format::slot_word::{LAST_GENERATION, Reference, SlotState};
use crate::ids::{GuestId, JobId};
use crate::liveness::Liveness;
use crate::membership::Membership;
use crate::ownership::HostSlot;
use crate::pool::Pool;
use crate::slots::Slots;
use crate::sync::{Ordering, fence};
use crate::tables::Seen;

/// What a pool remembers of a job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The job.
    pub job: JobId,
    /// The guest that it was about.
    pub guest: GuestId,
    /// Nanoseconds since 1970 when it was written, by its writer's clock.
    pub written: u64,
    /// What it says, in its writer's form.
    pub bytes: Vec<u8>,
}

impl From<ReportRecord> for Report {
    fn from(record: ReportRecord) -> Self {
        let ReportRecord { job, guest, written, bytes, .. } = record;
        Self { job, guest, written, bytes }
    }
}

/// Claims the entry of the next report for `host`: that of the oldest, but not one that somebody writes at this moment
/// who is not `abandoned`. `None` when there is none, or when the sequence numbers are used up.
#[must_use]
pub fn claim(entries: Slots<'_>, host: HostSlot, abandoned: impl Fn(HostSlot) -> bool) -> Option<Reference> {
    let count = entries.count() as u64;
    let first = newest(entries) + 1;
    // Others claim, too: each of them can make this one go one entry further.
    for sequence in (first..=LAST_GENERATION).take(entries.count() * 2) {
        let entry = usize::try_from(sequence % count).ok()?;
        let found = match entries.load(entry) {
            Ok(state @ (SlotState::Free { generation } | SlotState::Live { generation })) if generation < sequence => {
                state
            }
            Ok(state @ SlotState::Making { host, generation }) if generation < sequence && abandoned(host) => state,
            Ok(_) | Err(_) => continue,
        };
        if entries.transition(entry, found, SlotState::Making { host, generation: sequence }) {
            // Whoever sees a byte of the new report sees that the word has changed.
            fence(Ordering::Release);
            return Some(Reference { slot: u16::try_from(entry).ok()?, generation: sequence });
        }
    }
    None
}

/// The largest sequence number.
fn newest(entries: Slots<'_>) -> u64 {
    let count = entries.count() as u64;
    let sequence = |entry: usize| match entries.load(entry).ok()? {
        SlotState::Free { generation }
        | SlotState::Making { generation, .. }
        | SlotState::Live { generation }
        | SlotState::Unmaking { generation, .. } => {
            // What is in the wrong place is damage.
            (generation % count == entry as u64).then_some(generation)
        }
    };
    (0..entries.count()).filter_map(sequence).max().unwrap_or(0)
}

impl Membership {
    /// Keeps a report about a job in the pool, where every host finds it ([`Pool::report`]), until newer ones have taken
    /// its place. At most [`MAX_REPORT`] bytes.
    ///
    /// # Errors
    /// [`Error::ReportTooLong`], [`Error::NoReports`] when the pool has no room for any, [`Error::Fenced`].
    pub fn keep_report(&self, job: JobId, guest: GuestId, bytes: &[u8]) -> Result<()> {
        self.require_unfenced()?;
        if bytes.len() > MAX_REPORT {
            return Err(Error::ReportTooLong { bytes: bytes.len() });
        }
        let _turn = self.exclusive()?;
        let (pool, tables) = (self.pool(), self.pool().tables());
        let none = || Error::NoReports { path: pool.path().to_owned() };
        let entries = tables.report_slots().ok_or_else(none)?;
        let abandoned = |writer| writer != self.slot() && pool.liveness(writer) == Liveness::Dead;
        let claimed = claim(entries, self.slot(), abandoned).ok_or_else(none)?;
        let (sequence, written, bytes) = (claimed.generation, now(), bytes.to_vec());
        tables.write_report(claimed.slot.into(), &ReportRecord { sequence, job, guest, written, bytes });
        // If a peer has taken this host for dead meanwhile, the entry is another's.
        if entries.commit(claimed, self.slot()) { Ok(()) } else { Err(Error::Fenced) }
    }
}

impl Pool {
    /// Whether the pool has room for reports. Those that an older nil made have not.
    #[must_use]
    pub fn keeps_reports(&self) -> bool {
        self.tables().layout().reports.is_some()
    }

    /// The reports that are there, the newest first. What is damaged is left out.
    #[must_use]
    pub fn reports(&self) -> Vec<Report> {
        let mut records: Vec<ReportRecord> =
            self.report_entries().filter_map(|entry| self.report_in(entry).ok()?).collect();
        records.sort_by_key(|record| std::cmp::Reverse(record.sequence));
        records.into_iter().map(Report::from).collect()
    }

    /// What has changed since somebody has looked: each entry of the ring whose report has another sequence number than
    /// `seen` has for it, and the report, if a whole one is there. `seen` is brought up to date; at first it is empty.
    #[must_use]
    pub fn reports_since(&self, seen: &mut Vec<u64>) -> Vec<(usize, Option<Report>)> {
        seen.resize(self.report_entries().len(), 0);
        let changed = seen.iter_mut().enumerate().filter_map(|(entry, seen)| {
            let sequence = match self.tables().report_slots()?.load(entry) {
                Ok(SlotState::Live { generation }) => generation,
                Ok(_) | Err(_) => 0,
            };
            if std::mem::replace(seen, sequence) == sequence {
                return None;
            }
            // One that has come meanwhile has another number, and is found the next time.
            let record = self.report_in(entry).ok().flatten().filter(|record| record.sequence == sequence);
            Some((entry, record.map(Report::from)))
        });
        changed.collect()
    }

    /// The report in an entry of the ring, if a whole one is there.
    #[must_use]
    pub fn report_at(&self, entry: usize) -> Option<Report> {
        self.report_in(entry).ok().flatten().map(Report::from)
    }

    /// The newest report about a job.
    #[must_use]
    pub fn report(&self, job: JobId) -> Option<Report> {
        let records = self.report_entries().filter_map(|entry| self.report_in(entry).ok()?);
        records.filter(|record| record.job == job).max_by_key(|record| record.sequence).map(Report::from)
    }

    /// The places of the ring.
    pub(crate) fn report_entries(&self) -> std::ops::Range<usize> {
        0..self.tables().report_slots().map_or(0, |entries| entries.count())
    }

    /// The report in an entry, if one is there.
    pub(crate) fn report_in(&self, entry: usize) -> std::result::Result<Option<ReportRecord>, BadRecord> {
        match self.tables().report(entry) {
            Seen::Used(SlotState::Live { generation }, record) => {
                let record = record?;
                if record.sequence != generation {
                    return Err(BadRecord::Field("sequence"));
                }
                Ok(Some(record))
            }
            Seen::Free | Seen::Used(..) => Ok(None),
            Seen::BadWord(_) => Err(BadRecord::Field("word")),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::fault::armed::crash_after;
    use crate::recovery::Actor;
    use crate::{CreateOptions, GRANULE, HostId, HostIdentity, HostKind};

    fn pool() -> (tempfile::TempDir, Pool) {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
        let options = CreateOptions { size: Some(4 * GRANULE), ..CreateOptions::default() };
        let pool = Pool::create(&directory.path().join("pool"), &options).expect("a new pool");
        (directory, pool)
    }

    fn member(pool: &Pool, name: &str) -> Membership {
        let (id, name) = (HostId::random(), name.to_owned());
        pool.join(&HostIdentity { id, name, kind: HostKind::Agent, address: None }).expect("membership")
    }

    fn keep(host: &Membership, text: &str) -> JobId {
        let job = JobId::random();
        host.keep_report(job, GuestId::from_bytes([7; 16]), text.as_bytes()).expect("kept");
        job
    }

    fn assert_kept(host: &Membership, number: usize) {
        let job = keep(host, &number.to_string());
        assert!(host.pool().report(job).is_some());
    }

    #[test]
    fn a_report_is_found_by_its_job_and_the_newest_comes_first() {
        let (_directory, pool) = pool();
        let (a, b) = (member(&pool, "a"), member(&pool, "b"));
        let (first, second) = (keep(&a, "one"), keep(&b, "two"));
        let again = Pool::open(pool.path(), crate::Access::ReadOnly).expect("the pool");
        let texts = |pool: &Pool| pool.reports().into_iter().map(|report| report.bytes).collect::<Vec<_>>();
        assert_eq!(texts(&again), [b"two", b"one"]);
        assert_eq!(again.report(first).expect("kept").bytes, b"one");
        a.keep_report(first, GuestId::from_bytes([7; 16]), b"said again").expect("kept");
        assert_eq!(again.report(first).expect("kept").bytes, b"said again");
        assert_eq!(again.report(second).expect("kept").guest, GuestId::from_bytes([7; 16]));
        assert_eq!(again.report(JobId::random()), None);
    }

    #[test]
    fn the_newest_take_the_place_of_the_oldest() {
        let (_directory, pool) = pool();
        let host = member(&pool, "a");
        let room = pool.report_entries().len();
        let jobs: Vec<JobId> = (0..room + 3).map(|number| keep(&host, &number.to_string())).collect();
        let kept: Vec<JobId> = pool.reports().into_iter().map(|report| report.job).collect();
        assert_eq!(kept, jobs.iter().rev().take(room).copied().collect::<Vec<_>>());
        assert!(pool.check(false).is_clean());
    }

    #[test]
    fn who_looks_again_is_told_what_has_changed_and_nothing_else() {
        let (_directory, pool) = pool();
        let host = member(&pool, "a");
        let mut seen = Vec::new();
        let look = |seen: &mut Vec<u64>| -> Vec<(usize, Option<Vec<u8>>)> {
            let changed = pool.reports_since(seen);
            changed.into_iter().map(|(entry, report)| (entry, report.map(|report| report.bytes))).collect()
        };
        assert_eq!(look(&mut seen), []);
        keep(&host, "one");
        keep(&host, "two");
        assert_eq!(look(&mut seen), [(1, Some(b"one".to_vec())), (2, Some(b"two".to_vec()))]);
        assert_eq!(look(&mut seen), []);
        let room = pool.report_entries().len();
        (0..room - 1).for_each(|number| assert_kept(&host, number));
        assert!(crash_after(5, || keep(&host, "torn")).is_none());
        let changed = look(&mut seen);
        assert_eq!(changed.len(), room);
        assert_eq!(changed[2], (2, None), "half a report is none");
        let newest = (room - 2).to_string().into_bytes();
        assert_eq!(changed[1], (1, Some(newest.clone())));
        assert_eq!(pool.report_at(1).map(|report| report.bytes), Some(newest));
        assert_eq!(look(&mut seen), []);
    }

    #[test]
    fn a_report_of_any_length_up_to_the_longest_is_kept_whole() {
        let (_directory, pool) = pool();
        let host = member(&pool, "a");
        for length in [0, 1, MAX_REPORT] {
            let (job, bytes) = (JobId::random(), vec![0xA5; length]);
            host.keep_report(job, GuestId::random(), &bytes).expect("kept");
            assert_eq!(pool.report(job).expect("kept").bytes, bytes);
        }
        let refusal = host.keep_report(JobId::random(), GuestId::random(), &[0; MAX_REPORT + 1]);
        assert!(matches!(refusal, Err(Error::ReportTooLong { bytes }) if bytes == MAX_REPORT + 1));
    }

    #[test]
    fn a_crash_anywhere_in_keeping_a_report_loses_that_one_and_no_other() {
        let (_directory, pool) = pool();
        let host = member(&pool, "a");
        let earlier = keep(&host, "earlier");
        for writes in 0.. {
            let job = JobId::random();
            let keep_one = || host.keep_report(job, GuestId::random(), b"a report").expect("kept");
            let ended = crash_after(writes, keep_one).is_some();
            assert_eq!(pool.report(job).is_some(), ended, "stopped before write {writes}");
            if writes % 97 == 0 || ended {
                Actor::new(&pool, host.slot()).recover();
                assert!(Actor::new(&pool, host.slot()).recover().is_nothing());
                let making = |entry| matches!(pool.tables().report(entry), Seen::Used(SlotState::Making { .. }, _));
                assert!(!pool.report_entries().any(making), "stopped before write {writes}");
                assert!(pool.report(earlier).is_some(), "stopped before write {writes}");
            }
            if ended {
                break;
            }
            // Else the ring would come round to it.
            if writes % 50 == 0 {
                host.keep_report(earlier, GuestId::random(), b"earlier").expect("kept");
            }
        }
    }

    #[test]
    fn the_entry_of_a_writer_that_is_not_dead_is_left_to_it() {
        let (_directory, pool) = pool();
        let (a, b) = (member(&pool, "a"), member(&pool, "b"));
        assert!(crash_after(5, || keep(&a, "torn")).is_none());
        let room = pool.report_entries().len();
        (0..2 * room).for_each(|number| assert_kept(&b, number));
        let written: Vec<_> = pool.reports();
        assert_eq!(written.len(), room - 1);
        b.fence_host(a.slot(), a.epoch()).expect_err("it is alive");
        Actor::new(&pool, a.slot()).recover();
        (0..room).for_each(|number| assert_kept(&b, number));
        assert_eq!(pool.reports().len(), room);
    }
}
