//! What planning costs as fabrics grow: 100, 1,000 and 10,000 hosts.
//!
//! The fabric of 10,000 hosts has 2,000 devices and 50,000 links: groups of 25 hosts and five devices, all of which are
//! linked but for one host in each, whose fifth link goes to the next group.

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use nil_fabric::{
    Builder, Bytes, Device, DeviceId, Fabric, Guest, Host, HostId, Limits, Link, Memory, Node, PathRequest, Planner,
    Rate,
};
use std::hint::black_box;

const GIB: u64 = 1 << 30;
const HOSTS: [u32; 3] = [100, 1_000, 10_000];

fn fabric(hosts: u32) -> Fabric {
    let mut builder = Builder::new();
    let host = |at: u32| Host {
        name: format!("h{at}").parse().expect("a name"),
        rack: None,
        cpus: 64,
        dram: Bytes(512 * GIB),
        dram_free: Bytes(256 * GIB),
        load: f64::from(at * 7 % 60) / 100.0,
        cordoned: false,
    };
    let device = |at: u32| Device {
        name: format!("d{at}").parse().expect("a name"),
        rack: None,
        size: Bytes(4096 * GIB),
        free: Bytes(2048 * GIB),
        bandwidth: Rate(128 * GIB),
        pool: None,
    };
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

fn guests(fabric: &Fabric, count: usize) -> Vec<Guest> {
    let host = fabric.find_host("h1").expect("a host");
    let device = fabric.find_device("d0").expect("a device");
    let guest = |at: usize| Guest {
        name: format!("g{at}").parse().expect("a name"),
        host,
        memory: Bytes((1 + at as u64 % 16) * GIB),
        lies: if at.is_multiple_of(2) { Memory::Device(device) } else { Memory::Dram },
        millicpus: 500,
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
        let fabric = fabric(hosts);
        let mut group = criterion.benchmark_group(format!("{hosts} hosts"));
        group.sample_size(10);
        group.bench_function("namespaces and critical parts", |bench| {
            bench.iter(|| (black_box(&fabric).namespaces(), fabric.critical()));
        });
        group.bench_function("preparing a planner", |bench| bench.iter(|| Planner::new(black_box(&fabric))));
        let planner = Planner::new(&fabric);
        let near = PathRequest::new(far(&fabric).from, fabric.find_host("h30").expect("a host"), Bytes(4 * GIB));
        group.bench_function("a path to the next group", |bench| bench.iter(|| planner.path(black_box(&near))));
        let request = far(&fabric);
        group.bench_function("a path half-way around", |bench| bench.iter(|| planner.path(black_box(&request))));
        group.bench_with_input(BenchmarkId::new("draining", 500), &guests(&fabric, 500), |bench, guests| {
            let host = [guests[0].host];
            bench.iter_batched(|| (), |()| planner.drain(guests, &host, Limits::default()), BatchSize::PerIteration);
        });
        group.finish();
    }
    peak();
}

/// The most memory that this process ever had.
fn peak() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM: unknown");
    println!("peak resident memory, all of the above: {}", line.trim_start_matches("VmHWM:").trim());
}

criterion_group!(benches, planning);
criterion_main!(benches);
