//! Hosts that meet in a pool alone, as if on two machines: each has a run directory of its own, and calls the other by mutual
//! TLS at the address that stands in the pool.

use crate::kvm::has_kvm;
use crate::playground::{Agent, Playground, await_that};
use nil_host::{Authority, CertificateOrder, Role};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Starts an agent that answers other machines, and shows a certificate of that authority.
fn agent(playground: &Playground, name: &str, pool: &str, authority: &Authority) -> Agent {
    playground.agent_with(name, &["--config", &configure(playground, name, &[pool], authority)])
}

/// Writes the configuration of such an agent, and returns where it is.
pub(crate) fn configure(playground: &Playground, name: &str, pools: &[&str], authority: &Authority) -> String {
    let addresses = vec![LOOPBACK.into()];
    let order = CertificateOrder { name: name.parse().expect("a good name"), role: Role::Host, addresses, days: 1 };
    let issued = authority.issue(&order).expect("a certificate");
    let port = TcpListener::bind((LOOPBACK, 0)).and_then(|listener| listener.local_addr()).expect("a free port").port();
    let config = playground.path(&format!("{name}.toml"));
    let [cert, key, ca] = [issued.certificate, issued.key, issued.authority].map(|path| path.display().to_string());
    fs::write(
        &config,
        format!(
            "pools = {pools:?}\n[listen.tls]\naddress = \"127.0.0.1:{port}\"\ncert = \"{cert}\"\nkey = \"{key}\"\nca = \"{ca}\"\n"
        ),
    )
    .expect("a configuration");
    config
}

pub(crate) fn authority(playground: &Playground, name: &str) -> Authority {
    let dir = playground.path(name);
    fs::create_dir_all(&dir).expect("a directory");
    Authority::create(dir.as_ref()).expect("an authority")
}

#[test]
fn a_guest_moves_between_hosts_that_meet_in_a_pool_alone() {
    if !has_kvm() {
        return;
    }
    let (here, there) = (Playground::new(), Playground::new());
    let (pool, authority) = (here.pool(), authority(&here, "ca"));
    let _a = agent(&here, "A", &pool, &authority);
    let _b = agent(&there, "B", &pool, &authority);
    let witness = here.run_in_dram("g", "A");
    drop(witness);
    assert_eq!(here.json(&["migrate", "g", "--to", "B", "--fast"])["outcome"], "moved");
    assert_eq!(there.await_state("g", "running")["host"], "B");
    assert_eq!(there.json(&["migrate", "g", "--to", "A", "--fast"])["outcome"], "moved");
    assert_eq!(here.await_state("g", "running")["host"], "A");
    here.nil(&["migrate", "g", "--to", "C"]).refuses(1, &["there is no host named C", "known: A, B"]);
}

#[test]
fn what_a_host_of_another_machine_has_is_known_to_those_who_plan() {
    let (here, there) = (Playground::new(), Playground::new());
    let (pool, authority) = (here.pool(), authority(&here, "ca"));
    let _b = agent(&there, "B", &pool, &authority);
    let _a = agent(&here, "A", &pool, &authority);
    let told = || here.json(&["topo", "show"])["hosts"].as_array().expect("hosts").clone();
    await_that("B's telling what it has", || {
        let hosts = told();
        let cpus = std::thread::available_parallelism().expect("a number of CPUs").get();
        hosts.len() == 2 && hosts.iter().all(|host| host["cpus"] == cpus && host["dram"].as_u64() > Some(0))
    });
    let known = here.json(&["ps"])["elsewhere"].clone();
    assert_eq!((&known[0]["name"], known.as_array().map(Vec::len)), (&"B".into(), Some(1)), "{known}");
    assert!(known[0]["resources"]["dram_bytes"].as_u64() > Some(0), "{known}");
}

#[test]
fn a_host_with_a_certificate_of_another_authority_gets_no_guest() {
    if !has_kvm() {
        return;
    }
    let (here, there) = (Playground::new(), Playground::new());
    let pool = here.pool();
    let _a = agent(&here, "A", &pool, &authority(&here, "ca"));
    let _b = agent(&there, "B", &pool, &authority(&there, "another-ca"));
    here.run_vm("g", "A");
    here.nil(&["migrate", "g", "--to", "B"]).refuses(1, &["host B", "certificate"]);
    assert_eq!(here.await_state("g", "running")["host"], "A");
    assert!(there.workers().is_empty());
}
