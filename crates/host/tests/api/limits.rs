//! What callers may use up.

use crate::stage::{Answer, PATIENCE, Stage, get};
use std::io::{Read, Write};
use std::time::Instant;

const LARGE: usize = 10 << 20;

fn head(more: &str) -> String {
    format!(
        "POST /v1/guests HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n{more}\r\n\r\n"
    )
}

#[test]
fn a_body_that_is_too_large_is_refused_however_it_comes() {
    let stage = Stage::new();
    let whole = [head(&format!("content-length: {LARGE}")).into_bytes(), vec![b' '; LARGE]].concat();
    stage.ask(whole).refuses(413, "65536 bytes at most");
    let mut pieces = head("transfer-encoding: chunked").into_bytes();
    for _ in 0..LARGE / 4096 {
        pieces.extend_from_slice(b"1000\r\n");
        pieces.extend_from_slice(&[b' '; 4096]);
        pieces.extend_from_slice(b"\r\n");
    }
    pieces.extend_from_slice(b"0\r\n\r\n");
    stage.ask(pieces).refuses(413, "65536 bytes at most");
    stage.check_unharmed();
}

#[test]
fn a_caller_that_does_not_come_to_the_point_is_hung_up_on() {
    let stage = Stage::new();
    let (mut half_a_head, mut half_a_body, silent) = (stage.unix(), stage.unix(), stage.tcp());
    half_a_head.write_all(b"GET /v1/host HTTP/1.1\r\nhost: ").expect("written");
    half_a_body.write_all(head("content-length: 100").as_bytes()).expect("written");
    stage.check_unharmed();
    assert!([0, 408].contains(&Answer::read(half_a_head).status));
    assert!([0, 408].contains(&Answer::read(silent).status));
    Answer::read(half_a_body).refuses(408, "did not come in time");
}

#[test]
fn callers_from_elsewhere_cannot_take_all_connections() {
    let stage = Stage::new();
    let deadline = Instant::now() + PATIENCE;
    let mut taken = Vec::new();
    // One that gets no place is hung up on without a word.
    loop {
        assert!(Instant::now() < deadline, "{} connections, and none was refused", taken.len());
        let mut stream = stage.tcp();
        stream.write_all(get("/healthz").replace("close", "keep-alive").as_bytes()).expect("written");
        match stream.read(&mut [0; 16]) {
            Ok(16) => taken.push(stream),
            Ok(_) | Err(_) => break,
        }
    }
    assert!(taken.len() <= 256, "{}", taken.len());
    stage.check_unharmed();
}

#[test]
fn a_caller_that_asks_too_often_is_told_to_wait() {
    let stage = Stage::new();
    let batch = get("/healthz").replace("close", "keep-alive").repeat(500);
    let mut stream = stage.tcp();
    for _ in 0..40 {
        stream.write_all(batch.as_bytes()).expect("written");
        let mut seen = String::new();
        while seen.matches("HTTP/1.1 ").count() < 500 || !seen.ends_with(['\n', '}']) {
            let mut bytes = [0; 1 << 16];
            let read = stream.read(&mut bytes).expect("answers");
            assert_ne!(read, 0, "hung up");
            seen.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
        if let Some((_, refused)) = seen.split_once("HTTP/1.1 429 ") {
            assert!(refused.to_lowercase().contains("\r\nretry-after: 1\r\n"), "{refused:.300}");
            // This user is not counted.
            return stage.check_unharmed();
        }
    }
    panic!("20,000 requests, and none was refused");
}
