//! CRIU, by its command line: everything that the kernel holds for a process, but for the memory that is in a pool.
//!
//! Images go into a directory, with CRIU's logs beside them. Its first error is what a person sees.

use crate::error::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A CRIU that works on this machine.
#[derive(Clone, Debug)]
pub struct Criu {
    program: PathBuf,
}

/// What CRIU does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Dump,
    Restore,
}

/// How memory that is not in a pool comes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pages {
    /// All of it before the process goes on.
    AtOnce,
    /// As it is touched; `criu lazy-pages` must serve the same directory.
    Lazily,
}

impl Criu {
    /// Asks the `criu` on the path whether it can do its work here (`criu check`).
    ///
    /// # Errors
    /// [`Error::NoCriu`] with what it says.
    pub fn find() -> Result<Self> {
        let program = PathBuf::from("criu");
        let checked = Command::new(&program).arg("check").stdin(Stdio::null()).output();
        let checked = checked.map_err(|error| Error::NoCriu { why: error.to_string() })?;
        if checked.status.success() {
            return Ok(Self { program });
        }
        Err(Error::NoCriu { why: first_error(&String::from_utf8_lossy(&checked.stderr)) })
    }

    /// Saves a process, its descendants too, and ends it. If it fails, the process is as it was.
    ///
    /// # Errors
    /// [`Error::Criu`] with CRIU's reason.
    pub fn dump(&self, pid: i32, images: &Path) -> Result<()> {
        self.run(Action::Dump, images, &["--tree", &pid.to_string()])
    }

    /// Brings it back, under its old number, as a child of the calling process.
    ///
    /// # Errors
    /// [`Error::Criu`] with CRIU's reason; the images are whole still.
    pub fn restore(&self, images: &Path, pages: Pages) -> Result<()> {
        let lazily: &[&str] = if pages == Pages::Lazily { &["--lazy-pages"] } else { &[] };
        self.run(Action::Restore, images, &[&["--restore-detached", "--restore-sibling"], lazily].concat())
    }

    /// The command that serves pages to [`Pages::Lazily`].
    #[must_use]
    pub fn lazy_pages(&self, images: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["lazy-pages", "--images-dir"]).arg(images).args(["--log-file", "lazy-pages.log"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn run(&self, action: Action, images: &Path, arguments: &[&str]) -> Result<()> {
        let name = action.name();
        let log = images.join(format!("{name}.log"));
        let failed = |why: String| Error::Criu { action: name, why, log: log.clone() };
        let status = Command::new(&self.program)
            .arg(name)
            .arg("--images-dir")
            .arg(images)
            .arg("--log-file")
            .arg(log.file_name().unwrap_or_default())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .map_err(|error| failed(error.to_string()))?;
        if status.success() {
            return Ok(());
        }
        Err(failed(first_error(&fs::read_to_string(&log).unwrap_or_default())))
    }
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::Dump => "dump",
            Self::Restore => "restore",
        }
    }
}

/// The first error of a log that matters, without its time and place: `(00.1) Error (criu/x.c:1): reason`. Limits that CRIU
/// may not raise for itself are no reason.
fn first_error(log: &str) -> String {
    let errors = log.lines().filter_map(|line| line.split_once("Error (")?.1.split_once("): "));
    let mut reasons =
        errors.map(|(_, reason)| reason.trim().to_owned()).filter(|reason| !reason.starts_with("rlimit:"));
    reasons.next().unwrap_or_else(|| "it does not say why".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_is_told_without_time_and_place() {
        let log =
            "(00.01) Warn  (criu/a.c:1): hm\n(00.02) Error (criu/tty.c:1): tty: no\n(00.03) Error (criu/b.c:2): so";
        assert_eq!(first_error(log), "tty: no");
        assert_eq!(first_error("nothing"), "it does not say why");
    }
}
