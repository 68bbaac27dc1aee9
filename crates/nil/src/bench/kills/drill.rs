//! Undisturbed errands: they show that a guest can still be decoupled, moved and recoupled, bring its memory to where the
//! next round begins, and tell how long an errand takes.

use super::journey::Errand;
use super::subject::{Answer, Subject, workers};
use super::trail::Spread;
use crate::lab::{Rack, interrupt};
use anyhow::{Context, bail, ensure};
use nil_host::{Error, MigrationOutcome};
use nil_mover::{MoveOutcome, Pace};
use std::time::{Duration, Instant};

/// How long an agent may go on refusing an order: it may still be busy with the guest.
const PATIENCE_WITH_REFUSALS: Duration = Duration::from_secs(10);
/// How long a worker may take to end after the guest has left it.
const PATIENCE_WITH_OLD_WORKER: Duration = Duration::from_secs(20);
/// How often a migration that was taken back is tried again: a machine with too much to do misses a deadline.
const ATTEMPTS: u32 = 3;
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// Decouples the guest, hands it to the other host, and recouples it there.
pub(super) fn there_and_back(rack: &Rack, subject: &mut Subject) -> anyhow::Result<()> {
    for (errand, spread) in
        [(Errand::Decouple, Spread::Pool), (Errand::Migration, Spread::Pool), (Errand::Recouple, Spread::Dram)]
    {
        undisturbed(rack, subject, errand, Pace::Fast)?;
        let words = subject.words().now()?;
        let is_there = words.spread() == spread && words.has_capacity == (spread == Spread::Pool);
        ensure!(is_there, "after an undisturbed {errand} the guest's words are: {words}");
    }
    Ok(())
}

/// Does an errand while nobody is killed; how long it took.
pub(super) fn undisturbed(rack: &Rack, subject: &mut Subject, errand: Errand, pace: Pace) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let mut attempts = 0;
    loop {
        interrupt::check()?;
        let from = subject.side(rack)?;
        let order = subject.order(rack, errand, from, pace)?;
        let (answer, took) = order.join().map_err(|_| anyhow::anyhow!("the thread that had ordered it panicked"))?;
        match answer {
            Err(Error::Refused(_)) if begun.elapsed() < PATIENCE_WITH_REFUSALS => {}
            Err(error) => bail!("an undisturbed {errand} failed: {}", error.story()),
            Ok(answer) => {
                attempts += 1;
                match failure(&answer) {
                    None => {
                        await_one_worker(rack)?;
                        let side = subject.side(rack)?;
                        subject.look_at(rack, side)?;
                        return Ok(took);
                    }
                    Some(_) if attempts < ATTEMPTS => {}
                    Some(why) => bail!("an undisturbed {errand} failed {attempts} times: {why}"),
                }
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// Why an errand did not do what it was for, if so.
pub(super) fn failure(answer: &Answer) -> Option<String> {
    match answer {
        Answer::Migrated(report) => match &report.outcome {
            MigrationOutcome::Moved => (!report.remarks.is_empty()).then(|| report.remarks.join("; ")),
            MigrationOutcome::TakenBack { why } => Some(format!("taken back: {why}")),
            MigrationOutcome::Cancelled { why } => Some(format!("called off: {why}")),
            MigrationOutcome::Stalled { why } => Some(format!("stalled: {why}")),
        },
        Answer::Moved(report) => match report.moved.as_ref().map(|moved| &moved.outcome) {
            None | Some(MoveOutcome::Done) => None,
            Some(MoveOutcome::Cancelled) => Some("called off".to_owned()),
            Some(MoveOutcome::Stalled(stall)) => Some(format!("stalled: {stall}")),
        },
    }
}

/// Waits until the worker that the guest has left has ended.
fn await_one_worker(rack: &Rack) -> anyhow::Result<()> {
    let alone = || Ok((workers(rack).len() == 1).then_some(()));
    interrupt::wait_for("the worker that the guest has left has not ended", PATIENCE_WITH_OLD_WORKER, alone)
        .with_context(|| format!("workers are {:?}", workers(rack)))
}
