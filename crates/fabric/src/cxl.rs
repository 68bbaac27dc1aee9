//! The fabric as `cxl list -vvv` shows it to each of its hosts.
//!
//! One listing is what one host sees: buses, ports below them, endpoints, memory devices. Listings of several hosts are
//! put together by the devices' serial numbers: a device that two hosts list is one device, and it is what they share.
//! A switch has no identity in a listing, so each host's view of it is a switch of its own, named `HOST/PORT`.
//!
//! A listing tells nothing of latency, bandwidth, free memory or of what may be shared. Links have the figures that are
//! assumed when nothing is said; all of a device counts as free; and a device that more than one host lists is taken to
//! be shared. Whether it is (and not, say, divided between them) only those who set it up know.

use crate::error::{Error, Result};
use crate::model::{Builder, Device, DeviceId, Fabric, Host, Link, Node, Switch};
use crate::name::Name;
use crate::quantity::Bytes;
use crate::schema::{DEVICE_BANDWIDTH, LINK_BANDWIDTH, LINK_LATENCY_NS};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// More text than any listing has.
const LONGEST: usize = 64 << 20;
/// Larger than any device: 1 EiB.
const LARGEST: u64 = 1 << 60;

/// What a listing has of one memory device.
struct Listed {
    /// By what it is known to all hosts, if it has a serial number.
    serial: Option<u64>,
    name: String,
    size: u64,
    /// The ports above it that are switches, from the host's side.
    ports: Vec<String>,
}

impl Fabric {
    /// Puts the listings of several hosts together.
    ///
    /// # Errors
    /// A listing is not what `cxl list` prints, or a host is given twice.
    pub fn from_cxl(listings: &[(Host, &str)]) -> Result<Self> {
        let mut seen: Vec<(&Host, Vec<Listed>)> = Vec::new();
        for (host, text) in listings {
            seen.push((host, devices(&host.name, text)?));
        }
        let mut watchers: BTreeMap<u64, BTreeSet<&Name>> = BTreeMap::new();
        for (host, devices) in &seen {
            for serial in devices.iter().filter_map(|device| device.serial) {
                watchers.entry(serial).or_default().insert(&host.name);
            }
        }
        let mut builder = Builder::new();
        let mut by_serial: BTreeMap<u64, DeviceId> = BTreeMap::new();
        for (host, devices) in seen {
            let at = Node::Host(builder.host(host.clone())?);
            for device in devices {
                let shared = device.serial.is_some_and(|serial| watchers[&serial].len() > 1);
                let known = device.serial.and_then(|serial| by_serial.get(&serial).copied());
                let id = match known {
                    Some(id) => id,
                    None => builder.device(described(&host.name, &device)?)?,
                };
                by_serial.extend(device.serial.map(|serial| (serial, id)));
                let mut above = at;
                for port in &device.ports {
                    let name = format!("{}/{port}", host.name);
                    let below = match builder.find(&name) {
                        Some(switch) => switch,
                        None => {
                            let switch = builder.switch(Switch { name: name.parse()?, rack: host.rack.clone() })?;
                            builder.link(link([above, Node::Switch(switch)], true))?;
                            Node::Switch(switch)
                        }
                    };
                    above = below;
                }
                builder.link(link([above, Node::Device(id)], shared))?;
            }
        }
        Ok(builder.finish())
    }
}

fn described(host: &Name, device: &Listed) -> Result<Device> {
    let name = match device.serial {
        Some(serial) => format!("cxl-{serial:x}"),
        None => format!("{host}/{}", device.name),
    };
    let size = Bytes(device.size);
    Ok(Device { name: name.parse()?, rack: None, size, free: size, bandwidth: DEVICE_BANDWIDTH, pool: None })
}

fn link(ends: [Node; 2], shared: bool) -> Link {
    Link { ends, latency_ns: LINK_LATENCY_NS, bandwidth: LINK_BANDWIDTH, shared }
}

/// The enabled memory devices of a listing, each once.
fn devices(host: &Name, text: &str) -> Result<Vec<Listed>> {
    let unreadable = |why: String| Error::Unreadable { what: format!("the listing of host {host}"), why };
    let refuse = |why: String| Err(unreadable(why));
    if text.len() > LONGEST {
        return refuse(format!("it has {} bytes, and at most {LONGEST} are taken", text.len()));
    }
    let value: Value = match serde_json::from_str(text) {
        Ok(value @ (Value::Array(_) | Value::Object(_))) => value,
        Ok(_) => return refuse("it is neither a list nor an object; give what `cxl list -vvv` prints".to_owned()),
        Err(error) => return refuse(format!("{error}; give what `cxl list -vvv` prints")),
    };
    let mut found = Vec::new();
    // How deep it goes, the parser has limited.
    gather(&value, &[], &mut found).map_err(unreadable)?;
    let mut known = BTreeSet::new();
    found.retain(|device: &Listed| match device.serial {
        Some(serial) => known.insert(format!("{serial:x}")),
        None => known.insert(device.name.clone()),
    });
    Ok(found)
}

/// Walks down the listing. `ports` are the ports above, host bridges and switches.
fn gather(value: &Value, ports: &[String], found: &mut Vec<Listed>) -> std::result::Result<(), String> {
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| gather(item, ports, found)),
        Value::Object(object) => {
            let mut below = ports.to_vec();
            if let Some(Value::String(port)) = object.get("port") {
                below.push(port.clone());
            }
            if let Some(Value::String(name)) = object.get("memdev") {
                let disabled = object.get("state").and_then(Value::as_str) == Some("disabled");
                if !disabled {
                    found.push(listed(object, name, ports)?);
                }
            }
            // What else there is, and will be in later versions, is looked through and otherwise passed over.
            object.values().try_for_each(|inner| gather(inner, &below, found))
        }
        _ => Ok(()),
    }
}

fn listed(object: &Map<String, Value>, name: &str, ports: &[String]) -> std::result::Result<Listed, String> {
    let size = |key: &str| match object.get(key) {
        None => Ok(0),
        Some(Value::Number(number)) => {
            let bytes = number.as_u64().filter(|bytes| *bytes <= LARGEST);
            bytes.ok_or_else(|| format!("{name}: {key} is {number}, which is no size of memory"))
        }
        Some(_) => Err(format!("{name}: {key} is no number; leave out --human, whose figures are rounded")),
    };
    let bytes = size("ram_size")?.saturating_add(size("pmem_size")?);
    let serial = match object.get("serial") {
        Some(Value::Number(number)) => number.as_u64(),
        Some(Value::String(text)) => u64::from_str_radix(text.trim_start_matches("0x"), 16).ok(),
        _ => None,
    };
    // The first port is the host's own bridge.
    let switches = ports.iter().skip(1).cloned().collect();
    Ok(Listed {
        serial: serial.filter(|serial| *serial != 0),
        name: name.to_owned(),
        size: bytes.min(LARGEST),
        ports: switches,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::host;

    const A: &str = include_str!("../testdata/cxl-list-a.json");
    const B: &str = include_str!("../testdata/cxl-list-b.json");

    fn read(listings: &[(&str, &str)]) -> Result<Fabric> {
        let listings: Vec<(Host, &str)> = listings.iter().map(|(name, text)| (host(name), *text)).collect();
        Fabric::from_cxl(&listings)
    }

    #[test]
    fn hosts_that_list_one_serial_number_share_that_device_whatever_they_call_it() {
        let fabric = read(&[("A", A), ("B", B)]).expect("two listings");
        let names: Vec<&str> = fabric.devices().iter().map(|device| device.name.as_str()).collect();
        assert_eq!(names, ["A/mem3", "cxl-5a01", "cxl-5a02", "cxl-5b01"]);
        assert_eq!(fabric.device(fabric.find_device("cxl-5a01").expect("shared")).size, Bytes(512 << 30));
        let spaces = fabric.namespaces();
        assert_eq!(spaces.list().len(), 1);
        // Only what both list is shared: A's own expander and B's are not.
        assert_eq!(spaces.list()[0].devices.len(), 2);
    }

    #[test]
    fn switches_between_are_kept_and_a_disabled_device_is_not() {
        let fabric = read(&[("A", A)]).expect("a listing");
        let names: Vec<&str> = fabric.switches().iter().map(|switch| switch.name.as_str()).collect();
        assert_eq!(names, ["A/port6"]);
        assert!(fabric.find("A/mem9").is_none() && fabric.find("cxl-5a09").is_none());
        assert_eq!(fabric.namespaces().list()[0].devices, []);
    }

    #[test]
    fn what_is_no_listing_is_refused_with_the_host_that_it_is_of() {
        for (text, what) in [
            ("", "cxl list -vvv"),
            ("3", "neither a list"),
            ("[{\"memdev\":\"mem0\",\"ram_size\":-1}]", "no size"),
            ("[{\"memdev\":\"mem0\",\"ram_size\":\"256.00 MiB (268.44 MB)\"}]", "--human"),
            ("[{\"memdev\":\"a b\",\"ram_size\":1}]", "letters, digits"),
        ] {
            let told = read(&[("A", text)]).expect_err("refused").to_string();
            assert!(told.contains(what), "{text}: {told}");
        }
        assert!(read(&[("A", "[]"), ("A", "[]")]).is_err());
        assert!(read(&[("A", &"[".repeat(100_000))]).is_err());
    }

    #[test]
    fn an_empty_listing_is_a_host_without_memory_to_share() {
        let fabric = read(&[("A", "[]")]).expect("a host");
        assert_eq!((fabric.hosts().len(), fabric.devices().len()), (1, 0));
    }
}
