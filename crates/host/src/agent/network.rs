//! Where the agent answers other machines, and how it finds their agents.
//!
//! A host of this machine is called on its Unix socket. Every other one is called by mutual TLS, at the address that the
//! configuration gives for it, or else at the one that it has written into a pool: one that this host has joined, or, as
//! others tell, another.

use super::Host;
use crate::client::{Client, Endpoint};
use crate::config::{Listen, PeerAddress, PeerConfig, PlainListen, TlsListen};
use crate::error::{Error, Result};
use crate::name::HostName;
use crate::report::known;
use crate::tls::{ClientTls, Role, ServerTls};
use nil_pool::HostAddress;
use std::net::{SocketAddr, TcpListener};

/// How other machines' agents are called.
#[derive(Debug, Default)]
pub(super) struct Network {
    tls: Option<ClientTls>,
    peers: Vec<PeerConfig>,
    /// Where others find this host.
    pub(super) address: Option<HostAddress>,
    pub(super) listening: Listening,
}

/// Where an agent answers besides its Unix socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Listening {
    /// By mutual TLS.
    pub tls: Option<SocketAddr>,
    /// In plain text, on this machine.
    pub plain: Option<SocketAddr>,
}

/// Sockets that are open and not answered on yet.
#[derive(Debug)]
pub(super) struct Doors {
    pub(super) tls: Option<(TcpListener, ServerTls)>,
    pub(super) plain: Option<(TcpListener, Role)>,
}

impl Network {
    /// Opens the sockets of the host `name`.
    pub(super) fn open(listen: &Listen, peers: &[PeerConfig], name: &HostName) -> Result<(Self, Doors)> {
        let mut network = Self { peers: peers.to_vec(), ..Self::default() };
        let tls = listen.tls.as_ref().map(|tls| network.open_tls(tls, name)).transpose()?;
        let plain = listen.plain.as_ref().map(|plain| network.open_plain(plain)).transpose()?;
        Ok((network, Doors { tls, plain }))
    }

    /// Whether there is a certificate with which to call other machines.
    pub(super) fn can_call(&self) -> bool {
        self.tls.is_some()
    }

    fn open_tls(&mut self, listen: &TlsListen, name: &HostName) -> Result<(TcpListener, ServerTls)> {
        let server = ServerTls::load(&listen.files)?;
        if server.identity().host().as_ref() != Some(name) {
            let why = format!("it is for {}, and this is host {name}", server.identity());
            return Err(Error::Unusable { path: listen.files.certificate.clone(), why });
        }
        self.tls = Some(ClientTls::load(&listen.files)?);
        let (listener, address) = bind(listen.address)?;
        self.listening.tls = Some(address);
        let found_at = TlsListen { address, ..listen.clone() }.advertised();
        self.address = found_at.map(|address| pool_address(&address)).transpose()?;
        Ok((listener, server))
    }

    fn open_plain(&mut self, listen: &PlainListen) -> Result<(TcpListener, Role)> {
        if !listen.address.ip().is_loopback() {
            return Err(Error::refused(format!(
                "{} can be reached from other machines, and without TLS everybody there could call; listen on 127.0.0.1, or by \
                 TLS",
                listen.address
            )));
        }
        let (listener, address) = bind(listen.address)?;
        self.listening.plain = Some(address);
        Ok((listener, listen.role))
    }
}

fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr)> {
    let cannot = |error| Error::io("listen on", address.to_string(), error);
    let listener = TcpListener::bind(address).map_err(cannot)?;
    let address = listener.local_addr().map_err(cannot)?;
    Ok((listener, address))
}

/// An address as it stands in a pool.
fn pool_address(address: &PeerAddress) -> Result<HostAddress> {
    let text = address.to_string();
    text.parse().map_err(|error| Error::refused(format!("hosts cannot be told by a pool to call {text}: {error}")))
}

impl Host {
    /// Calls the agent of another host, wherever that is.
    pub(super) fn call_host(&self, name: &HostName) -> Result<Client> {
        let here = self.dir.run_dir().host(name);
        let gone = match here.path().is_dir() {
            true => match Client::connect(&here) {
                Err(error @ Error::HostGone { .. }) => error,
                other => return other,
            },
            false => self.unknown_host(name)?,
        };
        // It may have been here, and be elsewhere now.
        match (&self.network.tls, self.address_of(name)) {
            (Some(tls), Some(address)) => {
                let endpoint = Endpoint::Tls { address, host: name.clone(), tls: tls.clone() };
                Client::connect_to(&endpoint, name)
            }
            (None, Some(address)) => Err(Error::refused(format!(
                "host {name} is on another machine, at {address}, and host {} has no certificate with which to call it; give \
                 its agent one: [listen.tls] in its configuration",
                self.dir.name()
            ))),
            (_, None) => Err(gone),
        }
    }

    /// Whether it is known where a host's agent answers other machines, and this one has a certificate to call it with.
    pub(super) fn has_address(&self, name: &HostName) -> bool {
        self.network.can_call() && self.address_of(name).is_some()
    }

    fn address_of(&self, name: &HostName) -> Option<PeerAddress> {
        if let Some(peer) = self.network.peers.iter().find(|peer| peer.name == *name) {
            return Some(peer.address.clone());
        }
        let written = |pool: &nil_pool::Pool| pool.find_host(name.as_str())?.address;
        let written = self.pools.all().iter().find_map(|membership| written(membership.pool()));
        let written = written.map(|address| address.to_string());
        written.or_else(|| self.neighbours.address_of(name))?.parse().ok()
    }

    fn unknown_host(&self, name: &HostName) -> Result<Error> {
        let mut names: Vec<String> = self.dir.run_dir().hosts()?.iter().map(|host| host.name().to_string()).collect();
        names.extend(self.network.peers.iter().map(|peer| peer.name.to_string()));
        for membership in self.pools.all() {
            let hosts = membership.pool().hosts().into_iter().filter(|host| host.address.is_some());
            names.extend(hosts.map(|host| host.name));
        }
        names.sort();
        names.dedup();
        Ok(Error::UnknownHost { name: name.to_string(), known: known("host", names) })
    }
}
