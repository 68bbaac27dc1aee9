//! `nil bench kills`: does a guest survive whatever should let it survive, and is nothing else ever the case?
//!
//! ```text
//! round:  order an errand (migration, decouple, recouple) ─ wait for a random instant, or one close to a step
//!         ─ SIGKILL the victim ─ read the words ─ let the hosts settle ─ judge ─ verify ─ move the guest once more
//! ```
//!
//! | module     | holds                                                             |
//! |------------|-------------------------------------------------------------------|
//! | `plan`     | what is done, whom and when to kill, drawn from the seed             |
//! | `journey`  | how far an errand is, as the words in the pool tell               |
//! | `hunt`     | the wait for the instant and the kill                             |
//! | `trail`    | what the words in the pool said meanwhile                         |
//! | `agents`   | the restart of killed agents                                      |
//! | `settling` | how the guest has ended up, and whether what it has fits to that  |
//! | `judge`    | which ends are allowed, as a table                                |
//! | `round`    | one round from the order to the judgement, on a `subject`         |
//! | `drill`    | errands that nobody disturbs                                      |
//! | `stand`    | a rack with a guest on it, and what must hold between rounds      |

mod agents;
mod drill;
mod hunt;
mod journey;
mod judge;
mod plan;
mod report;
mod round;
mod settling;
mod stand;
mod subject;
mod trail;

use super::seed_of_the_moment;
use crate::cli::Output;
use crate::lab::interrupt::{self, Interrupted};
use crate::lab::progress::Progress;
use crate::lab::{GuestPlan, RackPlan, Reach};
use anyhow::ensure;
use nil_guest_abi::Mode;
use nil_guest_abi::layout::MAX_VCPUS;
use nil_host::MemoryIn;
use nil_pool::Bytes;
use plan::{During, Scope};
use report::{Counts, Loss, Report, Violation};
use serde::Serialize;
use stand::{Played, Stand, Typical};
use std::fmt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// After that many violations there is nothing more to be learnt.
const ENOUGH: usize = 10;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil bench kills
  nil bench kills --kills 1000 --seed 1 --vcpus 2 --json
  nil bench kills --memory-in dram --kills 300
  nil bench kills --memory-in dram --during decouple --seed 7 --plan")]
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
    /// Where the guest's memory lies. From DRAM it goes to the pool before a handoff, and back to DRAM after it.
    #[arg(long, default_value = "pool", value_name = "PLACE")]
    memory_in: Home,
    /// What the kills are to hit; handoffs if the memory is in the pool, else anything.
    #[arg(long, value_name = "WHAT")]
    during: Option<During>,
    /// Only print what each round would do, and whom it would kill when.
    #[arg(long)]
    plan: bool,
    /// The guest's vCPUs.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_VCPUS)))]
    vcpus: u32,
}

/// Where a guest's memory lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Home {
    /// In its host's DRAM.
    Dram,
    /// In the pool.
    Pool,
}

impl Args {
    fn scope(&self) -> Scope {
        let (memory_in, otherwise) = match self.memory_in {
            Home::Dram => (MemoryIn::Dram, During::Any),
            Home::Pool => (MemoryIn::Pool, During::Handoff),
        };
        Scope { memory_in, during: self.during.unwrap_or(otherwise) }
    }
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
    drills: u64,
    typical: Typical,
    counts: Counts,
    losses: Vec<Loss>,
    failed_undisturbed: Vec<String>,
    violations: Vec<Violation>,
}

pub(super) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let seed = args.seed.unwrap_or_else(seed_of_the_moment);
    if args.plan {
        output.print(&Schedule::draw(args, seed))?;
        return Ok(ExitCode::SUCCESS);
    }
    interrupt::conclude(output, || campaign(args, seed, output), Report::is_good)
}

fn campaign(args: &Args, seed: u64, output: Output) -> anyhow::Result<Report> {
    let begun = Instant::now();
    let scope = args.scope();
    let reach = if scope.has_moves() { Reach::PoolAndDram } else { Reach::Pool };
    let rack = RackPlan { reach, ..RackPlan::fleeting(args.memory.get()) };
    let guest = GuestPlan { memory_bytes: args.memory.get(), vcpus: args.vcpus, mode: Mode::Hot };
    let progress = Progress::new(output, args.kills);
    let mut campaign = Campaign::default();
    while campaign.kills < args.kills && campaign.violations.len() < ENOUGH {
        progress.doing("starting hosts A and B");
        // After a violation nothing of the hosts or the pool is trusted any more.
        let stand = Stand::build(&rack, guest, scope, campaign.typical.clone())?;
        campaign.fight(stand, args.kills, seed, &progress)?;
    }
    Ok(campaign.report(args, seed, begun.elapsed()))
}

impl Campaign {
    /// Plays rounds until there have been enough kills, or a violation.
    fn fight(&mut self, mut stand: Stand, kills: u64, seed: u64, progress: &Progress) -> anyhow::Result<()> {
        let fought = self.play(&mut stand, kills, seed, progress);
        if let Err(error) = fought {
            if error.is::<Interrupted>() {
                return Err(error);
            }
            let (what, history, logs) = (format!("{error:#}"), stand.history(), stand.logs());
            self.violations.push(Violation { seed, round: self.rounds, what, history, logs });
        }
        self.typical = stand.typical;
        let tally = &mut stand.tally;
        self.failed_undisturbed.append(&mut tally.failed_undisturbed);
        self.losses.append(&mut tally.losses);
        self.guests_booted += tally.guests_booted;
        self.verifications += tally.verifications;
        self.pool_checks += tally.pool_checks;
        self.drills += tally.drills;
        Ok(())
    }

    /// The error is a violation, or an interruption.
    fn play(&mut self, stand: &mut Stand, kills: u64, seed: u64, progress: &Progress) -> anyhow::Result<()> {
        while self.kills < kills {
            ensure!(self.misses <= 100 + self.kills, "most victims are gone before they can be killed");
            self.rounds += 1;
            match stand.play(seed, self.rounds)? {
                Played::Killed(plan, finding) => {
                    self.kills += 1;
                    self.survived += u64::from(finding.outcome != judge::Outcome::Lost);
                    self.rescued += u64::from(finding.rescued);
                    self.counts.add(&plan, &finding);
                    progress.reached(self.kills, || {
                        format!("{} killed in {}: {}", plan.victim, finding.phase, finding.outcome)
                    });
                }
                Played::Missed => self.misses += 1,
            }
        }
        stand.finish()
    }

    fn report(self, args: &Args, seed: u64, took: Duration) -> Report {
        let Scope { memory_in, during } = args.scope();
        Report {
            kills: self.kills,
            violations: self.violations.len(),
            seed,
            memory_bytes: args.memory.get(),
            memory_in,
            during,
            vcpus: args.vcpus,
            misses: self.misses,
            guests_booted: self.guests_booted,
            survived: self.survived,
            rescued: self.rescued,
            verifications: self.verifications,
            pool_checks: self.pool_checks,
            drills: self.drills,
            typical_ms: self.typical.into_iter().map(|(errand, took)| (errand, took.as_secs_f64() * 1e3)).collect(),
            seconds: took.as_secs_f64(),
            phases: self.counts.phases(),
            outcomes: self.counts.outcomes(),
            losses: self.losses,
            failed_undisturbed: self.failed_undisturbed,
            violation_details: self.violations,
        }
    }
}

/// What the rounds of a run would do. A run has a few more of them if victims are gone before they can be killed.
#[derive(Debug, Serialize)]
struct Schedule {
    seed: u64,
    rounds: Vec<String>,
}

impl Schedule {
    fn draw(args: &Args, seed: u64) -> Self {
        let plan = |round| stand::draw(seed, round, args.scope()).1.to_string();
        Self { seed, rounds: (1..=args.kills).map(plan).collect() }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}", self.seed)?;
        (1..).zip(&self.rounds).try_for_each(|(number, round): (u64, &String)| writeln!(f, "round {number}: {round}"))
    }
}
