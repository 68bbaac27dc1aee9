//! Plans that move many guests, as text.

use super::Table;
use super::duration::of_micros;
use nil_host::{Departure, PlacementPlan, PlannedMove, Stay};
use nil_pool::Bytes;
use std::fmt;

/// A plan, wave by wave.
pub(super) struct PlanText<'a>(pub(super) &'a PlacementPlan);

impl fmt::Display for PlanText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PlacementPlan { waves, predicted_us, copied_bytes, .. } = self.0;
        let mut table = Table::new(["WAVE", "GUEST", "MEMORY", "WAY", "TAKES"]);
        for (number, wave) in (1..).zip(waves) {
            let number: u32 = number;
            for PlannedMove { guest, memory_bytes, way, predicted_us, .. } in wave {
                let memory = Bytes(*memory_bytes).to_string();
                table.row([number.to_string(), guest.to_string(), memory, way.clone(), of_micros(*predicted_us)]);
            }
        }
        if waves.is_empty() {
            return Ok(());
        }
        write!(f, "{table}")?;
        let (moves, time) = (self.0.moves().count(), of_micros(*predicted_us));
        writeln!(f, "{moves} guests in {} waves, about {time}; {} are copied", waves.len(), Bytes(*copied_bytes))
    }
}

/// The guests that have left their hosts, if any have.
pub(super) fn write_departures(f: &mut fmt::Formatter<'_>, departures: &[Departure]) -> fmt::Result {
    if departures.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(["GUEST", "TO", "WAY", "TOOK", "STOOD STILL"]);
    for Departure { guest, to, way, took_us, blackout_ns, .. } in departures {
        let still = blackout_ns.map_or_else(|| "not known".to_owned(), |ns| of_micros(ns / 1000));
        table.row([guest.to_string(), to.to_string(), way.clone(), of_micros(*took_us), still]);
    }
    write!(f, "{table}")
}

/// The guests that stay, and why.
pub(super) fn write_left(f: &mut fmt::Formatter<'_>, left: &[Stay]) -> fmt::Result {
    left.iter().try_for_each(|stay| writeln!(f, "guest {} stays: {}", stay.guest, stay.why))
}
