//! `cargo xtask`: everything that is done *to* nil rather than by it.
//!
//! ```text
//! cargo xtask test            every check, as .ci/run runs them; `ci` is the same command under its other name
//! cargo xtask test --only loom --only fuzz
//! cargo xtask test --list
//! cargo xtask deps            only the dependency direction
//! ```
//!
//! A step passes, fails, or is skipped with a reason; what was skipped is never counted as passed.

#![forbid(unsafe_code)]

mod api;
mod ci;
mod command;
mod debian;
mod deny;
mod deps;
mod fuzz;
mod lint;
mod metadata;
mod outcome;
mod run;
mod testing;
mod tidy;
mod tools;
mod unsafety;

use anyhow::{Result, bail};
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  test, ci      every check (the two names are one command)
    --only STEP   run only this step; may be repeated
    --list        name the steps and what each proves
  deps          check the dependency direction between the crates";

fn main() -> ExitCode {
    match dispatch(std::env::args().skip(1).collect()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one command; whether all of it passed.
fn dispatch(mut arguments: Vec<String>) -> Result<bool> {
    if arguments.is_empty() {
        bail!("no command given\n{USAGE}");
    }
    let command = arguments.remove(0);
    match command.as_str() {
        "test" | "ci" => match selection(arguments)? {
            Selection::List => {
                ci::list();
                Ok(true)
            }
            Selection::Steps(only) => ci::run(&only),
        },
        "deps" if arguments.is_empty() => ci::run(&["deps".to_owned()]),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(true)
        }
        _ => bail!("unknown command: {command} {}\n{USAGE}", arguments.join(" ")),
    }
}

enum Selection {
    List,
    /// The steps named; all of them when empty.
    Steps(Vec<String>),
}

fn selection(arguments: Vec<String>) -> Result<Selection> {
    let mut only = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--list" => return Ok(Selection::List),
            "--only" => match arguments.next() {
                Some(step) => only.push(step),
                None => bail!("--only needs the name of a step; --list names them"),
            },
            _ => bail!("unknown argument {argument}\n{USAGE}"),
        }
    }
    Ok(Selection::Steps(only))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn an_unknown_command_is_an_error_that_shows_the_usage() {
        let error = dispatch(words("tset --only fmt")).expect_err("there is no such command");
        assert!(error.to_string().contains("usage: cargo xtask"), "{error}");
    }

    #[test]
    fn only_collects_every_step_it_names() {
        let Ok(Selection::Steps(steps)) = selection(words("--only fmt --only deps")) else { panic!("two steps") };
        assert_eq!(steps, ["fmt", "deps"]);
    }

    #[test]
    fn only_without_a_step_is_refused() {
        assert!(selection(words("--only")).is_err());
    }
}
