//! `nil bench kills`: does a guest survive whatever should let it survive, and is nothing else ever the case?
//!
//! ```text
//! round:  order a migration ─ wait for a random instant, or one close to a step of the protocol ─ SIGKILL the victim
//!         ─ read the ownership word ─ let the hosts settle ─ judge
//! ```
//!
//! | module    | holds                                                        |
//! |-----------|--------------------------------------------------------------|
//! | `plan`    | whom and when, drawn by `dice` from the seed                 |
//! | `hunt`    | the wait for the instant and the kill, of a `prey`           |
//! | `trail`   | what the words in the pool said meanwhile                    |
//! | `judge`   | which ends are allowed, as a table                           |
//! | `round`   | one round from the order to the judgement, on a `subject`    |
//! | `stand`   | a rack with a guest on it, and what must hold between rounds |

mod dice;
mod hunt;
mod judge;
mod plan;
mod prey;
mod report;
mod round;
mod stand;
mod subject;
mod trail;

use crate::cli::Output;
use crate::lab::interrupt::{self, Interrupted};
use crate::lab::progress::Progress;
use crate::lab::{GuestPlan, RackPlan};
use anyhow::ensure;
use nil_guest_abi::Mode;
use nil_guest_abi::layout::MAX_VCPUS;
use nil_pool::Bytes;
use report::{Counts, Report, Violation};
use stand::{Played, Stand};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// After that many violations there is nothing more to be learnt.
const ENOUGH: usize = 10;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil bench kills
  nil bench kills --kills 1000 --seed 1 --vcpus 2 --json")]
pub(crate) struct Args {
    /// How often somebody is killed.
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    kills: u64,
    /// What chance depends on; the same seed draws the same victims and instants.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// The guest's memory.
    #[arg(long, default_value = "64M", value_name = "SIZE")]
    memory: Bytes,
    /// The guest's vCPUs.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_VCPUS)))]
    vcpus: u32,
}

/// A run, as far as it has come.
#[derive(Debug, Default)]
struct Campaign {
    kills: u64,
    rounds: u64,
    misses: u64,
    guests_booted: u64,
    survived: u64,
    rescued: u64,
    verifications: u64,
    pool_checks: u64,
    typical: Duration,
    counts: Counts,
    failed_undisturbed: Vec<String>,
    violations: Vec<Violation>,
}

pub(super) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    interrupt::conclude(output, || campaign(args, output), Report::is_good)
}

fn campaign(args: &Args, output: Output) -> anyhow::Result<Report> {
    let begun = Instant::now();
    let seed = args.seed.unwrap_or_else(seed_of_the_moment);
    let rack = RackPlan::fleeting(args.memory.get());
    let guest = GuestPlan { memory_bytes: args.memory.get(), vcpus: args.vcpus, mode: Mode::Hot };
    let progress = Progress::new(output, args.kills);
    let mut campaign = Campaign::default();
    while campaign.kills < args.kills && campaign.violations.len() < ENOUGH {
        progress.doing("starting hosts A and B");
        // After a violation nothing of the hosts or the pool is trusted any more.
        let stand = Stand::build(&rack, guest, campaign.typical)?;
        campaign.fight(stand, args.kills, seed, &progress)?;
    }
    Ok(campaign.report(args, seed, begun.elapsed()))
}

impl Campaign {
    /// Plays rounds until there have been enough kills, or a violation.
    fn fight(&mut self, mut stand: Stand, kills: u64, seed: u64, progress: &Progress) -> anyhow::Result<()> {
        while self.kills < kills {
            ensure!(self.misses <= 100 + self.kills, "most victims are gone before they can be killed");
            self.rounds += 1;
            let played = stand.play(seed, self.rounds);
            match played {
                Ok(Played::Killed(victim, finding)) => {
                    self.kills += 1;
                    self.survived += u64::from(finding.outcome != judge::Outcome::Lost);
                    self.rescued += u64::from(finding.rescued);
                    self.counts.add(victim, &finding);
                    progress
                        .reached(self.kills, || format!("{victim} killed, {}: {}", finding.before, finding.outcome));
                }
                Ok(Played::Missed) => self.misses += 1,
                Err(error) if error.is::<Interrupted>() => return Err(error),
                Err(error) => {
                    let (what, history, logs) = (format!("{error:#}"), stand.history(), stand.logs());
                    self.violations.push(Violation { seed, round: self.rounds, what, history, logs });
                    break;
                }
            }
        }
        self.failed_undisturbed.append(&mut stand.failed_undisturbed);
        self.guests_booted += stand.guests_booted;
        self.verifications += stand.verifications;
        self.pool_checks += stand.pool_checks;
        self.typical = stand.typical();
        Ok(())
    }

    fn report(self, args: &Args, seed: u64, took: Duration) -> Report {
        Report {
            kills: self.kills,
            violations: self.violations.len(),
            seed,
            memory_bytes: args.memory.get(),
            vcpus: args.vcpus,
            misses: self.misses,
            guests_booted: self.guests_booted,
            survived: self.survived,
            rescued: self.rescued,
            verifications: self.verifications,
            pool_checks: self.pool_checks,
            migration_ms: self.typical.as_secs_f64() * 1e3,
            seconds: took.as_secs_f64(),
            outcomes: self.counts.rows(),
            failed_undisturbed: self.failed_undisturbed,
            violation_details: self.violations,
        }
    }
}

/// A seed that differs from run to run; the report tells it.
fn seed_of_the_moment() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) ^ now.as_secs()
}
