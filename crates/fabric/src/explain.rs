//! A path in words: each leg with what it takes, and why the alternatives take longer.

use crate::cost::Cost;
use crate::model::Fabric;
use crate::path::Path;
use crate::quantity::Duration;
use std::fmt::Write;

impl Path {
    /// Every leg in a line of its own, with where its time goes.
    #[must_use]
    pub fn explained(&self, fabric: &Fabric) -> String {
        let mut text = String::new();
        let steps: Vec<String> = self.legs.iter().map(|leg| leg.step.told(fabric)).collect();
        let width = steps.iter().map(|step| step.chars().count()).max().unwrap_or(0);
        for (leg, step) in self.legs.iter().zip(&steps) {
            let rate = leg.rate.map_or_else(String::new, |rate| format!(", {} at {rate}", leg.copied));
            let _ =
                writeln!(text, "  {step:width$}  {:>10}   {}{rate}", leg.cost.total().to_string(), parts(&leg.cost));
        }
        text
    }

    /// Why this way is predicted to take longer than a quicker one.
    #[must_use]
    pub fn why_slower_than(&self, better: &Self) -> String {
        let (own, other) = (self.cost(), better.cost());
        let more = |a: Duration, b: Duration| a.0.saturating_sub(b.0);
        let mut reasons = vec![
            (more(own.copy, other.copy), "copying memory"),
            (more(own.arm, other.arm), "arming targets"),
            (more(own.blackout, other.blackout), "handing off"),
            (more(own.fabric, other.fabric), "the fabric's latency"),
        ];
        reasons.retain(|(time, _)| *time > 0);
        reasons.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
        let Some((most, what)) = reasons.first() else { return "it takes as long".to_owned() };
        let handoffs = self.handoffs().abs_diff(better.handoffs());
        let because = match self.handoffs().cmp(&better.handoffs()) {
            std::cmp::Ordering::Greater if handoffs == 1 => ": one handoff more".to_owned(),
            std::cmp::Ordering::Greater => format!(": {handoffs} handoffs more"),
            _ if *what == "copying memory" => ": narrower links or busier hosts".to_owned(),
            _ if *what == "arming targets" => ": busier hosts".to_owned(),
            _ => String::new(),
        };
        format!("{} more for {what}{because}", Duration(*most))
    }
}

/// Where time goes, without what takes none.
fn parts(cost: &Cost) -> String {
    let parts = [(cost.copy, "copy"), (cost.arm, "arm"), (cost.blackout, "blackout"), (cost.fabric, "latency")];
    let told = parts.into_iter().filter(|(time, _)| time.0 > 0).map(|(time, what)| format!("{what} {time}"));
    told.collect::<Vec<_>>().join(", ")
}
