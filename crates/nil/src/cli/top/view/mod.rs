//! What `nil top` draws, from its [`Model`] alone.
//!
//! ```text
//! nil top  3 hosts · 1 pool · 5 guests          the title, with the bandwidth of all moves
//! Hosts ─────────────────────────────────       a panel: heading, column heads, rows; the one that has the keys is bright
//! Pools ─────────────────────────────────
//! Guests ────────────────────────────────       takes the room that there is
//! Moves ─────────────────────────────────       under way, and beneath them those that are over
//! q quit …                                      keys
//! ```
//!
//! Where the screen is wide, hosts and pools stand side by side.

mod columns;
mod details;
mod marks;
mod panels;

use super::model::{Mode, Model, Panel};
use marks::{ALARM, BUSY, HERE, QUIET, count};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Stylize;
use ratatui::text::{Line, Span};
use std::time::Duration;

/// The smallest screen that shows something.
const SMALLEST: (u16, u16) = (40, 12);
const NAME: &str = " nil top";
/// How long the line of bandwidth is at most.
const LINE: usize = 40;
/// From which width on hosts and pools stand side by side.
const WIDE: u16 = 130;
/// The heading of a panel and the heads of its columns.
const HEADS: u16 = 2;
/// After how long a picture is old.
const OLD: Duration = Duration::from_secs(5);

/// Draws everything.
pub(super) fn draw(model: &Model, frame: &mut Frame<'_>) {
    let area = frame.area();
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        let (width, height) = SMALLEST;
        return frame.render_widget(Line::from(format!("nil top needs {width} columns and {height} lines")), area);
    }
    let wide = area.width >= WIDE;
    let [hosts, pools, moves] = heights(model, area.height, wide);
    let above = if wide { hosts.max(pools) } else { hosts + pools };
    let [title, top, guests, below, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(above),
        Constraint::Fill(1),
        Constraint::Length(moves),
        Constraint::Length(1),
    ])
    .areas(area);
    let [hosts, pools] = if wide {
        Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).spacing(2).areas(top)
    } else {
        Layout::vertical([Constraint::Length(hosts), Constraint::Length(pools)]).areas(top)
    };
    frame.render_widget(title_line(model, title.width.into()), title);
    panels::draw(model, Panel::Hosts, frame, hosts);
    panels::draw(model, Panel::Pools, frame, pools);
    panels::draw(model, Panel::Guests, frame, guests);
    panels::draw(model, Panel::Moves, frame, below);
    frame.render_widget(keys_line(model), keys);
    match model.mode {
        Mode::Details => details::draw(model, frame, area),
        Mode::Help => details::draw_help(frame, area),
        Mode::Looking | Mode::Filtering | Mode::Printed => {}
    }
}

/// How many lines a picture of everything needs.
pub(super) fn whole_height(model: &Model, width: u16) -> u16 {
    let [hosts, pools, guests, moves] = wanted(model);
    let above = if width >= WIDE { hosts.max(pools) } else { hosts.saturating_add(pools) };
    above.saturating_add(guests).saturating_add(moves).saturating_add(2).clamp(SMALLEST.1, 2_000)
}

/// How many lines hosts, pools, guests and moves would like to have.
fn wanted(model: &Model) -> [u16; 4] {
    let Model { world, .. } = model;
    let rows = [world.hosts.len(), world.pools.len(), world.guests.len(), world.moves.len() + world.past.len()];
    rows.map(|rows| u16::try_from(rows).unwrap_or(u16::MAX).saturating_add(HEADS).max(HEADS))
}

/// How high hosts, pools and moves are: as high as they need, as long as guests keep two fifths of the screen.
fn heights(model: &Model, height: u16, wide: bool) -> [u16; 3] {
    let [hosts, pools, guests, moves] = wanted(model);
    let wanted = [hosts, pools, moves];
    let room = (height - 2).saturating_sub(guests.min(height * 2 / 5));
    let mut given = wanted.map(|wanted| wanted.min(HEADS + 1).min(room / 3));
    let used = |given: [u16; 3]| given[2] + if wide { given[0].max(given[1]) } else { given[0] + given[1] };
    // In turn, so that none takes all.
    while let Some(panel) = (0..3).filter(|&at| given[at] < wanted[at]).min_by_key(|&at| (given[at], at)) {
        let mut more = given;
        more[panel] += 1;
        if used(more) > room {
            break;
        }
        given = more;
    }
    given
}

fn title_line(model: &Model, width: usize) -> Line<'static> {
    let world = &model.world;
    if world.seen.is_none() && model.trouble.is_none() {
        return Line::from(vec![Span::styled(NAME, HERE), Span::styled("  looking …", QUIET)]);
    }
    let mut counts =
        vec![count(world.hosts.len(), "host"), count(world.pools.len(), "pool"), count(world.guests.len(), "guest")];
    if !world.moves.is_empty() {
        counts.push(count(world.moves.len(), "move"));
    }
    let counts = counts.join(" · ");
    let old = world.seen.filter(|seen| model.now.saturating_sub(*seen) > OLD);
    let right = match (&model.trouble, old) {
        (Some(trouble), _) => vec![Span::styled(format!("{trouble} "), ALARM)],
        (None, Some(seen)) => {
            vec![Span::styled(format!("as of {} ago ", marks::time(model.now.saturating_sub(seen))), ALARM)]
        }
        (None, None) if world.rates.iter().any(|rate| *rate > 0) => {
            let rate = format!(" {:>11} ", marks::rate(world.rate()));
            let room = width.saturating_sub(NAME.len() + counts.chars().count() + rate.len() + 4).min(LINE);
            vec![Span::styled(marks::line(world.rates.iter().copied(), room), BUSY), Span::raw(rate)]
        }
        (None, None) => Vec::new(),
    };
    let right = Line::from(right);
    // What is wrong matters more than how many there are.
    let room = width.saturating_sub(NAME.len() + right.width());
    let counts = columns::cut(&format!("  {counts}  "), room);
    let gap = " ".repeat(room - Span::raw(&counts).width());
    let mut spans = vec![Span::styled(NAME, HERE), Span::raw(counts), Span::raw(gap)];
    spans.extend(right.spans);
    Line::from(spans)
}

fn keys_line(model: &Model) -> Line<'static> {
    let keys: &[(&str, &str)] = match model.mode {
        Mode::Filtering => {
            &[("letters", "narrow it down"), ("↑↓", "select"), ("Enter", "keep it"), ("Esc", "show all")]
        }
        Mode::Details | Mode::Help => &[("↑↓", "select"), ("Esc", "back")],
        Mode::Printed => &[],
        Mode::Looking => &[
            ("q", "quit"),
            ("↑↓", "select"),
            ("Enter", "details"),
            ("Tab", "panel"),
            ("s", "sort"),
            ("/", "filter"),
            ("?", "help"),
        ],
    };
    let mut spans = vec![Span::raw(" ")];
    for (key, meaning) in keys {
        spans.extend([Span::raw(*key).bold(), Span::styled(format!(" {meaning}  "), QUIET)]);
    }
    Line::from(spans)
}

/// The part of `rows` rows that is shown in `height` lines, so that the selected one is among them.
fn window(rows: usize, height: usize, selected: Option<usize>) -> std::ops::Range<usize> {
    let first = selected.unwrap_or(0).saturating_sub(height / 2).min(rows.saturating_sub(height));
    first..rows.min(first + height)
}

/// A box of so many columns and lines in the middle, or as much of it as there is room for.
fn middle(area: Rect, width: u16, height: u16) -> Rect {
    let (width, height) = (width.min(area.width), height.min(area.height));
    Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height }
}
