//! Each write-back, wait, fence and release on which something depends, left out: the tests must notice.
//!
//! Not listed is what something else covers: a wait before another wait, when what is written in between publishes nothing; a
//! fence behind a compare-and-swap; the release of a record that such a fence comes after.

use super::super::Mutation::{Forget, ForgetWords, Hurry, LiftFences, Weaken};
use super::super::{Mutation, Settings};
use super::{Stage, Verdict, handoff, observers, operations, others, protection};
use crate::crash_tests::Scene;
use crate::format::layout::{Layout, Table};
use crate::persist::Point;

/// So often chance may try. It fails in the first two tries as a rule.
const TRIES: u64 = 24;

/// Demands that a scenario fails with a mutation. Without one it passes, as its own test shows.
fn noticed(mutation: Mutation, scenario: impl Fn(&Settings) -> Verdict) {
    noticed_with(Settings { mutation: Some(mutation), ..Settings::default() }, scenario);
}

/// The same with other settings.
pub(super) fn noticed_with(mut settings: Settings, scenario: impl Fn(&Settings) -> Verdict) {
    let every = settings.every;
    for seed in 1..=TRIES {
        settings.seed = seed * 0x10_0000_0001;
        settings.first = usize::try_from(seed).expect("small") % every;
        match scenario(&settings) {
            Err(wrong) => return println!("{:?}: {wrong}", settings.mutation),
            Ok(left_out) => assert!(left_out > 0, "{:?} leaves nothing out", settings.mutation),
        }
    }
    panic!("nobody noticed {:?}", settings.mutation);
}

/// The write-back of the words of a table.
fn words(table: impl Fn(&Layout) -> Table) -> Mutation {
    let stage = Stage::build();
    let table = table(stage.scene.pool.tables().layout());
    ForgetWords(table.offset..table.offset + table.bytes())
}

/// An operation that is done as a whole or not at all, whenever its host dies.
pub(super) fn whole(operation: fn(&Scene)) -> impl Fn(&Settings) -> Verdict {
    move |settings| operations::whole_or_nothing(settings, operation)
}

fn watched_reports(settings: &Settings) -> Verdict {
    observers::watched(settings, observers::report, observers::look_at_reports)
}

noticed! {
    // Write-backs.
    words_in_general: Forget(Point::Word), by whole(operations::add);
    the_words_of_capacity_slots: words(|layout| layout.capacity_words), by whole(operations::add);
    the_words_of_capacity_slots_in_a_release: words(|layout| layout.capacity_words), by whole(operations::release);
    the_words_of_guest_slots: words(|layout| layout.guest_words), by whole(operations::create_in_dram);
    the_words_of_guest_slots_at_an_end: words(|layout| layout.guest_words), by whole(Scene::destroy);
    the_owner_map: words(|layout| layout.owners), by whole(operations::add);
    the_tag_index: words(|layout| layout.tags), by whole(operations::add);
    the_user_of_a_capacity: words(|layout| layout.capacities), by whole(Scene::unplace);
    the_words_of_hosts: words(|layout| layout.hosts), by others::join;
    the_words_of_hosts_that_leave: words(|layout| layout.hosts), by others::leave;
    the_words_of_reports: words(|layout| layout.reports.expect("a ring")), by others::report;
    journal_entries_of_an_addition: Forget(Point::Journal), by whole(operations::add);
    journal_entries_of_a_release: Forget(Point::Journal), by whole(operations::release);
    journal_entries_of_a_creation: Forget(Point::Journal), by whole(operations::create_in_dram);
    journal_entries_of_an_end: Forget(Point::Journal), by whole(Scene::destroy);
    capacity_records: Forget(Point::Capacity), by whole(operations::add);
    guest_records: Forget(Point::Guest), by whole(operations::create_in_dram);
    host_records: Forget(Point::Host), by others::join;
    reports: Forget(Point::Report), by others::report;
    new_state_areas: Forget(Point::StateArea), by whole(operations::create_in_dram);
    placement_words: Forget(Point::Placement), by others::placement;
    pin_records: Forget(Point::Pin), by others::pin;
    zeros: Forget(Point::Zeros), by others::zeros;
    the_tables_of_a_new_pool: Forget(Point::Tables), by others::format;
    headers: Forget(Point::Header), by others::format;
    sections: Forget(Point::Sections), by handoff::source_dies;
    the_headers_of_areas: Forget(Point::Area), by handoff::source_dies;
    commits: Forget(Point::Protection), by protection::owner_dies;
    pages_of_the_image: Forget(Point::Image), by protection::owner_dies;
    the_freeze: Forget(Point::Ownership), by handoff::source_dies;
    the_claim: Forget(Point::Ownership), by handoff::target_dies;
    the_cancel: Forget(Point::Ownership), by handoff::both_die;
    // Waits.
    the_wait_for_words: Hurry(Point::Word), by whole(operations::add);
    the_wait_for_words_in_a_release: Hurry(Point::Word), by whole(operations::release);
    the_wait_for_journal_entries: Hurry(Point::Journal), by whole(operations::add);
    the_wait_for_reports: Hurry(Point::Report), by others::report;
    the_wait_for_placement_words: Hurry(Point::Placement), by others::placement;
    the_wait_for_tables: Hurry(Point::Tables), by others::first_header;
    the_wait_for_headers: Hurry(Point::Header), by others::format;
    the_wait_for_sections: Hurry(Point::Sections), by handoff::source_dies;
    the_wait_for_headers_of_areas: Hurry(Point::Area), by handoff::source_dies;
    the_wait_for_the_freeze: Hurry(Point::Ownership), by handoff::source_dies;
    the_wait_for_the_claim: Hurry(Point::Ownership), by handoff::target_dies;
    // Fences and release orderings.
    the_fence_before_looking_for_namesakes_of_guests: LiftFences("src/guests.rs"), by observers::guest_names;
    the_fence_before_looking_for_namesakes_of_hosts: LiftFences("src/membership/joining.rs"), by observers::host_names;
    the_release_of_a_report: Weaken("src/mapping.rs"), by watched_reports;
    the_release_of_a_frozen_guest: Weaken("src/ownership.rs"), by observers::frozen;
}
