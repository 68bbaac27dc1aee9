//! Whether tests that need KVM can run here.

/// Says `skipped:` and why when they cannot.
pub(crate) fn has_kvm() -> bool {
    let kvm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if let Err(error) = &kvm {
        println!("skipped: /dev/kvm cannot be used here: {error}");
    }
    kvm.is_ok()
}
