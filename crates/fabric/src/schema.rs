//! A fabric as TOML. `docs/fabric.md` has the schema; it is strict, and every error names its place.

use crate::error::{Error, Result};
use crate::model::{Builder, Device, Fabric, Host, Link, Node, Switch};
use crate::name::{Name, PoolUuid};
use crate::quantity::{Bytes, Rate};
use serde::Deserialize;
use std::fmt::Write;
use toml::Spanned;

/// More text than any fabric needs: 2²⁰ of everything would be less.
const LONGEST: usize = 512 << 20;

/// What a device can deliver when nothing is said: 64 GiB/s.
pub(crate) const DEVICE_BANDWIDTH: Rate = Rate(64 << 30);
/// What a link can carry when nothing is said: 32 GiB/s, eight lanes of PCIe 6.
pub(crate) const LINK_BANDWIDTH: Rate = Rate(32 << 30);
/// What a link adds to an access when nothing is said, in nanoseconds.
pub(crate) const LINK_LATENCY_NS: u64 = 150;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFabric {
    #[serde(default, rename = "host")]
    hosts: Vec<RawHost>,
    #[serde(default, rename = "switch")]
    switches: Vec<RawSwitch>,
    #[serde(default, rename = "device")]
    devices: Vec<RawDevice>,
    #[serde(default, rename = "link")]
    links: Vec<RawLink>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHost {
    name: Spanned<Name>,
    rack: Option<Name>,
    cpus: u32,
    dram: Bytes,
    dram_free: Option<Bytes>,
    #[serde(default)]
    load: f64,
    into_pool: Option<Rate>,
    out_of_pool: Option<Rate>,
    #[serde(default)]
    cordoned: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSwitch {
    name: Spanned<Name>,
    rack: Option<Name>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDevice {
    name: Spanned<Name>,
    rack: Option<Name>,
    size: Bytes,
    free: Option<Bytes>,
    bandwidth: Option<Rate>,
    pool: Option<PoolUuid>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLink {
    between: Spanned<[Name; 2]>,
    latency_ns: Option<u64>,
    bandwidth: Option<Rate>,
    #[serde(default = "yes")]
    shared: bool,
}

fn yes() -> bool {
    true
}

impl Fabric {
    /// Reads a fabric from TOML.
    ///
    /// # Errors
    /// It is not TOML, has keys that the schema has not, or describes something inconsistent. The error says where.
    pub fn from_toml(text: &str) -> Result<Self> {
        if text.len() > LONGEST {
            return Err(Error::TooMany { things: "bytes of TOML", found: text.len() as u64, most: LONGEST as u64 });
        }
        let raw: RawFabric = toml::from_str(text).map_err(|error| {
            let place = error.span().map_or_else(String::new, |span| format!(", line {}", line(text, span.start)));
            Error::Unreadable { what: format!("the fabric's TOML{place}"), why: error.message().to_owned() }
        })?;
        let mut builder = Builder::new();
        for host in raw.hosts {
            let at = host.name.span().start;
            let host = Host {
                name: host.name.into_inner(),
                rack: host.rack,
                cpus: host.cpus,
                dram: host.dram,
                dram_free: host.dram_free.unwrap_or(host.dram),
                load: host.load,
                into_pool: host.into_pool,
                out_of_pool: host.out_of_pool,
                cordoned: host.cordoned,
            };
            builder.host(host).map_err(|error| placed(text, at, &error))?;
        }
        for switch in raw.switches {
            let at = switch.name.span().start;
            let switch = Switch { name: switch.name.into_inner(), rack: switch.rack };
            builder.switch(switch).map_err(|error| placed(text, at, &error))?;
        }
        for device in raw.devices {
            let at = device.name.span().start;
            let device = Device {
                name: device.name.into_inner(),
                rack: device.rack,
                size: device.size,
                free: device.free.unwrap_or(device.size),
                bandwidth: device.bandwidth.unwrap_or(DEVICE_BANDWIDTH),
                pool: device.pool,
            };
            builder.device(device).map_err(|error| placed(text, at, &error))?;
        }
        for link in raw.links {
            let at = link.between.span().start;
            add_link(&mut builder, &link).map_err(|error| placed(text, at, &error))?;
        }
        Ok(builder.finish())
    }

    /// The fabric as TOML, from which the same fabric is read.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut text = String::from("# A fabric of nil; docs/fabric.md has the schema.\n");
        for host in self.hosts() {
            begin(&mut text, "host", &host.name, host.rack.as_ref());
            line_of(&mut text, "cpus", host.cpus);
            line_of(&mut text, "dram", quoted(&host.dram.exact()));
            line_of(&mut text, "dram_free", quoted(&host.dram_free.exact()));
            line_of(&mut text, "load", format!("{:?}", host.load));
            if host.cordoned {
                line_of(&mut text, "cordoned", true);
            }
        }
        for switch in self.switches() {
            begin(&mut text, "switch", &switch.name, switch.rack.as_ref());
        }
        for device in self.devices() {
            begin(&mut text, "device", &device.name, device.rack.as_ref());
            line_of(&mut text, "size", quoted(&device.size.exact()));
            line_of(&mut text, "free", quoted(&device.free.exact()));
            line_of(&mut text, "bandwidth", quoted(&device.bandwidth.exact()));
            if let Some(pool) = &device.pool {
                line_of(&mut text, "pool", quoted(pool.as_str()));
            }
        }
        for link in self.links() {
            let [a, b] = link.ends.map(|end| self.name(end));
            text.push_str("\n[[link]]\n");
            line_of(&mut text, "between", format!("[\"{a}\", \"{b}\"]"));
            line_of(&mut text, "latency_ns", link.latency_ns);
            line_of(&mut text, "bandwidth", quoted(&link.bandwidth.exact()));
            if !link.shared {
                line_of(&mut text, "shared", false);
            }
        }
        text
    }
}

fn add_link(builder: &mut Builder, link: &RawLink) -> Result<()> {
    let end = |name: &Name| -> Result<Node> {
        builder.find(name.as_str()).ok_or_else(|| Error::Unknown {
            thing: "host, switch or device",
            name: name.to_string(),
            known: "; a link joins two that the file describes".to_owned(),
        })
    };
    let [a, b] = link.between.as_ref();
    let ends = [end(a)?, end(b)?];
    builder.link(Link {
        ends,
        latency_ns: link.latency_ns.unwrap_or(LINK_LATENCY_NS),
        bandwidth: link.bandwidth.unwrap_or(LINK_BANDWIDTH),
        shared: link.shared,
    })?;
    Ok(())
}

fn placed(text: &str, at: usize, error: &Error) -> Error {
    Error::Unreadable { what: format!("the fabric's TOML, line {}", line(text, at)), why: error.to_string() }
}

/// The number of the line that has the byte `at`, from 1.
fn line(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
}

fn begin(text: &mut String, table: &str, name: &Name, rack: Option<&Name>) {
    let _ = write!(text, "\n[[{table}]]\n");
    line_of(text, "name", quoted(name.as_str()));
    if let Some(rack) = rack {
        line_of(text, "rack", quoted(rack.as_str()));
    }
}

fn line_of(text: &mut String, key: &str, value: impl std::fmt::Display) {
    let _ = writeln!(text, "{key} = {value}");
}

/// Names, UUIDs and sizes have nothing in them that TOML would have escaped.
fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
[[host]]
name = "A"
cpus = 8
dram = "64G"

[[host]]
name = "B"
cpus = 8
dram = "64G"
dram_free = "1G"
load = 0.5
cordoned = true

[[device]]
name = "P"
size = "1T"
pool = "5e1f0b1c-0000-4000-8000-00000000000a"

[[link]]
between = ["A", "P"]

[[link]]
between = ["P", "B"]
latency_ns = 90
bandwidth = 1000000
shared = false
"#;

    fn refusal(text: &str) -> String {
        Fabric::from_toml(text).expect_err("refused").to_string()
    }

    #[test]
    fn a_fabric_is_read_with_its_defaults() {
        let fabric = Fabric::from_toml(SMALL).expect("a fabric");
        assert_eq!((fabric.hosts().len(), fabric.devices().len(), fabric.links().len()), (2, 1, 2));
        assert_eq!(fabric.hosts()[0].dram_free, Bytes(64 << 30));
        assert_eq!(fabric.links()[0].bandwidth, LINK_BANDWIDTH);
        assert!(fabric.links()[0].shared && !fabric.links()[1].shared);
        assert!(fabric.find_device("5e1f0b1c-0000-4000-8000-00000000000a").is_ok());
    }

    #[test]
    fn what_was_read_is_written_so_that_it_is_read_as_the_same() {
        let fabric = Fabric::from_toml(SMALL).expect("a fabric");
        assert_eq!(Fabric::from_toml(&fabric.to_toml()).expect("our own"), fabric);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let cases = [
            (
                SMALL.replace("cpus = 8\ndram = \"64G\"\n\n", "cpus = 8\ndram = \"64G\"\ncolour = 1\n\n"),
                "line 6",
                "colour",
            ),
            (SMALL.replace("\"A\"\ncpus = 8", "\"A\"\ncpus = -8"), "line 4", "-8"),
            (SMALL.replace("\"1T\"", "-1"), "line 17", "less than nothing"),
            (SMALL.replace("\"1T\"", "\"4096P\""), "line 17", "1 EiB"),
            (SMALL.replace("load = 0.5", "load = nan"), "line 8", "load"),
            (SMALL.replace("name = \"B\"", "name = \"A\""), "line 8", "two things named A"),
            (SMALL.replace("[\"P\", \"B\"]", "[\"P\", \"C\"]"), "line 24", "named C"),
            (SMALL.replace("[\"P\", \"B\"]", "[\"A\", \"B\"]"), "line 24", "not with each other"),
            (SMALL.replace("latency_ns = 90", "latency_ns = 9000000000"), "line 24", "second"),
            (SMALL.replace("\"1G\"", "\"65G\""), "line 8", "more DRAM is free"),
            (SMALL.replace("name = \"P\"", "name = \"P Q\""), "line 16", "letters, digits"),
        ];
        for (text, place, what) in cases {
            let told = refusal(&text);
            assert!(told.contains(place) && told.contains(what), "expected {place} and {what}: {told}");
        }
    }

    #[test]
    fn what_is_no_toml_is_refused_with_its_line() {
        assert!(refusal("\n[[host]\n").contains("line 2"), "{}", refusal("\n[[host]\n"));
    }
}
