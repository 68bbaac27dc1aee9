//! What a person must know about the machine to judge the figures taken on it.

use std::path::Path;

/// Sentences to be printed beside every figure.
pub(crate) fn sentences() -> Vec<String> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    describe(&cpuinfo, |module| Path::new("/sys/module").join(module).exists())
}

fn describe(cpuinfo: &str, loaded: impl Fn(&str) -> bool) -> Vec<String> {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    let has = |flag: &str| flags.split_ascii_whitespace().any(|other| other == flag);
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let mut sentences = vec![
        "Both hosts are processes of one machine, and the pool is its ordinary memory: a real fabric is slower than that."
            .to_owned(),
    ];
    if !has("vmx") && !has("svm") {
        let pvm = if loaded("kvm_pvm") { "KVM here is PVM" } else { "KVM here does without VT-x and AMD-V" };
        sentences.push(format!(
            "{pvm}: it switches to the guest by page tables, in software. With VT-x or AMD-V the steps take other times."
        ));
    }
    if has("hypervisor") {
        sentences.push("This machine is a virtual machine itself, so its host may pause it at any time.".into());
    }
    if (1..=2).contains(&cores) {
        let plural = if cores == 1 { "" } else { "s" };
        sentences.push(format!("It has {cores} core{plural}, which the guest, both hosts and this program share."));
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "processor\t: 0\nflags\t\t: fpu hypervisor\nprocessor\t: 1\nflags\t\t: fpu hypervisor\n";

    #[test]
    fn a_small_virtual_machine_with_pvm_is_told_as_what_it_is() {
        let sentences = describe(SMALL, |module| module == "kvm_pvm").join(" ");
        for part in ["one machine", "PVM", "a virtual machine itself", "2 cores"] {
            assert!(sentences.contains(part), "{part} is missing: {sentences}");
        }
    }

    #[test]
    fn an_ordinary_machine_has_only_the_one_limit() {
        let cpuinfo = "processor\t: 0\nflags\t\t: fpu vmx\n".repeat(8);
        assert_eq!(describe(&cpuinfo, |_| false).len(), 1);
    }
}
