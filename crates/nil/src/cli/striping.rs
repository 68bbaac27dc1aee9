//! Over which pools a guest's memory is spread, on the command line: the same for `nil decouple` and `nil migrate`.

use super::capacity::stripes::StripeChoice;
use anyhow::Result;
use nil_host::{StripeShare, Striping};
use nil_pool::{Bytes, LegRequest};

#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Where its memory goes")]
pub(crate) struct StripingArgs {
    /// A pool over which to spread it, given once for each; all hosts concerned must have joined it. In every round it
    /// takes its weight times the granularity. The guest's own pool takes a part only if it is named here, too.
    #[arg(long, value_name = "PATH[:WEIGHT]", conflicts_with = "cancel")]
    stripe: Vec<StripeChoice>,
    /// How much a stripe of weight 1 takes in every round: a multiple of 2M.
    #[arg(long, default_value = "2M", value_name = "SIZE", requires = "stripe")]
    granularity: Bytes,
}

impl StripingArgs {
    /// What to order; nothing without a stripe.
    pub(crate) fn striping(&self) -> Result<Option<Striping>> {
        if self.stripe.is_empty() {
            return Ok(None);
        }
        let share = |choice: &StripeChoice| {
            let LegRequest { pool, weight } = choice.leg()?;
            Ok(StripeShare { pool, weight })
        };
        let shares = self.stripe.iter().map(share).collect::<Result<_>>()?;
        Ok(Some(Striping { granularity: self.granularity.get(), shares }))
    }
}
