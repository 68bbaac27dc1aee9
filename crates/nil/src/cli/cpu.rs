//! `nil cpu`: what the CPUs of hosts can do for guests, and what several hosts have in common.

use super::{Output, Table};
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use nil_host::{HostReport, RunDir, Survey};
use nil_vmm::{CpuModel, Features, KvmOffer, ModelName};
use serde::Serialize;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The most bytes that a file with a model may have.
const MODEL_FILE_MOST: u64 = 64 << 10;
/// How wide the list of features is shown.
const LINE: usize = 96;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what guests can be promised of this machine's CPUs, and which levels of x86-64 that makes.
    #[command(after_help = "Examples:\n  nil cpu show\n  nil cpu show --host B")]
    Show {
        /// Ask the agent of this host instead, which may offer less.
        #[arg(long, value_name = "HOST")]
        host: Option<String>,
    },
    /// Make the CPU model that several hosts have in common: a guest that is started with it can go to any of them.
    #[command(after_help = "Examples:
  nil cpu baseline
  nil cpu baseline --hosts A,B --name rack1 --save rack1.json
  nil vm run builtin:demo --pool /dev/shm/pool --name guest --cpu rack1.json")]
    Baseline {
        /// The hosts, or `all` whose agents run.
        #[arg(long, value_name = "A,B,…", value_delimiter = ',', default_value = "all")]
        hosts: Vec<String>,
        /// Names the model `cluster-NAME`.
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Writes it to a file, for `nil vm run --cpu FILE`.
        #[arg(long, value_name = "FILE")]
        save: Option<PathBuf>,
    },
}

pub(crate) fn run(command: Command, output: Output) -> Result<ExitCode> {
    match command {
        Command::Show { host: None } => output.print(&Shown { offer: KvmOffer::probe()? })?,
        Command::Show { host: Some(name) } => {
            let survey = Survey::take(&RunDir::from_environment())?;
            output.print(&Shown { offer: offer_of(survey.host(&name)?)?.clone() })?;
        }
        Command::Baseline { hosts, name, save } => {
            let survey = Survey::take(&RunDir::from_environment())?;
            let name = name.map_or_else(|| "cluster".to_owned(), |name| format!("cluster-{name}"));
            let baseline = common(name.parse()?, &chosen(&survey, &hosts)?)?;
            if let Some(path) = &save {
                let text = serde_json::to_string_pretty(&baseline.model)? + "\n";
                fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
            }
            output.print(&baseline)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The model that `--cpu` names; `None` is all that the host has. `cluster` is what `members` have in common.
pub(crate) fn model(named: &str, members: &[&HostReport]) -> Result<Option<CpuModel>> {
    match named {
        "host" => Ok(None),
        "cluster" => Ok(Some(common("cluster".parse()?, members)?.model)),
        other => limit(other).map(Some),
    }
}

/// A level of x86-64, or a model from a file.
pub(crate) fn limit(named: &str) -> Result<CpuModel> {
    let is_level = CpuModel::level_names().any(|level| level == named);
    if is_level || !Path::new(named).exists() { Ok(CpuModel::named(named)?) } else { read(Path::new(named)) }
}

/// A model from a file of `nil cpu baseline --save`.
fn read(path: &Path) -> Result<CpuModel> {
    let told = || format!("{} holds no CPU model", path.display());
    let bytes = fs::metadata(path).with_context(told)?.len();
    if bytes > MODEL_FILE_MOST {
        bail!("{}: it has {bytes} bytes; a CPU model has {MODEL_FILE_MOST} at most", told());
    }
    let text = fs::read_to_string(path).with_context(told)?;
    serde_json::from_str(&text).with_context(told)
}

fn chosen<'a>(survey: &'a Survey, names: &[String]) -> Result<Vec<&'a HostReport>> {
    if names == ["all"] {
        return Ok(survey.hosts.iter().filter(|host| host.agent_pid.is_some()).collect());
    }
    names.iter().map(|name| Ok(survey.host(name)?)).collect()
}

/// What hosts have in common, and what each has beyond that.
fn common(name: ModelName, hosts: &[&HostReport]) -> Result<Baseline> {
    let offers: Vec<&KvmOffer> = hosts.iter().map(|host| offer_of(host)).collect::<Result<_>>()?;
    if let (Some(first), Some(at)) = (offers.first(), offers.iter().position(|it| it.vendor != offers[0].vendor)) {
        let (other, vendor) = (&hosts[at].name, &offers[at].vendor);
        let (host, of_first) = (&hosts[0].name, &first.vendor);
        bail!("host {host} has CPUs of {of_first}, host {other} of {vendor}; guests do not move between vendors");
    }
    let models = offers.iter().map(|offer| &offer.cpu);
    let Some(model) = CpuModel::common(name, models)? else {
        bail!("no host's agent runs here; start one with `nil host run --name A --pool PATH`");
    };
    let beyond = |(host, offer): (&&HostReport, &&KvmOffer)| Beyond {
        host: host.name.to_string(),
        features: offer.cpu.features().difference(model.features()).copied().collect(),
    };
    let hosts = hosts.iter().zip(&offers).map(beyond).collect();
    Ok(Baseline { level: level_name(&model), model, hosts })
}

fn offer_of(host: &HostReport) -> Result<&KvmOffer> {
    let capabilities = host.capabilities.as_ref();
    let capabilities = capabilities.with_context(|| format!("the agent of host {} does not answer", host.name))?;
    match &capabilities.kvm {
        nil_host::Virtualisation::Offered(offer) => Ok(offer),
        nil_host::Virtualisation::Missing(why) => bail!("host {} runs no guests: {why}", host.name),
    }
}

fn level_name(model: &CpuModel) -> Option<String> {
    CpuModel::level_names().take(model.level().into()).last()
}

#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    offer: KvmOffer,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let KvmOffer { cpu, vendor, most_vcpus, tsc_khz, unmaskable, .. } = &self.offer;
        writeln!(f, "{vendor}, up to {most_vcpus} vCPUs, TSC {}", tsc_khz.map_or("unknown".to_owned(), mhz))?;
        let mut table = Table::new(["MODEL", "", "LACKS"]);
        for name in CpuModel::level_names() {
            let missing = CpuModel::named(&name).map(|model| model.missing_from(cpu.features())).unwrap_or_default();
            let has = if missing.is_empty() { "yes" } else { "no" };
            table.row([name, has.to_owned(), names(&missing)]);
        }
        write!(f, "{table}")?;
        writeln!(
            f,
            "{} features, {} MSRs travel:",
            cpu.features().len(),
            cpu.msrs().map_or(0, std::collections::BTreeSet::len)
        )?;
        write_features(f, cpu.features())?;
        let shown: Features = unmaskable.iter().filter(|it| !of_every_guest(it.name())).copied().collect();
        if !shown.is_empty() {
            writeln!(f, "This KVM cannot hide from guests what a model leaves out of these:")?;
            write_features(f, &shown)?;
        }
        Ok(())
    }
}

/// Whether a feature belongs to every model.
fn of_every_guest(name: &str) -> bool {
    CpuModel::named("x86-64-v1").is_ok_and(|model| model.features().iter().any(|feature| feature.name() == name))
}

#[derive(Debug, Serialize)]
struct Baseline {
    model: CpuModel,
    /// The highest level of x86-64 that is in it.
    level: Option<String>,
    hosts: Vec<Beyond>,
}

/// What a host has and the others have not.
#[derive(Debug, Serialize)]
struct Beyond {
    host: String,
    features: Features,
}

impl fmt::Display for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = self.level.as_deref().unwrap_or("no level of x86-64");
        writeln!(f, "{}: {} features, {level}", self.model.name(), self.model.features().len())?;
        write_features(f, self.model.features())?;
        let mut table = Table::new(["HOST", "HAS BEYOND THAT"]);
        for Beyond { host, features } in &self.hosts {
            table.row([host.clone(), if features.is_empty() { "nothing".to_owned() } else { names(features) }]);
        }
        write!(f, "{table}")
    }
}

fn names(features: &Features) -> String {
    features.iter().map(|feature| feature.name()).collect::<Vec<_>>().join(" ")
}

fn write_features(f: &mut fmt::Formatter<'_>, features: &Features) -> fmt::Result {
    let mut line = String::new();
    for feature in features {
        if line.len() + feature.name().len() >= LINE {
            writeln!(f, " {line}")?;
            line.clear();
        }
        line = format!("{line} {feature}");
    }
    writeln!(f, " {line}")
}

fn mhz(khz: u32) -> String {
    format!("{}.{:03} MHz", khz / 1000, khz % 1000)
}
