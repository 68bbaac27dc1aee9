//! `nil top`: hosts, pools, guests and what moves, live.
//!
//! ```text
//! agents, every second ──▶ World    what is known, put together over time
//!         keys         ──▶ Model    the world, and what of it is to be seen
//!                          view     draws the model; asks nobody
//! ```
//!
//! It only looks: nothing here orders anything from an agent.

mod model;
#[cfg(test)]
pub(super) mod scene;
mod screen;
mod view;
mod world;

use super::{Output, duration};
use anyhow::{Result, bail};
use model::{Mode, Model};
use nil_host::{Client, JobFilter, PATIENCE_WITH_AGENTS, RunDir, Survey};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use world::{Sighting, World};

/// How wide a picture is that is printed elsewhere than on a terminal.
const WIDTH: u16 = 120;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nil top
  nil top --every 200ms
  nil top --once
  nil top --once --json")]
pub(crate) struct Args {
    /// Print one picture, and end.
    #[arg(long)]
    once: bool,
    /// How often to look.
    #[arg(long, default_value = "1s", value_parser = duration::parse_some, value_name = "TIME")]
    every: Duration,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    if args.once {
        output.print(&Picture { model: look_once()? })?;
        return Ok(ExitCode::SUCCESS);
    }
    if output == Output::Json {
        bail!("`nil top --json` has one moment to tell: write `nil top --once --json`");
    }
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        bail!(
            "`nil top` needs a terminal; `nil top --once` prints one picture, and `nil top --once --json` tells it to programs"
        );
    }
    screen::show(args.every)?;
    Ok(ExitCode::SUCCESS)
}

fn look_once() -> Result<Model> {
    let mut model = Model::default();
    model.mode = Mode::Printed;
    model.world.see(look(&RunDir::from_environment())?);
    model.now = now();
    Ok(model)
}

/// Asks every agent how its guests and its jobs are. One that does not tell of its jobs has none to show.
fn look(run_dir: &RunDir) -> nil_host::Result<Sighting> {
    let survey = Survey::take(run_dir)?;
    let wanted = JobFilter::latest(world::PAST);
    let mut jobs = BTreeMap::new();
    for host in survey.hosts.iter().filter(|host| host.agent_pid.is_some()) {
        let asked = Client::connect(&run_dir.host(&host.name))
            .and_then(|mut agent| agent.within(PATIENCE_WITH_AGENTS, |agent| agent.jobs(&wanted)));
        for job in asked.unwrap_or_default() {
            // Several agents may tell of a migration that is over: its report is in their pool.
            jobs.entry(job.id).or_insert(job);
        }
    }
    Ok(Sighting { at: now(), survey, jobs: jobs.into_values().collect() })
}

/// Since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// What there is at one moment.
struct Picture {
    model: Model,
}

impl serde::Serialize for Picture {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        World::serialize(&self.model.world, serializer)
    }
}

impl fmt::Display for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = ratatui::crossterm::terminal::size().ok().filter(|_| io::stdout().is_terminal());
        f.write_str(&text(&self.model, width.map_or(WIDTH, |(width, _)| width.max(40))))
    }
}

/// The picture without colours, in as many lines as it needs.
fn text(model: &Model, width: u16) -> String {
    let Ok(mut screen) = Terminal::new(TestBackend::new(width, view::whole_height(model, width)));
    let Ok(drawn) = screen.draw(|frame| view::draw(model, frame));
    let rows = drawn.buffer.content().chunks(width.into());
    let line = |row: &[ratatui::buffer::Cell]| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>();
    let lines: Vec<String> = rows.map(|row| line(row).trim_end().to_owned()).collect();
    let used = lines.iter().rposition(|line| !line.is_empty()).map_or(0, |last| last + 1);
    lines[..used].iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Panel;
    use ratatui::crossterm::event::{KeyCode, KeyEvent};

    fn model(sighting: Sighting) -> Model {
        let mut model = Model::default();
        model.now = sighting.at;
        model.world.see(sighting);
        model
    }

    /// The rack, some time after the first look.
    fn rack() -> Model {
        let mut model = model(scene::rack());
        let mut later = scene::rack();
        later.at += Duration::from_secs(65);
        model.now = later.at;
        model.world.see(later);
        model
    }

    fn screen(model: &Model, width: u16, height: u16) -> String {
        let Ok(mut screen) = Terminal::new(TestBackend::new(width, height));
        let Ok(_) = screen.draw(|frame| view::draw(model, frame));
        screen.backend().to_string()
    }

    #[test]
    fn a_small_terminal_shows_everything_that_matters() {
        insta::assert_snapshot!(screen(&rack(), 80, 24));
    }

    #[test]
    fn a_large_terminal_shows_everything_that_there_is() {
        insta::assert_snapshot!(screen(&rack(), 200, 40));
    }

    #[test]
    fn a_hall_of_hosts_and_guests_is_seen_in_part_with_its_numbers() {
        let mut model = model(scene::hall());
        model.press(KeyEvent::from(KeyCode::End));
        insta::assert_snapshot!(screen(&model, 100, 30));
    }

    #[test]
    fn nothing_at_all_says_how_to_begin() {
        let survey = Survey { guests: Vec::new(), hosts: Vec::new(), elsewhere: Vec::new() };
        insta::assert_snapshot!(screen(&model(Sighting { at: Duration::ZERO, survey, jobs: Vec::new() }), 80, 24));
        assert!(screen(&Model::default(), 80, 24).contains("looking"), "before the first look");
    }

    #[test]
    fn details_of_a_guest_lie_over_the_panels() {
        let mut model = rack();
        for key in [KeyCode::Down, KeyCode::Down, KeyCode::Enter] {
            model.press(KeyEvent::from(key));
        }
        insta::assert_snapshot!(screen(&model, 80, 24));
    }

    #[test]
    fn every_panel_has_details_and_every_key_is_explained() {
        let mut model = rack();
        for (panel, words) in [
            (Panel::Hosts, "process 4000"),
            (Panel::Pools, "5 GiB of 16 GiB"),
            (Panel::Guests, "vCPUs"),
            (Panel::Moves, "decouple"),
        ] {
            (model.focus, model.mode) = (panel, Mode::Details);
            assert!(screen(&model, 80, 24).contains(words), "{panel:?}");
        }
        model.mode = Mode::Help;
        insta::assert_snapshot!(screen(&model, 80, 24));
    }

    #[test]
    fn an_old_picture_and_a_failed_look_are_owned_up_to() {
        let mut model = rack();
        model.now += Duration::from_secs(9);
        assert!(screen(&model, 80, 24).contains("as of 9s ago"));
        model.trouble = Some("cannot read the run directory".to_owned());
        assert!(screen(&model, 80, 24).contains("cannot read the run directory"));
    }

    #[test]
    fn no_screen_is_too_small_or_too_odd_to_draw_on() {
        for mut model in [rack(), model(scene::hall()), Model::default()] {
            for mode in [Mode::Looking, Mode::Filtering, Mode::Details, Mode::Help] {
                model.mode = mode;
                for (width, height) in [(1, 1), (39, 12), (40, 12), (40, 200), (129, 13), (130, 12), (400, 12)] {
                    screen(&model, width, height);
                }
            }
        }
    }

    #[test]
    fn a_printed_picture_has_everything_and_no_keys() {
        let mut model = rack();
        model.mode = Mode::Printed;
        insta::assert_snapshot!(text(&model, 120));
    }

    #[test]
    fn programs_are_told_the_same() {
        let told = serde_json::to_value(Picture { model: rack() }).expect("JSON");
        assert_eq!(told["moves"].as_array().expect("moves").len(), 3);
        assert_eq!((&told["past"][0]["to"], &told["past"][0]["blackout_ns"]), (&"B".into(), &139_700.into()));
        assert_eq!(told["pools"][0]["used_bytes"], 5_u64 << 30);
    }
}
