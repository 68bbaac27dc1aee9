//! The panels: hosts, pools, guests, moves.

use super::super::model::{Direction, Mode, Model, Panel};
use super::super::world::{Ending, Move, Past, Pool, Step};
use super::columns::{self, Column, cut};
use super::marks::{ALARM, BUSY, GOOD, HERE, QUIET, agent, bar, count, lease, percent, protection, rate, state, time};
use super::window;
use crate::cli::duration::of_micros;
use crate::cli::ps::age;
use nil_host::{GuestReport, HostReport, Whereabouts};
use nil_pool::Bytes;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use std::path::Path;

/// How wide bars are.
const BAR: usize = 16;

/// A panel's content.
struct Content<'a> {
    title: &'static str,
    /// On the right of the heading.
    note: Option<String>,
    columns: Vec<Column<'a>>,
    rows: usize,
    /// What stands there instead of rows.
    empty: &'static str,
}

pub(super) fn draw(model: &Model, panel: Panel, frame: &mut Frame<'_>, area: Rect) {
    let content = match panel {
        Panel::Hosts => hosts(model),
        Panel::Pools => pools(model),
        Panel::Guests => guests(model),
        Panel::Moves => moves(model),
    };
    let focused = model.focus == panel && model.mode != Mode::Printed;
    let width = usize::from(area.width);
    let room = usize::from(area.height).saturating_sub(2);
    let shown = window(content.rows, room, model.selected(panel));
    let part = (shown.len() < content.rows).then(|| format!("{}–{} of {}", shown.start + 1, shown.end, content.rows));
    let note = [content.note, part].into_iter().flatten().collect::<Vec<_>>().join(" · ");
    let mut lines = vec![heading(content.title, &note, focused, width)];
    if content.rows == 0 {
        let empty = if model.world.seen.is_some() { content.empty } else { "…" };
        lines.push(Line::from(Span::styled(format!("   {empty}"), QUIET)));
    } else {
        let (heads, rows) = columns::lines(content.columns, width.saturating_sub(4));
        lines.push(indented(heads, "   "));
        let selected = model.selected(panel).filter(|_| focused);
        for (at, row) in rows.into_iter().enumerate().take(shown.end).skip(shown.start) {
            lines.push(if selected == Some(at) { highlighted(row) } else { indented(row, "   ") });
        }
    }
    for (at, line) in (0..area.height).zip(lines) {
        let area = Rect { y: area.y + at, height: 1, ..area };
        frame.render_widget(line, area);
    }
}

fn indented<'a>(line: Line<'a>, indent: &'static str) -> Line<'a> {
    let mut spans = vec![Span::raw(indent)];
    spans.extend(line.spans);
    Line::from(spans)
}

fn highlighted(line: Line<'_>) -> Line<'_> {
    let mut line = indented(line, " ▸ ").bold();
    line.spans[0].style = HERE;
    line
}

fn heading(title: &'static str, note: &str, focused: bool, width: usize) -> Line<'static> {
    let style = if focused { HERE } else { Style::new().add_modifier(Modifier::BOLD) };
    let title = format!(" {title} ");
    let note = cut(note, width.saturating_sub(title.len() + 8));
    let note = if note.is_empty() { note } else { format!(" {note} ") };
    let rule = width.saturating_sub(title.len() + Span::raw(&note).width() + 2);
    Line::from(vec![
        Span::styled(title, style),
        Span::styled("─".repeat(rule), QUIET),
        Span::raw(note),
        Span::styled("─", QUIET),
    ])
}

fn hosts(model: &Model) -> Content<'_> {
    let hosts = &model.world.hosts;
    let pools = |host: &HostReport| host.pools.iter().map(|pool| file_name(&pool.path)).collect::<Vec<_>>().join(", ");
    let column = |cell: &dyn Fn(&HostReport) -> Span<'static>| hosts.iter().map(cell).collect::<Vec<_>>();
    let columns = vec![
        Column::texts("HOST", 0, 8, column(&|host| host.name.to_string().into())),
        Column::texts("AGENT", 0, 6, column(&agent)),
        Column::numbers("GUESTS", 1, column(&|host| host.guests.to_string().into())),
        Column::numbers("MOVING", 2, column(&|host| rate(model.world.rate_of(host.name.as_str())).into())),
        Column::numbers(
            "PROCESS",
            4,
            column(&|host| host.agent_pid.map(|pid| pid.to_string()).unwrap_or_default().into()),
        ),
        Column::texts("LEASE", 2, 5, column(&lease)),
        Column::texts("POOLS", 3, 8, column(&|host| pools(host).into())),
    ];
    let empty = "no hosts; start one with `nil host run --name A --pool PATH`";
    Content { title: "Hosts", note: None, columns, rows: hosts.len(), empty }
}

fn pools(model: &Model) -> Content<'_> {
    let pools = &model.world.pools;
    let used = |used: u64, total: u64| match total {
        0 => String::new(),
        _ => format!("{} {:>2} %", bar(used, total, BAR), percent(used, total)),
    };
    let columns = vec![
        Column::texts("POOL", 0, 12, pools.iter().map(|pool| pool.path.display().to_string().into()).collect()),
        Column::texts(
            "USED",
            1,
            BAR + 5,
            pools.iter().map(|pool| used(pool.used_bytes, pool.total_bytes).into()).collect(),
        ),
        Column::numbers("FREE", 2, pools.iter().map(|pool| Bytes(free(pool)).to_string().into()).collect()),
        Column::numbers("OF", 3, pools.iter().map(|pool| Bytes(pool.total_bytes).to_string().into()).collect()),
        Column::numbers("HOSTS", 4, pools.iter().map(|pool| pool.hosts.len().to_string().into()).collect()),
        Column::numbers("GUESTS", 5, pools.iter().map(|pool| pool.guests.to_string().into()).collect()),
    ];
    Content { title: "Pools", note: None, columns, rows: pools.len(), empty: "no pools that a host has joined" }
}

fn free(pool: &Pool) -> u64 {
    pool.total_bytes.saturating_sub(pool.used_bytes)
}

fn guests(model: &Model) -> Content<'_> {
    let guests = model.guests();
    let column =
        |cell: &dyn Fn(&GuestReport) -> Span<'static>| guests.iter().map(|guest| cell(guest)).collect::<Vec<_>>();
    let columns = vec![
        Column::texts("GUEST", 0, 8, column(&|guest| guest.name.clone().into())),
        Column::texts("HOST", 0, 6, column(&|guest| guest.host.clone().unwrap_or_else(|| "–".to_owned()).into())),
        Column::texts("STATE", 0, 3, column(&|guest| state(guest.state))),
        Column::numbers("MEMORY", 1, column(&|guest| Bytes(guest.memory_bytes).to_string().into())),
        Column::texts("IN", 2, 8, column(&|guest| whereabouts(guest).into())),
        Column::numbers("VCPUS", 4, column(&|guest| guest.vcpus.to_string().into())),
        Column::numbers(
            "EPOCH",
            5,
            column(&|guest| guest.epoch.map(|epoch| epoch.to_string()).unwrap_or_default().into()),
        ),
        Column::numbers("UPTIME", 3, column(&|guest| guest.uptime_s.map(age).unwrap_or_default().into())),
        Column::numbers(
            "WORKER",
            7,
            column(&|guest| guest.worker_pid.map(|pid| pid.to_string()).unwrap_or_default().into()),
        ),
        Column::texts("POOL", 6, 8, column(&|guest| file_name(&guest.pool).into())),
        Column::texts("PROTECTION", 9, 10, column(&|guest| protection(guest))),
        Column::texts("NOTE", 8, 16, column(&|guest| Span::styled(guest.detail.clone().unwrap_or_default(), QUIET))),
    ];
    let arrow = match model.direction {
        Direction::Up => "↑",
        Direction::Down => "↓",
    };
    let mut note = format!("by {} {arrow}", model.sort.word());
    if model.mode == Mode::Filtering || !model.filter.is_empty() {
        let cursor = if model.mode == Mode::Filtering { "▏" } else { "" };
        note = format!("/{}{cursor} {} of {} · {note}", model.filter, guests.len(), model.world.guests.len());
    }
    let empty = if model.filter.is_empty() {
        "no guests; start one with `nil vm run IMAGE --pool PATH --name NAME`"
    } else {
        "no guest is like that; Esc shows all"
    };
    Content { title: "Guests", note: Some(note), rows: guests.len(), columns, empty }
}

/// Where a guest's memory is, in few words.
fn whereabouts(guest: &GuestReport) -> String {
    let Some(memory) = &guest.memory else { return String::new() };
    let place = match memory.whereabouts {
        Whereabouts::Both => format!("{} % pool", percent(memory.pooled_bytes, memory.total_bytes).clamp(1, 99)),
        Whereabouts::Dram | Whereabouts::Pool => memory.to_string(),
    };
    match memory.pins + memory.holds {
        0 => place,
        pins => format!("{place}, {}", count(pins, "pin")),
    }
}

fn moves(model: &Model) -> Content<'_> {
    let (now, past) = (&model.world.moves, &model.world.past);
    let both = |of_now: &dyn Fn(&Move) -> Span<'static>, of_past: &dyn Fn(&Past) -> Span<'static>| {
        now.iter().map(of_now).chain(past.iter().map(of_past)).collect::<Vec<_>>()
    };
    let quiet = |text: String| Span::styled(text, QUIET);
    let columns = vec![
        Column::texts("GUEST", 0, 8, both(&|moving| moving.guest.clone().into(), &|past| quiet(past.guest.clone()))),
        Column::texts(
            "HOSTS",
            0,
            6,
            both(&|moving| route(moving.host.as_ref(), moving.to.as_ref()).into(), &|past| {
                quiet(route(past.from.as_ref(), past.to.as_ref()))
            }),
        ),
        Column::texts("STEP", 0, 5, both(&step, &|past| ending(past.ending))),
        Column::texts("DONE", 2, BAR + 5, both(&|moving| done(moving).into(), &|past| quiet(result(past)))),
        Column::numbers("RATE", 1, both(&|moving| rate(moving.rate()).into(), &|_| "".into())),
        Column::numbers("WHEN", 3, both(&|moving| left(moving).into(), &|past| quiet(ago(model, past)))),
        Column::texts("NOTE", 4, 16, both(&note, &|past| quiet(past.why.clone().unwrap_or_default()))),
    ];
    let rows = now.len() + past.len();
    Content { title: "Moves", note: None, columns, rows, empty: "nothing moves, and nothing has" }
}

/// Where something goes, or where it is.
fn route(from: Option<&String>, to: Option<&String>) -> String {
    match (from, to) {
        (Some(from), Some(to)) => format!("{from} → {to}"),
        (from, to) => from.or(to).cloned().unwrap_or_default(),
    }
}

fn step(moving: &Move) -> Span<'static> {
    let word = match moving.step {
        Step::Preparing => "… begins",
        Step::Decoupling => "↑ to the pool",
        Step::Recoupling => "↓ to DRAM",
        Step::Arming => "… target readies",
        Step::HandingOver => "→ handing over",
        Step::Undoing => "↺ goes back",
        Step::Landed => "✓ has landed",
    };
    let waits = moving.progress.as_ref().is_some_and(|progress| progress.stall.is_some());
    Span::styled(word, if waits { ALARM } else { BUSY })
}

fn ending(ending: Ending) -> Span<'static> {
    let (word, style) = match ending {
        Ending::Moved => ("✓ moved", GOOD),
        Ending::Decoupled => ("✓ in the pool", GOOD),
        Ending::Recoupled => ("✓ in DRAM", GOOD),
        Ending::Cancelled => ("○ called off", QUIET),
        Ending::Stalled => ("! waited in vain", BUSY),
        Ending::TakenBack => ("↺ taken back", BUSY),
        Ending::Failed => ("✗ failed", ALARM),
    };
    Span::styled(word, style)
}

fn done(moving: &Move) -> String {
    let Some(progress) = &moving.progress else { return String::new() };
    let (done, total) = (progress.done_bytes, progress.total_bytes);
    format!("{} {:>2} %", bar(done, total, BAR), percent(done, total))
}

/// What it cost: a guest that was handed over stood still, memory that went elsewhere was copied.
fn result(past: &Past) -> String {
    match past.blackout_ns {
        Some(ns) => format!("stood still {}", of_micros(ns.div_ceil(1000))),
        None if past.copied_bytes > 0 => format!("{} copied", Bytes(past.copied_bytes)),
        None => String::new(),
    }
}

fn left(moving: &Move) -> String {
    moving.left().map(|left| format!("{} left", time(left))).unwrap_or_default()
}

fn ago(model: &Model, past: &Past) -> String {
    format!("{} ago", time(model.now.saturating_sub(past.at)))
}

fn note(moving: &Move) -> Span<'static> {
    let stall = moving.progress.as_ref().and_then(|progress| progress.stall.as_ref());
    stall.map_or_else(Span::default, |stall| Span::styled(format!("waits: {stall}"), ALARM))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
