//! Sockets and connections.
//!
//! ```text
//! Unix socket      this user            \
//! TCP, mutual TLS  by certificate        ├─▶ who calls ─▶ HTTP/1.1 ─▶ router
//! TCP, plain       anybody on loopback  /
//! ```
//!
//! One thread serves all of them. It waits for nobody: a caller that takes too long to shake hands, to ask, or to take what
//! is answered, is hung up on. Each kind of socket has its own connections, so that callers from elsewhere cannot take
//! them from this user.

use super::calls::Api;
use super::limits::{CONNECTIONS, HEAD_TIME, LARGEST_HEAD, MOST_HEADERS, QUESTIONS, READER_TIME, STREAMS};
use super::patience::Patient;
use super::roles::Caller;
use super::router::router;
use crate::agent::Host;
use crate::error::{Error, Result};
use crate::tls::{Role, ServerTls};
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceExt;

/// How long to wait before another call is taken when one could not be.
const RESPITE: Duration = Duration::from_millis(100);

/// Where an agent answers.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// This user's.
    pub(crate) unix: UnixListener,
    /// Other machines', by certificate.
    pub(crate) tls: Option<(TcpListener, ServerTls)>,
    /// Anybody's on this machine, who may do what the role may.
    pub(crate) plain: Option<(TcpListener, Role)>,
}

/// Begins to answer.
pub(crate) fn serve(host: &Arc<Host>, sockets: Sockets) -> Result<()> {
    let cannot = |error| Error::io("answer on", host.socket(), error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(QUESTIONS).build();
    let runtime = runtime.map_err(cannot)?;
    let router = router(Api::new(Arc::clone(host), STREAMS));
    {
        let _inside = runtime.enter();
        let Sockets { unix, tls, plain } = sockets;
        unix.set_nonblocking(true).map_err(cannot)?;
        tokio::spawn(serve_unix(tokio::net::UnixListener::from_std(unix).map_err(cannot)?, router.clone()));
        if let Some((listener, tls)) = tls {
            tokio::spawn(serve_tls(asynchronous(listener).map_err(cannot)?, tls, router.clone()));
        }
        if let Some((listener, role)) = plain {
            tokio::spawn(serve_plain(asynchronous(listener).map_err(cannot)?, role, router));
        }
    }
    host.spawn("api", move |_| runtime.block_on(std::future::pending()))
}

fn asynchronous(listener: TcpListener) -> io::Result<tokio::net::TcpListener> {
    listener.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(listener)
}

async fn serve_unix(socket: tokio::net::UnixListener, router: Router) {
    let room = Room::default();
    loop {
        let Some((stream, place)) = room.place(socket.accept().await).await else { continue };
        tokio::spawn(converse(stream.0, Caller::Local, router.clone(), place));
    }
}

async fn serve_tls(socket: tokio::net::TcpListener, tls: ServerTls, router: Router) {
    let room = Room::default();
    loop {
        let Some((accepted, place)) = room.place(socket.accept().await).await else { continue };
        let (tls, router) = (tls.clone(), router.clone());
        tokio::spawn(async move {
            let (stream, from) = without_delay(accepted);
            match tls.accept(stream).await {
                Ok((stream, identity)) => converse(stream, Caller::Known(identity), router, place).await,
                Err(error) => tracing::warn!("hung up on a caller at {from}: {}", error.story()),
            }
        });
    }
}

async fn serve_plain(socket: tokio::net::TcpListener, role: Role, router: Router) {
    let room = Room::default();
    loop {
        let Some((accepted, place)) = room.place(socket.accept().await).await else { continue };
        let (stream, from) = without_delay(accepted);
        let caller = Caller::Anybody { from: from.ip(), role };
        tokio::spawn(converse(stream, caller, router.clone(), place));
    }
}

fn without_delay((stream, from): (TcpStream, SocketAddr)) -> (TcpStream, SocketAddr) {
    // Without it answers are slower, and that is all.
    let _ = stream.set_nodelay(true);
    (stream, from)
}

/// Room for so many connections.
struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(CONNECTIONS)))
    }
}

impl Room {
    /// Gives an accepted connection a place, if there is one; else it is dropped.
    async fn place<T>(&self, accepted: io::Result<T>) -> Option<(T, OwnedSemaphorePermit)> {
        match accepted {
            Ok(stream) => match Arc::clone(&self.0).try_acquire_owned() {
                Ok(place) => Some((stream, place)),
                Err(_) => {
                    tracing::warn!("hung up on a caller: there are {CONNECTIONS} connections already");
                    None
                }
            },
            Err(error) => {
                tracing::warn!("a call could not be taken: {error}");
                tokio::time::sleep(RESPITE).await;
                None
            }
        }
    }
}

/// Answers on one connection until it ends.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    caller: Caller,
    router: Router,
    place: OwnedSemaphorePermit,
) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(Body::new);
        request.extensions_mut().insert(caller.clone());
        router.clone().oneshot(request)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(LARGEST_HEAD)
        .max_headers(MOST_HEADERS)
        .serve_connection(TokioIo::new(Patient::new(stream, READER_TIME)), service)
        .await;
    if let Err(error) = served {
        tracing::debug!("a connection ended: {error}");
    }
    drop(place);
}
