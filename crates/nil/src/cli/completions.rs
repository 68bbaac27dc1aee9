//! `nil completions`: what a shell needs to complete nil's command line, made from the command line itself.

use super::Output;
use anyhow::Result;
use clap::{Command, ValueEnum};
use clap_complete::aot::{self, Generator};
use serde::Serialize;
use std::fmt;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil completions bash > ~/.local/share/bash-completion/completions/nil
  nil completions zsh  > ~/.zfunc/_nil
  nil completions fish > ~/.config/fish/completions/nil.fish")]
pub(crate) struct Args {
    /// The shell that is to complete.
    shell: Shell,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    output.print(&Completions { shell: args.shell, script: args.shell.script()? })?;
    Ok(ExitCode::SUCCESS)
}

impl Shell {
    fn script(self) -> Result<String> {
        let mut command = super::shown_commands();
        // A generator puts the binary's name into the script, and finds it in the command.
        command.set_bin_name("nil");
        command.build();
        match self {
            Self::Bash => generate(aot::Shell::Bash, &command),
            Self::Zsh => generate(aot::Shell::Zsh, &command),
            Self::Fish => generate(aot::Shell::Fish, &command),
        }
    }
}

fn generate(shell: aot::Shell, command: &Command) -> Result<String> {
    let mut script = Vec::new();
    shell.try_generate(command, &mut script)?;
    Ok(String::from_utf8(script)?)
}

/// A script for a shell to source.
#[derive(Debug, Serialize)]
struct Completions {
    shell: Shell,
    script: String,
}

impl fmt::Display for Completions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.script)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command as Process, Stdio};

    #[test]
    fn every_shell_completes_every_command_that_is_shown_and_none_that_is_hidden() {
        for shell in Shell::value_variants() {
            let script = shell.script().expect("a script");
            for command in super::super::shown_commands().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell:?} does not know {}", command.get_name());
            }
            assert!(!script.contains("worker") && !script.contains("keeper"), "{shell:?} tells of hidden commands");
        }
    }

    #[test]
    fn the_shells_themselves_find_nothing_wrong_with_the_scripts() {
        for (shell, program, check) in
            [(Shell::Bash, "bash", "-n"), (Shell::Zsh, "zsh", "-n"), (Shell::Fish, "fish", "--no-execute")]
        {
            let Ok(mut parser) = Process::new(program).arg(check).stdin(Stdio::piped()).spawn() else {
                println!("skipped: {program} is not installed");
                continue;
            };
            let mut stdin = parser.stdin.take().expect("its input");
            stdin.write_all(shell.script().expect("a script").as_bytes()).expect("it reads");
            drop(stdin);
            assert!(parser.wait().expect("it ends").success(), "{program} cannot read its script");
        }
    }

    #[test]
    fn bash_completes_a_command_a_subcommand_and_an_option() {
        let script = Shell::Bash.script().expect("a script");
        for (words, completed) in [
            (&["nil", "migr"][..], "migrate"),
            (&["nil", "pool", "cre"], "create"),
            (&["nil", "vm", "run", "--mem"], "--memory"),
        ] {
            let words: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
            let last = words.len() - 1;
            let ask = format!(
                "{script}\nCOMP_WORDS=({}); COMP_CWORD={last}; _nil nil {} {}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
                words.join(" "),
                words[last],
                words[last - 1],
            );
            // Longer than what an argument may be.
            let file = tempfile::NamedTempFile::new().expect("a file");
            std::fs::write(file.path(), ask).expect("written");
            let answer = Process::new("bash").arg("--norc").arg(file.path()).output().expect("bash runs");
            let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
            assert!(answer.lines().any(|line| line == completed), "{words:?}: {answer}");
        }
    }
}
