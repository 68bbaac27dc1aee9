//! Processes go through CRIU without their memory, which stays in the pool.

use super::stand::{Ground, Subject, bring_back, can_run, guarded};
use nil_process::{Criu, Error, hand_over};
use std::path::Path;

fn criu() -> Option<Criu> {
    if !can_run() {
        return None;
    }
    Criu::find().inspect_err(|error| eprintln!("skipped: {error}")).ok()
}

fn page_bytes(images: &Path) -> u64 {
    let entries = std::fs::read_dir(images).expect("images").map(|entry| entry.expect("an image"));
    let pages = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("pages-"));
    pages.map(|entry| entry.metadata().expect("its size").len()).sum()
}

fn travels(name: &str, least_pooled: u64) {
    let Some(criu) = criu() else { return };
    let ground = Ground::new(128);
    let mut subject = Subject::start_alone(name, ground.directory.path());
    subject.check();
    for trip in 0..3 {
        let images = ground.directory.path().join(format!("images-{trip}"));
        std::fs::create_dir(&images).expect("a directory");
        guarded(subject.pid(), &ground, |mut guard| {
            guard.decouple().expect("decoupled");
            assert!(guard.pooled_bytes().expect("a process") >= least_pooled);
            hand_over(guard, &criu, &images).expect("handed over");
        });
        subject.check();
        assert!(page_bytes(&images) < 4 << 20, "{} bytes were copied", page_bytes(&images));
    }
    guarded(subject.pid(), &ground, bring_back);
    subject.check();
}

#[test]
fn two_threads_that_store_are_handed_over() {
    travels("stores", 48 << 20);
}

#[test]
fn a_process_with_a_heap_is_handed_over() {
    travels("heap", 4 << 20);
}

#[test]
fn rights_are_handed_over() {
    travels("mprotect", 4 << 20);
}

#[test]
fn a_process_that_criu_refuses_runs_on_where_it_was() {
    let Some(criu) = criu() else { return };
    // It belongs to a session whose leader is somebody else.
    let (ground, mut subject) = (Ground::new(128), Subject::start("stores"));
    let images = ground.directory.path().to_owned();
    guarded(subject.pid(), &ground, |mut guard| {
        guard.decouple().expect("decoupled");
        let refused = hand_over(guard, &criu, &images).expect_err("refused");
        assert!(matches!(&refused, Error::Criu { action: "dump", why, .. } if why.contains("session")), "{refused}");
    });
    subject.check();
    guarded(subject.pid(), &ground, bring_back);
    subject.check();
    subject.end();
}
