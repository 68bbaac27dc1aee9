//! `GET /v1/events`: what happens on the host.

use super::calls::Api;
use super::jobs::last_event;
use super::problem::{Answer, Refusal};
use crate::agent::Caught;
use crate::report::{Happening, HostEvent};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream};
use std::convert::Infallible;
use std::sync::Arc;

/// Events from now on, or from the one after `Last-Event-ID`. A watcher that has missed some is told so first; one that is
/// too slow for what happens is hung up on, and may come back.
#[utoipa::path(
    get,
    path = "/v1/events",
    tag = "host",
    params(("last-event-id" = Option<u64>, Header, description = "The event after which to go on")),
    responses((status = 200, description = "Events with a HostEvent each", body = String, content_type = "text/event-stream"), Refusal)
)]
pub(super) async fn watch(
    State(api): State<Api>,
    headers: HeaderMap,
) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let permit = Arc::clone(&api.streams).try_acquire_owned().map_err(|_| Refusal::busy("streams"))?;
    let (reader, caught) = api.host().watch_events(last_event(&headers));
    let (missed, next) = match caught {
        Caught::Up { next } => (None, next),
        Caught::Behind { newest } => {
            api.host().count_missed_events();
            (Some(newest), newest + 1)
        }
    };
    let events =
        stream::unfold((reader, missed, next, api, permit), async |(mut reader, missed, next, api, permit)| {
            if let Some(newest) = missed {
                let event = HostEvent { at_ms: crate::agent::now_ms(), what: Happening::Missed };
                return Some((Ok(event_of(newest, &event)), (reader, None, next, api, permit)));
            }
            let (number, event) = reader.next().await?;
            if number != next {
                // It has not read for so long that some are gone.
                api.host().count_missed_events();
                return None;
            }
            Some((Ok(event_of(number, &event)), (reader, None, number + 1, api, permit)))
        });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

fn event_of(number: u64, event: &HostEvent) -> Event {
    super::jobs::event(event.what.name(), event).id(number.to_string())
}
