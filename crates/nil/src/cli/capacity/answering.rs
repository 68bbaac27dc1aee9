//! `nil capacity accept` and `refuse`: what hosts that are told to ask answer to offers.

use crate::cli::Output;
use crate::cli::cordon::agent_of;
use anyhow::{Result, bail};
use nil_host::{Client, HostName, OfferReport, PATIENCE_WITH_AGENTS, RunDir};
use nil_pool::{Answer, Bytes, Tag};
use serde::Serialize;
use std::fmt;

#[derive(Debug, clap::Args)]
pub(crate) struct AnswerArgs {
    /// The capacity's tag.
    tag: Tag,
    /// The host that answers. Needed when it is offered to several hosts of this machine that have not answered.
    #[arg(long)]
    host: Option<HostName>,
}

pub(super) fn accept(args: &AnswerArgs, output: Output) -> Result<()> {
    let mut agent = meant(args)?;
    let offer = agent.accept_offer(args.tag)?;
    output.print(&Answered { host: agent.host().clone(), offer })
}

pub(super) fn refuse(args: &AnswerArgs, output: Output) -> Result<()> {
    let mut agent = meant(args)?;
    let offer = agent.refuse_offer(args.tag)?;
    output.print(&Answered { host: agent.host().clone(), offer })
}

/// The agent of the host that is meant: the one that is named, or the only one that has not accepted the capacity.
fn meant(args: &AnswerArgs) -> Result<Client> {
    if let Some(host) = &args.host {
        return agent_of(host.as_str());
    }
    let agents = RunDir::from_environment().hosts()?;
    let agents = agents.iter().filter_map(|host| Client::connect(host).ok());
    let offered = agents.filter_map(|mut agent| {
        let offer =
            agent.within(PATIENCE_WITH_AGENTS, Client::offers).ok()?.into_iter().find(|offer| offer.tag == args.tag)?;
        Some((agent, offer.answer))
    });
    let (open, answered): (Vec<_>, Vec<_>) = offered.partition(|(_, answer)| *answer != Answer::Accepted);
    let tag = args.tag;
    match (open.len(), answered.len()) {
        (0, 0) => bail!("no capacity {tag} is offered to a host of this machine whose agent runs"),
        (0, 1) | (1, _) => Ok(open.into_iter().chain(answered).map(|(agent, _)| agent).next().expect("there is one")),
        (_, _) => {
            let all = open.into_iter().chain(answered);
            let names: Vec<String> = all.map(|(agent, answer)| format!("{} ({answer})", agent.host())).collect();
            bail!("capacity {tag} is offered to several hosts here: {}; say with --host which", names.join(", "))
        }
    }
}

#[derive(Debug, Serialize)]
struct Answered {
    host: HostName,
    #[serde(flatten)]
    offer: OfferReport,
}

impl fmt::Display for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OfferReport { tag, class, bytes, answer, .. } = &self.offer;
        writeln!(f, "host {}: {} of {class} capacity, tag {tag}: {answer}", self.host, Bytes(*bytes))
    }
}
