//! Small pictures and their colours: states, bars, a line of bandwidth. Colours are those of the terminal's own palette,
//! and nothing is told by colour alone.

use nil_host::{GuestReport, GuestState, HostReport, HostStanding, ProtectionState};
use nil_pool::Bytes;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Span;
use std::time::Duration;

pub(super) const QUIET: Style = Style::new().add_modifier(Modifier::DIM);
pub(super) const ALARM: Style = Style::new().fg(Color::Red);
pub(super) const BUSY: Style = Style::new().fg(Color::Yellow);
pub(super) const GOOD: Style = Style::new().fg(Color::Green);
pub(super) const HERE: Style = Style::new().fg(Color::Cyan).add_modifier(Modifier::BOLD);

/// A guest's state, with a mark that is seen from afar.
pub(super) fn state(state: GuestState) -> Span<'static> {
    let (mark, style) = match state {
        GuestState::Running => ("●", GOOD),
        GuestState::Starting => ("◌", BUSY),
        GuestState::Migrating => ("◐", BUSY),
        GuestState::Stopping | GuestState::Stopped => ("○", QUIET),
        GuestState::Lost => ("✗", ALARM),
        GuestState::Unclear => ("?", ALARM),
    };
    Span::styled(format!("{mark} {state}"), style)
}

/// How a host's agent is.
pub(super) fn agent(host: &HostReport) -> Span<'static> {
    match (host.agent_pid, &host.silent) {
        (Some(_), _) => Span::styled("● up", GOOD),
        (None, Some(_)) => Span::styled("? does not answer", ALARM),
        (None, None) => Span::styled("○ not running", ALARM),
    }
}

/// What others see of a host's lease.
pub(super) fn lease(host: &HostReport) -> Span<'static> {
    let Some(standing) = host.standing else { return Span::styled("–", QUIET) };
    let style = match standing {
        HostStanding::Alive => GOOD,
        HostStanding::Late => QUIET,
        HostStanding::Suspect => BUSY,
        HostStanding::Expired | HostStanding::Dead | HostStanding::Fencing | HostStanding::Fenced => ALARM,
    };
    Span::styled(standing.word(), style)
}

/// What the protection of a guest is good for now, and its last commit.
pub(super) fn protection(guest: &GuestReport) -> Span<'static> {
    let Some(protection) = &guest.protection else { return Span::raw("") };
    let style = match protection.state {
        ProtectionState::Active => GOOD,
        ProtectionState::Syncing => BUSY,
        ProtectionState::Suspended => ALARM,
    };
    Span::styled(protection.brief(), style)
}

/// A bar of so many characters, in eighths of one.
pub(super) fn bar(part: u64, whole: u64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = u128::from(part.min(whole)) * (width as u128 * 8) / u128::from(whole.max(1));
    let mut eighths = usize::try_from(eighths).unwrap_or(0);
    if part > 0 && part < whole {
        eighths = eighths.clamp(1, width * 8 - 1);
    }
    let (full, rest) = (eighths / 8, EIGHTHS[eighths % 8]);
    let empty = width - full - usize::from(!rest.is_empty());
    format!("{}{rest}{}", "█".repeat(full), "░".repeat(empty))
}

/// The last so many values as a line of bars, the highest of them full.
pub(super) fn line(values: impl DoubleEndedIterator<Item = u64>, width: usize) -> String {
    const HEIGHTS: [&str; 8] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
    let mut last: Vec<u64> = values.rev().take(width).collect();
    last.reverse();
    let highest = last.iter().copied().max().unwrap_or(0).max(1);
    let height = |value: u64| usize::try_from(u128::from(value) * 7 / u128::from(highest)).unwrap_or(0);
    last.into_iter().map(|value| HEIGHTS[height(value)]).collect()
}

/// Whole percents; what is not all is never shown as all.
pub(super) fn percent(part: u64, whole: u64) -> u64 {
    let percent = u128::from(part.min(whole)) * 100 / u128::from(whole.max(1));
    u64::try_from(percent).unwrap_or(100)
}

/// Bytes per second; nothing for none.
pub(super) fn rate(bytes_per_s: u64) -> String {
    if bytes_per_s == 0 { String::new() } else { format!("{}/s", Bytes(bytes_per_s)) }
}

/// A time that passes, in whole units.
pub(super) fn time(time: Duration) -> String {
    crate::cli::ps::age(time.as_secs())
}

/// "1 guest", "2 guests".
pub(super) fn count(number: usize, thing: &str) -> String {
    match number {
        1 => format!("1 {thing}"),
        _ => format!("{number} {thing}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_full_only_when_all_is_there_and_empty_only_when_nothing_is() {
        for (part, text) in [(0, "░░░░"), (1, "▏░░░"), (50, "██░░"), (99, "███▉"), (100, "████"), (999, "████")]
        {
            assert_eq!(bar(part, 100, 4), text, "{part}");
        }
        assert_eq!((bar(0, 0, 2), bar(u64::MAX, u64::MAX, 2)), ("░░".to_owned(), "██".to_owned()));
        assert_eq!((percent(999, 1000), percent(u64::MAX, u64::MAX), percent(0, 0)), (99, 100, 0));
    }

    #[test]
    fn a_line_shows_the_newest_values_against_their_highest() {
        assert_eq!(line([9, 0, 4, 8].into_iter(), 3), "▁▄█");
        assert_eq!(line([0, 0].into_iter(), 3), "▁▁");
        assert_eq!(line([].into_iter(), 3), "");
    }
}
