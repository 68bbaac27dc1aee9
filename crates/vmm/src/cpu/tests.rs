//! Models, and the CPUID that is made of them.

use super::cpuid::{self, Controls};
use super::{BadModel, CpuModel, Feature, Features, ModelName};
use crate::error::Error;
use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use proptest::prelude::*;

fn level(level: u8) -> CpuModel {
    CpuModel::named(&format!("x86-64-v{level}")).expect("a level")
}

fn name(name: &str) -> ModelName {
    name.parse().expect("a good name")
}

fn feature(name: &str) -> Feature {
    name.parse().expect("a feature")
}

/// The CPUID of a machine that has all of these features, and states in the places where Intel puts them.
fn host(features: &Features) -> CpuId {
    let mut entries: Vec<kvm_cpuid_entry2> = Vec::new();
    let leaf = |function, index, [eax, ebx, ecx, edx]: [u32; 4]| kvm_cpuid_entry2 {
        function,
        index,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    };
    let [ebx, edx, ecx] = [*b"Genu", *b"ineI", *b"ntel"].map(u32::from_le_bytes);
    entries.push(leaf(0, 0, [0xD, ebx, ecx, edx]));
    entries.push(leaf(0xA, 0, [5, 0, 0, 0]));
    for (index, word) in [(0, [0xE7, 832, 2688, 0]), (2, [256, 576, 0, 0]), (5, [64, 1088, 0, 0])] {
        entries.push(leaf(0xD, index, word));
    }
    entries.extend([leaf(0xD, 6, [512, 1152, 0, 0]), leaf(0xD, 7, [1024, 1664, 0, 0])]);
    for feature in features {
        let word = feature.word();
        let at = entries.iter().position(|it| (it.function, it.index) == (word.function, word.index));
        let at = at.unwrap_or_else(|| {
            entries.push(leaf(word.function, word.index, [0; 4]));
            entries.len() - 1
        });
        let entry = &mut entries[at];
        let registers = [&mut entry.eax, &mut entry.ebx, &mut entry.ecx, &mut entry.edx];
        *registers[word.register as usize] |= feature.mask();
    }
    CpuId::from_entries(&entries).expect("few entries")
}

fn everything() -> CpuId {
    host(&Feature::all().collect())
}

#[test]
fn every_level_has_all_of_the_level_below() {
    for lower in 1..4 {
        assert!(level(lower).features().is_subset(level(lower + 1).features()));
        assert_eq!(level(lower).level(), lower);
    }
    assert_eq!(level(4).level(), 4);
}

#[test]
fn a_guest_of_a_model_sees_what_is_in_it_and_nothing_else() {
    for model in (1..=4).map(level) {
        let guest = cpuid::of_model(&model, &everything()).expect("the host has everything");
        let promise = cpuid::read(guest.as_slice());
        assert_eq!(&promise.features, model.features());
        assert!(promise.unnamed.is_empty(), "{:?}", promise.unnamed);
        assert_eq!(promise.vendor, "GenuineIntel");
    }
}

#[test]
fn what_a_guest_starts_with_fits_its_model() {
    let controls = |model| Controls::of(&cpuid::of_model(&model, &everything()).expect("the host has everything"));
    let size = |model| {
        let guest = cpuid::of_model(&model, &everything()).expect("the host has everything");
        guest.as_slice().iter().find(|it| (it.function, it.index) == (0xD, 0)).expect("leaf 0xD").ecx
    };
    assert_eq!([1, 2, 3, 4].map(|it| controls(level(it)).xcr0), [1, 1, 7, 0xE7]);
    assert_eq!([1, 2, 3, 4].map(|it| size(level(it))), [0, 0, 832, 2688]);
    let osxsave = 1 << 18;
    assert_eq!(controls(level(2)).cr4 & osxsave, 0);
    assert_eq!(controls(level(3)).cr4 & osxsave, osxsave);
}

#[test]
fn a_host_that_lacks_something_of_a_model_says_what() {
    let two = host(level(2).features());
    let error = cpuid::of_model(&level(3), &two).expect_err("it has no AVX");
    let Error::ModelNotOffered { missing, .. } = &error else { panic!("{error}") };
    let names = ["fma", "movbe", "xsave", "avx", "f16c", "bmi1", "avx2", "bmi2", "lzcnt"];
    assert_eq!(missing, &names.map(feature).into());
    assert!(
        error.to_string().contains("fma, xsave, movbe") || error.to_string().contains("fma, movbe, xsave"),
        "{error}"
    );
}

#[test]
fn what_has_no_name_is_hidden_and_told_of_a_guest_that_has_it() {
    let mut odd = everything();
    let leaf7 = odd.as_mut_slice().iter_mut().find(|it| (it.function, it.index) == (7, 0)).expect("leaf 7");
    leaf7.ecx |= 1 << 3;
    assert_eq!(cpuid::read(odd.as_slice()).unnamed, ["CPUID 0x7.0 ECX bit 3"]);
    let guest = cpuid::of_model(&level(4), &odd).expect("the host has everything");
    assert!(cpuid::read(guest.as_slice()).unnamed.is_empty());
}

#[test]
fn performance_counters_are_hidden() {
    let guest = cpuid::of_host(&everything()).expect("a table");
    let counters = guest.as_slice().iter().find(|it| it.function == 0xA).expect("leaf 0xA");
    assert_eq!(counters.eax, 0);
}

#[test]
fn avx_512_whose_state_does_not_fit_into_what_travels_is_not_offered() {
    let mut large = everything();
    let state = large.as_mut_slice().iter_mut().find(|it| (it.function, it.index) == (0xD, 7)).expect("a state");
    state.ebx = 4096;
    let promise = cpuid::read(cpuid::of_host(&large).expect("a table").as_slice());
    assert!(promise.features.iter().all(|it| !it.name().starts_with("avx512")));
    assert!(promise.features.contains(&feature("avx2")));
}

#[test]
fn each_vcpu_sees_its_own_apic_id() {
    let vcpu = cpuid::for_vcpu(&everything(), 3).expect("a table");
    assert_eq!(vcpu.as_slice().iter().find(|it| it.function == 1).expect("leaf 1").ebx >> 24, 3);
}

#[test]
fn a_cluster_has_what_all_of_its_hosts_have() {
    let with = |names: &[&str], msrs: &[u32]| {
        let mut features = level(3).features().clone();
        features.extend(names.iter().copied().map(feature));
        CpuModel::new(name("host"), features, Some(msrs.iter().copied().collect())).expect("a model")
    };
    let hosts = [with(&["aes", "sha-ni"], &[1, 2]), with(&["aes", "rdrand"], &[2, 3]), level(4)];
    let common = CpuModel::common(name("cluster"), &hosts).expect("a model").expect("three hosts");
    let mut expected = level(3).features().clone();
    expected.extend(["aes"].map(feature));
    expected.retain(|it| hosts[2].features().contains(it));
    assert_eq!(common.features(), &expected);
    assert_eq!(common.msrs(), Some(&[2].into()));
    assert_eq!(CpuModel::common(name("none"), []), Ok(None));
}

#[test]
fn what_stands_on_a_feature_that_a_cluster_lacks_falls_with_it() {
    let mut features = level(3).features().clone();
    features.remove(&feature("avx"));
    features.retain(|it| !matches!(it.name(), "avx2" | "fma" | "f16c"));
    let lesser = CpuModel::new(name("lesser"), features, None).expect("a model without AVX");
    let common = CpuModel::common(name("c"), [&level(4), &lesser]).expect("a model").expect("two hosts");
    assert!(common.features().iter().all(|it| !it.name().starts_with("avx")));
    assert_eq!(common.level(), 2);
}

#[test]
fn models_that_no_guest_could_run_with_are_refused() {
    let model = |features| CpuModel::new(name("odd"), features, None).map(|_| ());
    assert_eq!(model(Features::new()), Err(BadModel::Empty { name: name("odd") }));
    let mut without = level(1).features().clone();
    without.remove(&feature("sse2"));
    assert_eq!(model(without), Err(BadModel::TooSmall { name: name("odd"), missing: [feature("sse2")].into() }));
    let mut avx = level(2).features().clone();
    avx.insert(feature("avx"));
    let unfounded = BadModel::Unfounded { name: name("odd"), feature: feature("avx"), needed: feature("xsave") };
    assert_eq!(model(avx), Err(unfounded));
}

#[test]
fn a_model_is_written_as_json_and_read_again() {
    let model =
        CpuModel::new(name("cluster-a"), level(2).features().clone(), Some([0x10, 0x174].into())).expect("good");
    let text = serde_json::to_string(&model).expect("JSON");
    assert_eq!(serde_json::from_str::<CpuModel>(&text).expect("a model"), model);
    assert_eq!(serde_json::from_str::<CpuModel>("\"x86-64-v3\"").expect("a level"), level(3));
}

#[test]
fn a_written_model_with_unknown_words_is_refused_by_name() {
    let refused = |text: &str| serde_json::from_str::<CpuModel>(text).expect_err("refused").to_string();
    assert!(refused("\"x86-64-v9\"").contains("no CPU model named x86-64-v9"));
    assert!(serde_json::from_str::<CpuModel>("{\"name\":\"a b\",\"features\":[]}").is_err());
    assert!(serde_json::from_str::<CpuModel>("{\"name\":\"a\",\"features\":[\"avx3\"]}").is_err());
}

fn some_features() -> impl Strategy<Value = Features> {
    let all: Vec<Feature> = Feature::all().collect();
    proptest::sample::subsequence(all.clone(), 0..all.len()).prop_map(|some| some.into_iter().collect())
}

proptest! {
    #[test]
    fn whatever_a_host_has_no_guest_sees_more_than_its_model_and_its_host(has in some_features(), of in 1u8..=4) {
        let host = cpuid::of_host(&host(&has)).expect("a table");
        let offered = cpuid::read(host.as_slice()).features;
        match cpuid::of_model(&level(of), &host) {
            Ok(guest) => {
                let seen = cpuid::read(guest.as_slice()).features;
                prop_assert!(seen.is_subset(level(of).features()) && seen.is_subset(&offered));
                prop_assert!(level(of).missing_from(&seen).is_empty());
            }
            Err(error) => {
                let told = matches!(&error, Error::ModelNotOffered { missing, .. } if !missing.is_empty());
                prop_assert!(told, "{}", error);
            }
        }
    }

    #[test]
    fn reading_a_model_never_panics(text in ".{0,200}") {
        let _ = serde_json::from_str::<CpuModel>(&text);
        let _ = CpuModel::named(&text);
    }
}
