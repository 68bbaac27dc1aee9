//! `nil host cert`: a private authority for a lab.

use crate::cli::Output;
use anyhow::Result;
use nil_host::{Authority, CertificateOrder, IssuedCertificate, NetworkName, Role, SubjectName};
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make an authority. Its certificate, ca.crt, goes to everybody; its key, ca.key, to nobody.
    #[command(after_help = "Example:\n  nil host cert init --dir tls")]
    Init {
        /// The directory of its files; it is made if it does not exist.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Issue a certificate for a host, or for somebody who looks after hosts.
    #[command(after_help = "Examples:
  nil host cert issue --dir tls --role host --name A --address node-a.lab --address 10.0.0.1
  nil host cert issue --dir tls --role operator --name ann")]
    Issue(IssueArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct IssueArgs {
    /// The authority's directory.
    #[arg(long)]
    dir: PathBuf,
    /// What its holder may do: host, operator (runs and moves guests) or viewer (looks on).
    #[arg(long)]
    role: Role,
    /// Who it is for: a host's name, or a person's.
    #[arg(long)]
    name: SubjectName,
    /// An address or DNS name at which the host can be reached. May be given several times.
    #[arg(long = "address", value_name = "ADDRESS")]
    addresses: Vec<NetworkName>,
    /// For how many days it is valid.
    #[arg(long, default_value_t = 365)]
    days: u32,
}

pub(crate) fn run(command: Command, output: Output) -> Result<ExitCode> {
    match command {
        Command::Init { dir } => {
            Authority::create(&dir)?;
            output.print(&Made { authority: dir.join("ca.crt"), key: dir.join("ca.key") })?;
        }
        Command::Issue(IssueArgs { dir, role, name, addresses, days }) => {
            let issued =
                Authority::open(&dir)?.issue(&CertificateOrder { name: name.clone(), role, addresses, days })?;
            output.print(&Issued { name, role, issued })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Serialize)]
struct Made {
    authority: PathBuf,
    key: PathBuf,
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "made an authority: give {} to every host and person", self.authority.display())?;
        writeln!(f, "keep {} to yourself: whoever has it can be anybody", self.key.display())
    }
}

#[derive(Debug, Serialize)]
struct Issued {
    name: SubjectName,
    role: Role,
    #[serde(flatten)]
    issued: IssuedCertificate,
}

impl fmt::Display for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let IssuedCertificate { certificate, key, .. } = &self.issued;
        let [certificate, key] = [certificate, key].map(|path| path.display());
        writeln!(f, "issued {certificate} with its key {key} for {} {}", self.role, self.name)
    }
}
