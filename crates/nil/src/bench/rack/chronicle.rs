//! What has happened on the rack: the story that a violation is told with.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// How many events are kept. A violation is seen at the next quiet point, so they reach back further than one.
const KEPT: usize = 4_096;
/// How many events of a rack are told, besides those of the guest that is in question.
const TOLD: usize = 40;

/// The latest events.
#[derive(Debug)]
pub(in crate::bench) struct Chronicle {
    begun: Instant,
    events: Mutex<VecDeque<Event>>,
}

#[derive(Debug)]
struct Event {
    millis: u128,
    what: String,
}

impl Chronicle {
    pub(in crate::bench) fn begin() -> Self {
        Self { begun: Instant::now(), events: Mutex::default() }
    }

    pub(in crate::bench) fn note(&self, what: String) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() == KEPT {
            events.pop_front();
        }
        events.push_back(Event { millis: self.begun.elapsed().as_millis(), what });
    }

    /// The latest events, and before them those whose subject is named in `what`.
    pub(in crate::bench) fn story(&self, what: &str) -> String {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let named = |event: &Event| {
            let subject = event.what.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
            let subject = subject.trim_end_matches(':');
            !subject.is_empty() && what.contains(subject)
        };
        let latest = events.len().saturating_sub(TOLD);
        let told = events.iter().enumerate().filter(|(index, event)| *index >= latest || named(event));
        let mut text = String::new();
        for (_, Event { millis, what }) in told {
            // Writing into a String cannot fail.
            let _ = write!(text, "\n  {millis} ms: {what}");
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
