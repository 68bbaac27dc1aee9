//! The step `deny`: licenses, banned crates, sources and known vulnerabilities of all dependencies.

use crate::command::{run, succeeds};
use crate::outcome::Outcome;
use crate::run::Run;
use crate::tools;
use anyhow::Result;
use std::time::Duration;

/// The database of advisories that cargo-deny reads.
const ADVISORIES: &str = "https://github.com/rustsec/advisory-db";

pub(crate) fn check(this: &Run) -> Result<Outcome> {
    if let Err(error) = tools::ensure(this, &tools::DENY) {
        return Ok(Outcome::skipped(error.to_string()));
    }
    run(&mut this.cargo("deny --locked check licenses bans sources"))?;
    if !advisories_reachable(this) {
        let unreachable = format!("advisories: {ADVISORIES} cannot be reached");
        return Ok(Outcome::passed("licenses, bans, sources").without(unreachable));
    }
    run(&mut this.cargo("deny --locked check advisories"))?;
    Ok(Outcome::passed("licenses, bans, sources, advisories"))
}

fn advisories_reachable(this: &Run) -> bool {
    succeeds(
        this.command("git").args(["ls-remote", "--exit-code", ADVISORIES, "HEAD"]).env("GIT_TERMINAL_PROMPT", "0"),
        Duration::from_secs(20),
    )
}
