//! Where a fabric comes from: files, listings of `cxl`, or what lives.

use anyhow::{Context, Result, bail};
use nil_fabric::{Bytes, Fabric, Host};
use nil_host::{RunDir, Survey, live_fabric};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A file that is larger is no fabric.
const LARGEST_FILE: u64 = 512 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Source {
    /// The fabric, as TOML; `-` is standard input. If nothing is given, the hosts that run here and their pools.
    #[arg(long, value_name = "FILE", conflicts_with = "cxl")]
    file: Option<PathBuf>,
    /// What `cxl list -vvv` printed on a host; once for each. Without a name, the host is called as the file is.
    #[arg(long, value_name = "[HOST=]FILE")]
    cxl: Vec<Listing>,
}

/// A host and what it listed.
#[derive(Clone, Debug)]
struct Listing {
    host: nil_fabric::Name,
    file: PathBuf,
}

impl FromStr for Listing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, file) = match text.split_once('=') {
            Some((name, file)) => (name.to_owned(), PathBuf::from(file)),
            None => {
                let file = PathBuf::from(text);
                let name = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
                (name, file)
            }
        };
        Ok(Self { host: name.parse().map_err(|error: nil_fabric::Error| error.to_string())?, file })
    }
}

impl Source {
    pub(super) fn read(&self) -> Result<Fabric> {
        if let Some(file) = &self.file {
            return Fabric::from_toml(&text(file)?).with_context(|| format!("{} describes no fabric", file.display()));
        }
        if self.cxl.is_empty() {
            return Ok(live_fabric(&Survey::take(&RunDir::from_environment())?)?);
        }
        let texts: Vec<String> = self.cxl.iter().map(|listing| text(&listing.file)).collect::<Result<_>>()?;
        let hosts = self.cxl.iter().map(|listing| presumed(listing.host.clone()));
        let listings: Vec<(Host, &str)> = hosts.zip(texts.iter().map(String::as_str)).collect();
        Ok(Fabric::from_cxl(&listings)?)
    }

    /// What is presumed because the source does not tell.
    pub(super) fn remark(&self) -> Option<&'static str> {
        (!self.cxl.is_empty()).then_some(
            "cxl list does not tell what hosts are like: each is presumed idle, with 64 CPUs and 512 GiB of DRAM; \
             nor latency, bandwidth and free memory",
        )
    }
}

/// A host of which nothing is known but its name.
fn presumed(name: nil_fabric::Name) -> Host {
    let dram = Bytes(512 << 30);
    let (into_pool, out_of_pool) = (None, None);
    Host { name, rack: None, cpus: 64, dram, dram_free: dram, load: 0.0, into_pool, out_of_pool, cordoned: false }
}

fn text(file: &Path) -> Result<String> {
    let mut text = String::new();
    let read = |reader: &mut dyn Read, text: &mut String| reader.take(LARGEST_FILE + 1).read_to_string(text);
    let bytes = if file == Path::new("-") {
        read(&mut io::stdin().lock(), &mut text).context("standard input cannot be read")?
    } else {
        let mut opened = File::open(file).with_context(|| format!("{} cannot be opened", file.display()))?;
        read(&mut opened, &mut text).with_context(|| format!("{} cannot be read", file.display()))?
    };
    if bytes as u64 > LARGEST_FILE {
        bail!("{} has more than 512 MiB; no fabric does", file.display());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_called_as_is_said_or_as_its_file() {
        let listing = |text: &str| text.parse::<Listing>().map(|listing| listing.host.to_string());
        assert_eq!(listing("A=/tmp/x.json"), Ok("A".to_owned()));
        assert_eq!(listing("/tmp/node7.json"), Ok("node7".to_owned()));
        assert!(listing("a b=/tmp/x.json").is_err());
    }
}
