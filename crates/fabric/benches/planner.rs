//! What planning costs as fabrics grow: 100, 1,000 and 10,000 hosts.
//!
//! The fabrics of 10,000 hosts have 2,000 devices and 50,000 links. In one, groups of 25 hosts and five devices form a
//! ring: all of a group are linked, but for one host whose fifth link goes to the next group. In the other, all hang at
//! sixteen switches.

use criterion::{Criterion, criterion_group, criterion_main};
use nil_fabric::{
    Balance, Builder, Bytes, Device, DeviceId, Fabric, Guest, Host, HostId, Limits, Link, Memory, Node, PathRequest,
    Planner, Rate, Switch,
};
use std::hint::black_box;

const GIB: u64 = 1 << 30;
const HOSTS: [u32; 3] = [100, 1_000, 10_000];

fn host(at: u32) -> Host {
    Host {
        name: format!("h{at}").parse().expect("a name"),
        rack: None,
        cpus: 64,
        dram: Bytes(512 * GIB),
        dram_free: Bytes(400 * GIB),
        load: f64::from(at * 7 % 60) / 100.0,
        into_pool: None,
        out_of_pool: None,
        cordoned: false,
    }
}

fn device(at: u32) -> Device {
    Device {
        name: format!("d{at}").parse().expect("a name"),
        rack: None,
        size: Bytes(4096 * GIB),
        free: Bytes(2048 * GIB),
        bandwidth: Rate(128 * GIB),
        pool: None,
    }
}

/// Groups of 25 hosts and five devices in a ring.
fn fabric(hosts: u32) -> Fabric {
    let mut builder = Builder::new();
    let ids: Vec<HostId> = (0..hosts).map(|at| builder.host(host(at)).expect("a host")).collect();
    let devices: Vec<DeviceId> = (0..hosts / 5).map(|at| builder.device(device(at)).expect("a device")).collect();
    for (at, id) in ids.iter().enumerate() {
        let group = at / 25 * 5;
        for number in 0..5 {
            // The first host of a group is the bridge to the next one.
            let bridge = at % 25 == 0 && number == 4;
            let near = if bridge { (group + 5) % devices.len() } else { group + number };
            let ends = [Node::Host(*id), Node::Device(devices[near])];
            builder.link(Link { ends, latency_ns: 200, bandwidth: Rate(32 * GIB), shared: true }).expect("a link");
        }
    }
    builder.finish()
}

/// As many hosts, devices and links, but all of them at sixteen switches, each of which is linked to each: every host
/// reaches every device.
fn flat(hosts: u32) -> Fabric {
    let mut builder = Builder::new();
    let switches: Vec<Node> = (0..16)
        .map(|at| Switch { name: format!("s{at}").parse().expect("a name"), rack: None })
        .map(|switch| Node::Switch(builder.switch(switch).expect("a switch")))
        .collect();
    let link = |ends, latency_ns| Link { ends, latency_ns, bandwidth: Rate(32 * GIB), shared: true };
    for (at, a) in switches.iter().enumerate() {
        for b in &switches[at + 1..] {
            builder.link(link([*a, *b], 80)).expect("a link");
        }
    }
    for at in 0..hosts {
        let host = Node::Host(builder.host(host(at)).expect("a host"));
        for number in 0..4 {
            let switch = switches[(at as usize * 3 + number * 5) % 16];
            builder.link(link([host, switch], 100 + u64::from(at % 7))).expect("a link");
        }
    }
    for at in 0..hosts / 5 {
        let device = Node::Device(builder.device(device(at)).expect("a device"));
        for number in 0..5 {
            let switch = switches[(at as usize + number * 3) % 16];
            builder.link(link([device, switch], 90 + u64::from(at % 5))).expect("a link");
        }
    }
    builder.finish()
}

fn guests(fabric: &Fabric, count: usize) -> Vec<Guest> {
    let host = fabric.find_host("h17").expect("a host");
    let device = fabric.find_device("d0").expect("a device");
    let guest = |at: usize| Guest {
        name: format!("g{at}").parse().expect("a name"),
        host,
        memory: Bytes((1 + at as u64 % 16) * GIB),
        lies: if at.is_multiple_of(2) { Memory::Device(device) } else { Memory::Dram },
        millicpus: 2000,
    };
    (0..count).map(guest).collect()
}

/// The furthest host from the first: half-way around the ring of groups.
fn far(fabric: &Fabric) -> PathRequest {
    let from = fabric.find_host("h1").expect("a host");
    let to = fabric.find_host(&format!("h{}", fabric.hosts().len() / 2 + 1)).expect("a host");
    PathRequest::new(from, to, Bytes(4 * GIB))
}

fn planning(criterion: &mut Criterion) {
    for hosts in HOSTS {
        measure(criterion, &format!("{hosts} hosts in a ring of groups"), &fabric(hosts));
    }
    for hosts in HOSTS {
        measure(criterion, &format!("{hosts} hosts around switches"), &flat(hosts));
    }
    peak();
}

fn measure(criterion: &mut Criterion, name: &str, fabric: &Fabric) {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10);
    group.bench_function("namespaces and critical parts", |bench| {
        bench.iter(|| (black_box(fabric).namespaces(), fabric.critical()));
    });
    group.bench_function("preparing a planner", |bench| bench.iter(|| Planner::new(black_box(fabric))));
    let planner = Planner::new(fabric);
    let far = far(fabric);
    let near = PathRequest { to: fabric.find_host("h30").expect("a host"), ..far.clone() };
    for (name, request) in [("a path to a near host", near), ("a path to a far host", far)] {
        group.bench_function(name, |bench| bench.iter(|| planner.path(black_box(&request)).expect("a way")));
    }
    let guests = guests(fabric, 500);
    let emptied = [guests[0].host];
    let placed = planner.drain(&guests, &emptied, Limits::default());
    assert!(placed.left.is_empty(), "all have room");
    group.bench_function("draining 500 guests", |bench| {
        bench.iter(|| planner.drain(black_box(&guests), &emptied, Limits::default()));
    });
    assert!(planner.rebalance(&guests, Balance::default(), Limits::default()).plan.moves().count() > 0);
    group.bench_function("rebalancing 500 guests", |bench| {
        bench.iter(|| planner.rebalance(black_box(&guests), Balance::default(), Limits::default()));
    });
    group.finish();
}

/// The most memory that this process ever had.
fn peak() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM: unknown");
    println!("peak resident memory, all of the above: {}", line.trim_start_matches("VmHWM:").trim());
}

criterion_group!(benches, planning);
criterion_main!(benches);
