//! A path in words: each leg with what it takes, and why the alternatives take longer.

use crate::cost::{Copied, Copying, Cost, Limit};
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
            let _ = writeln!(text, "  {step:width$}  {:>10}   {}", leg.cost.total().to_string(), parts(&leg.cost));
            for copy in &leg.copies {
                let _ = writeln!(text, "    {}", told(copy));
            }
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

/// What the time of a copy is made of.
fn told(copy: &Copied) -> String {
    let Copied { copying, bytes, rate, limit, stretch_permille, time } = copy;
    let way = match copying {
        Copying::IntoPool => "into the pool",
        Copying::OutOfPool => "out of the pool",
    };
    let why = match limit {
        Limit::Measured => "as was measured there",
        Limit::Assumed => "as is assumed, since nothing was measured",
        Limit::Route => "the part of the route that copying may take",
    };
    let busy = match stretch_permille {
        1000 => String::new(),
        longer => format!(", × {}.{:02} because the host is busy", longer / 1000, longer % 1000 / 10),
    };
    format!("{time}: {bytes} {way} at {rate}, {why}{busy}")
}

/// Where time goes, without what takes none.
fn parts(cost: &Cost) -> String {
    let parts = [(cost.copy, "copy"), (cost.arm, "arm"), (cost.blackout, "blackout"), (cost.fabric, "latency")];
    let told = parts.into_iter().filter(|(time, _)| time.0 > 0).map(|(time, what)| format!("{what} {time}"));
    told.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use crate::model::Host;
    use crate::path::{Begin, End, PathRequest};
    use crate::planner::Planner;
    use crate::quantity::{Bytes, Duration, Rate};
    use crate::testing::{GIB, fabric_with};

    #[test]
    fn the_parts_of_a_prediction_add_up_to_it_and_are_told() {
        let change = |host: &mut Host| match host.name.as_str() {
            "A" => host.load = 0.5,
            "B" => (host.load, host.out_of_pool) = (1.0, Some(Rate(GIB))),
            _ => {}
        };
        let fabric = fabric_with("A-P B-P B-Q E-Q", change, |_| {});
        let [from, to] = ["A", "E"].map(|name| fabric.find_host(name).expect("a host"));
        let request = PathRequest { begin: Begin::Dram, end: End::Dram, ..PathRequest::new(from, to, Bytes(GIB)) };
        let path = Planner::new(&fabric).path(&request).expect("a way");
        let mut sum = Duration(0);
        for leg in &path.legs {
            let copies = leg.copies.iter().fold(Duration(0), |sum, copy| sum + copy.time);
            assert_eq!(copies, leg.cost.copy, "{leg:?}");
            let cost = leg.cost;
            assert_eq!(cost.total(), cost.arm + cost.blackout + cost.fabric + cost.copy);
            sum += cost.total();
        }
        assert_eq!((sum, path.cost().total()), (path.time(), path.time()));
        assert_eq!(path.copied(), Bytes(4 * GIB), "into P, out of it, into Q, out of that");
        let told = path.explained(&fabric);
        for part in [
            "1 GiB into the pool at 915.5 MiB/s, as is assumed, since nothing was measured, × 1.33 because the host is busy",
            "1.0 s: 1 GiB out of the pool at 1 GiB/s, as was measured there\n",
        ] {
            assert!(told.contains(part), "`{part}` is missing in:\n{told}");
        }
    }
}
