//! The checks, in order, and how they are run: each one timed, all of them even when one fails, the table at the end.

use crate::outcome::{Outcome, Row, summary};
use crate::run::Run;
use crate::{api, debian, deny, deps, fuzz, lint, testing, tidy, unsafety};
use anyhow::{Result, bail};
use std::time::Instant;

/// One check.
struct Step {
    name: &'static str,
    proves: &'static str,
    check: fn(&Run) -> Result<Outcome>,
}

/// Every check. The cheap ones come first; `tidy` must be last, since it looks at what the others left.
const STEPS: &[Step] = &[
    Step { name: "packages", proves: "what the tests need of the system is there, or is named", check: debian::check },
    Step { name: "deps", proves: "crates depend on each other only as the architecture says", check: deps::check },
    Step { name: "unsafe", proves: "unsafe code stands only in the modules named for it", check: unsafety::check },
    Step { name: "fmt", proves: "the source is formatted", check: lint::format },
    Step { name: "clippy", proves: "no lint fires, in the crates and in the guests", check: lint::clippy },
    Step { name: "docs", proves: "the documentation builds without a warning", check: lint::docs },
    Step { name: "nextest", proves: "every unit and integration test passes", check: testing::tests },
    Step { name: "doctests", proves: "every example in the documentation runs", check: testing::doctests },
    Step { name: "model", proves: "the handoff holds under every interleaving and crash", check: testing::model },
    Step {
        name: "loom",
        proves: "the atomics hold under every ordering the memory model allows",
        check: testing::loom,
    },
    Step { name: "api", proves: "an agent answers as its description says, whatever it is asked", check: api::check },
    Step { name: "fuzz", proves: "no decoder of pool bytes panics, as far as a short run finds", check: fuzz::check },
    Step {
        name: "deny",
        proves: "licenses, sources and advisories of all dependencies are in order",
        check: deny::check,
    },
    Step { name: "tidy", proves: "nothing was left behind, and no source is hidden from git", check: tidy::check },
];

/// Names every step.
pub(crate) fn list() {
    for step in STEPS {
        println!("{:<10} {}", step.name, step.proves);
    }
}

/// Runs the steps named in `only`, or all; whether none failed.
pub(crate) fn run(only: &[String]) -> Result<bool> {
    let chosen = choose(only)?;
    let run = Run::begin()?;
    let mut rows = Vec::new();
    for step in chosen {
        println!("\n── {} ── {}", step.name, step.proves);
        let started = Instant::now();
        let result = (step.check)(&run);
        match &result {
            Ok(Outcome::Skipped { reason }) => println!("skipped: {reason}"),
            Err(error) => println!("FAILED: {error:#}"),
            Ok(Outcome::Passed { .. }) => {}
        }
        rows.push(Row { step: step.name, took: started.elapsed(), result });
    }
    println!("\n── summary ──\n{}", summary(&rows));
    Ok(rows.iter().all(|row| row.result.is_ok()))
}

fn choose(only: &[String]) -> Result<Vec<&'static Step>> {
    if let Some(unknown) = only.iter().find(|name| !STEPS.iter().any(|step| step.name == **name)) {
        let names: Vec<_> = STEPS.iter().map(|step| step.name).collect();
        bail!("there is no step {unknown}; the steps are {}", names.join(", "));
    }
    Ok(STEPS.iter().filter(|step| only.is_empty() || only.iter().any(|name| name == step.name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_choice_every_step_runs_and_tidy_is_last() {
        let steps = choose(&[]).expect("nothing was named");
        assert_eq!(steps.len(), STEPS.len());
        assert_eq!(steps.last().map(|step| step.name), Some("tidy"));
    }

    #[test]
    fn a_step_that_does_not_exist_is_refused() {
        let error = choose(&["tpyo".to_owned()]).err().expect("no such step");
        assert!(error.to_string().contains("there is no step tpyo"), "{error}");
    }
}
