//! `nil man`: manual pages, one for each command, made from the command line itself.

use super::Output;
use anyhow::{Context, Result};
use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use serde::Serialize;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil man --dir ~/.local/share/man/man1
  man nil-migrate")]
pub(crate) struct Args {
    /// Where to put the pages; made if it is not there.
    #[arg(long)]
    dir: PathBuf,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let dir = &args.dir;
    fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
    let mut pages = Vec::new();
    for page in pages_of(super::shown_commands())? {
        let path = dir.join(&page.file);
        fs::write(&path, &page.text).with_context(|| format!("cannot write {}", path.display()))?;
        pages.push(page.file);
    }
    output.print(&Written { dir, pages })?;
    Ok(ExitCode::SUCCESS)
}

/// One manual page.
struct Page {
    file: String,
    text: Vec<u8>,
}

/// The pages of a command and of those below it.
fn pages_of(command: Command) -> io::Result<Vec<Page>> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    let mut left = vec![command];
    while let Some(command) = left.pop() {
        left.extend(command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned());
        pages.push(page(command)?);
    }
    pages.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(pages)
}

fn page(command: Command) -> io::Result<Page> {
    let examples = command.get_after_help().map(ToString::to_string);
    let has_commands = command.has_subcommands();
    let man = Man::new(command).source(concat!("nil ", env!("CARGO_PKG_VERSION"))).manual("Manual of nil");
    // The same commands make the same pages on any day; an empty date would be left out, and the rest move up.
    let man = man.date(" ");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if has_commands {
        man.render_subcommands_section(&mut text)?;
    }
    if let Some(examples) = examples {
        examples_section(&examples).to_writer(&mut text)?;
    }
    Ok(Page { file: man.get_filename(), text })
}

/// Commands as they are typed: a line stays a line.
fn examples_section(examples: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXAMPLES"]).control("nf", []);
    for line in examples.lines().filter(|line| !matches!(*line, "Example:" | "Examples:")) {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff
}

/// The pages that were written.
#[derive(Debug, Serialize)]
struct Written<'a> {
    dir: &'a Path,
    pages: Vec<String>,
}

impl fmt::Display for Written<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} pages in {}; begin with `man -l {}`",
            self.pages.len(),
            self.dir.display(),
            self.dir.join("nil.1").display()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command as Process, Stdio};

    fn pages() -> Vec<Page> {
        pages_of(super::super::shown_commands()).expect("pages")
    }

    #[test]
    fn every_command_that_is_shown_has_a_page_with_its_example() {
        let pages = pages();
        let files: Vec<&str> = pages.iter().map(|page| page.file.as_str()).collect();
        for file in ["nil.1", "nil-ps.1", "nil-pool.1", "nil-pool-create.1", "nil-migrate.1", "nil-man.1"] {
            assert!(files.contains(&file), "{file} is not among {files:?}");
        }
        assert!(!files.iter().any(|file| file.contains("worker") || file.contains("keeper")), "{files:?}");
        for page in &pages {
            let text = String::from_utf8_lossy(&page.text);
            let is_leaf = !text.contains(".SH SUBCOMMANDS");
            assert!(!is_leaf || text.contains(".SH EXAMPLES"), "{} has no example", page.file);
        }
    }

    #[test]
    fn man_formats_the_pages_and_whatis_finds_their_names() {
        let dir = tempfile::tempdir().expect("a directory");
        for page in pages() {
            let path = dir.path().join(&page.file);
            fs::write(&path, &page.text).expect("written");
            let name = page.file.trim_end_matches(".1").to_owned();
            match Process::new("lexgrog").arg(&path).output() {
                Err(_) => println!("skipped: lexgrog is not installed (Debian: man-db)"),
                Ok(parsed) => {
                    let said = String::from_utf8_lossy(&parsed.stdout).into_owned();
                    assert!(parsed.status.success() && said.contains(&format!("\"{name} - ")), "{said}");
                }
            }
        }
        let page = dir.path().join("nil-ps.1");
        let formatted = Process::new("man")
            .arg("--warnings")
            .arg("-l")
            .arg(&page)
            .env("MANWIDTH", "80")
            .stdin(Stdio::null())
            .output();
        match formatted {
            Ok(formatted) if formatted.status.success() => {
                let said = String::from_utf8_lossy(&formatted.stdout).into_owned();
                assert!(
                    said.contains("nil-ps(1)")
                        && said.contains("Manual of nil")
                        && said.lines().any(|line| line.trim() == "nil ps"),
                    "{said}"
                );
                assert_eq!(String::from_utf8_lossy(&formatted.stderr), "");
            }
            _ => println!("skipped: man cannot format a page here (Debian: man-db, groff-base)"),
        }
    }
}
