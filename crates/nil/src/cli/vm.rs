//! `nil vm`: start a virtual machine, look at its console, stop it.

use super::protect::{self, OutputArg};
use super::{Output, cpu, dump, duration};
use crate::images;
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use nil_host::{
    Client, ConsoleStream, GuestName, GuestReport, GuestState, HostName, HostReport, ImageSource, MemoryIn, RunDir,
    RunVm, Survey,
};
use nil_pool::Bytes;
use nil_pool::{Access, Pool};
use nil_vmm::CpuModel;
use serde::Serialize;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long a guest whose console has ended may be on its way to another host.
const PATIENCE_WITH_MOVES: Duration = Duration::from_secs(5);
/// How often to look whether it has arrived.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a virtual machine that can move between the hosts of a pool.
    #[command(
        after_help = "Example:\n  nil vm run builtin:demo --pool /dev/shm/pool --memory 1G --vcpus 2 --name guest\n  nil vm run builtin:demo --pool /dev/shm/pool --memory 1G --name safe --protect 25ms --output hold"
    )]
    Run(RunArgs),
    /// Show what a guest writes to its serial port, wherever it moves. Ctrl-C detaches, the guest runs on.
    #[command(after_help = "Example:\n  nil vm console guest")]
    Console {
        /// The guest: its name or its id.
        guest: String,
    },
    /// Write what is left of a guest that nobody runs, its memory and its last state, to a file for a debugger.
    #[command(after_help = "Example:\n  nil vm dump guest --core guest.core\n  gdb -c guest.core")]
    Dump(dump::Args),
    /// Stop a guest and free its memory.
    #[command(after_help = "Example:\n  nil vm stop guest")]
    Stop {
        /// The guest: its name or its id.
        guest: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// What to boot: a flat or ELF image, or `builtin:NAME`.
    image: String,
    /// How much memory it gets, a multiple of 2M.
    #[arg(long, default_value = "1G", value_name = "SIZE")]
    memory: Bytes,
    /// Where its memory lies at first: in its host's DRAM, or in the pool, where it is if nothing is said.
    #[arg(long, value_enum, value_name = "WHERE")]
    memory_in: Option<MemoryArg>,
    /// How many vCPUs it gets.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    vcpus: u32,
    /// The pool that is to hold its state, and its memory unless that lies in DRAM.
    #[arg(long, value_name = "PATH")]
    pool: PathBuf,
    /// Its name.
    #[arg(long)]
    name: GuestName,
    /// The host that is to run it. Needed when several hosts have joined the pool.
    #[arg(long)]
    host: Option<HostName>,
    /// The only hosts that may ever run it, by name; all that have joined the pool, if left out.
    #[arg(long, value_delimiter = ',', value_name = "HOSTS")]
    hosts: Vec<HostName>,
    /// What it may rely on of the CPU: `host` (all that its host has), `x86-64-v1` to `x86-64-v4`, `cluster` (what all
    /// members of the pool have), or a file of `nil cpu baseline`.
    #[arg(long, default_value = "host", value_name = "MODEL")]
    cpu: String,
    /// What to tell the guest: its command line.
    #[arg(long, default_value = "", value_name = "TEXT", allow_hyphen_values = true)]
    append: String,
    /// Make commits of it, one every so often, to which another host can bring it back; it runs in its host's DRAM then.
    #[arg(long, value_parser = duration::parse_some, value_name = "INTERVAL")]
    protect: Option<Duration>,
    /// What becomes of its output before the commit that follows it, if it is protected.
    #[arg(long, value_enum, default_value_t = OutputArg::Pass, value_name = "RULE", requires = "protect")]
    output: OutputArg,
    /// Stay, and show what the guest writes to its serial port.
    #[arg(long)]
    console: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum MemoryArg {
    /// In the DRAM of the host that runs it.
    Dram,
    /// In the pool.
    Pool,
}

pub(crate) fn run(command: Command, output: Output) -> Result<ExitCode> {
    let run_dir = RunDir::from_environment();
    match command {
        Command::Run(args) => start(&args, &run_dir, output)?,
        Command::Console { guest } => follow_console(&run_dir, &guest, output)?,
        Command::Dump(args) => dump::run(&args, &run_dir, output)?,
        Command::Stop { guest } => stop(&run_dir, &guest, output)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn start(args: &RunArgs, run_dir: &RunDir, output: Output) -> Result<()> {
    let image = find_image(&args.image)?;
    let pool = Pool::open(&args.pool, Access::ReadOnly)?.id();
    let survey = Survey::take(run_dir)?;
    let host = choose_host(&survey, args, pool)?;
    let memory_in = match (args.memory_in, args.protect) {
        (Some(MemoryArg::Pool), Some(_)) => {
            bail!("a guest that is protected runs in its host's DRAM; leave --memory-in out, or --protect")
        }
        (Some(MemoryArg::Dram), _) | (None, Some(_)) => MemoryIn::Dram,
        (Some(MemoryArg::Pool) | None, None) => MemoryIn::Pool,
    };
    let order = RunVm {
        name: args.name.clone(),
        pool,
        memory_bytes: args.memory.get(),
        memory_in,
        vcpus: args.vcpus,
        image,
        command_line: args.append.clone(),
        hosts: args.hosts.clone(),
        cpu: cpu::model(&args.cpu, &survey.members(pool).collect::<Vec<_>>())?,
    };
    warn_of_what_cannot_be_hidden(survey.host(host.as_str())?, order.cpu.as_ref(), output);
    let mut client = Client::connect(&run_dir.host(&host))?;
    let guest = client.run_vm(&order)?;
    let guest = match args.protect {
        None => guest,
        Some(interval) => {
            let order = protect::order(args.name.clone(), interval, args.output, None);
            client.protect(&order).with_context(|| format!("guest {} runs, and is not protected", args.name))?
        }
    };
    output.print(&Started(guest))?;
    if args.console { follow_console(run_dir, args.name.as_str(), output) } else { Ok(()) }
}

/// Says which instructions a guest finds although its model leaves them out.
fn warn_of_what_cannot_be_hidden(host: &HostReport, model: Option<&CpuModel>, output: Output) {
    let offer = host.capabilities.as_ref().and_then(|capabilities| capabilities.kvm.offer());
    let (Some(model), Some(offer)) = (model, offer) else { return };
    let seen: Vec<&str> = offer.unmaskable.difference(model.features()).map(|feature| feature.name()).collect();
    if !seen.is_empty() {
        output.progress(format!(
            "note: the KVM of host {} cannot hide from the guest what {} leaves out; programs in it should not use: {}",
            host.name,
            model.name(),
            seen.join(" ")
        ));
    }
}

fn find_image(image: &str) -> Result<ImageSource> {
    if let Some(name) = image.strip_prefix("builtin:") {
        if images::builtin(name).is_none() {
            let known: Vec<&str> = images::names().collect();
            bail!("nil has no built-in image named {name}; it has: {}", known.join(", "));
        }
        return Ok(ImageSource::Builtin(name.to_owned()));
    }
    let path = Path::new(image);
    let path = fs::canonicalize(path).with_context(|| format!("cannot find the guest image {image}"))?;
    let kind = fs::metadata(&path).with_context(|| format!("cannot look at the guest image {image}"))?;
    if !kind.is_file() {
        bail!("{image} is no file; give a flat or ELF image, or builtin:NAME");
    }
    Ok(ImageSource::File(path))
}

fn choose_host(survey: &Survey, args: &RunArgs, pool: nil_pool::PoolId) -> Result<HostName> {
    if let Some(name) = &args.host {
        return Ok(survey.host(name.as_str())?.name.clone());
    }
    let members: Vec<&HostName> = survey.members(pool).map(|host| &host.name).collect();
    match members[..] {
        [host] => Ok(host.clone()),
        [] => bail!(
            "no host has joined pool {path}; start one with `nil host run --name A --pool {path}`",
            path = args.pool.display()
        ),
        _ => {
            let names: Vec<String> = members.iter().map(ToString::to_string).collect();
            bail!("several hosts have joined that pool; choose one with --host: {}", names.join(", "))
        }
    }
}

fn stop(run_dir: &RunDir, guest: &str, output: Output) -> Result<()> {
    let survey = Survey::take(run_dir)?;
    let guest = survey.guest(guest)?;
    let host = survey.host_of(guest)?;
    Client::connect(&run_dir.host(&host))?.stop(&guest.name.parse()?)?;
    output.print(&Stopped { stopped: guest.name.clone(), host })
}

/// Shows a guest's console, and goes along when it moves.
fn follow_console(run_dir: &RunDir, guest: &str, output: Output) -> Result<()> {
    let mut report = Survey::take(run_dir)?.guest(guest)?.clone();
    loop {
        let shown = show_console(run_dir, &report, output);
        match whereabouts(run_dir, &report)? {
            Some(now) if now.state == GuestState::Running => {
                // Where nothing has changed, the console is missing for another reason.
                if (&now.host, now.epoch) == (&report.host, report.epoch) {
                    shown?;
                }
                report = now;
            }
            Some(now) => {
                let why = now.detail.as_deref().unwrap_or("no reason given");
                output.progress(format!("guest {} is {}: {why}", now.name, now.state));
                return Ok(());
            }
            None => {
                output.progress(format!("guest {} is gone", report.name));
                return Ok(());
            }
        }
    }
}

/// Shows a guest's console until the guest leaves its host or ends.
fn show_console(run_dir: &RunDir, guest: &GuestReport, output: Output) -> Result<()> {
    let host: HostName = guest.host.as_deref().context("no host is responsible for the guest")?.parse()?;
    let mut console = ConsoleStream::attach(&run_dir.host(&host), &guest.name.parse()?)?;
    output.progress(format!("console of guest {} on host {host}; Ctrl-C detaches, the guest runs on", guest.name));
    io::copy(&mut console, &mut io::stdout().lock()).context("cannot show the console")?;
    Ok(io::stdout().flush()?)
}

/// Where a guest is now whose console has ended. `None`: nowhere, it was stopped.
fn whereabouts(run_dir: &RunDir, guest: &GuestReport) -> Result<Option<GuestReport>> {
    let deadline = Instant::now() + PATIENCE_WITH_MOVES;
    loop {
        let found = Survey::take(run_dir)?.guest(&guest.id.to_string()).ok().cloned();
        let settled =
            |now: &GuestReport| matches!(now.state, GuestState::Running | GuestState::Stopped | GuestState::Lost);
        match &found {
            Some(now) if !settled(now) && Instant::now() < deadline => std::thread::sleep(LOOK_AGAIN),
            _ => return Ok(found),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Started(GuestReport);

impl fmt::Display for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.0.name)
    }
}

#[derive(Debug, Serialize)]
struct Stopped {
    stopped: String,
    host: HostName,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "stopped {} on host {}; its memory is free again", self.stopped, self.host)
    }
}
