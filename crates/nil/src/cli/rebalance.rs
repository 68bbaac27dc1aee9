//! `nil rebalance`: have hosts used more evenly.

use super::placement::{PlanText, write_left};
use super::{Output, Table};
use anyhow::Result;
use nil_host::{
    Client, Migrate, MigrationOutcome, PlannedMove, RebalancePlan, Rebalancing, RunDir, Survey, Unevenness,
    rebalance_plan,
};
use serde::Serialize;
use std::fmt;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil rebalance --dry-run
  nil rebalance --moves 8 --parallel 2")]
pub(crate) struct Args {
    /// Only say what would go where, and what it would be good for.
    #[arg(long)]
    dry_run: bool,
    /// Move so many guests at most.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    moves: u16,
    /// Leave hosts alone that are used no more than this above the mean of their neighbours, in percent.
    #[arg(long, default_value_t = 10, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    tolerance: u8,
    /// How many guests leave, or come to, one host at once.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    parallel: u32,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let run_dir = RunDir::from_environment();
    let survey = Survey::take(&run_dir)?;
    let Args { moves, tolerance, parallel, .. } = *args;
    let how = Rebalancing { moves: moves.into(), tolerance_percent: tolerance, parallel };
    let plan = rebalance_plan(&survey, how)?;
    if args.dry_run || plan.plan.waves.is_empty() {
        output.print(&Report { plan, moved: None })?;
        return Ok(ExitCode::SUCCESS);
    }
    output.progress(PlanText(&plan.plan));
    let mut moved = Vec::new();
    for wave in &plan.plan.waves {
        moved.extend(carry_out(&run_dir, wave));
    }
    let is_good = moved.iter().all(|one| one.failure.is_none());
    output.print(&Report { plan, moved: Some(moved) })?;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes the moves of a wave, all at once.
fn carry_out(run_dir: &RunDir, wave: &[PlannedMove]) -> Vec<Moved> {
    std::thread::scope(|scope| {
        let moves: Vec<_> = wave.iter().map(|one| (one, scope.spawn(|| migrate(run_dir, one)))).collect();
        let ended = |(one, thread): (&PlannedMove, std::thread::ScopedJoinHandle<'_, Result<(), String>>)| Moved {
            guest: one.guest.to_string(),
            from: one.from.to_string(),
            to: one.to.to_string(),
            failure: thread.join().unwrap_or_else(|_| Err("nil failed to order it".to_owned())).err(),
        };
        moves.into_iter().map(ended).collect()
    })
}

fn migrate(run_dir: &RunDir, one: &PlannedMove) -> Result<(), String> {
    let order = Migrate::new(one.guest.clone(), one.to.clone());
    let report = Client::connect(&run_dir.host(&one.from)).and_then(|mut agent| agent.migrate(&order, |_| {}));
    match report.map_err(|error| error.story())?.outcome {
        MigrationOutcome::Moved => Ok(()),
        MigrationOutcome::TakenBack { why }
        | MigrationOutcome::Cancelled { why }
        | MigrationOutcome::Stalled { why } => Err(why),
    }
}

#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    plan: RebalancePlan,
    /// What was done; nothing if it was only planned.
    moved: Option<Vec<Moved>>,
}

#[derive(Debug, Serialize)]
struct Moved {
    guest: String,
    from: String,
    to: String,
    /// Why the guest has not moved.
    failure: Option<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RebalancePlan { plan, before, after } = &self.plan;
        if plan.waves.is_empty() && plan.left.is_empty() {
            return writeln!(f, "the hosts are used evenly enough: {before}", before = Text(before));
        }
        match &self.moved {
            None => write!(f, "{}", PlanText(plan))?,
            Some(moved) => {
                let mut table = Table::new(["GUEST", "FROM", "TO", ""]);
                for Moved { guest, from, to, failure } in moved {
                    let how = failure.as_ref().map_or_else(|| "moved".to_owned(), |why| format!("stays: {why}"));
                    table.row([guest.clone(), from.clone(), to.clone(), how]);
                }
                write!(f, "{table}")?;
            }
        }
        write_left(f, &plan.left)?;
        writeln!(f, "before: {}", Text(before))?;
        writeln!(f, "after:  {}", Text(after))
    }
}

/// How evenly hosts are used.
struct Text<'a>(&'a Unevenness);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unevenness { most, highest_permille, mean_permille, deviation_permille } = self.0;
        let percent = |permille: &u64| format!("{}.{} %", permille / 10, permille % 10);
        if let Some(most) = most {
            write!(f, "{most} is used most, {}; ", percent(highest_permille))?;
        }
        write!(f, "mean {}, standard deviation {}", percent(mean_permille), percent(deviation_permille))
    }
}
