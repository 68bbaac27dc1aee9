//! The demo's report: for a person as a page of text, for a program as one JSON document.

use super::timeline;
use crate::lab::canary::CanaryReport;
use crate::lab::figures::Microseconds;
use crate::lab::histogram;
use crate::lab::surroundings;
use crate::lab::tally::Tally;
use crate::lab::verdict::Verdict;
use nil_pool::Bytes;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use std::fmt;
use std::path::PathBuf;

/// Everything that the demo found out.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) asked: u64,
    pub(super) memory: Bytes,
    pub(super) vcpus: u32,
    pub(super) tally: Tally,
    pub(super) verdict: Verdict,
    pub(super) canary: CanaryReport,
    pub(super) huge_bytes: u64,
    pub(super) ground: String,
    pub(super) kept: Option<KeptPool>,
}

/// A pool that was left behind on purpose.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct KeptPool {
    pub(super) path: PathBuf,
}

impl Report {
    /// Whether every handoff happened, nothing was copied and nothing differed.
    pub(super) fn is_good(&self) -> bool {
        self.verdict.is_clean() && self.tally.handoffs == self.asked && self.tally.copied_bytes == 0
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { memory, vcpus, tally, verdict, canary, huge_bytes, ground, kept, .. } = self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("handoffs", &tally.handoffs)?;
        map.serialize_entry("verified", &verdict.is_clean())?;
        map.serialize_entry("copied_bytes", &tally.copied_bytes)?;
        map.serialize_entry("blackout_us", &tally.blackouts.figures())?;
        map.serialize_entry("phases_us", &tally.phases.medians())?;
        map.serialize_entry("lost_first_ms_pct", &tally.lost_first_ms())?;
        map.serialize_entry("unobserved", &tally.unobserved)?;
        map.serialize_entry("state_bytes", &tally.state_bytes)?;
        map.serialize_entry("system_call_bytes", &tally.system_call_bytes)?;
        map.serialize_entry("memory_bytes", memory)?;
        map.serialize_entry("huge_page_bytes", huge_bytes)?;
        map.serialize_entry("vcpus", vcpus)?;
        map.serialize_entry("guest", verdict)?;
        map.serialize_entry("canary", canary)?;
        map.serialize_entry("pool", ground)?;
        map.serialize_entry("kept_pool", &kept.as_ref().map(|pool| &pool.path))?;
        map.serialize_entry("limits", &surroundings::sentences())?;
        map.end()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.headline(f)?;
        self.blackout(f)?;
        self.steps(f)?;
        self.movement(f)?;
        self.verification(f)?;
        self.limits(f)?;
        self.inspection(f)
    }
}

impl Report {
    fn headline(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory, vcpus, tally, verdict, .. } = self;
        let vcpus = if *vcpus == 1 { "one vCPU".into() } else { format!("{vcpus} vCPUs") };
        let (times, processes) = if tally.handoffs == 1 {
            ("once".into(), "a new process")
        } else {
            (format!("{} times", tally.handoffs), "a new process each time")
        };
        writeln!(f)?;
        writeln!(f, "A virtual machine with {memory} of memory and {vcpus} changed hosts {times}, into {processes}.")?;
        writeln!(
            f,
            "It never stopped rewriting its memory ({} pages), and its memory never moved.",
            grouped(verdict.pages_written)
        )?;
        if tally.handoffs < self.asked {
            writeln!(f, "It was to change hosts {} times, but found an error before.", self.asked)?;
        }
        Ok(())
    }

    fn blackout(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        heading(f, "How long it stood still, by its own clock")?;
        write!(f, "{}", histogram::render(&self.tally.blackouts))?;
        if let Some(figures) = self.tally.blackouts.figures() {
            let [p50, p90, p99, max] = [figures.p50, figures.p90, figures.p99, figures.max].map(Microseconds::human);
            writeln!(f, "\n  p50 {p50} · p90 {p90} · p99 {p99} · longest {max}")?;
        }
        if let Some(lost) = self.tally.lost_first_ms() {
            writeln!(f, "  of its first millisecond after landing it lost {:.1} % (median)", lost.0)?;
        }
        if self.tally.unobserved > 0 {
            writeln!(
                f,
                "  {} handoffs are missing here: the guest had overwritten its records of them",
                self.tally.unobserved
            )?;
        }
        Ok(())
    }

    fn steps(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(medians) = self.tally.phases.medians() else { return Ok(()) };
        heading(f, "What the hosts did meanwhile (medians)")?;
        write!(f, "{}", timeline::render(&medians))
    }

    fn movement(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tally, huge_bytes, ground, .. } = self;
        heading(f, "What was moved")?;
        let copied = Bytes(tally.copied_bytes);
        writeln!(
            f,
            "  guest memory     {copied:<9} in all: after each landing the kernel's list of the new process's mappings"
        )?;
        writeln!(f, "                             was compared with where the memory had been at boot")?;
        let state = Bytes(tally.state_bytes);
        writeln!(f, "  processor state  {state:<9} each time, through the pool")?;
        let calls = Bytes(tally.system_call_bytes);
        writeln!(
            f,
            "  system calls     {calls:<9} read and written by each new process, from its start until it had landed"
        )?;
        writeln!(f, "  the pool         {ground}")?;
        writeln!(f, "                   {} of the guest's memory are mapped by 2 MiB pages", Bytes(*huge_bytes))
    }

    fn verification(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdict { errors, first_error, pages, page_checks, register_rounds, .. } = &self.verdict;
        heading(f, "What the guest says of itself")?;
        match first_error {
            None => writeln!(f, "  no difference in any of its {} pages, nor in any register", grouped(*pages))?,
            Some(first) => writeln!(f, "  {} DIFFERENCES. The first of them: {first}", grouped(*errors))?,
        }
        let (checks, rounds) = (grouped(*page_checks), grouped(*register_rounds));
        writeln!(f, "  since boot it has checked {checks} pages, and all of its registers {rounds} times")
    }

    fn limits(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CanaryReport { pauses, longest_us, coinciding_handoffs, real_time } = &self.canary;
        heading(f, "To be read beside these figures")?;
        for sentence in surroundings::sentences() {
            writeln!(f, "  {sentence}")?;
        }
        let judge = if *real_time { "" } else { ", or was busy (the canary may not run at real-time priority here)" };
        match pauses {
            0 => writeln!(f, "  The machine did not pause for more than 200 µs{judge}."),
            pauses => writeln!(
                f,
                "  The machine paused {pauses} times for more than 200 µs, {} at most{judge}; \
                 {coinciding_handoffs} of the handoffs fell into a pause.",
                longest_us.human()
            ),
        }
    }

    fn inspection(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(KeptPool { path }) = &self.kept else { return Ok(()) };
        let path = path.display();
        heading(f, "The pool was kept")?;
        writeln!(f, "  nil pool inspect {path}")?;
        writeln!(f, "  nil pool check {path}")?;
        writeln!(f, "  rm {path}")
    }
}

fn heading(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    writeln!(f, "\n{text}\n")
}

/// A number with its digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let groups = digits.char_indices().map(|(at, digit)| match at {
        0 => digit.to_string(),
        at if at % 3 == first => format!(",{digit}"),
        _ => digit.to_string(),
    });
    groups.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::canary::Span;
    use crate::lab::observe::Observation;
    use crate::lab::phases::PhaseTimes;
    use crate::lab::shuttle::Sample;

    fn report(errors: u64) -> Report {
        let mut tally = Tally::new();
        for us in [92, 95, 98, 101, 340] {
            tally.add(&Sample {
                observed: Some(Observation {
                    blackout_ns: us * 1_000,
                    enter_ns: 9_000,
                    span: Span { begin: 0, end: 1 },
                    lost_first_ms_ns: 12_000,
                }),
                phases: Some(PhaseTimes {
                    kick: 37_000,
                    save: 17_000,
                    publish: 300,
                    load: 20_000,
                    claim: 300,
                    enter: 9_000,
                }),
                copied_bytes: 0,
                state_bytes: 6_144,
                system_call_bytes: 20_480,
            });
        }
        let first_error = (errors > 0).then(|| "vCPU 0: the page at 0x400000 is lost".into());
        Report {
            asked: 5,
            memory: Bytes(256 << 20),
            vcpus: 1,
            tally,
            verdict: Verdict {
                errors,
                first_error,
                pages: 64_512,
                page_checks: 1_234_567,
                pages_written: 1_200_000,
                register_rounds: 890,
            },
            canary: CanaryReport {
                pauses: 2,
                longest_us: Microseconds(1_520.0),
                coinciding_handoffs: 1,
                real_time: true,
            },
            huge_bytes: 256 << 20,
            ground: "a private tmpfs".into(),
            kept: None,
        }
    }

    fn json(report: &Report) -> serde_json::Value {
        serde_json::to_value(report).expect("a JSON document")
    }

    #[test]
    fn the_json_has_what_was_promised() {
        let json = json(&report(0));
        assert_eq!(json["handoffs"], 5);
        assert_eq!(json["verified"], true);
        assert_eq!(json["copied_bytes"], 0);
        assert_eq!(json["memory_bytes"], 256 << 20);
        assert_eq!(json["canary"]["coinciding_handoffs"], 1);
        for field in ["p50", "p90", "p99", "max"] {
            assert!(json["blackout_us"][field].is_f64(), "{field}");
        }
        for phase in ["kick", "save", "publish", "load", "claim", "enter"] {
            assert!(json["phases_us"][phase].is_f64(), "{phase}");
        }
    }

    #[test]
    fn one_difference_spoils_the_report() {
        assert!(report(0).is_good());
        let spoilt = report(1);
        assert!(!spoilt.is_good());
        assert_eq!(json(&spoilt)["verified"], false);
        assert!(spoilt.to_string().contains("1 DIFFERENCES. The first of them: vCPU 0: the page at 0x400000 is lost"));
    }

    #[test]
    fn a_copied_byte_or_a_missing_handoff_spoils_it_too() {
        let mut copied = report(0);
        copied.tally.copied_bytes = 1;
        assert!(!copied.is_good());
        assert!(!Report { asked: 6, ..report(0) }.is_good());
    }

    #[test]
    fn the_page_reads_from_the_outside_in() {
        let text = report(0).to_string();
        let page = text.split("\nTo be read beside").next().expect("a page");
        insta::assert_snapshot!(page, @r"
        A virtual machine with 256 MiB of memory and one vCPU changed hosts 5 times, into a new process each time.
        It never stopped rewriting its memory (1,200,000 pages), and its memory never moved.

        How long it stood still, by its own clock

             90 –   100 µs  ████████████████████████████████████████ 3  ← p50
            100 –   112 µs  █████████████▍ 1
                     ⋮
            315 –   355 µs  █████████████▍ 1  ← p90, p99

          p50 98 µs · p90 340 µs · p99 340 µs · longest 340 µs
          of its first millisecond after landing it lost 1.2 % (median)

        What the hosts did meanwhile (medians)

          kick        37 µs  █████████████████████                              a signal takes the vCPUs out of the guest
          save        17 µs                       ██████████                    each vCPU writes its registers into the pool
          publish    0.3 µs                                 ▏                   one word says Frozen, and the target sees it
          load        20 µs                                 ████████████        the target's vCPUs take the registers
          claim      0.3 µs                                             ▏       one compare-and-swap: the guest has a new owner
          enter      9.0 µs                                             █████   the guest looks at its clock again
          in all      84 µs

        What was moved

          guest memory     0 B       in all: after each landing the kernel's list of the new process's mappings
                                     was compared with where the memory had been at boot
          processor state  6 KiB     each time, through the pool
          system calls     20 KiB    read and written by each new process, from its start until it had landed
          the pool         a private tmpfs
                           256 MiB of the guest's memory are mapped by 2 MiB pages

        What the guest says of itself

          no difference in any of its 64,512 pages, nor in any register
          since boot it has checked 1,234,567 pages, and all of its registers 890 times
        ");
    }

    #[test]
    fn a_kept_pool_comes_with_what_to_do_with_it() {
        let kept = Some(KeptPool { path: "/dev/shm/nil-x.pool".into() });
        let text = Report { kept, ..report(0) }.to_string();
        assert!(text.contains("nil pool inspect /dev/shm/nil-x.pool") && text.contains("rm /dev/shm/nil-x.pool"));
    }

    #[test]
    fn numbers_are_grouped_in_threes() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (64_512, "64,512"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }
}
