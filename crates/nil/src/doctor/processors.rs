//! KVM, kernels in guests, clocks.

use super::Finding;
use nil_vmm::{KernelMode, KvmHost, KvmOffer, Paging};
use std::fs;

pub(super) fn check() -> Vec<Finding> {
    let mut findings = Vec::new();
    match KvmOffer::probe() {
        Ok(offer) => findings.extend([kvm(&offer), kernels(), paging()]),
        Err(error) => findings.push(
            Finding::fatal("KVM", "cannot be used")
                .meaning(format!("{error}\n  No virtual machine runs here; pools, tags and plans work."))
                .cured_by(
                    "enable VT-x or SVM in the firmware, `modprobe kvm_intel` or `kvm_amd`, and give the user who runs agents \
                     access: `usermod -aG kvm USER`; in a virtual machine its host must permit nesting",
                ),
        ),
    }
    findings.push(clock(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()));
    findings
}

fn kvm(offer: &KvmOffer) -> Finding {
    let clock = offer.tsc_khz.map_or_else(String::new, |khz| format!(", TSC {:.2} GHz", f64::from(khz) / 1e6));
    Finding::good("KVM", format!("{}, at most {} vCPUs a guest{clock}", offer.vendor, offer.most_vcpus))
}

fn kernels() -> Finding {
    const ABOUT: &str = "kernels in guests";
    let with_hardware = "use a machine whose KVM has VT-x or SVM underneath";
    match KernelMode::probe() {
        Ok(KernelMode::Native) => Finding::good(ABOUT, "run natively"),
        Ok(KernelMode::Emulated { per_instruction }) => {
            Finding::limited(ABOUT, format!("are emulated, {} ns an instruction", per_instruction.as_nanos()))
                .meaning("Stock kernels are too slow here. nil's own guests, which run at CPL 3, are not affected.")
                .cured_by(with_hardware)
        }
        Ok(KernelMode::Incomplete { exit }) => {
            Finding::limited(ABOUT, format!("KVM cannot emulate what they need (cmpxchg16b at CPL 0: {exit})"))
                .meaning("Stock kernels die here. nil's own guests, which run at CPL 3, are not affected.")
                .cured_by(with_hardware)
        }
        Err(error) => Finding::limited(ABOUT, format!("it cannot be found out: {error}")),
    }
}

fn paging() -> Finding {
    match KvmHost::open().map(|host| host.paging()) {
        Ok(Paging::Nested) => Finding::good("page tables", "walked by hardware (EPT, NPT)"),
        Ok(Paging::Shadow) => Finding::limited("page tables", "shadowed by KVM")
            .meaning("Guests that change their page tables run slower, also for a while after each handoff."),
        Err(error) => Finding::limited("page tables", error.to_string()),
    }
}

/// Whether the TSC counts at one rate, in sleep too: guests' clocks go by it.
fn clock(cpuinfo: &str) -> Finding {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let missing: Vec<_> =
        ["constant_tsc", "nonstop_tsc"].into_iter().filter(|flag| !flags.split(' ').any(|it| it == *flag)).collect();
    if missing.is_empty() {
        return Finding::good("clock", "the TSC counts at one rate, always");
    }
    Finding::limited("clock", format!("the CPU does not promise {}", missing.join(", ")))
        .meaning("Guests' clocks may drift while CPUs change their frequency or sleep.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_clock_is_good_if_it_neither_changes_nor_stops() {
        let of = |flags: &str| clock(&format!("processor: 0\nflags\t\t: {flags}\n")).verdict;
        assert_eq!(of("fpu constant_tsc nonstop_tsc"), Verdict::Good);
        assert_eq!(of("fpu constant_tsc_not nonstop_tsc"), Verdict::Limited);
        assert_eq!(of(""), Verdict::Limited);
    }
}
