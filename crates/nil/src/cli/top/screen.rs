//! The terminal: looks are taken in the background, keys are read here, and every change is drawn.

use super::model::{Model, Next};
use super::view;
use super::world::Sighting;
use super::{look, now};
use anyhow::{Context, Result};
use nil_host::RunDir;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use signal_hook::consts::{SIGHUP, SIGTERM};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::Duration;

/// How long keys are waited for before the clock goes on.
const TICK: Duration = Duration::from_millis(100);

/// What a look has brought.
type Look = Result<Sighting, nil_host::Error>;

/// Takes over the terminal until `q` is pressed, and gives it back as it was, whatever happens.
pub(super) fn show(every: Duration) -> Result<()> {
    let told_to_end = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&told_to_end)).context("cannot wait for signals")?;
    }
    let mut terminal = ratatui::try_init().context("cannot take over the terminal")?;
    let shown = look_and_draw(&mut terminal, every, &told_to_end);
    let restored = ratatui::try_restore().context("cannot give the terminal back");
    shown.and(restored)
}

fn look_and_draw(terminal: &mut DefaultTerminal, every: Duration, told_to_end: &AtomicBool) -> Result<()> {
    let looks = look_in_background(every)?;
    let mut model = Model::default();
    while !told_to_end.load(Ordering::Relaxed) {
        for look in looks.try_iter() {
            match look {
                Ok(sighting) => {
                    model.trouble = None;
                    model.world.see(sighting);
                }
                Err(error) => model.trouble = Some(error.to_string()),
            }
        }
        model.now = now();
        terminal.draw(|frame| view::draw(&model, frame)).context("cannot draw")?;
        if event::poll(TICK).context("cannot read keys")?
            && let Event::Key(key) = event::read().context("cannot read keys")?
            && key.kind != KeyEventKind::Release
            && model.press(key) == Next::Quit
        {
            break;
        }
    }
    Ok(())
}

/// Looks again and again on a thread of its own, which ends when nobody listens any more. An agent that does not answer
/// holds up the next look, and not the keys.
fn look_in_background(every: Duration) -> Result<Receiver<Look>> {
    let (looks, seen) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name("look".to_owned())
        .spawn(move || look_again_and_again(every, &looks))
        .context("cannot start a thread")?;
    Ok(seen)
}

fn look_again_and_again(every: Duration, looks: &SyncSender<Look>) {
    let run_dir = RunDir::from_environment();
    loop {
        if looks.send(look(&run_dir)).is_err() {
            return;
        }
        thread::sleep(every);
    }
}
