//! What a person sees while a long command runs: a bar on a terminal, a line now and then elsewhere, nothing in a program's
//! way.

use crate::cli::Output;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// How many lines are printed over the whole of a run where there is no terminal.
const PLAIN_LINES: u64 = 5;

/// The progress of one run, shown on standard error.
#[derive(Debug)]
pub(crate) struct Progress {
    display: Display,
    total: u64,
}

#[derive(Debug)]
enum Display {
    Bar(ProgressBar),
    Lines,
    Nothing,
}

impl Progress {
    /// Progress towards `total` steps.
    pub(crate) fn new(output: Output, total: u64) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let display = match output {
            _ if terminal => {
                let style = ProgressStyle::with_template("{msg:<44} {bar:28} {pos:>5}/{len} {elapsed:>5}")
                    .unwrap_or_else(|_| ProgressStyle::default_bar());
                Display::Bar(ProgressBar::new(total).with_style(style.progress_chars("━╸─")))
            }
            Output::Text => Display::Lines,
            Output::Json => Display::Nothing,
        };
        Self { display, total }
    }

    /// Of something that nobody looks at.
    pub(crate) fn silent() -> Self {
        Self { display: Display::Nothing, total: 0 }
    }

    /// Says what is being done now.
    pub(crate) fn doing(&self, what: impl Into<String>) {
        match &self.display {
            Display::Bar(bar) => bar.set_message(what.into()),
            Display::Lines => eprintln!("{}", what.into()),
            Display::Nothing => {}
        }
    }

    /// `done` steps are done; `what` says what the last of them was.
    pub(crate) fn reached(&self, done: u64, what: impl FnOnce() -> String) {
        match &self.display {
            Display::Bar(bar) => {
                bar.set_position(done);
                bar.set_message(what());
            }
            Display::Lines if self.is_milestone(done) => eprintln!("{} ({done} of {})", what(), self.total),
            Display::Lines | Display::Nothing => {}
        }
    }

    /// Whether a line is due when there is no terminal.
    fn is_milestone(&self, done: u64) -> bool {
        let lines = |done: u64| u128::from(done) * u128::from(PLAIN_LINES) / u128::from(self.total.max(1));
        done > 0 && lines(done) > lines(done - 1)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_a_terminal_prints_a_few_lines_whatever_its_length() {
        for total in [1, 5, 100, 10_000] {
            let progress = Progress { display: Display::Lines, total };
            let lines = (0..=total).filter(|&done| progress.is_milestone(done)).count();
            assert!((1..=5).contains(&lines), "{lines} lines for {total} steps");
            assert!(progress.is_milestone(total));
        }
    }
}
