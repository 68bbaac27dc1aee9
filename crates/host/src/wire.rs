//! How agents talk with the workers of their host: JSON lines over Unix sockets. What others say is HTTP ([`crate::api`]).
//!
//! One request per line; its answer is one line or several, the last of which says so by its kind. A line is at most
//! [`LONGEST_LINE`] long, so that a confused peer cannot fill our memory.

use crate::error::{Error, Result};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

/// The most bytes that a line may have, its newline included.
const LONGEST_LINE: u64 = 1 << 20;

/// How long a peer may take to make room for an answer. One that takes longer is hung up on.
const PATIENCE_WITH_READERS: Duration = Duration::from_secs(10);

/// Listens on a socket that only this user can call. What lies at `path` is removed: the caller knows that nobody serves
/// it, and is told whether there was something.
pub(crate) fn listen(path: &Path) -> Result<(UnixListener, Stale)> {
    let stale = match fs::remove_file(path) {
        Ok(()) => Stale::Removed,
        Err(error) if error.kind() == ErrorKind::NotFound => Stale::None,
        Err(error) => return Err(Error::io("remove", path, error)),
    };
    let listener = UnixListener::bind(path).map_err(|error| Error::io("listen on", path, error))?;
    // Until here the directory, which is closed to others, has kept them out.
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(|error| Error::io("protect", path, error))?;
    Ok((listener, stale))
}

/// Whether somebody who has died had left a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stale {
    None,
    Removed,
}

/// What became of a line for which nobody waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sent {
    Whole,
    /// The peer has not taken what came before: the line is dropped.
    NoRoom,
}

/// One end of a conversation.
#[derive(Debug)]
pub(crate) struct Connection {
    reader: BufReader<UnixStream>,
    peer: String,
}

impl Connection {
    /// Calls the socket at `path`; `peer` is who it is to a person.
    pub(crate) fn call(path: &Path, peer: impl Into<String>) -> Result<Self> {
        let peer = peer.into();
        match UnixStream::connect(path) {
            Ok(stream) => Ok(Self::over(stream, peer)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                Err(Error::NobodyThere { peer })
            }
            Err(error) => Err(Error::io("connect to", path, error)),
        }
    }

    /// Talks over a stream that is connected already.
    pub(crate) fn over(stream: UnixStream, peer: impl Into<String>) -> Self {
        Self { reader: BufReader::new(stream), peer: peer.into() }
    }

    /// Limits how long [`Connection::receive`] waits; `None` waits for ever.
    pub(crate) fn set_patience(&self, patience: Option<Duration>) -> Result<()> {
        self.stream().set_read_timeout(patience).map_err(|source| self.broken(source))
    }

    /// Sends one line, waiting for room for a while. If none comes, the conversation is over.
    pub(crate) fn send(&self, message: &impl Serialize) -> Result<()> {
        let line = self.line(message)?;
        self.stream().set_write_timeout(Some(PATIENCE_WITH_READERS)).map_err(|source| self.broken(source))?;
        self.stream().write_all(&line).map_err(|source| self.give_up(source))
    }

    /// Sends one line if there is room for it, without waiting.
    pub(crate) fn send_now(&self, message: &impl Serialize) -> Result<Sent> {
        let line = self.line(message)?;
        match rustix::net::send(self.stream(), &line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(sent) if sent == line.len() => Ok(Sent::Whole),
            // Half a line must not be followed by another.
            Ok(_) => Err(self.give_up(ErrorKind::WriteZero.into())),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Sent::NoRoom),
            Err(error) => Err(self.broken(error.into())),
        }
    }

    fn line(&self, message: &impl Serialize) -> Result<Vec<u8>> {
        let mut line = serde_json::to_vec(message).map_err(|error| self.broken(error.into()))?;
        line.push(b'\n');
        let (bytes, most) = (line.len(), LONGEST_LINE);
        if u64::try_from(bytes).is_ok_and(|bytes| bytes <= most) {
            return Ok(line);
        }
        Err(Error::refused(format!(
            "what {} is to be told has {bytes} bytes, and a line has {most} at most",
            self.peer
        )))
    }

    /// Hangs up on a peer that has got a part of a line, or none in time.
    fn give_up(&self, source: std::io::Error) -> Error {
        // It fails only when the peer has gone.
        let _ = self.stream().shutdown(Shutdown::Both);
        match source.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Error::NoAnswer { peer: self.peer.clone() },
            _ => self.broken(source),
        }
    }

    /// Receives one line; `None` when the peer has hung up.
    pub(crate) fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let mut line = Vec::new();
        let read = (&mut self.reader).take(LONGEST_LINE).read_until(b'\n', &mut line);
        match read {
            Ok(_) if line.is_empty() => return Ok(None),
            Ok(_) if line.ends_with(b"\n") => {}
            Ok(_) => return Err(Error::Hangup { peer: self.peer.clone() }),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Err(Error::NoAnswer { peer: self.peer.clone() });
            }
            Err(source) => return Err(self.broken(source)),
        }
        serde_json::from_slice(&line)
            .map(Some)
            .map_err(|source| Error::NotUnderstood { peer: self.peer.clone(), source })
    }

    /// Gives the peer open files, which it waits for.
    pub(crate) fn send_files<'a>(&self, files: impl IntoIterator<Item = BorrowedFd<'a>>) -> Result<()> {
        for file in files {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let files = [file];
            ancillary.push(SendAncillaryMessage::ScmRights(&files));
            // One byte carries one file.
            let sent = sendmsg(self.stream(), &[IoSlice::new(b"f")], &mut ancillary, SendFlags::NOSIGNAL);
            sent.map_err(|errno| self.broken(errno.into()))?;
        }
        Ok(())
    }

    /// Receives so many open files, which the peer has been told to send now: nothing else may be on its way, or files
    /// would be lost with it.
    pub(crate) fn receive_files(&self, count: usize) -> Result<Vec<OwnedFd>> {
        if !self.reader.buffer().is_empty() {
            return Err(self.broken(ErrorKind::InvalidData.into()));
        }
        (0..count).map(|_| self.receive_file()).collect()
    }

    fn receive_file(&self) -> Result<OwnedFd> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(self.stream(), &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags);
        let received = received.map_err(|errno| match errno {
            Errno::AGAIN => Error::NoAnswer { peer: self.peer.clone() },
            errno => self.broken(errno.into()),
        })?;
        if received.bytes == 0 {
            return Err(Error::Hangup { peer: self.peer.clone() });
        }
        let files = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        });
        files.flatten().next().ok_or_else(|| self.broken(ErrorKind::InvalidData.into()))
    }

    /// Receives one line, which must come.
    pub(crate) fn expect<T: DeserializeOwned>(&mut self) -> Result<T> {
        self.receive()?.ok_or_else(|| Error::Hangup { peer: self.peer.clone() })
    }

    /// Who is at the other end.
    pub(crate) fn peer(&self) -> &str {
        &self.peer
    }

    /// The stream, for raw bytes that follow the last line, and what of them has been read already.
    pub(crate) fn into_bytes(self) -> BufReader<UnixStream> {
        self.reader
    }

    fn stream(&self) -> &UnixStream {
        self.reader.get_ref()
    }

    fn broken(&self, source: std::io::Error) -> Error {
        Error::Broken { peer: self.peer.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom};
    use std::os::fd::AsFd;

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("two sockets");
        (Connection::over(ours, "the test"), theirs)
    }

    #[test]
    fn lines_arrive_one_by_one_and_then_the_hangup() {
        let (mut connection, mut peer) = pair();
        peer.write_all(b"[1]\n[2]\n").expect("written");
        drop(peer);
        assert_eq!(connection.receive::<Vec<u8>>().expect("a line"), Some(vec![1]));
        assert_eq!(connection.receive::<Vec<u8>>().expect("a line"), Some(vec![2]));
        assert_eq!(connection.receive::<Vec<u8>>().expect("the end"), None);
    }

    #[test]
    fn lines_without_room_are_dropped_whole_and_nobody_waits_for_who_never_reads() {
        let (connection, peer) = pair();
        let mut sent = 0;
        while connection.send_now(&vec![7; 100]).expect("sent or dropped") == Sent::Whole {
            sent += 1;
        }
        assert_eq!(connection.send_now(&[7]).expect("dropped"), Sent::NoRoom);
        drop(connection);
        let mut reader = Connection::over(peer, "the test");
        for _ in 0..sent {
            assert_eq!(reader.receive::<Vec<u8>>().expect("a whole line"), Some(vec![7; 100]));
        }
        assert_eq!(reader.receive::<Vec<u8>>().expect("the end"), None);
    }

    #[test]
    fn a_line_that_the_peer_would_refuse_is_not_sent() {
        let (connection, _peer) = pair();
        let error = connection.send(&" ".repeat(1 << 20)).expect_err("too long").to_string();
        assert!(error.contains("the test") && error.contains("1048576"), "{error}");
    }

    #[test]
    fn open_files_are_handed_over_one_by_one() {
        let (giver, taker) = pair();
        let taker = Connection::over(taker, "the test");
        let files = [b"one", b"two"].map(|text| {
            let mut file = tempfile::tempfile().expect("a file");
            file.write_all(text).expect("written");
            file
        });
        giver.send_files(files.iter().map(AsFd::as_fd)).expect("given");
        let taken = taker.receive_files(2).expect("taken");
        let texts = taken.into_iter().map(|file| {
            let (mut file, mut text) = (fs::File::from(file), String::new());
            file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut text)).expect("read");
            text
        });
        assert_eq!(texts.collect::<Vec<_>>(), ["one", "two"]);
    }

    #[test]
    fn what_carries_no_file_is_refused() {
        let (taker, mut peer) = pair();
        peer.write_all(b"f").expect("written");
        assert!(matches!(taker.receive_files(1), Err(Error::Broken { .. })));
        drop(peer);
        assert!(matches!(taker.receive_files(1), Err(Error::Hangup { .. })));
    }

    #[test]
    fn files_are_not_looked_for_behind_bytes_that_were_read_already() {
        let (mut taker, mut peer) = pair();
        peer.write_all(b"[1]\nf").expect("written");
        assert_eq!(taker.receive::<Vec<u8>>().expect("a line"), Some(vec![1]));
        assert!(matches!(taker.receive_files(1), Err(Error::Broken { .. })));
    }

    #[test]
    fn half_a_line_is_a_hangup_not_a_message() {
        let (mut connection, mut peer) = pair();
        peer.write_all(b"[1]").expect("written");
        drop(peer);
        assert!(matches!(connection.receive::<Vec<u8>>(), Err(Error::Hangup { .. })));
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let (mut connection, mut peer) = pair();
        let writer = std::thread::spawn(move || {
            // Fails as soon as the reader has had enough and hangs up.
            while peer.write_all(&[b' '; 1 << 16]).is_ok() {}
        });
        assert!(matches!(connection.receive::<Vec<u8>>(), Err(Error::Hangup { .. })));
        drop(connection);
        writer.join().expect("the writer ends");
    }

    #[test]
    fn what_is_no_json_is_refused_with_the_peers_name() {
        let (mut connection, mut peer) = pair();
        peer.write_all(b"GET / HTTP/1.1\r\n").expect("written");
        let error = connection.receive::<Vec<u8>>().expect_err("no JSON");
        assert!(error.to_string().contains("the test"), "{error}");
    }

    #[test]
    fn a_silent_peer_is_given_up_in_the_end() {
        let (mut connection, _peer) = pair();
        connection.set_patience(Some(Duration::from_millis(5))).expect("patience");
        assert!(matches!(connection.receive::<Vec<u8>>(), Err(Error::NoAnswer { .. })));
    }

    #[test]
    fn a_socket_that_nobody_serves_is_told_from_one_that_fails() {
        let dir = tempfile::tempdir().expect("a directory");
        let gone = Connection::call(&dir.path().join("agent.sock"), "host A").expect_err("nobody");
        assert!(matches!(gone, Error::NobodyThere { .. }));
    }
}
