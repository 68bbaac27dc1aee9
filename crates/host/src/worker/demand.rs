//! A guest whose memory is taken away: it is stopped before anybody else gets what it had.
//!
//! The order of the steps is what keeps its stores out of memory that has become another's: the demand is heeded (from
//! here on it cannot be withdrawn), every move and every vCPU is stopped for good, and only then the guest is recorded as
//! lost, which is what the taker waits for.

use super::orders::{Orders, Post};
use crate::error::story;
use crate::message::Phase;
use nil_migrate::rescue;
use nil_pool::{Demanded, GuestControl};
use nil_vmm::Vm;

impl Orders {
    /// Stops the guest if somebody takes its memory away. While a handoff is on nothing is done: whoever runs the guest
    /// afterwards sees the demand.
    pub(super) fn check_demand(&self, vm: &Vm) {
        // Nor does the guest get another home meanwhile.
        let Ok(_no_handoff) = self.handing_over.try_lock() else { return };
        let Post { control, me } = self.post();
        let Some(demanded) = control.demanded() else { return };
        let here = matches!(self.board().phase(), Phase::Running | Phase::Halted) && vm.owns();
        if !here || !control.heed(&demanded) {
            return;
        }
        self.moves.close();
        vm.halt();
        if let Err(error) = rescue::bury(&control, me, me) {
            tracing::error!("the guest cannot be recorded as lost, so its memory stays with it: {}", story(&error));
        }
        let why = told(&control, &demanded);
        let _ = self.board().enter(&[Phase::Running, Phase::Halted], Phase::Halted, Some(why));
    }
}

fn told(control: &GuestControl, demanded: &Demanded) -> String {
    let name = control.pool().host(demanded.by).map_or_else(|| demanded.by.to_string(), |host| host.name);
    let Demanded { tag, at, .. } = demanded;
    format!("its memory, capacity {tag}, was taken away by force by {name} at {}", utc(*at))
}

/// A moment given in nanoseconds since 1970, as `2027-01-15T08:00:00Z`.
fn utc(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// The Gregorian date of a day counted from 1970-01-01. Years begin in March here, so that a leap day is a year's last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_told_in_utc() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_800_000_000, "2027-01-15T08:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds * 1_000_000_000), text);
        }
    }
}
