//! What has happened to a fleet: the numbered story that a violation is told with.

use super::lock::lock;
use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::Mutex;
use std::time::Instant;

/// How many events are kept. A violation is seen at the next quiet point, so they reach back further than one.
const KEPT: usize = 4_096;
/// How many events of a rack are told, besides those of the guest that is in question.
const TOLD: usize = 40;

/// The latest events.
#[derive(Debug)]
pub(crate) struct Chronicle {
    begun: Instant,
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    /// Events that were noted in all.
    noted: u64,
    latest: VecDeque<Event>,
}

#[derive(Debug)]
struct Event {
    number: u64,
    millis: u128,
    what: String,
}

impl Chronicle {
    pub(crate) fn begin() -> Self {
        Self { begun: Instant::now(), log: Mutex::default() }
    }

    pub(crate) fn note(&self, what: String) {
        let mut log = lock(&self.log);
        if log.latest.len() == KEPT {
            log.latest.pop_front();
        }
        log.noted += 1;
        let event = Event { number: log.noted, millis: self.begun.elapsed().as_millis(), what };
        log.latest.push_back(event);
    }

    /// The latest events, and before them those whose subject is named in `what`.
    pub(crate) fn story(&self, what: &str) -> String {
        let log = lock(&self.log);
        let events = &log.latest;
        let named = |event: &Event| {
            let subject = event.what.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
            let subject = subject.trim_end_matches(':');
            !subject.is_empty() && what.contains(subject)
        };
        let latest = events.len().saturating_sub(TOLD);
        let told = events.iter().enumerate().filter(|(index, event)| *index >= latest || named(event));
        let mut text = String::new();
        for (_, Event { number, millis, what }) in told {
            // Writing into a String cannot fail.
            let _ = write!(text, "\n  {number}. {millis} ms: {what}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_story_has_the_latest_events_and_all_of_the_one_in_question() {
        let chronicle = Chronicle::begin();
        chronicle.note("guest g7: h1 → h2: moved".into());
        chronicle.note("guest g9: h1 → h2: moved".into());
        (0..TOLD).for_each(|_| chronicle.note("agent h1: killed".into()));
        let story = chronicle.story("guest g7: it has two workers");
        assert!(story.contains("guest g7") && !story.contains("guest g9"), "{story}");
        assert_eq!(story.lines().filter(|line| line.contains("killed")).count(), TOLD);
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let chronicle = Chronicle::begin();
        (0..=KEPT).for_each(|number| chronicle.note(format!("guest g{number}: it is there")));
        assert!(!chronicle.story("guest g0: it is lost").contains("guest g0:"));
    }
}
