//! What `nil top` shows: the world, and what the person who looks has chosen to see of it.
//!
//! Keys are all that changes the choice ([`Model::press`]), sightings all that changes the world. What is selected is known
//! by its name, so that it stays selected when rows come and go.

use super::world::World;
use nil_host::GuestReport;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use std::cmp::Ordering;
use std::time::Duration;

/// How many rows a page key goes.
const PAGE: usize = 10;
/// The longest filter.
const LONGEST_FILTER: usize = 40;

#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) world: World,
    /// Why the last look failed, if it did.
    pub(super) trouble: Option<String>,
    /// Since 1970.
    pub(super) now: Duration,
    pub(super) focus: Panel,
    pub(super) mode: Mode,
    pub(super) sort: Sort,
    pub(super) direction: Direction,
    pub(super) filter: String,
    /// The names of what is selected in each panel.
    selected: [Option<String>; Panel::ALL.len()],
}

/// A part of the screen with rows of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Panel {
    Hosts,
    Pools,
    #[default]
    Guests,
    Moves,
}

/// What keys mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Mode {
    #[default]
    Looking,
    /// They are letters of the filter.
    Filtering,
    /// All about what is selected.
    Details,
    Help,
    /// Nobody presses any: the picture is printed.
    Printed,
}

/// By what guests are sorted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Sort {
    #[default]
    Name,
    Host,
    State,
    Memory,
    Pooled,
    Uptime,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Direction {
    #[default]
    Up,
    Down,
}

/// Whether to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    Look,
    Quit,
}

impl Panel {
    pub(super) const ALL: [Self; 4] = [Self::Hosts, Self::Pools, Self::Guests, Self::Moves];
}

impl Sort {
    const ALL: [Self; 6] = [Self::Name, Self::Host, Self::State, Self::Memory, Self::Pooled, Self::Uptime];

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Host => "host",
            Self::State => "state",
            Self::Memory => "memory",
            Self::Pooled => "memory in the pool",
            Self::Uptime => "uptime",
        }
    }

    /// Guests that are equal in this are in the order of their names.
    fn compare(self, a: &GuestReport, b: &GuestReport) -> Ordering {
        let pooled = |guest: &GuestReport| guest.memory.as_ref().map(|memory| memory.pooled_bytes);
        match self {
            Self::Name => Ordering::Equal,
            Self::Host => a.host.cmp(&b.host),
            Self::State => a.state.word().cmp(b.state.word()),
            Self::Memory => a.memory_bytes.cmp(&b.memory_bytes),
            Self::Pooled => pooled(a).cmp(&pooled(b)),
            Self::Uptime => a.uptime_s.cmp(&b.uptime_s),
        }
        .then_with(|| a.name.cmp(&b.name))
    }
}

impl Model {
    /// The guests to be shown, in the order to be shown.
    pub(super) fn guests(&self) -> Vec<&GuestReport> {
        let mut guests: Vec<&GuestReport> = self.world.guests.iter().filter(|guest| self.lets_through(guest)).collect();
        guests.sort_by(|a, b| match self.direction {
            Direction::Up => self.sort.compare(a, b),
            Direction::Down => self.sort.compare(b, a),
        });
        guests
    }

    fn lets_through(&self, guest: &GuestReport) -> bool {
        let wanted = self.filter.to_lowercase();
        let pool = guest.pool.to_string_lossy();
        let words = [&guest.name, guest.host.as_deref().unwrap_or_default(), guest.state.word(), &pool];
        words.iter().any(|word| word.to_lowercase().contains(&wanted))
    }

    /// The names of a panel's rows, in their order.
    fn rows(&self, panel: Panel) -> Vec<String> {
        match panel {
            Panel::Hosts => self.world.hosts.iter().map(|host| host.name.to_string()).collect(),
            Panel::Pools => self.world.pools.iter().map(|pool| pool.id.to_string()).collect(),
            Panel::Guests => self.guests().iter().map(|guest| guest.id.to_string()).collect(),
            Panel::Moves => {
                let past =
                    self.world.past.iter().map(|past| format!("{} at {:?} to {:?}", past.guest, past.at, past.to));
                self.world.moves.iter().map(|moving| moving.guest.clone()).chain(past).collect()
            }
        }
    }

    /// Which row of a panel is selected, if it has any.
    pub(super) fn selected(&self, panel: Panel) -> Option<usize> {
        let rows = self.rows(panel);
        let last = rows.len().checked_sub(1)?;
        let name = self.selected[panel as usize].as_ref();
        Some(name.and_then(|name| rows.iter().position(|row| row == name)).unwrap_or(0).min(last))
    }

    /// Does what a key means.
    pub(super) fn press(&mut self, key: KeyEvent) -> Next {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if matches!(key.code, KeyCode::Char('c')) { Next::Quit } else { Next::Look };
        }
        match self.mode {
            Mode::Looking => return self.press_looking(key.code),
            Mode::Filtering => self.press_filtering(key.code),
            Mode::Printed => {}
            Mode::Details | Mode::Help => match key.code {
                KeyCode::Char('q') | KeyCode::Esc | KeyCode::Enter | KeyCode::Char('?') => self.mode = Mode::Looking,
                code => self.go(code),
            },
        }
        Next::Look
    }

    fn press_looking(&mut self, code: KeyCode) -> Next {
        match code {
            KeyCode::Char('q') => return Next::Quit,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.mode = Mode::Help,
            KeyCode::Enter => self.mode = Mode::Details,
            KeyCode::Char('/') => (self.focus, self.mode) = (Panel::Guests, Mode::Filtering),
            KeyCode::Char('s') => self.sort = next(&Sort::ALL, self.sort, 1),
            KeyCode::Char('S') => self.sort = next(&Sort::ALL, self.sort, Sort::ALL.len() - 1),
            KeyCode::Char('r') => {
                self.direction = match self.direction {
                    Direction::Up => Direction::Down,
                    Direction::Down => Direction::Up,
                }
            }
            KeyCode::Tab => self.focus = next(&Panel::ALL, self.focus, 1),
            KeyCode::BackTab => self.focus = next(&Panel::ALL, self.focus, Panel::ALL.len() - 1),
            code => self.go(code),
        }
        Next::Look
    }

    fn press_filtering(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.mode = Mode::Looking,
            KeyCode::Esc => {
                self.filter.clear();
                self.mode = Mode::Looking;
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(letter) if !letter.is_control() && self.filter.chars().count() < LONGEST_FILTER => {
                self.filter.push(letter);
            }
            code => self.go(code),
        }
    }

    /// Selects another row.
    fn go(&mut self, code: KeyCode) {
        let rows = self.rows(self.focus);
        let Some(here) = self.selected(self.focus) else { return };
        let there = match code {
            KeyCode::Up | KeyCode::Char('k') => here.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => here + 1,
            KeyCode::PageUp => here.saturating_sub(PAGE),
            KeyCode::PageDown => here + PAGE,
            KeyCode::Home | KeyCode::Char('g') => 0,
            KeyCode::End | KeyCode::Char('G') => rows.len(),
            _ => return,
        };
        self.selected[self.focus as usize] = rows.get(there.min(rows.len() - 1)).cloned();
    }
}

/// The one that is so many places behind `this`, in a circle.
fn next<T: Copy + PartialEq>(all: &[T], this: T, places: usize) -> T {
    let here = all.iter().position(|one| *one == this).unwrap_or(0);
    all[(here + places) % all.len()]
}

#[cfg(test)]
mod tests {
    use super::super::scene;
    use super::*;

    fn model() -> Model {
        let mut model = Model::default();
        model.world.see(scene::rack());
        model
    }

    fn press(model: &mut Model, keys: &str) {
        for key in keys.chars() {
            let code = match key {
                '⏎' => KeyCode::Enter,
                '⎋' => KeyCode::Esc,
                '⌫' => KeyCode::Backspace,
                '↓' => KeyCode::Down,
                '↑' => KeyCode::Up,
                '⇥' => KeyCode::Tab,
                '⇤' => KeyCode::BackTab,
                letter => KeyCode::Char(letter),
            };
            assert_eq!(model.press(KeyEvent::new(code, KeyModifiers::NONE)), Next::Look, "{key}");
        }
    }

    fn names(model: &Model) -> Vec<&str> {
        model.guests().iter().map(|guest| guest.name.as_str()).collect()
    }

    #[test]
    fn guests_are_sorted_by_one_thing_after_the_other_and_the_other_way_round() {
        let mut model = model();
        assert_eq!(names(&model), ["lost", "pinned", "roamer", "rover", "settler"]);
        press(&mut model, "r");
        assert_eq!(names(&model), ["settler", "rover", "roamer", "pinned", "lost"]);
        press(&mut model, "rs");
        assert_eq!(names(&model), ["roamer", "rover", "settler", "lost", "pinned"]);
        press(&mut model, "ssr");
        assert_eq!((model.sort, model.direction), (Sort::Memory, Direction::Down));
        assert_eq!(names(&model), ["settler", "roamer", "pinned", "rover", "lost"]);
        press(&mut model, "SSS");
        assert_eq!(model.sort, Sort::Name);
    }

    #[test]
    fn a_filter_is_typed_kept_and_taken_away() {
        let mut model = model();
        press(&mut model, "/ROVX⌫⏎");
        assert_eq!((names(&model), model.mode), (vec!["rover"], Mode::Looking));
        press(&mut model, "⎋/lost⎋");
        assert_eq!(names(&model).len(), 5);
        press(&mut model, "/lost");
        assert_eq!(names(&model), ["lost"], "by state as well as by name");
    }

    #[test]
    fn what_is_selected_stays_selected_when_rows_come_and_go() {
        let mut model = model();
        press(&mut model, "↓↓↓");
        assert_eq!(model.guests()[model.selected(Panel::Guests).expect("a row")].name, "rover");
        let mut later = scene::rack();
        later.survey.guests.remove(0);
        model.world.see(later.clone());
        assert_eq!(model.guests()[model.selected(Panel::Guests).expect("a row")].name, "rover");
        later.survey.guests.clear();
        model.world.see(later);
        assert_eq!(model.selected(Panel::Guests), None);
        press(&mut model, "↓↑⏎");
    }

    #[test]
    fn a_selection_stays_within_the_rows() {
        let mut model = model();
        press(&mut model, "↑k");
        assert_eq!(model.selected(Panel::Guests), Some(0));
        press(&mut model, "Gj↓");
        assert_eq!(model.selected(Panel::Guests), Some(4));
        press(&mut model, "g");
        assert_eq!(model.selected(Panel::Guests), Some(0));
    }

    #[test]
    fn tab_goes_from_panel_to_panel_and_back() {
        let mut model = model();
        press(&mut model, "⇥⇥");
        assert_eq!(model.focus, Panel::Hosts);
        press(&mut model, "↓");
        assert_eq!(model.selected(Panel::Hosts), Some(1));
        press(&mut model, "⇤⇤");
        assert_eq!(model.focus, Panel::Guests);
    }

    #[test]
    fn q_closes_what_is_open_before_it_quits_and_ctrl_c_quits_at_once() {
        let mut model = model();
        press(&mut model, "⏎q?q");
        let q = KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE);
        assert_eq!((model.mode, model.press(q)), (Mode::Looking, Next::Quit));
        press(&mut model, "/");
        assert_eq!(model.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Next::Quit);
    }
}
