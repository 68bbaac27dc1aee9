//! What moving memory may cost, on the command line: the same for `nil decouple`, `nil recouple` and `nil migrate`.

use super::duration::{self, micros};
use nil_mover::{Budget, MovePlan, Pace};
use nil_pool::Bytes;
use std::time::Duration;

#[derive(Debug, Default, Clone, clap::Args)]
#[command(next_help_heading = "What it may cost")]
pub(crate) struct BudgetArgs {
    /// The longest that a store of the guest may wait for a chunk of its memory [default: 500us].
    #[arg(long, value_parser = duration::parse_some, value_name = "TIME", conflicts_with = "fast")]
    max_stall: Option<Duration>,
    /// The share of its speed that the guest may lose meanwhile [default: 20%].
    #[arg(long, value_parser = parse_percent, value_name = "PERCENT", conflicts_with = "fast")]
    max_slowdown: Option<u8>,
    /// Use all the bandwidth that there is, whatever it costs the guest.
    #[arg(long)]
    fast: bool,
    /// Use no more than so many bytes per second.
    #[arg(long, value_name = "SIZE")]
    bandwidth: Option<Bytes>,
    /// How long to wait for memory that cannot move, before everything goes back to where it was [default: 30s].
    #[arg(long, value_parser = duration::parse_some, value_name = "TIME")]
    stall_timeout: Option<Duration>,
}

impl BudgetArgs {
    pub(crate) fn budget(&self) -> Budget {
        let pace = match (self.fast, Pace::default()) {
            (true, _) | (false, Pace::Fast) => Pace::Fast,
            (false, Pace::Paced { max_stall_us, max_slowdown_pct }) => Pace::Paced {
                max_stall_us: self.max_stall.map_or(max_stall_us, micros),
                max_slowdown_pct: self.max_slowdown.unwrap_or(max_slowdown_pct),
            },
        };
        Budget { pace, bandwidth: self.bandwidth.map(Bytes::get) }
    }

    pub(crate) fn stall_timeout_us(&self) -> u64 {
        self.stall_timeout.map_or(MovePlan::STALL_TIMEOUT_US, micros)
    }
}

/// A share such as `20%` or `20`.
fn parse_percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim().parse::<u8>();
    match number {
        Ok(percent @ 1..=100) => Ok(percent),
        Ok(_) | Err(_) => Err(format!("`{text}` is not a share between 1% and 100%")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        budget: BudgetArgs,
    }

    fn budget(args: &[&str]) -> Result<BudgetArgs, String> {
        let line = Line::try_parse_from([&["nil"], args].concat());
        line.map(|line| line.budget).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_said_is_the_default() {
        let args = budget(&[]).expect("nothing is fine");
        assert_eq!((args.budget(), args.stall_timeout_us()), (Budget::default(), MovePlan::STALL_TIMEOUT_US));
    }

    #[test]
    fn what_is_said_counts() {
        let args = budget(&["--max-stall", "50us", "--bandwidth", "1G", "--stall-timeout", "2s"]).expect("a budget");
        let Pace::Paced { max_stall_us, max_slowdown_pct } = args.budget().pace else { panic!("paced") };
        assert_eq!((max_stall_us, max_slowdown_pct), (50, 20));
        assert_eq!((args.budget().bandwidth, args.stall_timeout_us()), (Some(1 << 30), 2_000_000));
        assert_eq!(budget(&["--fast"]).expect("a budget").budget().pace, Pace::Fast);
    }

    #[test]
    fn contradictions_and_nothings_are_errors_of_usage() {
        for args in [
            &["--fast", "--max-stall", "1ms"][..],
            &["--fast", "--max-slowdown", "5%"],
            &["--max-stall", "0us"],
            &["--max-slowdown", "0%"],
            &["--max-slowdown", "101%"],
            &["--max-slowdown", "lots"],
            &["--bandwidth", "0"],
            &["--stall-timeout", "0s"],
        ] {
            assert!(budget(args).is_err(), "{args:?}");
        }
    }
}
