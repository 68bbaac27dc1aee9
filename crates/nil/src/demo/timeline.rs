//! The steps of a handoff as a little timeline: each bar begins where the one before ends.

use crate::lab::figures::Microseconds;
use crate::lab::phases::PhaseMedians;
use std::fmt::Write;

/// Width of the whole timeline in characters.
const WIDTH: f64 = 48.0;

/// Renders the medians; one line per step, each indented by two.
pub(crate) fn render(medians: &PhaseMedians) -> String {
    let total: f64 = medians.in_order().iter().map(|(_, _, time)| time.0).sum();
    let mut text = String::new();
    let mut begin = 0.0;
    for (name, what, time) in medians.in_order() {
        let scale = |us: f64| if total > 0.0 { us / total * WIDTH } else { 0.0 };
        let (from, to) = (columns(scale(begin)), columns(scale(begin + time.0)));
        let bar = if to > from { "█".repeat(to - from) } else { "▏".into() };
        let lane = format!("{}{bar}", " ".repeat(from));
        // Writing into a String cannot fail.
        let _ = writeln!(text, "  {name:<8}{:>9}  {lane:<50} {what}", time.human());
        begin += time.0;
    }
    let _ = writeln!(text, "  {:<8}{:>9}", "in all", Microseconds(total).human());
    text
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the width of a line")]
fn columns(position: f64) -> usize {
    position.round().clamp(0.0, WIDTH) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_begins_where_the_one_before_ends() {
        let us = Microseconds;
        let medians = PhaseMedians {
            kick: us(37.2),
            save: us(17.0),
            publish: us(0.1),
            load: us(20.4),
            claim: us(0.3),
            enter: us(23.0),
        };
        insta::assert_snapshot!(render(&medians), @r"
        kick        37 µs  ██████████████████                                 a signal takes the vCPUs out of the guest
        save        17 µs                    █████████                        each vCPU writes its registers into the pool
        publish    0.1 µs                             ▏                       one word says Frozen, and the target sees it
        load        20 µs                             ██████████              the target's vCPUs take the registers
        claim      0.3 µs                                       ▏             one compare-and-swap: the guest has a new owner
        enter       23 µs                                       ███████████   the guest looks at its clock again
        in all      98 µs
        ");
    }

    #[test]
    fn steps_that_took_no_time_do_not_divide_by_it() {
        let zero = Microseconds(0.0);
        let medians = PhaseMedians { kick: zero, save: zero, publish: zero, load: zero, claim: zero, enter: zero };
        assert!(render(&medians).contains("0.0 µs"));
    }
}
