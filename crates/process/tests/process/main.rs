//! Processes that run are moved, handed over, and lose those who move them; each checks itself.

mod handoff;
mod kill;
mod moving;
mod stand;
mod subjects;

#[test]
#[ignore = "the programs that the other tests move"]
fn subject() {
    if let Ok(name) = std::env::var(stand::SUBJECT) {
        subjects::run(&name);
    }
}
