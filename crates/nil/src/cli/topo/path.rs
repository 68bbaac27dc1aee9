//! `nil topo path`: the quickest way for a guest, and why not another one.

use super::Output;
use super::source::Source;
use anyhow::{Result, bail};
use clap::ValueEnum;
use nil_fabric::{Begin, Bytes, Copied, Cost, End, Fabric, Node, Path, PathRequest, Planner};
use serde::Serialize;
use std::fmt;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The host on which the guest runs.
    from: String,
    /// The host on which it is to run.
    to: String,
    /// How much memory it has.
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    guest_memory: Bytes,
    /// Where its memory lies, before and after: in DRAM, or in a pool.
    #[arg(long, value_enum, default_value_t = MemoryIn::Pool, value_name = "WHERE")]
    memory_in: MemoryIn,
    /// A host or a memory device to keep away from. May be given several times.
    #[arg(long, value_name = "NAME")]
    avoid: Vec<String>,
    /// Tell this many other ways as well.
    #[arg(long, default_value_t = 0, value_name = "K", value_parser = clap::value_parser!(u16).range(0..=100))]
    alternatives: u16,
    /// Tell what each leg takes, and why the alternatives take longer.
    #[arg(long)]
    explain: bool,
    #[command(flatten)]
    source: Source,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum MemoryIn {
    /// In the hosts' DRAM: decoupled first, recoupled at last.
    Dram,
    /// In a pool, on whichever device suits.
    Pool,
}

pub(super) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let fabric = args.source.read()?;
    let mut request = PathRequest::new(fabric.find_host(&args.from)?, fabric.find_host(&args.to)?, args.guest_memory);
    if args.memory_in == MemoryIn::Dram {
        (request.begin, request.end) = (Begin::Dram, End::Dram);
    }
    for name in &args.avoid {
        match fabric.find(name) {
            Some(Node::Host(host)) => request.avoid_hosts.push(host),
            Some(Node::Device(device)) => request.avoid_devices.push(device),
            Some(Node::Switch(_)) => bail!("{name} is a switch; only hosts and memory devices can be avoided"),
            None => bail!("there is no host or memory device named {name}"),
        }
    }
    let planner = Planner::new(&fabric);
    let paths = planner.alternatives(&request, usize::from(args.alternatives) + 1)?;
    output.print(&Ways { fabric: &fabric, paths, explain: args.explain })?;
    Ok(ExitCode::SUCCESS)
}

struct Ways<'a> {
    fabric: &'a Fabric,
    /// The best first.
    paths: Vec<Path>,
    explain: bool,
}

impl fmt::Display for Ways<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, path) in self.paths.iter().enumerate() {
            let cost = path.cost();
            if number == 1 {
                writeln!(f, "\nalternatives:")?;
            }
            writeln!(f, "{}", path.in_short(self.fabric))?;
            writeln!(
                f,
                "  {} in all; stands still for {}; copies {}",
                cost.total(),
                cost.stands_still(),
                path.copied()
            )?;
            if number > 0 {
                writeln!(f, "  {}", path.why_slower_than(&self.paths[0]))?;
            }
            if self.explain {
                f.write_str(&path.explained(self.fabric))?;
            }
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Way {
    way: String,
    hops: Vec<String>,
    handoffs: usize,
    time_us: u64,
    stands_still_us: u64,
    copied_bytes: u64,
    legs: Vec<LegLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why_slower: Option<String>,
}

#[derive(Serialize)]
struct LegLine {
    step: String,
    #[serde(flatten)]
    cost: Cost,
    copied_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_per_second: Option<u64>,
    /// What the time of copying is made of.
    copies: Vec<Copied>,
}

impl Serialize for Ways<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let line = |(number, path): (usize, &Path)| Way {
            way: path.in_short(self.fabric),
            hops: path.hops().into_iter().map(|host| self.fabric.host(host).name.to_string()).collect(),
            handoffs: path.handoffs(),
            time_us: path.time().0,
            stands_still_us: path.cost().stands_still().0,
            copied_bytes: path.copied().0,
            legs: path
                .legs
                .iter()
                .map(|leg| LegLine {
                    step: leg.step.told(self.fabric),
                    cost: leg.cost,
                    copied_bytes: leg.copied().0,
                    bytes_per_second: leg.rate().map(|rate| rate.0),
                    copies: leg.copies.clone(),
                })
                .collect(),
            why_slower: (number > 0).then(|| path.why_slower_than(&self.paths[0])),
        };
        serializer.collect_seq(self.paths.iter().enumerate().map(line))
    }
}
