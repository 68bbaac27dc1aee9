//! `nil topo`: the fabric that living hosts make, and those from files.

use crate::playground::Playground;
use serde_json::Value;
use std::fs;

fn names(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().map(|name| name.as_str().expect("a name")).collect()
}

#[test]
fn living_hosts_that_share_no_pool_reach_each_other_over_one_that_is_in_both() {
    let playground = Playground::new();
    playground.add_pool("other");
    let (pool, other) = (playground.pool(), playground.path("other"));
    let _a = playground.agent_with("A", &["--pool", &pool]);
    let _h = playground.agent_with("H", &["--pool", &pool, "--pool", &other]);
    let _z = playground.agent_with("Z", &["--pool", &other]);

    let shown = playground.json(&["topo", "show"]);
    assert_eq!(names(&shown["namespaces"][0]["hosts"]), ["A", "H", "Z"]);
    assert_eq!((&shown["namespaces"][0]["handoffs"], shown["devices"].as_array().map(Vec::len)), (&2.into(), Some(2)));

    let checked = playground.json(&["topo", "check"]);
    let critical = checked["critical"].as_array().expect("a list");
    assert!(critical.iter().any(|one| one["kind"] == "host" && one["name"] == "H"), "{critical:?}");

    let ways = playground.json(&["topo", "path", "A", "Z", "--guest-memory", "64M"]);
    assert_eq!((&ways[0]["way"], names(&ways[0]["hops"])), (&"A –pool→ H –other→ Z".into(), vec!["H"]));
    let told = playground.nil(&["topo", "path", "A", "Z", "--guest-memory", "64M", "--explain"]).stdout;
    assert!(told.contains("relocate at H from pool to other"), "{told}");
    let usual = playground.nil(&["topo", "path", "A", "Z"]);
    assert!(!usual.stderr.contains("--guest-memory"), "it need not be given: {}", usual.stderr);
    let avoided = playground.nil(&["topo", "path", "A", "Z", "--guest-memory", "64M", "--avoid", "H"]);
    avoided.refuses(1, &["from A to Z", "to be avoided"]);
}

#[test]
fn a_generated_fabric_is_shown_checked_and_drawn() {
    let playground = Playground::new();
    let file = playground.path("rack.toml");
    let generated = playground.nil(&["topo", "generate", "--racks", "3", "--hosts", "4", "--devices", "2"]);
    fs::write(&file, &generated.stdout).expect("a file");
    let toml = playground.json(&["topo", "generate", "--racks", "3", "--hosts", "4", "--devices", "2"]);
    assert_eq!(toml["toml"], generated.stdout);

    let shown = playground.nil(&["topo", "show", "--file", &file]).stdout;
    assert!(shown.starts_with("12 hosts, 3 switches, 6 memory devices"), "{shown}");
    let dot = playground.nil(&["topo", "show", "--file", &file, "--dot"]).stdout;
    assert!(dot.contains("\"r1h1\" -- \"r2d1\""), "{dot}");
    let picture = playground.path("rack.svg");
    playground.json(&["topo", "show", "--file", &file, "--svg", &picture]);
    assert!(fs::read_to_string(&picture).expect("a picture").contains("r3h4"));

    let ways = playground.json(&[
        "topo",
        "path",
        "r1h2",
        "r2h2",
        "--file",
        &file,
        "--guest-memory",
        "4G",
        "--alternatives",
        "2",
    ]);
    assert_eq!(ways.as_array().map(Vec::len), Some(3));
    assert!(ways[1]["why_slower"].is_string() && ways[0]["why_slower"].is_null());
}

#[test]
fn listings_of_two_hosts_are_put_together() {
    let playground = Playground::new();
    let listing = |name: &str| {
        format!("{name}={}/../fabric/testdata/cxl-list-{}.json", env!("CARGO_MANIFEST_DIR"), name.to_lowercase())
    };
    let shown = playground.json(&["topo", "show", "--cxl", &listing("A"), "--cxl", &listing("B")]);
    assert_eq!(names(&shown["namespaces"][0]["devices"]), ["cxl-5a01", "cxl-5a02"]);
}

#[test]
fn a_file_that_describes_no_fabric_is_refused_with_the_line() {
    let playground = Playground::new();
    let file = playground.path("rack.toml");
    fs::write(&file, "[[host]]\nname = \"A\"\ncpus = -1\ndram = \"1G\"\n").expect("a file");
    playground.nil(&["topo", "show", "--file", &file]).refuses(1, &["rack.toml", "line 3", "-1"]);
    playground.nil(&["topo", "show", "--file", "/nowhere.toml"]).refuses(1, &["/nowhere.toml"]);
}
