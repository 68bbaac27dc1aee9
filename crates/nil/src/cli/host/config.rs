//! `nil host config`: an agent's configuration.

use crate::cli::Output;
use anyhow::{Context, Result, bail};
use nil_host::{HostConfig, PoolRef, RunDir, ServerTls, TagSearch, TlsListen};
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Check a configuration: its keys, its values, and the certificates and pools that it names.
    #[command(after_help = "Example:\n  nil host config check /etc/nil/host.toml")]
    Check {
        /// The configuration.
        file: PathBuf,
    },
    /// Print a configuration in which every key stands with its meaning.
    #[command(after_help = "Example:\n  nil host config example > /etc/nil/host.toml")]
    Example,
}

pub(crate) fn run(command: Command, output: Output) -> Result<ExitCode> {
    match command {
        Command::Check { file } => output.print(&check(&file)?)?,
        Command::Example => output.print(&Example { example: HostConfig::EXAMPLE })?,
    }
    Ok(ExitCode::SUCCESS)
}

fn check(file: &Path) -> Result<Checked> {
    let config = HostConfig::read(file)?;
    for pool in &config.pools {
        match pool {
            PoolRef::Path(path) if path.exists() => {}
            PoolRef::Path(missing) => {
                bail!("{}: there is no pool at {}; `nil pool create` makes one", file.display(), missing.display());
            }
            PoolRef::Id(id) => {
                let search = TagSearch::of_this_machine(&RunDir::from_environment(), config.search.clone());
                search.pool(*id).with_context(|| file.display().to_string())?;
            }
        }
    }
    if let Some(TlsListen { files, .. }) = &config.listen.tls {
        let holder = ServerTls::load(files)?.identity().name.clone();
        if let Some(name) = config.name.as_ref().filter(|name| name.as_str() != holder.as_str()) {
            bail!("{} is the certificate of host {holder}, not of host {name}", files.certificate.display());
        }
    }
    Ok(Checked { file: file.to_path_buf(), name: config.name.map(|name| name.to_string()), pools: config.pools })
}

/// A configuration without a mistake.
#[derive(Debug, Serialize)]
struct Checked {
    file: PathBuf,
    name: Option<String>,
    pools: Vec<PoolRef>,
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host =
            self.name.as_ref().map_or_else(|| "a host that --name names".to_owned(), |name| format!("host {name}"));
        let pools = match self.pools.len() {
            0 => "the pools that --pool names".to_owned(),
            1 => "1 pool".to_owned(),
            many => format!("{many} pools"),
        };
        writeln!(f, "{} is a configuration for {host} on {pools}", self.file.display())
    }
}

#[derive(Debug, Serialize)]
struct Example {
    example: &'static str,
}

impl fmt::Display for Example {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.example)
    }
}
