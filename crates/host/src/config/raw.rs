//! The configuration as it is written. Its keys are explained in `example.toml`.

use super::{
    Acceptance, HostConfig, LeaseConfig, Listen, LogConfig, LogLevel, LogTarget, PeerAddress, PeerConfig, PlainListen,
    PoolRef, SandboxMode, TlsListen, WorkerConfig,
};
use crate::name::HostName;
use crate::report::Takeover;
use crate::tls::{Role, TlsFiles};
use nil_pool::{Bytes, LeaseTerms};
use serde::{Deserialize, Deserializer, de};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    pub(super) name: Option<HostName>,
    pub(super) pools: Option<Vec<PoolRef>>,
    pub(super) search: Option<Vec<PathBuf>>,
    pub(super) accept: Option<Acceptance>,
    #[serde(default, deserialize_with = "size")]
    pub(super) move_bandwidth: Option<u64>,
    pub(super) cpu_limit: Option<String>,
    pub(super) listen: Option<RawListen>,
    pub(super) worker: Option<RawWorker>,
    pub(super) lease: Option<RawLease>,
    pub(super) log: Option<RawLog>,
    pub(super) peers: Option<Vec<RawPeer>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawListen {
    pub(super) tls: Option<RawTls>,
    pub(super) plain: Option<RawPlain>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTls {
    address: SocketAddr,
    pub(super) advertise: Option<PeerAddress>,
    cert: PathBuf,
    key: PathBuf,
    ca: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPlain {
    #[serde(deserialize_with = "loopback")]
    address: SocketAddr,
    #[serde(default, deserialize_with = "no_host")]
    pub(super) role: Option<Role>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWorker {
    pub(super) sandbox: Option<SandboxMode>,
    pub(super) paths: Option<Vec<PathBuf>>,
    #[serde(default, deserialize_with = "size")]
    pub(super) memory: Option<u64>,
    pub(super) threads: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, try_from = "RawLeaseKeys")]
pub(super) struct RawLease {
    terms: LeaseTerms,
    takeover: Takeover,
    pub(super) fence_command: Option<PathBuf>,
}

/// The keys one by one. They are judged together.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLeaseKeys {
    interval_ms: Option<u16>,
    expiry_ms: Option<u32>,
    takeover: Option<Takeover>,
    fence_command: Option<PathBuf>,
}

impl TryFrom<RawLeaseKeys> for RawLease {
    type Error = String;

    fn try_from(keys: RawLeaseKeys) -> Result<Self, String> {
        let RawLeaseKeys { interval_ms, expiry_ms, takeover, fence_command } = keys;
        let terms = LeaseTerms::with_defaults(interval_ms, expiry_ms).map_err(|error| error.to_string())?;
        Ok(Self { terms, takeover: takeover.unwrap_or_default(), fence_command })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLog {
    pub(super) to: Option<LogTarget>,
    pub(super) level: Option<LogLevel>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPeer {
    name: HostName,
    address: PeerAddress,
}

impl RawConfig {
    /// What it means, where relative paths begin at `folder`.
    pub(super) fn interpret(self, folder: &Path) -> HostConfig {
        let Self { name, pools, search, accept, move_bandwidth, cpu_limit, listen, worker, lease, log, peers } = self;
        HostConfig {
            name,
            pools: pools.unwrap_or_default().into_iter().map(|pool| pool.within(folder)).collect(),
            search: absolute(folder, search),
            accept,
            move_bandwidth,
            cpu_limit,
            listen: listen.map(|listen| listen.interpret(folder)).unwrap_or_default(),
            peers: peers
                .unwrap_or_default()
                .into_iter()
                .map(|RawPeer { name, address }| PeerConfig { name, address })
                .collect(),
            worker: worker.map(|worker| worker.interpret(folder)).unwrap_or_default(),
            lease: lease.map(|lease| lease.interpret(folder)).unwrap_or_default(),
            log: log.map(|RawLog { to, level }| LogConfig { to: to.unwrap_or_default(), level }).unwrap_or_default(),
        }
    }
}

impl RawListen {
    fn interpret(self, folder: &Path) -> Listen {
        let tls = |RawTls { address, advertise, cert, key, ca }| {
            let [certificate, key, authority] = [cert, key, ca].map(|path| folder.join(path));
            TlsListen { address, advertise, files: TlsFiles { certificate, key, authority } }
        };
        let plain = |RawPlain { address, role }| PlainListen { address, role: role.unwrap_or(Role::Viewer) };
        Listen { tls: self.tls.map(tls), plain: self.plain.map(plain) }
    }
}

impl RawLease {
    fn interpret(self, folder: &Path) -> LeaseConfig {
        let Self { terms, takeover, fence_command } = self;
        LeaseConfig { terms, takeover, fence_command: fence_command.map(|path| folder.join(path)) }
    }
}

impl RawWorker {
    fn interpret(self, folder: &Path) -> WorkerConfig {
        let Self { sandbox, paths, memory, threads } = self;
        WorkerConfig { sandbox: sandbox.unwrap_or_default(), paths: absolute(folder, paths), memory, threads }
    }
}

fn absolute(folder: &Path, paths: Option<Vec<PathBuf>>) -> Vec<PathBuf> {
    paths.unwrap_or_default().into_iter().map(|path| folder.join(path)).collect()
}

/// A number of bytes as people write it: `512M`, `4G`.
fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(from)?;
    text.parse::<Bytes>().map(|bytes| Some(bytes.get())).map_err(de::Error::custom)
}

fn loopback<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    let address = SocketAddr::deserialize(from)?;
    if address.ip().is_loopback() {
        return Ok(address);
    }
    let sentence = format!(
        "{address} can be reached from other machines, and nothing protects it there: listen by [listen.tls], or on a \
         loopback address (127.0.0.1, [::1])"
    );
    Err(de::Error::custom(sentence))
}

fn no_host<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Role>, D::Error> {
    match Role::deserialize(from)? {
        Role::Host => Err(de::Error::custom("nobody is a host without a certificate; use `viewer` or `operator`")),
        role @ (Role::Viewer | Role::Operator) => Ok(Some(role)),
    }
}
