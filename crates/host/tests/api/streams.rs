//! Streams of events.

use crate::stage::{Stage, get};
use std::io::{BufRead, BufReader, Write};

#[test]
fn more_streams_than_the_agent_takes_are_refused_until_one_ends() {
    let stage = Stage::new();
    let open = || {
        let mut stream = stage.unix();
        stream.write_all(get("/v1/events").as_bytes()).expect("written");
        let mut line = String::new();
        let mut stream = BufReader::new(stream);
        stream.read_line(&mut line).expect("a status");
        (line, stream)
    };
    let mut streams: Vec<_> = (0..64).map(|_| open()).collect();
    assert!(streams.iter().all(|(line, _)| line.contains("200")), "{:?}", streams[0].0);
    let refused = stage.ask(get("/v1/events"));
    refused.refuses(503, "as many streams as it can take");
    assert!(refused.text.to_lowercase().contains("retry-after: 1"), "{}", refused.text);
    stage.check_unharmed();
    streams.clear();
    // Whoever has hung up is noticed a moment later.
    while !open().0.contains("200") {}
}

#[test]
fn a_watcher_that_comes_back_after_too_long_is_told_that_it_has_missed_something() {
    let stage = Stage::new();
    let mut stream = stage.unix();
    stream.write_all(b"GET /v1/events HTTP/1.1\r\nhost: a\r\nlast-event-id: 7\r\n\r\n").expect("written");
    let lines = BufReader::new(stream).lines().map(|line| line.expect("a line"));
    let said: Vec<String> = lines.take_while(|line| !line.starts_with("id:")).collect();
    assert!(said.iter().any(|line| line == "event: missed"), "{said:?}");
    assert!(said.iter().any(|line| line.starts_with("data: ") && line.contains("\"missed\"")), "{said:?}");
}
