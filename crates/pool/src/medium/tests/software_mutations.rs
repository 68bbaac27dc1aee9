//! Without hardware coherence: each write-back, wait and look at memory on which something depends, left out, as in `mutations`.
//!
//! Not listed is what something else covers: a host that looks at its own record, at the
//! tags beside its own, or at the slots of guests, writes them back by that.

use super::super::Mutation::{Forget, ForgetWords, Hurry, Trust};
use super::super::{Mutation, Settings};
use super::mutations::{noticed_with, whole};
use super::software::{claim_against_cancel, memory, turns};
use super::{Stage, Verdict, handoff, observers, operations, others};
use crate::crash_tests::Scene;
use crate::format::GRANULE;
use crate::format::layout::Layout;
use crate::persist::Point;
use std::ops::Range;

fn noticed(mutation: Mutation, scenario: impl Fn(&Settings) -> Verdict) {
    // What is noticed is noticed at many writes.
    noticed_with(Settings { mutation: Some(mutation), every: 7, ..Settings::software() }, scenario);
}

/// Some bytes of such a pool.
fn bytes(of: impl Fn(&Layout) -> Range<u64>) -> Range<u64> {
    of(Stage::of(&Settings::software()).scene.pool.tables().layout())
}

macro_rules! table {
    ($name:ident) => {
        bytes(|layout| layout.$name.offset..layout.$name.offset + layout.$name.bytes())
    };
}

/// The lines of all hosts: candidates, doors, and each host's own.
fn host_lines() -> Range<u64> {
    bytes(|layout| {
        let lines = layout.lines.expect("it has lines").hosts;
        lines.offset..lines.offset + lines.bytes()
    })
}

/// The line in which a host speaks of the guest that is handed over.
fn line_of(host: u64) -> Range<u64> {
    bytes(|layout| {
        let lines = layout.lines.expect("it has lines").guests;
        let first = lines.offset + host * 64;
        first..first + 64
    })
}

/// All capacities: what lies in them.
fn contents() -> Range<u64> {
    bytes(|layout| layout.data..u64::from(layout.owners.count) * GRANULE)
}

noticed! {
    // Turns and doors.
    tickets_not_written_back: ForgetWords(host_lines()), by turns;
    tickets_not_waited_for: Hurry(Point::Word), by turns;
    tickets_not_looked_at: Trust(host_lines()), by turns;
    doors_not_written_back: ForgetWords(host_lines()), by observers::host_names;
    doors_not_looked_at: Trust(host_lines()), by observers::host_names;
    // Tables.
    capacity_words_not_written_back: ForgetWords(table!(capacity_words)), by whole(operations::add);
    owners_not_written_back: ForgetWords(table!(owners)), by whole(operations::add);
    users_not_written_back: ForgetWords(table!(capacities)), by whole(Scene::unplace);
    host_words_not_written_back: ForgetWords(table!(hosts)), by others::join;
    journals_not_written_back: Forget(Point::Journal), by whole(operations::add);
    capacity_records_not_written_back: Forget(Point::Capacity), by whole(operations::add);
    reports_not_written_back: Forget(Point::Report), by others::report;
    pins_not_written_back: Forget(Point::Pin), by others::pin;
    state_areas_not_written_back: Forget(Point::StateArea), by whole(operations::create_in_dram);
    words_not_waited_for: Hurry(Point::Word), by whole(operations::add);
    journals_not_waited_for: Hurry(Point::Journal), by whole(operations::add);
    capacity_words_not_looked_at: Trust(table!(capacity_words)), by whole(operations::add);
    guest_words_not_looked_at: Trust(table!(guest_words)), by whole(operations::create_in_dram);
    owners_not_looked_at: Trust(table!(owners)), by whole(operations::release);
    tags_not_looked_at: Trust(table!(tags)), by observers::tags;
    capacity_records_not_looked_at: Trust(table!(capacities)), by whole(operations::add);
    guest_records_not_looked_at: Trust(table!(guests)), by whole(operations::create_in_dram);
    host_entries_not_looked_at: Trust(table!(hosts)), by others::join;
    journals_not_looked_at: Trust(table!(journals)), by whole(operations::add);
    // The handoff.
    the_freeze_not_written_back: ForgetWords(line_of(0)), by handoff::source_dies;
    the_claim_not_written_back: ForgetWords(line_of(1)), by handoff::target_dies;
    the_cancel_not_written_back: ForgetWords(line_of(0)), by claim_against_cancel;
    the_wish_to_claim_not_written_back: ForgetWords(line_of(1)), by claim_against_cancel;
    wishes_not_waited_for: Hurry(Point::Word), by claim_against_cancel;
    the_source_not_looked_at: Trust(line_of(0)), by claim_against_cancel;
    the_target_not_looked_at: Trust(line_of(1)), by claim_against_cancel;
    sections_not_written_back: Forget(Point::Sections), by handoff::source_dies;
    headers_of_areas_not_written_back: Forget(Point::Area), by handoff::source_dies;
    memory_left_in_caches: Trust(contents()), by memory;
    areas_not_looked_at: Trust(contents()), by observers::frozen;
}
