//! What guests' memory can lie in, and whether it can move.

use super::{Finding, text};
use nil_mover::topology::{DaxDriver, NodeKind, Topology, Warning};
use nil_pool::Bytes;
use std::path::Path;

const HUGE: &str = "sys/kernel/mm/transparent_hugepage/";

pub(super) fn check(root: &Path) -> Vec<Finding> {
    let topology = Topology::read(root);
    let mut findings =
        vec![userfaultfd(), shared_memory(), huge_pages(root), huge_pages_of_files(root), reserved(root)];
    findings.extend([nodes(&topology), dax(&topology), cxl(&topology)]);
    findings
}

fn userfaultfd() -> Finding {
    match nil_mover::Userfault::open() {
        Ok(_) => Finding::good("userfaultfd", "write-protects anonymous and shared memory"),
        Err(error) => Finding::limited("userfaultfd", "cannot be used")
            .meaning(format!(
                "{error}\n  Guests' memory cannot move between DRAM and pool while they run; handoffs of guests in a pool work."
            ))
            .cured_by("Linux 6.4 or later; run agents as root, or `sysctl vm.unprivileged_userfaultfd=1`, or permit /dev/userfaultfd"),
    }
}

fn shared_memory() -> Finding {
    const ABOUT: &str = "/dev/shm";
    match rustix::fs::statvfs(ABOUT) {
        Ok(stat) => {
            let (all, free) = (Bytes(stat.f_blocks * stat.f_frsize), Bytes(stat.f_bavail * stat.f_frsize));
            Finding::good(ABOUT, format!("{free} of {all} free, for pools on one machine"))
        }
        Err(errno) => Finding::limited(ABOUT, errno.to_string())
            .meaning("The demo and the examples make their pools there.")
            .cured_by("mount -t tmpfs tmpfs /dev/shm"),
    }
}

/// The word in brackets is the one that holds (Documentation/admin-guide/mm/transhuge.rst).
fn chosen(setting: &str) -> Option<&str> {
    setting.split_once('[')?.1.split_once(']').map(|(chosen, _)| chosen)
}

fn huge_pages(root: &Path) -> Finding {
    const ABOUT: &str = "huge pages in DRAM";
    let setting = text(root, &format!("{HUGE}enabled"));
    match setting.as_deref().and_then(chosen) {
        Some(word @ ("always" | "madvise")) => Finding::good(ABOUT, word),
        word => Finding::limited(ABOUT, word.unwrap_or("this kernel has none"))
            .meaning("Guests in DRAM have small pages: they run slower, and their memory moves slower.")
            .cured_by("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"),
    }
}

fn huge_pages_of_files(root: &Path) -> Finding {
    const ABOUT: &str = "huge pages in tmpfs";
    let setting = text(root, &format!("{HUGE}shmem_enabled"));
    match setting.as_deref().and_then(chosen) {
        Some("deny") => Finding::limited(ABOUT, "deny")
            .meaning("Pools in files on tmpfs have small pages, whatever they are mounted with.")
            .cured_by("echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled"),
        Some(word @ ("always" | "within_size" | "advise" | "force")) => Finding::good(ABOUT, word),
        Some(word) => Finding::good(ABOUT, format!("{word}: on a tmpfs of its own, mounted with huge=advise")),
        None => Finding::limited(ABOUT, "this kernel has none"),
    }
}

/// Pages for hugetlbfs (Documentation/admin-guide/mm/hugetlbpage.rst).
fn reserved(root: &Path) -> Finding {
    const ABOUT: &str = "hugetlbfs";
    let read =
        |name: &str| text(root, &format!("sys/kernel/mm/hugepages/hugepages-2048kB/{name}"))?.parse::<u64>().ok();
    match (read("nr_hugepages"), read("free_hugepages")) {
        (Some(all), Some(free)) if all > 0 => Finding::good(ABOUT, format!("{free} of {all} pages of 2 MiB free")),
        (Some(_), _) => Finding::absent(ABOUT, "no pages of 2 MiB reserved, which only pools on hugetlbfs need"),
        (None, _) => Finding::absent(ABOUT, "not in this kernel, which only pools on hugetlbfs need"),
    }
}

fn nodes(topology: &Topology) -> Finding {
    let with_cpus = topology.nodes.iter().filter(|node| !node.cpus.is_empty()).count();
    let expanders = topology.nodes.iter().filter(|node| matches!(node.kind, NodeKind::Expander(_))).count();
    let found = match topology.nodes.len() {
        0 => return Finding::absent("NUMA", "this kernel tells of no nodes"),
        _ => format!("nodes with CPUs: {with_cpus}, of memory alone: {expanders}"),
    };
    Finding::good("NUMA", found)
}

fn dax(topology: &Topology) -> Finding {
    const ABOUT: &str = "dax devices";
    let Some(devices) = &topology.dax else {
        return Finding::absent(ABOUT, "this kernel has no dax bus; pools lie in files here");
    };
    let mappable: Vec<_> = devices
        .iter()
        .filter(|device| device.driver == DaxDriver::DeviceDax)
        .map(|device| device.name.as_str())
        .collect();
    let found = if mappable.is_empty() { "none that programs can map".to_owned() } else { mappable.join(", ") };
    devices_found(ABOUT, found, !mappable.is_empty(), &cures(topology, |warning| !is_of_cxl(warning)))
}

fn cxl(topology: &Topology) -> Finding {
    let Some(cxl) = &topology.cxl else { return Finding::absent("CXL", "this kernel has no CXL bus") };
    let found = format!("{} memory devices, {} regions", cxl.memory_devices.len(), cxl.regions.len());
    devices_found("CXL", found, !cxl.memory_devices.is_empty(), &cures(topology, is_of_cxl))
}

fn is_of_cxl(warning: &Warning) -> bool {
    matches!(warning, Warning::Idle { .. })
}

fn cures(topology: &Topology, concerns: impl Fn(&Warning) -> bool) -> String {
    let cures: Vec<_> =
        topology.warnings().iter().filter(|warning| concerns(warning)).map(ToString::to_string).collect();
    cures.join("\n        ")
}

/// Devices that may be used unless there is something to cure.
fn devices_found(about: &'static str, found: String, any: bool, cures: &str) -> Finding {
    match (cures, any) {
        ("", true) => Finding::good(about, found),
        ("", false) => Finding::absent(about, found),
        (cures, _) => Finding::limited(about, found).cured_by(cures),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;
    use std::fs;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
            fs::write(path, content).expect("a file");
        }
        root
    }

    #[test]
    fn the_setting_in_brackets_is_the_one_that_holds() {
        let root = machine(&[
            ("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n"),
            ("sys/kernel/mm/transparent_hugepage/shmem_enabled", "always within_size [advise] never deny force\n"),
        ]);
        assert_eq!(huge_pages(root.path()).verdict, Verdict::Limited);
        assert_eq!(huge_pages_of_files(root.path()).verdict, Verdict::Good);
        assert_eq!(huge_pages(Path::new("/nonexistent")).found, "this kernel has none");
    }

    #[test]
    fn a_device_that_is_online_as_ram_comes_with_its_cure() {
        let root = machine(&[("sys/bus/dax/devices/dax0.0/size", "1073741824\n")]);
        let dax_of = |root: &Path| dax(&Topology::read(root));
        let finding = dax_of(root.path());
        assert_eq!(finding.verdict, Verdict::Limited, "{finding:?}");
        assert!(finding.cure.is_some_and(|cure| cure.contains("daxctl reconfigure-device")));
        assert_eq!(dax_of(Path::new("/nonexistent")).verdict, Verdict::Absent);
    }

    #[test]
    fn reserved_pages_are_counted() {
        let at = |name: &str| format!("sys/kernel/mm/hugepages/hugepages-2048kB/{name}");
        let root = machine(&[(&at("nr_hugepages"), "8"), (&at("free_hugepages"), "3")]);
        assert_eq!(reserved(root.path()).found, "3 of 8 pages of 2 MiB free");
        assert_eq!(reserved(Path::new("/nonexistent")).verdict, Verdict::Absent);
    }
}
