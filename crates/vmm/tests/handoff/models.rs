//! Guests that are promised less than their host has, and more than a small host has.

use crate::rack::{COUNTER, Rack, await_progress, kvm};
use nil_migrate::WaitStyle;
use nil_pool::{GuestControl, MemoryHome};
use nil_vmm::{CpuModel, Deadlines, GuestNeeds, HandoffOutcome, KvmOffer, Vm, VmEvent};
use std::time::Duration;

/// Asks CPUID again and again, and writes what it says beside the count: leaf 1 ECX at 8, leaf 7 EBX at 16, leaf
/// 0x4000_0001 EAX at 24.
/// `mov rdi, 0x10000; next: mov eax, 1; xor ecx, ecx; cpuid; mov [rdi+8], ecx; mov eax, 7; xor ecx, ecx; cpuid;
/// mov [rdi+16], ebx;
/// mov eax, 0x40000001; cpuid; mov [rdi+24], eax; inc r8; mov [rdi], r8; jmp next`
const ASKING: [u8; 49] = [
    0x48, 0xC7, 0xC7, 0x00, 0x00, 0x01, 0x00, 0xB8, 0x01, 0x00, 0x00, 0x00, 0x31, 0xC9, 0x0F, 0xA2, 0x89, 0x4F, 0x08,
    0xB8, 0x07, 0x00, 0x00, 0x00, 0x31, 0xC9, 0x0F, 0xA2, 0x89, 0x5F, 0x10, 0xB8, 0x01, 0x00, 0x00, 0x40, 0x0F, 0xA2,
    0x89, 0x47, 0x18, 0x49, 0xFF, 0xC0, 0x4C, 0x89, 0x07, 0xEB, 0xD6,
];
/// Sets ZMM31 and the mask K1 once, and writes both beside its count again and again: K1 at 8, ZMM31 at 64.
/// `mov rdi, 0x10000; mov rax, 0x123456789abcdef; vpbroadcastq zmm31, rax; kmovw k1, eax; next: inc rbx;
/// vmovdqu64 [rdi+0x40], zmm31; kmovw ecx, k1; mov [rdi+8], rcx; mov [rdi], rbx; jmp next`
const HOLDING: [u8; 50] = [
    0x48, 0xC7, 0xC7, 0x00, 0x00, 0x01, 0x00, 0x48, 0xB8, 0xEF, 0xCD, 0xAB, 0x89, 0x67, 0x45, 0x23, 0x01, 0x62, 0x62,
    0xFD, 0x48, 0x7C, 0xF8, 0xC5, 0xF8, 0x92, 0xC8, 0x48, 0xFF, 0xC3, 0x62, 0x61, 0xFE, 0x48, 0x7F, 0x7F, 0x01, 0xC5,
    0xF8, 0x93, 0xC9, 0x48, 0x89, 0x4F, 0x08, 0x48, 0x89, 0x1F, 0xEB, 0xE9,
];
const PATTERN: u64 = 0x0123_4567_89AB_CDEF;

/// In leaf 1 ECX.
const SSE4_2: u64 = 1 << 20;

fn model(name: &str) -> CpuModel {
    CpuModel::named(name).expect("a level")
}

/// Whether this host has what a model wants; says so if it has not.
fn offers(model: &CpuModel) -> bool {
    let offer = KvmOffer::probe().expect("a KVM");
    let missing = model.missing_from(offer.cpu.features());
    if !missing.is_empty() {
        println!("skipped: this host has no {}: it lacks {missing:?}", model.name());
    }
    missing.is_empty()
}

/// A word that the guest writes, `offset` bytes beside its count.
fn word(vm: &Vm, offset: usize) -> u64 {
    // SAFETY: it lies inside the guest's memory, which the guest writes with single aligned stores.
    unsafe { vm.memory().as_ptr().add(COUNTER + offset).cast::<u64>().read_volatile() }
}

/// What of these words the guest must not see: what is not in its model, if this KVM can hide it.
fn hidden(model: &CpuModel, names: &[&str]) -> Vec<String> {
    let unmaskable = KvmOffer::probe().expect("a KVM").unmaskable;
    let told = |name: &str| name.parse().is_ok_and(|it| unmaskable.contains(&it) || model.features().contains(&it));
    names.iter().filter(|name| !told(name)).map(ToString::to_string).collect()
}

/// x86-64-v2, and nothing that KVM adds.
fn bare_v2() -> CpuModel {
    let mut features = model("x86-64-v2").features().clone();
    features.retain(|feature| !feature.name().starts_with("kvm"));
    CpuModel::new("bare-v2".parse().expect("a name"), features, None).expect("a model")
}

fn booted(rack: &Rack, image: &[u8], model: CpuModel) -> (GuestControl, Vm) {
    let (control, vm) = rack.boot_as(image, false, MemoryHome::Pool, Some(model)).expect("this host has all of it");
    vm.start().expect("the guest starts");
    await_progress(&vm, 0);
    (control, vm)
}

fn handed_over(rack: &Rack, control: &GuestControl, vm: &Vm) -> Vm {
    let to = rack.hosts[1].slot();
    vm.clear_arm();
    let target = Vm::arm(control, to, WaitStyle::Auto).expect("the target arms");
    let outcome = vm.handoff(to, Deadlines::default()).expect("the handoff begins");
    assert!(matches!(outcome, HandoffOutcome::Released { .. }), "{outcome:?}");
    assert!(matches!(target.next_event(Duration::from_secs(1)), Some(VmEvent::Landed { .. })));
    target
}

#[test]
fn a_guest_of_v2_sees_no_avx_here_nor_where_it_goes() {
    let model = bare_v2();
    if !kvm() || !offers(&model) {
        return;
    }
    let hidden = hidden(&model, &["fma", "avx", "f16c", "avx2", "avx512f", "kvmclock", "kvm-pv-ipi"]);
    println!("this KVM can hide {hidden:?}");
    let sees = |vm: &Vm| {
        let words = [("fma", 8, 12), ("avx", 8, 28), ("f16c", 8, 29), ("avx2", 16, 5), ("avx512f", 16, 16)];
        let of_kvm = [("kvmclock", 24, 0), ("kvm-pv-ipi", 24, 11)];
        let all = words.into_iter().chain(of_kvm);
        all.filter(|&(_, at, bit)| word(vm, at) & (1 << bit) != 0).map(|(name, ..)| name.to_owned()).collect::<Vec<_>>()
    };
    let rack = Rack::new();
    let (control, vm) = booted(&rack, &ASKING, model);
    assert!(sees(&vm).iter().all(|seen| !hidden.contains(seen)), "{:?}", sees(&vm));
    assert_eq!(word(&vm, 8) & SSE4_2, SSE4_2);
    let vm = handed_over(&rack, &control, &vm);
    let count = word(&vm, 0);
    await_progress(&vm, count + 1);
    assert!(sees(&vm).iter().all(|seen| !hidden.contains(seen)), "{:?}", sees(&vm));
    assert!(hidden.contains(&"kvmclock".to_owned()), "KVM decides about its own leaf");
}

#[test]
fn the_model_travels_with_the_guest_and_tells_what_it_needs() {
    if !kvm() || !offers(&model("x86-64-v2")) {
        return;
    }
    let rack = Rack::new();
    let (control, _vm) = booted(&rack, &ASKING, model("x86-64-v2"));
    let needs = GuestNeeds::read(&control).expect("its configuration");
    let offer = KvmOffer::probe().expect("a KVM");
    assert_eq!(needs.model.expect("it has a model").as_str(), "x86-64-v2");
    assert!(needs.features.is_subset(model("x86-64-v2").features()) && needs.features.is_subset(offer.cpu.features()));
    assert_eq!((needs.vcpus, needs.vendor, needs.tsc_khz), (1, offer.vendor, offer.tsc_khz));
    assert!(needs.xsave.is_empty() && needs.unnamed.is_empty());
    assert!(needs.msrs.is_subset(offer.cpu.msrs().expect("a host tells its MSRs")));
}

#[test]
fn msrs_that_a_model_leaves_out_do_not_travel() {
    if !kvm() || !offers(&model("x86-64-v1")) {
        return;
    }
    let rack = Rack::new();
    let one = model("x86-64-v1");
    let meagre = CpuModel::new("one".parse().expect("a name"), one.features().clone(), Some([0x174].into()));
    let (control, vm) = booted(&rack, &ASKING, meagre.expect("a model"));
    assert!(GuestNeeds::read(&control).expect("its configuration").msrs.iter().all(|&msr| msr == 0x174));
    handed_over(&rack, &control, &vm);
}

#[test]
fn avx_512_registers_travel_where_the_model_has_them() {
    if !kvm() || !offers(&model("x86-64-v4")) {
        return;
    }
    let rack = Rack::new();
    let (control, vm) = booted(&rack, &HOLDING, model("x86-64-v4"));
    let target = handed_over(&rack, &control, &vm);
    let count = word(&target, 0);
    await_progress(&target, count + 1);
    assert_eq!(word(&target, 8), PATTERN & 0xFFFF);
    assert!((0..8).all(|lane| word(&target, 64 + lane * 8) == PATTERN));
}

#[test]
fn a_model_that_this_host_does_not_have_is_refused_before_anything_runs() {
    if !kvm() {
        return;
    }
    let offer = KvmOffer::probe().expect("a KVM");
    let mut features = offer.cpu.features().clone();
    let foreign = ["xop", "fma4", "tbm"].map(|name| name.parse().expect("a feature"));
    features.extend(foreign.into_iter().chain(model("x86-64-v3").features().iter().copied()));
    let lacking = features.difference(offer.cpu.features()).count();
    let wanted = CpuModel::new("chimera".parse().expect("a name"), features, None).expect("a model");
    if lacking == 0 {
        println!("skipped: this host has every feature there is");
        return;
    }
    let rack = Rack::new();
    let Err(error) = rack.boot_as(&ASKING, false, MemoryHome::Pool, Some(wanted)) else { panic!("it booted") };
    assert!(error.to_string().contains("chimera") && error.to_string().contains("tbm"), "{error}");
}
