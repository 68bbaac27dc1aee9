//! Server-sent events, from the bytes of a stream (the WHATWG HTML standard, "Interpreting an event stream").

use std::collections::VecDeque;

/// The most bytes that one event may have.
const LARGEST_EVENT: usize = 1 << 20;

/// Takes bytes, and gives events.
#[derive(Debug, Default)]
pub(super) struct Sse {
    rest: Vec<u8>,
    building: Event,
    whole: VecDeque<Event>,
}

/// One event.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Event {
    pub(super) id: Option<u64>,
    pub(super) name: String,
    pub(super) data: String,
}

/// An event that is too large.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TooLarge;

impl Sse {
    /// Takes more of the stream.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(), TooLarge> {
        self.rest.extend_from_slice(bytes);
        let mut begin = 0;
        while let Some(length) = self.rest[begin..].iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&self.rest[begin..begin + length]).into_owned();
            begin += length + 1;
            self.line(line.strip_suffix('\r').unwrap_or(&line));
        }
        self.rest.drain(..begin);
        if self.rest.len() + self.building.data.len() > LARGEST_EVENT { Err(TooLarge) } else { Ok(()) }
    }

    /// The next event that is whole.
    pub(super) fn next(&mut self) -> Option<Event> {
        self.whole.pop_front()
    }

    fn line(&mut self, line: &str) {
        if line.is_empty() {
            let event = std::mem::take(&mut self.building);
            if !event.data.is_empty() {
                self.whole.push_back(event);
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if !self.building.data.is_empty() {
                    self.building.data.push('\n');
                }
                self.building.data.push_str(value);
            }
            "event" => value.clone_into(&mut self.building.name),
            "id" => self.building.id = value.parse().ok(),
            // A comment, by which the agent shows that it lives, or what nobody needs here.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(pieces: &[&str]) -> Vec<Event> {
        let mut sse = Sse::default();
        pieces.iter().for_each(|piece| sse.take(piece.as_bytes()).expect("not too large"));
        std::iter::from_fn(|| sse.next()).collect()
    }

    #[test]
    fn events_are_the_same_however_the_stream_is_cut() {
        let stream = ": lives\n\nid: 7\nevent: progress\ndata: {\"a\":\ndata: 1}\n\nevent:end\r\ndata:x\r\n\r\n";
        let whole = events(&[stream]);
        assert_eq!(whole.len(), 2);
        assert_eq!(whole[0], Event { id: Some(7), name: "progress".into(), data: "{\"a\":\n1}".into() });
        assert_eq!(whole[1], Event { id: None, name: "end".into(), data: "x".into() });
        for cut in 1..stream.len() {
            assert_eq!(events(&[&stream[..cut], &stream[cut..]]), whole, "cut at {cut}");
        }
    }

    #[test]
    fn half_an_event_is_none() {
        assert_eq!(events(&["event: end\ndata: x\n"]), []);
    }

    #[test]
    fn a_stream_without_an_end_of_line_is_given_up() {
        let mut sse = Sse::default();
        let piece = vec![b'x'; 1 << 16];
        assert!((0..17).any(|_| sse.take(&piece) == Err(TooLarge)));
    }
}
