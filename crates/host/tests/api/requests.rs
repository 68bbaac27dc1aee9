//! Requests that are not understood, or for what is not there.

use crate::stage::{Stage, get};

const JSON: &str = "application/json";

#[test]
fn what_is_not_there_and_what_cannot_be_done_are_problems() {
    let stage = Stage::new();
    stage.ask(get("/nothing")).refuses(404, "/nothing");
    stage.ask(get("/v1/guests/g")).refuses(404, "there is no guest named g");
    stage.ask(get("/v1/guests/g/pins")).refuses(404, "there is no guest named g");
    stage.ask(get("/v1/jobs/00000000-0000-4000-8000-000000000000")).refuses(404, "there is no job");
    stage.ask(get("/v1/jobs/7")).refuses(400, "UUID");
    stage.ask(get("/v1/jobs/00000000000040008000000000000000")).refuses(400, "UUID");
    stage.ask(get("/v1/guests/a%2Fb/pins")).refuses(400, "a/b");
    stage.ask("PATCH /v1/guests HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").refuses(405, "PATCH");
    let gone = "DELETE /v1/guests/g HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    stage.ask(gone).refuses(404, "there is no guest named g");
    let sideways = "DELETE /v1/guests/g/moves?direction=up HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    stage.ask(sideways).refuses(400, "up");
    stage.check_unharmed();
}

#[test]
fn bodies_that_are_no_documents_are_refused() {
    let stage = Stage::new();
    let deep = "[".repeat(60_000);
    let nested = format!("{}{}", "{\"name\":".repeat(4_000), "1");
    for body in [
        &b""[..],
        b"{",
        b"null",
        b"[]",
        b"\"run\"",
        b"{\"name\":\"g\"}",
        b"{\"name\":\"\xff\xfe\"}",
        b"\xff\xff\xff\xff",
        b"{\"to\":\"B\",\"to\":\"B\"}",
        b"1e999999999",
        deep.as_bytes(),
        nested.as_bytes(),
    ] {
        stage.post("/v1/guests", JSON, body).refuses(400, "the body is not understood");
        stage.post("/v1/guests/g/moves", JSON, body).refuses(400, "the body is not understood");
    }
    stage.check_unharmed();
}

#[test]
fn a_field_that_nobody_knows_is_refused_by_its_name() {
    let stage = Stage::new();
    let body = br#"{"to": "B", "deadline_ms": 5}"#;
    stage.post("/v1/guests/g/migrations", JSON, body).refuses(400, "deadline_ms");
}

#[test]
fn a_body_of_another_kind_is_refused() {
    let stage = Stage::new();
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
        stage.post("/v1/guests/g/migrations", kind, br#"{"to": "B"}"#).refuses(415, "application/json");
    }
    let accepted = stage.post("/v1/guests/g/migrations", "Application/JSON; charset=utf-8", br#"{"to": "B"}"#);
    accepted.refuses(404, "there is no guest named g");
}

#[test]
fn heads_that_are_none_do_the_agent_no_harm() {
    let stage = Stage::new();
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1000));
    for head in
        ["\0\0\n\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "{\"run\":{}}\n\n", long.as_str(), many.as_str()]
    {
        let answer = stage.ask(head);
        assert!((400..500).contains(&answer.status), "{head:.40}: {answer:?}");
    }
    stage.check_unharmed();
}
