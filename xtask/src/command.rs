//! Running other programs: shown, checked, and if wanted recorded.

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Runs `command` with its output on the terminal. An exit status other than zero is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    show(command);
    let status = command.status().with_context(|| cannot_start(command))?;
    check(command, status)
}

/// As [`run`], and returns what was written to standard output.
pub(crate) fn run_recorded(command: &mut Command) -> Result<String> {
    show(command);
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| cannot_start(command))?;
    let mut recorded = String::new();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            println!("{line}");
            recorded.push_str(&line);
            recorded.push('\n');
        }
    }
    let status = child.wait()?;
    check(command, status)?;
    Ok(recorded)
}

/// Runs `command` silently and returns its standard output.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| cannot_start(command))?;
    if !output.status.success() {
        bail!("{}: {}\n{}", line(command), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether `command` starts and succeeds within `limit`, without a word on the terminal.
pub(crate) fn succeeds(command: &mut Command, limit: Duration) -> bool {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let Ok(mut child) = child else { return false };
    let started = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) if started.elapsed() < limit => thread::sleep(Duration::from_millis(20)),
            Ok(None) | Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                return false;
            }
        }
    }
}

fn show(command: &Command) {
    println!("$ {}", line(command));
}

fn check(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("{}: {status}", line(command));
    }
    Ok(())
}

fn cannot_start(command: &Command) -> String {
    format!("{}: cannot be started", line(command))
}

/// The command as one would type it: the program without its folder, and the arguments.
fn line(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let mut words = vec![program.file_name().unwrap_or(program.as_os_str()).to_string_lossy()];
    words.extend(command.get_args().map(|argument| argument.to_string_lossy()));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_program_is_an_error_that_names_the_command() {
        let error = run(Command::new("/bin/sh").args(["-c", "exit 3"])).expect_err("exit status 3");
        assert_eq!(error.to_string(), "sh -c exit 3: exit status: 3");
    }

    #[test]
    fn what_a_program_writes_is_recorded() {
        let text = run_recorded(Command::new("printf").arg("one\\ntwo\\n")).expect("printf succeeds");
        assert_eq!(text, "one\ntwo\n");
    }

    #[test]
    fn a_program_that_hangs_does_not_succeed() {
        assert!(!succeeds(Command::new("sleep").arg("60"), Duration::from_millis(50)));
    }
}
