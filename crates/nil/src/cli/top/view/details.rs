//! What lies over the panels: all about what is selected, and what the keys mean.

use super::super::model::{Model, Panel};
use super::super::world::{Move, Past, Pool};
use super::marks::{HERE, QUIET, rate, time};
use super::middle;
use crate::cli::duration::of_micros;
use crate::cli::ps::age;
use nil_host::{GuestReport, HostReport};
use nil_pool::Bytes;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Clear, Padding, Paragraph};

/// How wide a box is at most.
const WIDTH: u16 = 76;

type Facts = Vec<(&'static str, String)>;

pub(super) fn draw(model: &Model, frame: &mut Frame<'_>, area: Rect) {
    let selected = model.selected(model.focus);
    let (title, facts) = match (model.focus, selected) {
        (_, None) => ("nothing is selected".to_owned(), Facts::new()),
        (Panel::Guests, Some(row)) => of_guest(model.guests()[row]),
        (Panel::Hosts, Some(row)) => of_host(model, &model.world.hosts[row]),
        (Panel::Pools, Some(row)) => of_pool(&model.world.pools[row]),
        (Panel::Moves, Some(row)) => match model.world.moves.get(row) {
            Some(moving) => of_move(model, moving),
            None => of_past(model, &model.world.past[row - model.world.moves.len()]),
        },
    };
    let label = facts.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    let room = usize::from(WIDTH.min(area.width)).saturating_sub(label + 6).max(1);
    let lines = |(name, value): (&'static str, String)| {
        let values = wrapped(&value, room).into_iter().enumerate();
        let lines = values.map(move |(at, part)| {
            let name = if at == 0 { name } else { "" };
            Line::from(vec![Span::styled(format!("{name:label$}  "), QUIET), Span::raw(part)])
        });
        lines.collect::<Vec<_>>()
    };
    draw_box(frame, area, &title, facts.into_iter().flat_map(lines).collect());
}

pub(super) fn draw_help(frame: &mut Frame<'_>, area: Rect) {
    let keys = [
        ("↑ ↓  j k", "select a row; with PgUp, PgDn, g, G by more"),
        ("Enter", "all about it"),
        ("Tab", "the next panel; Shift-Tab the one before"),
        ("/", "show only guests with that in their name, host, state or pool"),
        ("Esc", "show all guests again"),
        ("s  S", "sort guests by the next thing, or the one before"),
        ("r", "the other way round"),
        ("q", "quit"),
        ("", ""),
        ("", "nil top only looks. `nil migrate`, `nil decouple` and"),
        ("", "`nil recouple` move; `nil top --once` prints what is here."),
    ];
    let line = |(key, meaning): (&'static str, &'static str)| {
        Line::from(vec![Span::styled(format!("{key:10}"), HERE), meaning.into()])
    };
    draw_box(frame, area, "keys", keys.into_iter().map(line).collect());
}

/// A text in lines of so many characters, broken between words where that is possible.
fn wrapped(text: &str, room: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("one line at least");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() <= room {
            line.push(' ');
            line.push_str(word);
            continue;
        }
        let letters: Vec<char> = word.chars().collect();
        let mut parts = letters.chunks(room).map(|part| part.iter().collect::<String>());
        if line.is_empty() {
            *line = parts.next().unwrap_or_default();
        }
        lines.extend(parts);
    }
    lines
}

fn draw_box(frame: &mut Frame<'_>, area: Rect, title: &str, lines: Vec<Line<'_>>) {
    let block = Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(QUIET)
        .title(Span::styled(format!(" {title} "), HERE))
        .padding(Padding::horizontal(1));
    let width = WIDTH.min(area.width);
    let height = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_add(2);
    let area = middle(area, width, height);
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn of_guest(guest: &GuestReport) -> (String, Facts) {
    let mut facts: Facts = vec![
        ("id", guest.id.to_string()),
        ("kind", format!("{:?}", guest.kind).to_lowercase()),
        ("host", guest.host.clone().unwrap_or_else(|| "none".to_owned())),
        ("state", guest.state.to_string()),
        ("vCPUs", guest.vcpus.to_string()),
        ("memory", Bytes(guest.memory_bytes).to_string()),
        ("pool", guest.pool.display().to_string()),
    ];
    if let Some(memory) = &guest.memory {
        facts.push(("memory in", memory.to_string()));
        if memory.pins + memory.holds > 0 {
            facts.push(("cannot move", format!("{} pinned, {} held", memory.pins, memory.holds)));
        }
    }
    let rest = [
        ("epoch", guest.epoch.map(|epoch| epoch.to_string())),
        ("uptime", guest.uptime_s.map(age)),
        ("worker", guest.worker_pid.map(|pid| format!("process {pid}"))),
        ("mapped at", guest.memory_address.map(|address| format!("{address:#x} of that process"))),
        ("protection", guest.protection.as_ref().map(ToString::to_string)),
        ("limit", guest.move_limit.map(rate)),
        ("note", guest.detail.clone()),
    ];
    facts.extend(rest.into_iter().filter_map(|(name, value)| Some((name, value?))));
    (format!("guest {}", guest.name), facts)
}

fn of_host(model: &Model, host: &HostReport) -> (String, Facts) {
    let agent = match (host.agent_pid, &host.silent) {
        (Some(pid), _) => format!("process {pid}"),
        (None, Some(silent)) => silent.clone(),
        (None, None) => format!("not running; start it with `nil host run --name {} --pool PATH`", host.name),
    };
    let mut facts: Facts = vec![("agent", agent)];
    facts.extend(host.id.map(|id| ("id", id.to_string())));
    facts.push(("guests", host.guests.to_string()));
    let moving = model.world.rate_of(host.name.as_str());
    facts.push(("moving", if moving == 0 { "nothing".to_owned() } else { rate(moving) }));
    for pool in &host.pools {
        let path = pool.path.display();
        facts.push(("pool", format!("{path} (slot {}), {} free", pool.slot, Bytes(pool.free_bytes))));
    }
    facts.extend(host.lost_pools.iter().map(|lost| ("lost", lost.why.clone())));
    let unattended: Vec<&str> = host.unattended.iter().map(nil_host::GuestName::as_str).collect();
    if !unattended.is_empty() {
        facts.push(("run on", unattended.join(", ")));
    }
    (format!("host {}", host.name), facts)
}

fn of_pool(pool: &Pool) -> (String, Facts) {
    let facts = vec![
        ("id", pool.id.to_string()),
        ("used", format!("{} of {}", Bytes(pool.used_bytes), Bytes(pool.total_bytes))),
        ("hosts", pool.hosts.join(", ")),
        ("guests", pool.guests.to_string()),
    ];
    (format!("pool {}", pool.path.display()), facts)
}

fn of_move(model: &Model, moving: &Move) -> (String, Facts) {
    let mut facts: Facts = vec![("host", moving.host.clone().unwrap_or_default())];
    facts.extend(moving.to.clone().map(|to| ("to", to)));
    if let Some(progress) = &moving.progress {
        let far = format!("{} of {}", Bytes(progress.done_bytes), Bytes(progress.total_bytes));
        facts.push(("direction", progress.direction.verb().to_owned()));
        facts.push(("done", far));
        facts.push(("rate", rate(progress.bytes_per_s)));
        facts.extend(progress.stall.as_ref().map(|stall| ("waits", stall.to_string())));
    }
    facts.extend(moving.left().map(|left| ("left", time(left))));
    let guest = model.world.guests.iter().find(|guest| guest.name == moving.guest);
    facts.extend(guest.and_then(|guest| Some(("note", guest.detail.clone()?))));
    (format!("{} moves", moving.guest), facts)
}

fn of_past(model: &Model, past: &Past) -> (String, Facts) {
    let facts = [
        ("from", past.from.clone()),
        ("to", past.to.clone()),
        ("ended", Some(format!("{} ago", time(model.now.saturating_sub(past.at))))),
        ("took", past.took_ms.map(|ms| of_micros(ms.saturating_mul(1000)))),
        ("stood still", past.blackout_ns.map(|ns| of_micros(ns.div_ceil(1000)))),
        ("copied", Some(Bytes(past.copied_bytes).to_string())),
        ("why", past.why.clone()),
    ];
    let facts = facts.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    (format!("a move of {}", past.guest), facts)
}

#[cfg(test)]
mod tests {
    use super::wrapped;

    #[test]
    fn a_long_text_is_broken_between_words_and_a_long_word_within() {
        assert_eq!(wrapped("it waits for vfio", 8), ["it waits", "for vfio"]);
        assert_eq!(wrapped("/dev/shm/pool is full", 8), ["/dev/shm", "/pool is", "full"]);
        assert_eq!(wrapped("a  b", 8), ["a  b"]);
        assert_eq!(wrapped("", 8), [""]);
    }
}
