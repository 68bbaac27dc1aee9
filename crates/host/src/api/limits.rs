//! What callers may use up, so that none of them harms the agent or the others.

use std::time::Duration;

/// Connections at once, on each of the sockets.
pub(super) const CONNECTIONS: usize = 256;
/// Streams of events at once.
pub(super) const STREAMS: usize = 64;
/// Orders at once that wait for a worker or a guest.
pub(super) const ORDERS: usize = 128;
/// Threads that answer questions.
pub(super) const QUESTIONS: usize = 16;
/// So many guests are told by the thread that serves the connections; more by one of those.
pub(super) const FEW_GUESTS: usize = 64;
/// The most bytes that a request's body may have.
pub(super) const LARGEST_BODY: usize = 64 << 10;
/// The most bytes that a request's head may have.
pub(super) const LARGEST_HEAD: usize = 16 << 10;
/// The most header fields that it may have.
pub(super) const MOST_HEADERS: usize = 64;
/// How long the head of a request may take to come; a connection on which none comes is hung up on after that, too.
pub(super) const HEAD_TIME: Duration = Duration::from_secs(5);
/// How long the body of a request may take to come.
pub(super) const BODY_TIME: Duration = Duration::from_secs(10);
/// How long the answer to a question may take.
pub(super) const QUESTION_TIME: Duration = Duration::from_secs(30);
/// How long a caller may take to make room for more of an answer.
pub(super) const READER_TIME: Duration = Duration::from_secs(10);
