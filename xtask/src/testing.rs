//! Steps that run tests: nextest, doctests, the model check, loom.
//!
//! A test that cannot run on this machine prints a line `skipped: REASON` and returns. Such tests are counted apart:
//! the note gives how many passed, and each reason stands beneath the step in the summary.

use crate::command::{run, run_recorded};
use crate::metadata::Metadata;
use crate::outcome::Outcome;
use crate::run::Run;
use crate::tools;
use anyhow::{Result, anyhow, bail};
use std::collections::BTreeMap;
use std::fs;

/// Where nextest writes its report, as `.config/nextest.toml` says.
const REPORT: &str = "target/nextest/ci/junit.xml";

/// How many lines of a failed test's output the summary repeats.
const FAILURE_LINES: usize = 40;

/// The step `nextest`. Where nextest cannot be installed, `cargo test` runs the same tests, and the summary says so.
pub(crate) fn tests(this: &Run) -> Result<Outcome> {
    if let Err(error) = tools::ensure(this, &tools::NEXTEST) {
        println!("{error}; cargo test runs the tests instead");
        let output = run_recorded(
            &mut this.cargo("test --locked --workspace --lib --bins --tests --no-fail-fast -- --show-output"),
        )?;
        return Tally::of_cargo_test(&output).outcome("cargo test, because cargo-nextest cannot be installed");
    }
    let report = this.root.join(REPORT);
    // A report of an earlier run must not be taken for one of this run.
    let _ = fs::remove_file(&report);
    let ran = run(&mut this.cargo("nextest run --locked --workspace --profile ci"));
    let report = match fs::read_to_string(&report) {
        Ok(report) => report,
        // Without a report nothing was run: what nextest or the compiler said is the reason.
        Err(error) => return Err(ran.err().unwrap_or_else(|| anyhow!("{}: {error}", report.display()))),
    };
    ran.map_err(|error| failures(&report).map_or(error, |failures| anyhow!(failures)))?;
    Tally::of_junit(&report).outcome("nextest")
}

/// The step `doctests`.
pub(crate) fn doctests(this: &Run) -> Result<Outcome> {
    let output = run_recorded(&mut this.cargo("test --locked --workspace --doc"))?;
    match Tally::of_cargo_test(&output).passed {
        0 => Ok(Outcome::skipped("the documentation has no examples")),
        examples => Ok(Outcome::passed(format!("{examples} examples"))),
    }
}

/// The step `model`: every test of `nil-migrate` with `model` in its name, optimised, since they search large spaces.
pub(crate) fn model(this: &Run) -> Result<Outcome> {
    let output = run_recorded(&mut this.cargo("test --locked --release -p nil-migrate -- --show-output model"))?;
    Tally::of_cargo_test(&output).outcome("nil-migrate")
}

/// The step `loom`: every test with `loom` in its name, of each crate that depends on loom, built for it.
pub(crate) fn loom(this: &Run) -> Result<Outcome> {
    let metadata = Metadata::read(&this.root.join("Cargo.toml"))?;
    let users = metadata.packages.iter().filter(|package| package.dependencies.iter().any(|used| used.name == "loom"));
    let names: Vec<&str> = users.map(|package| package.name.as_str()).collect();
    let mut command = this.cargo("test --locked --release --lib --tests --target-dir");
    command.arg(this.target.join("loom")).env("RUSTFLAGS", "--cfg loom");
    for name in &names {
        command.args(["-p", name]);
    }
    if names.is_empty() {
        bail!("no crate depends on loom: the atomics are not checked");
    }
    let output = run_recorded(command.args(["--", "loom"]))?;
    Tally::of_cargo_test(&output).outcome(&names.join(", "))
}

/// Which tests failed, in a line, and beneath it the end of what each of them said; none when the report names no failure.
fn failures(report: &str) -> Option<String> {
    let failed: Vec<&str> = cases(report).filter(|case| case.contains("<failure")).collect();
    let names: Vec<&str> = failed.iter().map(|case| attribute(case, "name")).collect();
    let count = match names.len() {
        0 => return None,
        1 => "1 test".to_owned(),
        several => format!("{several} tests"),
    };
    let mut text = format!("{count} failed: {}", names.join(", "));
    for case in failed {
        let said = unescape(case);
        let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
        text += &format!("\n{}::{}", attribute(case, "classname"), attribute(case, "name"));
        for line in &lines[lines.len().saturating_sub(FAILURE_LINES)..] {
            text += &format!("\n  {line}");
        }
    }
    Some(text)
}

/// The test cases of nextest's report.
fn cases(report: &str) -> impl Iterator<Item = &str> {
    report.split("<testcase ").skip(1).map(|case| case.split("</testcase>").next().unwrap_or(case))
}

fn attribute<'a>(case: &'a str, name: &str) -> &'a str {
    // The space tells `name="…"` from the end of `classname="…"`; a case begins with its first attribute.
    let quoted = case.strip_prefix(&format!("{name}=\"")).or_else(|| case.split(&format!(" {name}=\"")).nth(1));
    quoted.and_then(|rest| rest.split('"').next()).unwrap_or("?")
}

/// How many tests passed, and which ones said that they could not run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: usize,
    /// Reason → names of the tests.
    skipped: BTreeMap<String, Vec<String>>,
    /// Tests that failed, and passed when they were tried once more.
    flaky: Vec<String>,
}

impl Tally {
    /// Reads nextest's report. Only a run without failures gets here.
    fn of_junit(report: &str) -> Self {
        let mut tally = Self::default();
        for case in cases(report) {
            let name = attribute(case, "name");
            let text = unescape(&case.replace("<system-out>", "\n").replace("<system-err>", "\n").replace("</", "\n"));
            if case.contains("<flakyFailure") {
                tally.flaky.push(name.to_owned());
            }
            match text.lines().find_map(reason) {
                Some(reason) => tally.skip(reason, name),
                None => tally.passed += 1,
            }
        }
        tally
    }

    /// Reads what `cargo test -- --show-output` prints.
    fn of_cargo_test(output: &str) -> Self {
        let mut tally = Self::default();
        let mut name = "?";
        let mut said = false;
        for line in output.lines() {
            if let Some(rest) = line.strip_prefix("---- ") {
                name = rest.trim_end_matches(" stdout ----");
                said = false;
            } else if let Some(counts) = line.strip_prefix("test result: ok. ") {
                let count = counts.split(" passed").next().and_then(|count| count.parse::<usize>().ok());
                tally.passed += count.unwrap_or_default();
            } else if let Some(reason) = reason(line).filter(|_| !said) {
                said = true;
                tally.skip(reason, name);
            }
        }
        let skipped: usize = tally.skipped.values().map(Vec::len).sum();
        tally.passed = tally.passed.saturating_sub(skipped);
        tally
    }

    fn skip(&mut self, reason: &str, test: &str) {
        self.skipped.entry(reason.to_owned()).or_default().push(test.to_owned());
    }

    /// The outcome of a step that ran these tests by `means`. That no test ran at all is an error: nothing was proved.
    fn outcome(self, means: &str) -> Result<Outcome> {
        let skipped: Vec<String> =
            self.skipped.iter().map(|(reason, tests)| format!("{reason} ({})", count_and_first(tests))).collect();
        let flaky = match self.flaky.as_slice() {
            [] => String::new(),
            names => format!("; failed and then passed: {}", names.join(", ")),
        };
        match (self.passed, skipped.is_empty()) {
            (0, true) => bail!("no test ran ({means})"),
            (0, false) => Ok(Outcome::skipped(skipped.join("; "))),
            (passed, _) => Ok(Outcome::Passed { note: format!("{passed} tests ({means}){flaky}"), skipped }),
        }
    }
}

/// The reason in a line `skipped: REASON`.
fn reason(line: &str) -> Option<&str> {
    line.trim().strip_prefix("skipped:").map(str::trim)
}

fn count_and_first(tests: &[String]) -> String {
    match tests {
        [one] => one.clone(),
        [first, ..] => format!("{} tests, {first} first", tests.len()),
        [] => "no test".to_owned(),
    }
}

fn unescape(xml: &str) -> String {
    xml.replace("&quot;", "\"").replace("&apos;", "'").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}

#[cfg(test)]
mod unit {
    use super::*;

    const JUNIT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="3" failures="0" errors="0">
    <testsuite name="nil-vmm" tests="3">
        <testcase name="a_guest_runs" classname="nil-vmm" time="0.1">
            <system-out>
running 1 test
skipped: /dev/kvm doesn&apos;t exist
</system-out>
            <system-err></system-err>
        </testcase>
        <testcase name="another_guest_runs" classname="nil-vmm" time="0.1">
            <system-err>skipped: /dev/kvm doesn't exist</system-err>
        </testcase>
        <testcase name="it_adds" classname="nil-vmm" time="0.1">
            <system-out>nothing was skipped: all ran</system-out>
        </testcase>
    </testsuite>
</testsuites>"#;

    #[test]
    fn tests_that_say_skipped_in_a_junit_report_are_counted_apart() {
        let tally = Tally::of_junit(JUNIT);
        assert_eq!(tally.passed, 1);
        assert_eq!(tally.skipped["/dev/kvm doesn't exist"], ["a_guest_runs", "another_guest_runs"]);
    }

    #[test]
    fn tests_that_failed_are_named_with_what_they_said() {
        let report = r#"
        <testcase name="it_adds" classname="nil-vmm" time="0.1"></testcase>
        <testcase name="it_subtracts" classname="nil-vmm::sums" time="0.1">
            <failure message="panicked" type="test failure">panicked at sums.rs:3: 1 &lt; 2</failure>
        </testcase>"#;
        let text = failures(report).expect("a failure");
        assert_eq!(text.lines().next(), Some("1 test failed: it_subtracts"));
        assert!(text.contains("nil-vmm::sums::it_subtracts\n") && text.contains("sums.rs:3: 1 < 2"), "{text}");
        assert_eq!(failures(JUNIT), None);
    }

    #[test]
    fn a_test_that_passed_only_when_tried_again_is_named() {
        let report =
            r#"<testcase name="it_waits" classname="nil"><flakyFailure message="late">late</flakyFailure></testcase>"#;
        let outcome = Tally::of_junit(report).outcome("nextest").expect("it passed");
        assert_eq!(outcome, Outcome::passed("1 tests (nextest); failed and then passed: it_waits"));
        assert_eq!(failures(report), None);
    }

    #[test]
    fn tests_that_say_skipped_under_cargo_test_are_counted_apart() {
        let output = "\
---- kvm::a_guest_runs stdout ----
skipped: no /dev/kvm

test result: ok. 3 passed; 0 failed; 0 ignored

test result: ok. 4 passed; 0 failed; 0 ignored
";
        let tally = Tally::of_cargo_test(output);
        assert_eq!(tally.passed, 6);
        assert_eq!(tally.skipped["no /dev/kvm"], ["kvm::a_guest_runs"]);
    }

    #[test]
    fn a_run_of_no_tests_proves_nothing_and_fails() {
        let error = Tally::of_cargo_test("test result: ok. 0 passed; 0 failed").outcome("loom").expect_err("0 tests");
        assert_eq!(error.to_string(), "no test ran (loom)");
    }

    #[test]
    fn a_run_whose_tests_were_all_skipped_is_skipped() {
        let outcome = Tally::of_cargo_test("skipped: no KVM\ntest result: ok. 1 passed; 0 failed").outcome("x");
        assert!(matches!(outcome, Ok(Outcome::Skipped { .. })), "{outcome:?}");
    }
}
