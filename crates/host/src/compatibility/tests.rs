//! The check says yes to what fits, and no with the reason to every single thing that does not.

use super::*;
use crate::report::PoolReport;
use crate::versions::Interface;
use nil_vmm::{CpuModel, Device, DeviceKind, Feature, Features, XsaveState};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn features(level: &str) -> Features {
    CpuModel::named(level).expect("a level").features().clone()
}

fn xsave() -> XsaveState {
    XsaveState { bit: 2, offset: 576, bytes: 256 }
}

/// A guest, and a host that has just what it needs.
fn fitting() -> (Requirements, HostReport) {
    let (pool, me) = (PoolId::random(), HostId::random());
    let devices = vec![Device { kind: DeviceKind::Serial, version: 1 }];
    let machine = GuestNeeds {
        vcpus: 4,
        model: Some("x86-64-v3".parse().expect("a name")),
        vendor: "GenuineIntel".into(),
        features: features("x86-64-v3"),
        unnamed: Vec::new(),
        xsave: vec![xsave()],
        msrs: [0x174, 0x175].into(),
        devices: devices.clone(),
        tsc_khz: Some(2_200_000),
    };
    let needs = Requirements {
        guest: "g".parse().expect("a name"),
        access: vec![me],
        versions: Versions::first(),
        machine,
        pools: vec![PoolNeed { pool, why: "guest g has its state there".into(), bytes: 1 << 30 }],
        dram_bytes: 1 << 30,
        page_bytes: 4096,
    };
    let msrs: BTreeSet<u32> = [0x174, 0x175, 0x176].into();
    let offer = KvmOffer {
        most_vcpus: 4,
        vendor: "GenuineIntel".into(),
        cpu: CpuModel::new("host".parse().expect("a name"), features("x86-64-v3"), Some(msrs)).expect("a model"),
        unmaskable: Features::new(),
        xsave: vec![xsave()],
        devices,
        tsc_khz: Some(2_200_000),
    };
    let capabilities = Capabilities {
        versions: Versions::first(),
        kvm: Virtualisation::Offered(Box::new(offer)),
        free_dram_bytes: 1 << 30,
        page_bytes: 4096,
        placement: Placement::Open,
    };
    let target = HostReport {
        name: "B".parse().expect("a name"),
        id: Some(me),
        agent_pid: Some(1),
        pools: vec![PoolReport { id: pool, path: "/pool".into(), slot: 1, free_bytes: 1 << 30, total_bytes: 1 << 30 }],
        guests: 0,
        unattended: Vec::new(),
        silent: None,
        standing: None,
        lost_pools: Vec::new(),
        capabilities: Some(capabilities),
        resources: None,
    };
    (needs, target)
}

/// Something that keeps the guest from the host.
#[derive(Clone, Debug)]
enum Violation {
    Feature(Feature),
    Unnamed,
    Vendor,
    Xsave,
    Msr(u32),
    Vcpus(u32),
    NoDevice,
    DeviceVersion(u16),
    Tsc(u32),
    State(u32),
    Handoff(u32),
    Pool(u32),
    Membership,
    Room(u64),
    Dram(u64),
    Page,
    Cordon,
    Access,
    NoKvm,
    Untold,
}

impl Violation {
    fn commit(&self, needs: &mut Requirements, target: &mut HostReport) {
        let Some(host) = &mut target.capabilities else { return };
        let Virtualisation::Offered(offer) = &mut host.kvm else { return };
        match *self {
            Self::Feature(feature) => drop(needs.machine.features.insert(feature)),
            Self::Unnamed => needs.machine.unnamed.push("CPUID 0x7.0 ECX bit 3".into()),
            Self::Vendor => offer.vendor = "AuthenticAMD".into(),
            Self::Xsave => needs.machine.xsave[0].offset += 64,
            Self::Msr(msr) => drop(needs.machine.msrs.insert(msr)),
            Self::Vcpus(more) => needs.machine.vcpus += more,
            Self::NoDevice => offer.devices.clear(),
            Self::DeviceVersion(version) => needs.machine.devices[0].version = version,
            Self::Tsc(khz) => needs.machine.tsc_khz = Some(khz),
            Self::State(version) => needs.versions.state = version,
            Self::Handoff(version) => needs.versions.handoff = version,
            Self::Pool(version) => needs.versions.pool = version,
            Self::Membership => target.pools.clear(),
            Self::Room(less) => target.pools[0].free_bytes -= less,
            Self::Dram(less) => host.free_dram_bytes -= less,
            Self::Page => host.page_bytes = 16384,
            Self::Access => needs.access = vec![HostId::random()],
            Self::Cordon => host.placement = Placement::Cordoned,
            Self::NoKvm => host.kvm = Virtualisation::Missing("there is no /dev/kvm".into()),
            Self::Untold => target.capabilities = None,
        }
    }

    /// Whether this is the reason that tells of it.
    fn is_told_by(&self, reason: &Incompatibility) -> bool {
        match (self, reason) {
            (Self::Feature(feature), Incompatibility::Features { missing, .. }) => *missing == [feature.name()],
            (Self::Unnamed, Incompatibility::Features { missing, .. }) => missing.len() == 1,
            (Self::Msr(msr), Incompatibility::Msrs { missing }) => missing == &[*msr],
            (Self::State(version), Incompatibility::Version { interface: Interface::State, guest, .. })
            | (Self::Handoff(version), Incompatibility::Version { interface: Interface::Handoff, guest, .. })
            | (Self::Pool(version), Incompatibility::Version { interface: Interface::Pool, guest, .. }) => {
                guest == version
            }
            (Self::Vendor, Incompatibility::Vendor { .. })
            | (Self::Xsave, Incompatibility::Xsave { .. })
            | (Self::Vcpus(_), Incompatibility::Vcpus { .. })
            | (Self::NoDevice | Self::DeviceVersion(_), Incompatibility::Device { .. })
            | (Self::Tsc(_), Incompatibility::TscFrequency { .. })
            | (Self::Membership, Incompatibility::NotAMember { .. })
            | (Self::Room(_), Incompatibility::PoolRoom { .. })
            | (Self::Dram(_), Incompatibility::Dram { .. })
            | (Self::Page, Incompatibility::PageSize { .. })
            | (Self::Access, Incompatibility::NotListed { .. })
            | (Self::Cordon, Incompatibility::Cordoned)
            | (Self::NoKvm, Incompatibility::NoKvm { .. })
            | (Self::Untold, Incompatibility::Untold) => true,
            _ => false,
        }
    }

    /// Whether the other hides this one: what cannot be asked is not judged.
    fn is_hidden_by(&self, other: &Self) -> bool {
        use std::mem::discriminant;
        let of_machine = matches!(
            self,
            Self::Feature(_)
                | Self::Unnamed
                | Self::Vendor
                | Self::Xsave
                | Self::Msr(_)
                | Self::Vcpus(_)
                | Self::Tsc(_)
                | Self::NoDevice
                | Self::DeviceVersion(_)
        );
        let of_pools = matches!(self, Self::Membership | Self::Room(_) | Self::Access);
        discriminant(self) == discriminant(other)
            || matches!(other, Self::NoKvm) && of_machine
            || matches!(other, Self::Untold) && !of_pools
            || matches!((self, other), (Self::Room(_), Self::Membership))
            || matches!(
                (self, other),
                (Self::DeviceVersion(_), Self::NoDevice) | (Self::NoDevice, Self::DeviceVersion(_))
            )
            || matches!((self, other), (Self::Feature(_), Self::Unnamed) | (Self::Unnamed, Self::Feature(_)))
    }
}

fn violation() -> impl Strategy<Value = Violation> {
    let has = features("x86-64-v3");
    let lacking: Vec<Feature> = Feature::all().filter(|feature| !has.contains(feature)).collect();
    prop_oneof![
        proptest::sample::select(lacking).prop_map(Violation::Feature),
        Just(Violation::Unnamed),
        Just(Violation::Vendor),
        Just(Violation::Xsave),
        (0x177..u32::MAX).prop_map(Violation::Msr),
        (1..1000u32).prop_map(Violation::Vcpus),
        Just(Violation::NoDevice),
        (2..u16::MAX).prop_map(Violation::DeviceVersion),
        prop_oneof![1..2_199_000u32, 2_201_000..u32::MAX].prop_map(Violation::Tsc),
        (2..u32::MAX).prop_map(Violation::State),
        (3..u32::MAX).prop_map(Violation::Handoff),
        (3..u32::MAX).prop_map(Violation::Pool),
        Just(Violation::Membership),
        (1..=1u64 << 30).prop_map(Violation::Room),
        (1..=1u64 << 30).prop_map(Violation::Dram),
        Just(Violation::Page),
        Just(Violation::Access),
        Just(Violation::Cordon),
        Just(Violation::NoKvm),
        Just(Violation::Untold),
    ]
}

#[test]
fn a_host_that_has_just_what_the_guest_needs_can_have_it() {
    let (needs, target) = fitting();
    assert_eq!(check(&needs, &target), []);
}

proptest! {
    #[test]
    fn whatever_single_thing_is_wrong_is_the_one_reason(violation in violation()) {
        let (mut needs, mut target) = fitting();
        violation.commit(&mut needs, &mut target);
        let reasons = check(&needs, &target);
        prop_assert_eq!(reasons.len(), 1, "{:?}", &reasons);
        prop_assert!(violation.is_told_by(&reasons[0]), "{:?}", &reasons);
        prop_assert!(!reasons[0].to_string().is_empty());
    }

    #[test]
    fn of_several_things_that_are_wrong_every_one_is_told(violations in proptest::collection::vec(violation(), 1..8)) {
        let (mut needs, mut target) = fitting();
        // After these the host has nothing more to say: they come last.
        let (last, first): (Vec<_>, Vec<_>) =
            violations.into_iter().partition(|it| matches!(it, Violation::NoKvm | Violation::Untold));
        let mut done: Vec<Violation> = Vec::new();
        for violation in first.into_iter().chain(last) {
            if done.iter().all(|earlier| !violation.is_hidden_by(earlier) && !earlier.is_hidden_by(&violation)) {
                violation.commit(&mut needs, &mut target);
                done.push(violation);
            }
        }
        let reasons = check(&needs, &target);
        for violation in &done {
            prop_assert!(reasons.iter().any(|it| violation.is_told_by(it)), "{:?} is not in {:?}", violation, reasons);
        }
        prop_assert_eq!(reasons.len(), done.len());
    }
}

#[test]
fn reasons_are_read_by_people_one_a_line_and_by_programs_as_objects() {
    let (mut needs, mut target) = fitting();
    for violation in [Violation::Vendor, Violation::Dram(1), Violation::Cordon] {
        violation.commit(&mut needs, &mut target);
    }
    let reasons = check(&needs, &target);
    let verdict = Verdict::new("g".parse().expect("a name"), "B".parse().expect("a name"), reasons);
    let text = verdict.to_string();
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(text.starts_with("guest g cannot go to host B:\n  it is cordoned"), "{text}");
    let json = serde_json::to_value(&verdict).expect("JSON");
    let kinds: Vec<_> = json["reasons"].as_array().expect("a list").iter().map(|it| it["reason"].clone()).collect();
    assert_eq!(kinds, ["cordoned", "dram", "vendor"]);
    assert_eq!(serde_json::from_value::<Verdict>(json).expect("a verdict"), verdict);
}

#[test]
fn a_tsc_that_is_a_little_off_is_the_same() {
    let (mut needs, target) = fitting();
    needs.machine.tsc_khz = Some(2_200_500);
    assert_eq!(check(&needs, &target), []);
    needs.machine.tsc_khz = None;
    assert_eq!(check(&needs, &target), []);
}

#[test]
fn room_in_a_pool_is_counted_over_all_that_is_to_lie_there() {
    let (mut needs, target) = fitting();
    let again = needs.pools[0].clone();
    needs.pools.push(again);
    assert!(matches!(check(&needs, &target)[..], [Incompatibility::PoolRoom { needed, .. }] if needed == 2 << 30));
}
