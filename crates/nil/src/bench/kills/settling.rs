//! How a guest has ended up, once its hosts have settled; and whether what it has left in the pool fits to that.
//!
//! | the guest runs                                   | the guest is lost                             |
//! |--------------------------------------------------|-----------------------------------------------|
//! | one worker, known to its host; one socket        | no worker, no socket                          |
//! | every granule in its owner's DRAM or in the pool | every granule there, of its last owner, or in the pool |
//! | nothing half moved, no move on                   |                                               |
//! | `away` is what is not in the pool                | the same                                      |
//! | a memory capacity, if anything is in it          | the same, but it may be empty                 |
//! | no other capacity but that of its state          | the same                                      |

use super::judge::End;
use super::subject::{Subject, side_of, workers};
use crate::lab::counters::{Counters, view_of};
use crate::lab::soundness::{Fate, misplaced};
use crate::lab::{Rack, Side};
use nil_host::{GuestReport, GuestState};
use nil_pool::Ownership;
use std::time::Duration;

/// Between two looks at a guest that is to go on meanwhile.
const LOOK: Duration = Duration::from_millis(3);

/// How the guest has ended up, if that is clear; or what is unclear. `before` is what it had counted before the round.
pub(super) fn end(rack: &Rack, subject: &Subject, before: &Counters) -> anyhow::Result<Result<End, String>> {
    let word = subject.control().ownership().load()?;
    let workers = workers(rack);
    match word {
        Ownership::Owned { host, epoch } => {
            let side = side_of(rack, host)?;
            let Some(report) = subject.report(rack, side) else {
                return Ok(Err(format!("{word}, and the agent of that host does not know it or does not answer")));
            };
            let adopted = report.state == GuestState::Running && report.worker_pid.is_some_and(|pid| workers == [pid]);
            if !adopted {
                let GuestReport { state, worker_pid, .. } = &report;
                return Ok(Err(format!(
                    "{word}; its host says it is {state} in process {worker_pid:?}; workers are {workers:?}"
                )));
            }
            Ok(match goes_on(&report, before)? {
                true => Ok(End::Runs { host, epoch }),
                false => Err(format!("{word}, it has a worker, and does not go on")),
            })
        }
        Ownership::Lost { host, epoch } => {
            let known =
                subject.report(rack, side_of(rack, host)?).is_some_and(|report| report.state == GuestState::Lost);
            Ok(if known && workers.is_empty() {
                Ok(End::Lost { host, epoch })
            } else {
                Err(format!("{word}, known as such by its host: {known}; workers are {workers:?}"))
            })
        }
        Ownership::Vacant | Ownership::Offered { .. } | Ownership::Frozen { .. } | Ownership::Taken { .. } => {
            Ok(Err(format!("{word}; workers are {workers:?}")))
        }
    }
}

/// Whether the guest runs now, not just until the kill.
fn goes_on(report: &GuestReport, before: &Counters) -> anyhow::Result<bool> {
    let Some(view) = view_of(report) else { return Ok(false) };
    // A worker that ends just now cannot be looked into; then it does not go on.
    let look = || view.block().and_then(|block| Counters::read(&block));
    let Ok(now) = look() else { return Ok(false) };
    now.check_since(before)?;
    std::thread::sleep(LOOK);
    Ok(now.have_moved_since(before) && look().is_ok_and(|later| later.have_moved_since(&now)))
}

/// What does not fit yet to how the guest has ended up; `free` is what the pool has free without any guest.
pub(super) fn misfit(rack: &Rack, subject: &Subject, end: End, free: u64) -> anyhow::Result<Option<String>> {
    let fate = match end {
        End::Runs { .. } => Fate::Runs,
        End::Lost { .. } => Fate::Lost,
    };
    let (End::Runs { host, epoch } | End::Lost { host, epoch }) = end;
    let owner = side_of(rack, host)?;
    Ok(misplaced(subject.words().map(), (host, epoch), fate)
        .or(being_moved(rack, subject, end, owner))
        .or(leaked(rack, subject, end, free)?)
        .or(left_behind(rack, end, owner)?))
}

fn being_moved(rack: &Rack, subject: &Subject, end: End, owner: Side) -> Option<String> {
    let moving = match end {
        End::Runs { .. } => subject.report(rack, owner).map(|report| report.moving),
        End::Lost { .. } => return None,
    };
    match moving {
        Some(None) => None,
        Some(Some(moving)) => Some(format!("its memory is being moved: {moving:?}")),
        None => Some("its host does not answer".to_owned()),
    }
}

/// Capacity that is missing, or that nobody needs; granules that belong to no capacity.
fn leaked(rack: &Rack, subject: &Subject, end: End, free: u64) -> anyhow::Result<Option<String>> {
    let places = subject.words().map().summary();
    let memory = subject.control().config()?.memory;
    let capacities = rack.pool().capacities();
    let has_memory = capacities.iter().any(|capacity| capacity.tag == memory);
    let needs_memory = places.pooled + places.mixed > 0;
    if needs_memory && !has_memory {
        let needy = places.pooled + places.mixed;
        return Ok(Some(format!("{needy} granules are in the pool, and the capacity {memory} is not there")));
    }
    if has_memory && !needs_memory && matches!(end, End::Runs { .. }) {
        return Ok(Some(format!("all of its memory is local, and it has the capacity {memory} still")));
    }
    // The state, and the memory if that is there.
    let expected = 1 + usize::from(has_memory);
    let labels: Vec<&str> = capacities.iter().map(|capacity| capacity.label.as_str()).collect();
    if capacities.len() != expected {
        return Ok(Some(format!("the pool has {} capacities, not {expected}: {}", labels.len(), labels.join(", "))));
    }
    if let Some(odd) = capacities.iter().find(|odd| odd.changed_by.is_some() || odd.damage.is_some()) {
        return Ok(Some(format!("the capacity `{}` is being changed, or damaged: {:?}", odd.label, odd.damage)));
    }
    let used: u64 = capacities.iter().map(|capacity| capacity.bytes).sum();
    let found = rack.pool().usage().free;
    Ok((found != free.saturating_sub(used))
        .then(|| format!("the pool has {found} bytes free; without the guest it had {free}, and the guest has {used}")))
}

/// Sockets of workers that are no more.
fn left_behind(rack: &Rack, end: End, owner: Side) -> anyhow::Result<Option<String>> {
    for side in [Side::A, Side::B] {
        let sockets = rack.host(side).worker_sockets()?;
        let wanted = usize::from(matches!(end, End::Runs { .. }) && side == owner);
        if sockets.len() != wanted {
            return Ok(Some(format!("host {side:?} has {} sockets of workers, not {wanted}", sockets.len())));
        }
    }
    Ok(None)
}
