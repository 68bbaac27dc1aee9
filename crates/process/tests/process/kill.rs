//! nil is killed at any instant while it moves a process; the process goes on, and can be moved again.

use super::stand::{Ground, Subject, can_run, check_under, guarded};
use nil_pool::{Access, Pool};
use nil_process::{Guard, Home, Leave};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Tells the mover its pool, capacity and process.
const ORDER: &str = "NIL_PROCESS_ORDER";
/// How often it is killed.
const KILLS: u32 = 60;

/// Moves a process there and back until it is killed.
#[test]
#[ignore = "the process that the other test kills"]
fn mover() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let [pool, tag, pid] = order.split(' ').collect::<Vec<_>>()[..] else { panic!("an order: {order}") };
    let pool = Pool::open(Path::new(pool), Access::ReadWrite).expect("the pool");
    let home = Home::open(&pool, tag.parse().expect("a tag")).expect("a home");
    println!("attaching");
    let mut guard = Guard::attach(pid.parse().expect("a pid"), &home).expect("a guard");
    loop {
        guard.decouple().expect("decoupled");
        guard.recouple().expect("recoupled");
    }
}

fn kill_after(delay: Duration, ground: &Ground, pid: i32) {
    let order = format!("{} {} {pid}", ground.member.pool().path().display(), ground.tag);
    let mut mover = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "kill::mover", "--ignored", "--nocapture", "--quiet"])
        .env(ORDER, order)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process");
    let mut lines = BufReader::new(mover.stdout.take().expect("its output")).lines();
    assert!(lines.any(|line| line.expect("a line").trim() == "attaching"), "the mover ended early");
    std::thread::sleep(delay);
    mover.kill().expect("killed");
    mover.wait().expect("its status");
}

fn outlives_its_movers(name: &str) {
    if !can_run() {
        return;
    }
    let (ground, mut subject) = (Ground::new(256), Subject::start(name));
    for kill in 0..KILLS {
        // Fine steps through the beginning, then coarser ones through the moves.
        let delay = if kill < KILLS / 2 { 150 * kill } else { 2000 * kill };
        kill_after(Duration::from_micros(delay.into()), &ground, subject.pid());
        subject.check();
    }
    guarded(subject.pid(), &ground, |mut guard| {
        guard.recouple().expect("recoupled");
        check_under(&mut guard, &mut subject);
        guard.leave(Leave::Running).expect("left");
    });
    subject.check();
    subject.end();
}

#[test]
fn two_threads_that_store_outlive_their_movers() {
    outlives_its_movers("stores");
}

#[test]
fn a_thread_that_gets_signals_outlives_its_movers() {
    outlives_its_movers("signals");
}
